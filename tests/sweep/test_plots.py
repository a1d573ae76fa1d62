"""Pictures: what is drawn where, read back from the figure; nothing of the caller's plotting state changes."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golf.errors import EnvironmentUnfitError, UsageError
from golf.sweep import plots
from golf.sweep.table import make_table

pytest.importorskip("matplotlib")


def train(step: int, loss: float) -> dict[str, Any]:
    return {"event": "train", "step": step, "train_loss": loss}


TRAIN = [train(step, 4.0 - 0.01 * step) for step in range(200)]
ROWS: list[dict[str, Any]] = [
    {"name": "control", "val_bpb": 1.0747, "total_bytes": 15_953_718},
    {"name": "k-0.5", "val_bpb": 1.0738, "total_bytes": 16_183_797},
    {"name": "failed"},
]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures as they were saved."""
    saved: list[Any] = []
    save = plots._save

    def keep(figure: Any, path: Path) -> None:
        save(figure, path)
        saved.append(figure)

    monkeypatch.setattr(plots, "_save", keep)
    return saved


def texts(figure: Any) -> dict[str, Any]:
    return {text.get_text().strip(): text for text in figure.axes[0].texts}


def boxes(figure: Any) -> "np.ndarray[Any, Any]":
    """Extents (left, bottom, right, top) of all texts in the axes, in pixels."""
    renderer = figure.canvas.get_renderer()
    return np.array([text.get_window_extent(renderer).extents for text in figure.axes[0].texts])


def overlaps(extents: "np.ndarray[Any, Any]") -> int:
    low = np.maximum(extents[:, None, :2], extents[None, :, :2])
    high = np.minimum(extents[:, None, 2:], extents[None, :, 2:])
    return int((low < high).all(axis=2).sum()) - len(extents)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_both_pictures_are_written_in_every_form(tmp_path: Path, suffix: str) -> None:
    plots.plot_loss(TRAIN, tmp_path / f"loss{suffix}")
    plots.plot_results(make_table(ROWS), tmp_path / f"results{suffix}")
    starts = {path.read_bytes()[:4] for path in tmp_path.iterdir()}
    assert starts == {{".png": b"\x89PNG", ".svg": b"<?xm", ".pdf": b"%PDF"}[suffix]}


def test_the_raw_loss_is_drawn_at_its_steps_and_a_later_event_wins(tmp_path: Path, figures: list[Any]) -> None:
    resumed = [train(150, 9.0), *TRAIN, train(3, 1.5)]
    plots.plot_loss(resumed, tmp_path / "a.png")
    raw = figures[0].axes[0].lines[0]
    assert raw.get_xdata().tolist() == list(range(200))
    assert (raw.get_ydata()[3], raw.get_ydata()[150]) == (1.5, 2.5)


def test_smoothing_leaves_a_straight_line_straight_inside_and_a_constant_constant() -> None:
    line = np.arange(200.0)
    assert np.allclose(plots._smooth(line)[2:-2], line[2:-2])
    assert np.allclose(plots._smooth(np.full(423, 3.5)), 3.5)


def test_validation_points_are_drawn(tmp_path: Path, figures: list[Any]) -> None:
    plots.plot_loss([*TRAIN, {"event": "evaluated", "step": 100, "val_loss": 3.1}], tmp_path / "a.png")
    points = figures[0].axes[0].lines[2]
    assert (points.get_xdata(), points.get_ydata()) == ([100], [3.1])


def test_losses_of_other_runs_are_drawn_beside_and_are_inside(tmp_path: Path, figures: list[Any]) -> None:
    plots.plot_loss(TRAIN, tmp_path / "loss.png", beside={"before": {50: 3.9, 260: 1.5}, "after": {}})
    (axes,) = figures[0].axes
    (line,) = (line for line in axes.lines if line.get_label() == "before")
    assert line.get_xydata().tolist() == [[50, 3.9], [260, 1.5]]
    assert axes.get_xlim()[1] >= 260
    assert axes.get_ylim()[0] < 1.5


