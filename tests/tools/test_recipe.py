"""golf recipe: a recipe resolved, and what it will do."""

import tomllib
from typing import Any

import pytest
import torch

from golf.model.init import build_model, count_parameters
from golf.recipe import load_recipe, recipe_from_dict, recipe_names
from tests.session_tools import CPU, Place, golf


def shown(capsys: pytest.CaptureFixture[str], *words: Any) -> dict[str, Any]:
    said = golf(capsys, "recipe", "show", *words, "--json")
    assert said.code == 0, said.err
    report: dict[str, Any] = said.json
    return report


def test_the_parameter_count_is_that_of_the_model_that_is_built(
    finished: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = finished.recipe()
    model = build_model(recipe.model, seed=1, dtype=torch.float32, device=CPU)
    assert shown(capsys, finished.toml)["parameters"] == count_parameters(model)


def test_the_layers_are_shown_with_the_loop_off_and_on(finished: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, finished.toml)["layers"] == {
        "loop off": {"encoder": [0, 1], "decoder": [2, 3]},
        "loop on": {"encoder": [0, 1, 2], "decoder": [1, 2, 3]},
    }


def test_the_rates_are_those_at_the_start_the_middle_and_the_end(
    finished: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = {moment["at"]: moment for moment in shown(capsys, finished.toml)["schedule"]}
    assert [rates[at]["lr_multiplier"] for at in ("start", "middle", "end")] == [1.0, 1.0, 0.25]
    assert [rates[at]["matrix_lr"] for at in ("start", "middle", "end")] == [0.02, 0.02, 0.005]
    assert [rates[at]["embed_lr"] for at in ("start", "middle", "end")] == pytest.approx([0.03, 0.03, 0.0075])
    assert [rates[at]["scalar_lr"] for at in ("start", "middle", "end")] == [0.02, 0.02, 0.005]


def test_overrides_are_in_what_is_shown(finished: Place, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--set", "model.num_layers=5", "--set", "optim.matrix_lr=0.04")
    report = shown(capsys, finished.toml, *words)
    assert report["recipe"]["model"]["num_layers"] == 5
    assert report["schedule"][0]["matrix_lr"] == 0.04
    assert report["digest"] == finished.recipe("model.num_layers=5", "optim.matrix_lr=0.04").digest


def test_what_the_terminal_gets_is_a_recipe(finished: Place, capsys: pytest.CaptureFixture[str]) -> None:
    said = golf(capsys, "recipe", "show", finished.toml)
    assert recipe_from_dict(tomllib.loads(said.out)) == finished.recipe()
    parameters = shown(capsys, finished.toml)["parameters"]
    assert f"# parameters  {parameters:,}" in said.out


def test_every_shipped_recipe_is_listed_and_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    listed = golf(capsys, "recipe", "list", "--json").json
    assert list(listed) == recipe_names()
    assert listed["demo"] == load_recipe("demo").description
    for name in listed:
        assert shown(capsys, name)["recipe"]["name"] == name
    assert golf(capsys, "recipe", "list").out.splitlines()[0].startswith("demo ")
