"""Charts as plain data: what to draw, and where it is on a canvas that the template draws as SVG."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

WIDTH, HEIGHT = 440.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 24.0, 24.0, 42.0
"""Margins around the area for points, in units of the canvas."""
COLOURS = 8
"""The number of colours that the style sheet defines."""
MOST = 1_000
"""The most dots of a series that are drawn."""
LABELS = 6
"""The most steps between the labels of an axis."""


@dataclass(frozen=True)
class Dot:
    """A point of a series, with the text that is shown when it is pointed at."""

    x: float
    y: float
    text: str = ""
    radius: float = 3.0
    strong: bool = False
    label: str = ""
    """A word beside it."""
    low: float | None = None
    """The ends of its interval, if it has one."""
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Dots of one colour, joined by a line if `line`; `colour` None is grey."""

    name: str
    dots: Sequence[Dot]
    colour: int | None
    line: bool = False
    dashed: bool = False
    bare: bool = False
    """Whether only the line is drawn."""


@dataclass(frozen=True)
class Axis:
    """What an axis means; `text` writes its labels. With `ticks` it has labels there only."""

    label: str
    text: Callable[[float], str] = "{:g}".format
    log: bool = False
    ticks: Sequence[tuple[float, str]] | None = None
    within: tuple[float, float] = (-math.inf, math.inf)
    """Limits that the axis does not exceed."""


@dataclass(frozen=True)
class Tick:
    """A label of an axis at its place on the canvas."""

    at: float
    text: str


@dataclass(frozen=True)
class Drawn:
    """A series on the canvas: the points of its line, and its dots."""

    name: str
    colour: int | None
    dashed: bool
    line: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Chart:
    """A chart on the canvas."""

    title: str
    note: str
    x: str
    y: str
    xs: tuple[Tick, ...]
    ys: tuple[Tick, ...]
    series: tuple[Drawn, ...]
    marks: tuple[Tick, ...] = field(default=())
    """Vertical lines with a label."""


def chart(
    title: str, series: Sequence[Series], x: Axis, y: Axis, note: str = "", marks: Iterable[tuple[float, str]] = ()
) -> Chart | None:
    """The series on the canvas; None if there is nothing to draw."""
    shown = [each for each in series if each.dots]
    dots = [dot for each in shown for dot in each.dots]
    if not dots:
        return None
    lines = list(marks)
    across = _Scale(x, [*(dot.x for dot in dots), *(at for at, _ in lines)], LEFT, WIDTH - RIGHT)
    heights = [end for dot in dots for end in (dot.y, dot.low, dot.high) if end is not None]
    up = _Scale(y, heights, HEIGHT - BOTTOM, TOP)
    return Chart(
        title=title[:1].upper() + title[1:],
        note=note,
        x=x.label,
        y=y.label,
        xs=across.ticks(),
        ys=up.ticks(),
        series=tuple(_drawn(each, across, up) for each in shown),
        marks=tuple(Tick(across.place(at), text) for at, text in lines),
    )


def thinned(dots: Sequence[Dot], most: int = MOST) -> list[Dot]:
    """At most about so many of the dots, evenly spaced, and all strong ones."""
    if len(dots) <= most:
        return list(dots)
    step = math.ceil(len(dots) / most)
    return [dot for number, dot in enumerate(dots) if dot.strong or number % step == 0]


def _drawn(series: Series, across: "_Scale", up: "_Scale") -> Drawn:
    placed = [
        replace(
            dot,
            x=across.place(dot.x),
            y=up.place(dot.y),
            low=None if dot.low is None else up.place(dot.low),
            high=None if dot.high is None else up.place(dot.high),
        )
        for dot in thinned(series.dots)
    ]
    line = " ".join(f"{dot.x:.1f},{dot.y:.1f}" for dot in placed) if series.line else ""
    dots = () if series.bare else tuple(placed)
    return Drawn(series.name, series.colour, series.dashed, line, dots)


class _Scale:
    """Maps the values of an axis to the canvas."""

    def __init__(self, axis: Axis, values: Sequence[float], start: float, end: float) -> None:
        self._axis, self._start, self._end = axis, start, end
        low, high = (math.log10(min(values)), math.log10(max(values))) if axis.log else (min(values), max(values))
        room = 0.05 * (high - low) or (0.2 if axis.log else 0.05 * abs(high) or 1.0)
        least, most = (-math.inf, math.inf) if axis.log else axis.within
        self._low, self._high = max(low - room, least), min(high + room, most)
        if self._low >= self._high:
            self._low, self._high = low - room, high + room

    def place(self, value: float) -> float:
        at = math.log10(value) if self._axis.log else value
        return self._start + (self._end - self._start) * (at - self._low) / (self._high - self._low)

    def ticks(self) -> tuple[Tick, ...]:
        if self._axis.ticks is not None:
            return tuple(Tick(self.place(at), text) for at, text in self._axis.ticks)
        values = _powers(self._low, self._high) if self._axis.log else _steps(self._low, self._high)
        return tuple(Tick(self.place(value), self._axis.text(value)) for value in values)


def _steps(low: float, high: float) -> list[float]:
    """Round numbers between two limits."""
    rough = (high - low) / LABELS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Round numbers between two powers of ten, given by their exponents."""
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        exponents = range(math.floor(low), math.ceil(high) + 1)
        found = [factor * 10.0**power for power in exponents for factor in factors]
        inside = [value for value in found if low <= math.log10(value) <= high]
        if len(inside) >= LABELS - 3:
            break
    return inside[:: math.ceil(len(inside) / (LABELS + 1))] if inside else [10.0 ** ((low + high) / 2)]