def test_flags_of_crowded_boundaries_do_not_overlap(tmp_path: Path, figures: list[Any]) -> None:
    steps = [0, 1, 2, 50, 52, 54, 54, 120, 121, 190, 199, 200]
    marks = [{"event": "boundary", "step": step, "name": f"boundary_{number}"} for number, step in enumerate(steps)]
    plots.plot_loss([*TRAIN, *marks], tmp_path / "a.png")
    assert len(texts(figures[0])) == 11
    assert "boundary_5 · boundary_6" in texts(figures[0])
    assert overlaps(boxes(figures[0])) == 0
    assert boxes(figures[0])[:, 3].max() < figures[0].bbox.height


def test_no_flag_is_crossed_by_the_line_of_another(tmp_path: Path, figures: list[Any]) -> None:
    steps = [0, 40, 52, 54, 60, 120, 125, 190, 200]
    marks = [{"event": "boundary", "step": step, "name": "b" * (3 + number)} for number, step in enumerate(steps)]
    plots.plot_loss([*TRAIN, *marks], tmp_path / "a.png")
    poles = [line.get_window_extent().extents for line in figures[0].axes[0].lines[2:]]
    for left, bottom, right, top in boxes(figures[0]):
        assert not [pole for pole in poles if left + 1 < pole[0] < right - 8 and pole[3] > bottom and pole[1] < top]


def test_every_complete_row_is_one_labelled_point(tmp_path: Path, figures: list[Any]) -> None:
    plots.plot_results(make_table(ROWS), tmp_path / "a.png", control="control")
    assert {"control", "k-0.5"} <= texts(figures[0]).keys()
    assert "failed" not in texts(figures[0])


def test_the_control_is_a_diamond_and_a_row_over_the_limit_is_hollow(tmp_path: Path, figures: list[Any]) -> None:
    plots.plot_results(make_table(ROWS), tmp_path / "a.png", control="control")
    control, over = figures[0].axes[0].lines[:2]
    assert (control.get_marker(), over.get_marker()) == ("D", "o")
    assert (control.get_markerfacecolor() == "white", over.get_markerfacecolor() == "white") == (False, True)


def test_the_limit_is_drawn_among_the_points_only(tmp_path: Path, figures: list[Any]) -> None:
    plots.plot_results(make_table(ROWS), tmp_path / "a.png")
    plots.plot_results(make_table([ROWS[0] | {"total_bytes": 700_123}]), tmp_path / "b.png")
    assert ["16,000,000 bytes" in texts(figure) for figure in figures] == [True, False]


def test_labels_of_crowded_points_do_not_overlap(tmp_path: Path, figures: list[Any]) -> None:
    rows = [{"name": f"config {n}", "val_bpb": 1.07 + 1e-5 * (n % 3), "total_bytes": 15_953_000 + n} for n in range(8)]
    rows.append({"name": "far", "val_bpb": 1.08, "total_bytes": 15_700_000})
    plots.plot_results(make_table(rows), tmp_path / "a.png")
    assert overlaps(boxes(figures[0])) == 0


def test_a_long_label_at_the_edge_stays_inside(tmp_path: Path, figures: list[Any]) -> None:
    plots.plot_results(make_table([ROWS[0], ROWS[1] | {"name": "a long name " * 4}]), tmp_path / "a.png")
    axes = figures[0].axes[0]
    label = texts(figures[0])["a long name " * 3 + "a long name"].get_window_extent()
    assert label.x1 < axes.get_window_extent().x1


def test_a_name_with_signs_of_mathematics_is_drawn_as_it_stands(tmp_path: Path, figures: list[Any]) -> None:
    plots.plot_results(make_table([ROWS[0] | {"name": "$\\frac{"}]), tmp_path / "a.png")
    assert "$\\frac{" in texts(figures[0])


def test_an_empty_log_and_an_empty_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no event has a step and a train_loss"):
        plots.plot_loss([{"event": "note"}], tmp_path / "a.png")
    with pytest.raises(UsageError, match="no row has both val_bpb and total_bytes"):
        plots.plot_results(make_table([{"name": "failed"}]), tmp_path / "a.png")


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"use \.png, \.svg, \.pdf"):
        plots.plot_loss(TRAIN, tmp_path / "a.gif")


def test_without_matplotlib_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(EnvironmentUnfitError, match=r"pip install 'golf-hotstart\[plots\]'"):
        plots.plot_loss(TRAIN, tmp_path / "a.png")


def test_pyplot_with_its_global_state_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    plots.plot_loss(TRAIN, tmp_path / "a.png")
