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
    assert [line.split()[0] for line in golf(capsys, "recipe", "list").out.splitlines()] == recipe_names()


def test_values_that_no_tool_acts_on_yet_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "pr1493")["unbuilt"] == ["eval.sliding_stride", "ttt"]
    assert shown(capsys, "pr1855")["unbuilt"] == ["ttt"]
    assert shown(capsys, "baseline")["unbuilt"] == []
    assert "# not built   ttt:" in golf(capsys, "recipe", "show", "pr1801").out


def test_the_difference_of_two_recipes_is_what_their_text_says(capsys: pytest.CaptureFixture[str]) -> None:
    rows = golf(capsys, "recipe", "diff", "pr1787", "pr1801", "--json").json
    assert {row["key"]: (row["first"], row["second"]) for row in rows} == {
        "model.carry.beta": (None, [1.56, 1.85, 2.13]),
        "model.carry.alpha": (None, [[0.23, 0.04, 0.03], [0.13, -0.34, 0.01], [0.06, 0.19, -0.02]]),
        "model.carry.learn": (None, False),
        "model.carry.round_to_bfloat16": (None, True),
        "run.log_every": (500, 100),
    }


def test_a_difference_prints_one_line_a_value_with_a_dash_for_what_is_off(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split() for line in golf(capsys, "recipe", "diff", "pr1855", "pr1787").out.splitlines()]
    assert lines[0] == ["key", "pr1855", "pr1787"]
    assert ["model.attention_gate.scale", "0.5", "1.0"] in lines
    assert ["model.smear.window", "12", "-"] in lines


def test_a_recipe_does_not_differ_from_itself(finished: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert golf(capsys, "recipe", "diff", finished.toml, finished.toml, "--json").json == []
    assert "the same values" in golf(capsys, "recipe", "diff", "demo", "demo").out


def test_an_unknown_recipe_to_compare_with_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    said = golf(capsys, "recipe", "diff", "demo", "dmo")
    assert said.code == 2
    assert "did you mean demo?" in said.err
