"""A whole run whose batches are recorded and replayed is bit for bit the run that computes them."""

import pytest

from golf.log import read_events
from tests.session_tools import Place, digests
from tests.stand_in_graphs import StandIn, record_on_the_cpu


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[StandIn]:
    return record_on_the_cpu(monkeypatch)


@pytest.mark.parametrize("priming", [0, 2])
def test_a_recorded_run_has_the_bits_of_a_computed_one(place: Place, made: list[StandIn], priming: int) -> None:
    found = place.start("recorded", f"run.priming_steps={priming}")
    assert digests(place.run("recorded")) == digests(place.run("done"))
    assert (
        found["unquantized"] == place.start("computed", "run.priming_steps=0", "run.cuda_graphs=false")["unquantized"]
    )
    training = [graph for graph in made if not isinstance(graph.key, bool)]
    assert {(len(graph.key.plan.visits), graph.key.late_qat) for graph in training} == {
        (4, False),
        (6, False),
        (6, True),
    }
    assert sum(graph.replays for graph in training) >= 20 - 3  # all steps but the first of each graph


def test_priming_records_what_the_training_needs(place: Place, made: list[StandIn]) -> None:
    place.start("recorded", "run.priming_steps=1")
    events = read_events(place.run("recorded") / "events.jsonl")
    assert {event["unrecorded"] for event in events if event["event"] == "train"} == {0}
