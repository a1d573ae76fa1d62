"""Pictures: the loss of a run over its steps, and the score of experiments against their bytes.

Drawn on figure objects of their own, so that nothing of a caller's plotting state is touched. matplotlib is an extra,
imported when a picture is asked for.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from golf.artifact.budget import LIMIT
from golf.errors import EnvironmentUnfitError, UsageError
from golf.files import atomic_path
from golf.log import series

_INK, _SOFT, _GRID = "#1f2933", "#7b8794", "#e9ecef"
_BLUE, _PALE, _ORANGE, _RED = "#2563a8", "#a9c6e4", "#d9822b", "#b42318"
_SUFFIXES = (".png", ".svg", ".pdf")
_WIDTH, _HEIGHT = 9.0, 5.0  # inches, without the flags of the boundaries
_FEW = 40  # points are drawn one by one
_STEEP = 0.04  # of the steps: where the loss falls from far above all others
_FLAG = 0.17  # inches a row of flags is high


def check_picture(path: Path) -> None:
    """Raise UsageError unless a picture can be written to `path`; worth asking before a long computation."""
    if path.suffix not in _SUFFIXES:
        raise UsageError(f"{path}: no kind of picture ends in '{path.suffix}'; use {', '.join(_SUFFIXES)}")


def plot_loss(
    events: Iterable[Mapping[str, Any]], path: Path, *, beside: Mapping[str, Mapping[int, float]] | None = None
) -> None:
    """Draw an event log's training loss, raw and smoothed, with its validation points and a line at every boundary.

    `beside` names losses of other runs, by step, to be drawn too.
    Reads `train_loss` and `val_loss` of all events that carry a `step`, and the events called "boundary"; of a step
    logged twice, as after a resume, the later event counts. The first steps, far above all others, may leave the
    picture.
    """
    logged = list(events)
    train, val = series(logged, "train_loss"), series(logged, "val_loss")
    if not train:
        raise UsageError(f"{path}: no event has a step and a train_loss to draw; train for some steps first")
    steps, losses = np.array(list(train)), np.array(list(train.values()))
    smooth = _smooth(losses)
    figure, axes = _canvas("step", "loss (nats per token)")
    axes.plot(steps, losses, color=_PALE, linewidth=0.8, label="train")
    axes.plot(steps, smooth, color=_BLUE, linewidth=1.8, label="train, smoothed")
    for (name, points), color in zip((beside or {}).items(), itertools.cycle((_RED, _INK, _SOFT)), strict=False):
        form: dict[str, Any] = {"linewidth": 0.8} if len(points) > _FEW else {"marker": "x", "linestyle": ""}
        axes.plot(list(points), list(points.values()), color=color, label=name, zorder=3, **form)
    if val:
        axes.plot(list(val), list(val.values()), "o", color=_ORANGE, markersize=5.5, label="validation", zorder=3)
    marks = _boundaries(logged)
    others = [points for points in (beside or {}).values() if points]
    axes.set_xlim(min(0, *steps), max([*steps, *marks, *(max(points) for points in others), 1]))
    settled = steps >= _STEEP * max(steps)
    drawn = [*losses[settled], *val.values(), *(loss for points in others for loss in points.values())]
    pad = 0.05 * (max(drawn) - min(drawn)) or 0.05
    axes.set_ylim(min(drawn) - pad, max(drawn) + pad)
    axes.legend(loc="upper right", labelcolor=_INK, fontsize=9, facecolor="white", edgecolor="white", framealpha=1.0)
    _fly_flags(figure, axes, marks)
    _save(figure, path)


def plot_results(table: pd.DataFrame, path: Path, *, control: str | None = None) -> None:
    """Draw val_bpb against total_bytes, one labelled point a row; rows that lack either are left out.

    The row named `control` is a diamond, rows over the limit are hollow. The line of 16,000,000 bytes is drawn only if
    it falls among the points.
    """
    if not {"val_bpb", "total_bytes"} <= set(table.columns) or table[["val_bpb", "total_bytes"]].dropna().empty:
        raise UsageError(f"{path}: no row has both val_bpb and total_bytes to draw; evaluate and pack one first")
    rows = table.dropna(subset=["val_bpb", "total_bytes"])
    figure, axes = _canvas("code and model (MB of 1,000,000 bytes)", "bits per byte")
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.margins(0.14)
    rows = rows.sort_values("name", key=lambda name: name != control, kind="stable")  # the control finds room first
    points = np.column_stack([rows["total_bytes"].to_numpy(float) / 1e6, rows["val_bpb"].to_numpy(float)])
    names = [str(name) for name in rows["name"]]
    for (size, score), name in zip(points, names, strict=True):
        color, shape, layer = (_ORANGE, "D", 4) if name == control else (_BLUE, "o", 3)
        face, edge = ("white", color) if size > LIMIT / 1e6 else (color, "white")
        axes.plot(size, score, shape, markerfacecolor=face, markeredgecolor=edge, markersize=7, zorder=layer)
    limits = axes.get_xlim()
    within = limits[0] <= LIMIT / 1e6 <= limits[1]
    if within:
        axes.set_xlim(limits)
        axes.axvline(LIMIT / 1e6, color=_RED, linewidth=1.0, linestyle=(0, (5, 3)))
        axes.text(LIMIT / 1e6, 1.02, f"{LIMIT:,} bytes", **_above(axes), ha="center", color=_RED, fontsize=9)
    _label_points(axes, points, names, walls=[LIMIT / 1e6] if within else [])
    _save(figure, path)


def _boundaries(events: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Name the boundaries at each step; those of one step share a flag."""
    steps = {event["name"]: event["step"] for event in events if event["event"] == "boundary"}
    names: dict[int, str] = {}
    for name, step in sorted(steps.items(), key=lambda item: item[1]):
        names[step] = f"{names[step]} · {name}" if step in names else name
    return names


