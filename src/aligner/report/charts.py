"""The geometry of the page's charts: from rows of a table to SVG coordinates, which the template writes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

WIDTH = 380
HEIGHT = 230
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 38
MOST_TICKS = 5
AXIS = 38
ROW = 16
GROUP_GAP = 28
BAR = 14
LONGEST_LABEL = 34


def lines(points: Sequence[tuple[float, str, float]]) -> dict[str, Any]:
    """Curves of (x, series, y): one polyline per series, in the order of first appearance."""
    names = list(dict.fromkeys(series for _, series, _ in points))
    across = _axis([x for x, _, _ in points], LEFT, WIDTH - RIGHT, whole=True)
    up = _axis([y for _, _, y in points], HEIGHT - BOTTOM, TOP)
    series = []
    for index, name in enumerate(names):
        places = [(_position(across, x), _position(up, y)) for x, of, y in points if of == name]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dots = [(f"{x:.1f}", f"{y:.1f}") for x, y in places]
        series.append({"name": name, "index": index, "path": path, "dots": dots})
    return {"width": WIDTH, "height": HEIGHT, "series": series, "x": across["ticks"], "y": up["ticks"]} | _frame(HEIGHT)


def intervals(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A dot and an interval for each (group, model); rows hold group, model, estimate, low, high (None: no interval) and n."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    groups = list(dict.fromkeys(row["group"] for row in rows))
    across = _axis([0, *(row["high"] if row["high"] is not None else row["estimate"] for row in rows)], LEFT - 30, WIDTH - RIGHT)
    drawn, labels, y = [], [], TOP
    for group in groups:
        of_group = [row for row in rows if row["group"] == group]
        labels.append({"y": f"{y + 10:.1f}", "text": f"{_short(group)} (n = {of_group[0]['n']})"})
        y += ROW + 6
        for row in of_group:
            drawn.append({"y": f"{y:.1f}", "index": models.index(row["model"]), "model": row["model"], **_marks(across, row)})
            y += ROW
        y += GROUP_GAP - ROW
    frame = {"left": LEFT - 30, "right": WIDTH - RIGHT, "top": TOP, "bottom": y}
    return {"width": WIDTH, "height": y + AXIS, "models": models, "rows": drawn, "labels": labels, "x": across["ticks"]} | frame


def _marks(axis: dict[str, Any], row: dict[str, Any]) -> dict[str, str | None]:
    ends = {name: None if row[name] is None else f"{_position(axis, row[name]):.1f}" for name in ("low", "high")}
    return {"x": f"{_position(axis, row['estimate']):.1f}", **ends}


def shares(rows: Iterable[tuple[str, Sequence[tuple[str, int]]]]) -> dict[str, Any]:
    """One bar of full width per (label, parts), divided in proportion to the counts of (kind, count)."""
    drawn, y = [], TOP
    for label, counts in rows:
        parts, left, total = [], 0.0, max(1, sum(count for _, count in counts))
        for kind, count in counts:
            width = WIDTH * count / total
            parts.append({"kind": kind, "x": f"{left:.1f}", "width": f"{width:.1f}"})
            left += width
        drawn.append({"label": label, "y": y, "bar": y + 18, "parts": parts})
        y += 18 + BAR + 22
    return {"width": WIDTH, "height": y, "rows": drawn, "thick": BAR}


def _frame(height: int) -> dict[str, int]:
    return {"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": height - BOTTOM}


def _axis(values: Sequence[float], start: float, end: float, whole: bool = False) -> dict[str, Any]:
    """A scale between round numbers around the values, and its ticks with their labels."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    step = _tick_step((high - low) / MOST_TICKS, whole)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    axis = {"low": low, "high": high, "start": start, "end": end}
    count = round((high - low) / step)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    values = [round(low + index * step, 12) + 0.0 for index in range(count + 1)]
    ticks = [(f"{_position(axis, value):.1f}", f"{value:.{digits}f}".replace("-", "\u2212")) for value in values]
    return axis | {"ticks": ticks}


def _tick_step(rough: float, whole: bool) -> float:
    """The next larger of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return max(1.0, step) if whole else step


def _position(axis: dict[str, Any], value: float) -> float:
    share = (value - axis["low"]) / (axis["high"] - axis["low"])
    return axis["start"] + share * (axis["end"] - axis["start"])


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"
