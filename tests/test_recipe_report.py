"""What a recipe says it will do is what it does."""

from golf.model.init import count_parameters
from golf.recipe import load_recipe
from golf.recipe_report import describe_recipe
from tests.pico import pico_model, pico_recipe


def test_the_parameter_count_is_the_built_models() -> None:
    assert describe_recipe(pico_recipe())["parameters"] == count_parameters(pico_model())


def test_the_layers_are_shown_with_the_loop_off_and_on() -> None:
    assert describe_recipe(pico_recipe())["layers"] == {
        "loop off": {"encoder": [0, 1], "decoder": [2, 3]},
        "loop on": {"encoder": [0, 1, 2], "decoder": [1, 2, 3]},
    }


def test_without_a_loop_there_is_one_order_of_layers() -> None:
    recipe = pico_recipe("model.loop=false", "schedule.loop_at=false")
    assert describe_recipe(recipe)["layers"] == {"layers": {"encoder": [0, 1], "decoder": [2, 3]}}


def test_the_rates_are_the_base_rates_times_the_multiplier() -> None:
    recipe = pico_recipe("schedule.warmdown_fraction=0.75", "schedule.min_lr=0.1")
    rows = describe_recipe(recipe)["schedule"]
    assert [(row["at"], row["lr_multiplier"]) for row in rows] == [("start", 1.0), ("middle", 0.5 / 0.75), ("end", 0.1)]
    assert [rows[1][key] for key in ("matrix_lr", "embed_lr", "scalar_lr")] == [
        base * (0.5 / 0.75) for base in (0.02, 0.03, 0.02)
    ]


def test_the_digest_is_the_recipes() -> None:
    assert describe_recipe(load_recipe("demo"))["digest"] == load_recipe("demo").digest
