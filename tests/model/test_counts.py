"""Sizes and layer lists of the published models, as `golf recipe show` prints them."""

import pytest

from golf.recipe import load_recipe
from golf.recipe_report import describe_recipe

LOOPED = {"encoder": [0, 1, 2, 3, 4, 5, 3, 4], "decoder": [5, 3, 4, 5, 6, 7, 8, 9, 10]}
PLAIN = {"encoder": [0, 1, 2, 3, 4], "decoder": [5, 6, 7, 8, 9, 10]}


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("baseline", 17_059_912),
        ("pr401", 26_993_756),
        ("pr1493", 35_944_536),
        ("pr1787", 35_945_658),
        ("pr1801", 35_945_658),  # the carry is frozen
        ("pr1855", 35_945_671),
    ],
)
def test_a_record_has_its_published_number_of_parameters(name: str, count: int) -> None:
    assert describe_recipe(load_recipe(name))["parameters"] == count


@pytest.mark.parametrize("name", ["pr1493", "pr1787", "pr1801", "pr1855"])
def test_a_looped_record_visits_its_layers_in_the_published_order(name: str) -> None:
    assert describe_recipe(load_recipe(name))["layers"] == {"loop off": PLAIN, "loop on": LOOPED}


@pytest.mark.parametrize(
    ("name", "layers"), [("baseline", {"encoder": [0, 1, 2, 3], "decoder": [4, 5, 6, 7, 8]}), ("pr401", PLAIN)]
)
def test_the_others_have_one_order(name: str, layers: dict[str, list[int]]) -> None:
    assert describe_recipe(load_recipe(name))["layers"] == {"layers": layers}


@pytest.mark.parametrize(
    ("loop", "order"),
    [
        (("num_layers=7", "loop.start=3", "loop.end=4", "loop.extra_passes=1"), [0, 1, 2, 3, 4, 3, 4, 5, 6]),
        (("num_layers=9", "loop.start=3", "loop.end=4", "loop.extra_passes=1"), [0, 1, 2, 3, 4, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_the_first_recurrent_models_visit_their_layers_in_the_published_order(
    loop: tuple[str, ...], order: list[int]
) -> None:
    recipe = load_recipe("pr1493", ["model.parallel_start=5", "model.xsa_last_n=7", *(f"model.{key}" for key in loop)])
    layers = describe_recipe(recipe)["layers"]["loop on"]
    assert [*layers["encoder"], *layers["decoder"]] == order