def _smooth(values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Average over a window of a fortieth of the values, cut off at the ends."""
    ones = np.ones(len(values) // 40 | 1)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def _canvas(x_label: str, y_label: str) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise EnvironmentUnfitError("pictures need matplotlib; pip install 'golf-hotstart[plots]'") from None
    figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.11, 0.12, 0.86, 0.82))
    axes.set_xlabel(x_label, color=_INK, labelpad=8)
    axes.set_ylabel(y_label, color=_INK, labelpad=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_SOFT)
    axes.tick_params(length=0, labelcolor=_INK, labelsize=9, pad=6)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.ticklabel_format(useOffset=False)
    return figure, axes


def _above(axes: Any) -> dict[str, Any]:
    """Place a text by data in x and by the height of the axes in y, outside of them."""
    return {"transform": axes.get_xaxis_transform(), "clip_on": False, "zorder": 1}


def _fly_flags(figure: Any, axes: Any, names: Mapping[int, str]) -> None:
    """Mark each boundary by a line with its name as a flag to the left, one row higher than any flag in its way.

    A flag may cover the lines of earlier boundaries only where they do not rise as high as it flies.
    """
    renderer = figure.canvas.get_renderer()
    flags: list[tuple[Any, float, int]] = []  # text, x of its pole in pixels, row
    for step, name in names.items():
        text = axes.text(
            step, 1.0, f"{name} ", **_above(axes), ha="right", va="center", color=_SOFT, fontsize=8.5, parse_math=False
        )
        pole = axes.transData.transform((step, 0))[0]
        reach = pole - text.get_window_extent(renderer).width - 4
        flags.append((text, pole, 1 + max((row for _, other, row in flags if other >= reach), default=-1)))
    rows = 1 + max((row for _, _, row in flags), default=-1)
    height = _HEIGHT + rows * _FLAG
    figure.set_size_inches(_WIDTH, height)
    axes.set_position((0.11, 0.6 / height, 0.86, 4.1 / height))
    for text, _, row in flags:
        top = 1 + (row + 0.6) * _FLAG / 4.1
        text.set_y(top)
        pole = text.get_position()[0]
        axes.plot([pole, pole], [0, top + 0.02], color=_SOFT, linewidth=0.7, alpha=0.6, **_above(axes))


def _label_points(axes: Any, points: "np.ndarray[Any, Any]", names: Sequence[str], *, walls: Sequence[float]) -> None:
    """Write each name beside its point, where it covers no point, name or wall (an x) if there is such a place."""
    pixels = axes.transData.transform(points)
    frame = axes.get_window_extent().extents
    taken = [np.array([x - 10, y - 10, x + 10, y + 10]) for x, y in pixels]
    for wall, _ in axes.transData.transform([(wall, 0) for wall in walls] or np.empty((0, 2))):
        taken.append(np.array([wall - 4, frame[1], wall + 4, frame[3]]))
    for pixel, point, name in zip(pixels, points, names, strict=True):
        text = axes.annotate(name, point, xytext=(0, 0), textcoords="offset pixels", ha="center", va="center")
        text.set(color=_INK, fontsize=8.5, parse_math=False, zorder=5)
        half = text.get_window_extent().size / 2 + 3
        shifts = _places(*half)
        boxes = [np.concatenate([pixel + shift - half, pixel + shift + half]) for shift in shifts]
        cost = [sum(_common_area(box, other) for other in taken) - _common_area(box, frame) for box in boxes]
        best = int(np.argmin(cost))
        text.set_position(shifts[best])
        taken.append(boxes[best])
        near = np.clip(pixel, boxes[best][:2], boxes[best][2:])
        if np.linalg.norm(near - pixel) > 25:
            ends = axes.transData.inverted().transform([pixel, near])
            axes.plot(*ends.T, color=_SOFT, linewidth=0.6, zorder=2)


def _places(half_width: float, half_height: float) -> list[tuple[float, float]]:
    """Where the middle of a label may lie, in pixels from its point, the best place first."""
    around = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
    gaps = (16, 30, 48, 70)
    return [(across * (half_width + gap), up * (half_height + gap)) for gap in gaps for across, up in around]


def _common_area(one: Any, other: Any) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return float(max(width, 0.0) * max(height, 0.0))


def _save(figure: Any, path: Path) -> None:
    check_picture(path)
    with atomic_path(path) as temp:
        figure.savefig(temp)
