"""Charts as plain numbers: the positions of axes, lines and labels.

Owns the geometry of a chart in the units of its drawing. Never draws: a template does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 460.0, 280.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 24.0, 14.0, 44.0
_MAX_TICKS = 5


@dataclass(frozen=True)
class Line:
    """A line through data.

    Args:
        name: the name in the legend; empty for a line that needs none.
        points: x and y of each point, in the axes' units.
        labels: a word for each point; empty for a line without marks.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its position in the drawing, and its number."""

    at: float
    text: str


@dataclass(frozen=True)
class Mark:
    """A point in the drawing, with its label and the text that is shown when the pointer is on it."""

    x: float
    y: float
    label: str
    title: str


@dataclass(frozen=True)
class DrawnLine:
    """A line in the drawing; `number` chooses its colour."""

    name: str
    number: int
    path: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Chart:
    """A chart, ready to be drawn in a box of `WIDTH` by `HEIGHT`."""

    title: str
    x_title: str
    y_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[DrawnLine, ...]
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM
    width: float = WIDTH
    height: float = HEIGHT


def make_chart(title: str, x_title: str, y_title: str, lines: Sequence[Line]) -> Chart | None:
    """Return a chart whose axes begin at 0, or None if there is nothing to draw; all values must be at least 0."""
    points = [point for line in lines for point in line.points]
    if not points:
        return None
    x_steps = steps(max(x for x, _ in points))
    y_steps = steps(max(y for _, y in points))
    chart = Chart(title, x_title, y_title, (), (), ())

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            chart.left + (chart.right - chart.left) * x / x_steps[-1],
            chart.bottom - (chart.bottom - chart.top) * y / y_steps[-1],
        )

    def draw(number: int, line: Line) -> DrawnLine:
        placed = [place(x, y) for x, y in line.points]
        path = "M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in placed) if placed else ""
        marks = tuple(
            Mark(round(x, 1), round(y, 1), label, f"{label}: {write(data[0])} {x_title}, {write(data[1])} {y_title}")
            for (x, y), data, label in zip(placed, line.points, line.labels, strict=False)
        )
        return DrawnLine(line.name, number, path, marks)

    return Chart(
        title,
        x_title,
        y_title,
        tuple(Tick(round(place(step, 0)[0], 1), write(step)) for step in x_steps),
        tuple(Tick(round(place(0, step)[1], 1), write(step)) for step in y_steps),
        tuple(draw(number, line) for number, line in enumerate(lines) if line.points),
    )


def steps(highest: float) -> list[float]:
    """Return up to six round numbers from 0 to at least `highest`."""
    if highest <= 0:
        return [0.0, 1.0]
    rough = highest / _MAX_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))
    count = math.ceil(highest / step - 1e-9)
    return [step * index for index in range(count + 1)]


def write(value: float) -> str:
    """Write a number of an axis, with commas between thousands and no needless digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
