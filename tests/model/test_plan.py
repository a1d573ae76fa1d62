"""The order of layers and what each decoder visit merges, against the tables of the published recipes."""

from typing import Any, Literal

import pytest

from golf.model.plan import LayerPlan, count_skip_rows, plan_layers
from golf.model_config import ModelConfig
from golf.part_config import LoopConfig, RopeConfig, SkipConfig


def config(
    num_layers: int,
    loop: tuple[int, int, int] | None = None,
    index: Literal["visit", "position"] | None = "visit",
) -> ModelConfig:
    sizes: dict[str, Any] = {"vocab_size": 8, "model_dim": 8, "num_heads": 1, "num_kv_heads": 1, "mlp_mult": 1.0}
    return ModelConfig(
        num_layers=num_layers,
        rope=RopeConfig(dims=2),
        loop=LoopConfig(start=loop[0], end=loop[1], extra_passes=loop[2]) if loop else None,
        skips=SkipConfig(index=index) if index else None,
        **sizes,
    )


RECORD = (11, (3, 5, 2))


def merges(plan: LayerPlan) -> list[tuple[int, int, int]]:
    """The (decoder layer, encoder layer, row) of every merge, in order, by walking the plan as the model does."""
    waiting: list[int] = []
    found = []
    for visit in plan.visits:
        if visit.skip_row is not None:
            found.append((visit.layer, waiting.pop(), visit.skip_row))
        if visit.pushes:
            waiting.append(visit.layer)
    return found


def test_eleven_layers_with_three_looped_twice_make_seventeen_visits() -> None:
    plan = plan_layers(config(*RECORD), looping=True)
    assert plan.encoder == [0, 1, 2, 3, 4, 5, 3, 4]
    assert plan.decoder == [5, 3, 4, 5, 6, 7, 8, 9, 10]
    assert [visit.slot for visit in plan.visits] == list(range(17))


def test_eleven_layers_without_the_loop_are_five_and_six() -> None:
    plan = plan_layers(config(*RECORD), looping=False)
    assert plan.encoder == [0, 1, 2, 3, 4]
    assert plan.decoder == [5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize(
    ("layers", "loop", "order"),
    [
        (7, (3, 4, 1), [0, 1, 2, 3, 4, 3, 4, 5, 6]),
        (9, (3, 4, 1), [0, 1, 2, 3, 4, 3, 4, 5, 6, 7, 8]),
        (4, (1, 2, 1), [0, 1, 2, 1, 2, 3]),
        (3, (0, 2, 1), [0, 1, 2, 0, 1, 2]),
        (3, (1, 1, 3), [0, 1, 1, 1, 1, 2]),
    ],
)
def test_the_looped_layers_follow_themselves(layers: int, loop: tuple[int, int, int], order: list[int]) -> None:
    assert [visit.layer for visit in plan_layers(config(layers, loop), looping=True).visits] == order


def test_passes_count_the_visits_of_a_layer() -> None:
    passes = [(visit.layer, visit.pass_index) for visit in plan_layers(config(*RECORD), looping=True).visits]
    assert passes[3:12] == [(3, 0), (4, 0), (5, 0), (3, 1), (4, 1), (5, 1), (3, 2), (4, 2), (5, 2)]


def test_without_a_loop_in_the_recipe_both_plans_are_one() -> None:
    assert plan_layers(config(11), looping=True) == plan_layers(config(11), looping=False)


@pytest.mark.parametrize("index", ["visit", "position"])
def test_the_record_shape_needs_eight_skip_rows(index: Literal["visit", "position"]) -> None:
    assert count_skip_rows(config(*RECORD, index)) == 8


def test_rows_by_position_follow_the_published_table() -> None:
    pairs = {
        False: [(5, 4), (6, 3), (7, 2), (8, 1), (9, 0)],
        True: [(5, 4), (3, 3), (4, 5), (5, 4), (6, 3), (7, 2), (8, 1), (9, 0)],
    }
    for looping, expected in pairs.items():
        plan = plan_layers(config(*RECORD, "position"), looping=looping)
        assert merges(plan) == [(layer, source, row) for row, (layer, source) in enumerate(expected)]


def test_rows_by_visit_keep_their_pair_when_the_loop_is_switched_on() -> None:
    off, on = (merges(plan_layers(config(*RECORD), looping=looping)) for looping in (False, True))
    assert off == [(5, 4, 3), (6, 3, 4), (7, 2, 5), (8, 1, 6), (9, 0, 7)]
    assert on == [(5, 4, 0), (3, 3, 1), (4, 5, 2), *off]


@pytest.mark.parametrize("index", ["visit", "position"])
@pytest.mark.parametrize(("layers", "loop"), [RECORD, (4, (1, 2, 1)), (7, (3, 4, 1)), (11, None), (8, None), (2, None)])
def test_a_row_is_used_at_most_once_in_a_forward_and_none_is_left_over(
    layers: int, loop: tuple[int, int, int] | None, index: Literal["visit", "position"]
) -> None:
    shape = config(layers, loop, index)
    used = [[row for *_, row in merges(plan_layers(shape, looping=looping))] for looping in (False, True)]
    assert all(len(rows) == len(set(rows)) for rows in used)
    assert set(used[0] + used[1]) == set(range(count_skip_rows(shape)))


def test_the_last_layer_of_an_odd_stack_merges_nothing() -> None:
    assert plan_layers(config(*RECORD), looping=True).visits[-1].skip_row is None
    assert plan_layers(config(*RECORD), looping=False).visits[-1].skip_row is None


def test_every_waiting_output_is_merged() -> None:
    for looping in (False, True):
        plan = plan_layers(config(*RECORD), looping=looping)
        assert sum(visit.pushes for visit in plan.visits) == len(merges(plan))


def test_without_skips_nothing_waits() -> None:
    plan = plan_layers(config(*RECORD, index=None), looping=True)
    assert not any(visit.pushes or visit.skip_row is not None for visit in plan.visits)
    assert count_skip_rows(config(*RECORD, index=None)) == 0
