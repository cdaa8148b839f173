"""Charts as inline SVG: pure functions from numbers to escaped markup.

Horizontal coordinates are percentages of the plot's width and vertical ones are pixels, so that a chart takes any width
while its text keeps its size. The plot area is the svg element itself; axis labels overflow into the padding that the
style sheet gives ``.plot``. Colours are CSS classes, so that light and dark need no second drawing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

Range = tuple[float, float]
LINE_HEIGHT = 220
DOT_ROW = 46
RELIABILITY_HEIGHT = 230
COUNTS_TOP, COUNTS_HEIGHT = 262, 44

# Outlines of radius 1, about equal in area, so that no series looks heavier than another.
MARKS = {
    "circle": [(math.cos(math.tau * i / 24), math.sin(math.tau * i / 24)) for i in range(24)],
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "diamond": [(0.0, -1.25), (1.25, 0.0), (0.0, 1.25), (-1.25, 0.0)],
    "triangle": [(0.0, -1.25), (1.2, 0.85), (-1.2, 0.85)],
    "wedge": [(0.0, 1.25), (1.2, -0.85), (-1.2, -0.85)],
}
MARK_SIZES = {"large": 5.0, "small": 3.2}


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line: its legend, mark, tone (CSS class) and points (x, y)."""

    name: str
    mark: str
    tone: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Band:
    """A line with the range around each of its points (x, y, low, high)."""

    name: str
    mark: str
    tone: str
    points: tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Level:
    """A horizontal reference line; only a line with a label gets text."""

    name: str
    value: float
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A value with its interval."""

    name: str
    value: float
    interval: Range
    mark: str
    tone: str


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Rows whose confidence lies in [low, high): their count, mean confidence and accuracy."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers inside [low, high]: multiples of 1, 2 or 5 times a power of ten, at most ``most`` of them."""
    assert high > low, f"empty range [{low}, {high}]"
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (power * factor for factor in (1, 2, 5, 10, 20, 50)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [round(i * step, 12) for i in range(first, last + 1)]
    raise AssertionError(f"no ticks for [{low}, {high}]")


def padded(values: Sequence[float], share: float = 0.08) -> Range:
    """Smallest and largest value with a margin; never an empty range."""
    low, high = min(values), max(values)
    margin = (high - low) * share or max(abs(high) * share, share)
    return low - margin, high + margin


def percent(value: float, scale: Range) -> str:
    """Horizontal coordinate of ``value``."""
    return f"{100 * (value - scale[0]) / (scale[1] - scale[0]):.2f}%"


def pixels(value: float, scale: Range, height: float) -> str:
    """Vertical coordinate of ``value``; the scale's low end is at the bottom."""
    return f"{height * (1 - (value - scale[0]) / (scale[1] - scale[0])):.2f}"


def mark_definitions() -> Markup:
    """The marks that every chart and legend of the page refers to, hidden from sight and from screen readers."""
    paths = [
        Markup('<path id="{}-{}" d="M{}z"/>').format(
            name, size, "L".join(f"{x * radius:.2f},{y * radius:.2f}" for x, y in outline)
        )
        for name, outline in MARKS.items()
        for size, radius in MARK_SIZES.items()
    ]
    return Markup('<svg width="0" height="0" class="defs" aria-hidden="true"><defs>{}</defs></svg>').format(
        _join(paths)
    )


def legend_mark(mark: str, tone: str) -> Markup:
    """A mark on its own, to stand beside a word."""
    return Markup(
        '<svg class="mark {}" width="14" height="14" viewBox="-7 -7 14 14" aria-hidden="true"><use href="#{}-large"/></svg>'
    ).format(tone, mark)


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_range: Range,
    y_range: Range,
    y_format: Callable[[float], str],
    tick_format: Callable[[float], str],
    levels: Sequence[Level] = (),
    chosen: tuple[float, float] | None = None,
) -> Markup:
    """Lines over whole-numbered depths, with reference levels and a ring around the ``chosen`` point (x, y).

    Levels outside ``y_range`` are not drawn: an uncalibrated readout can be so bad that its line would flatten the rest.
    """
    parts = _y_axis(y_range, LINE_HEIGHT, tick_format)
    parts += [
        _text(percent(t, x_range), LINE_HEIGHT + 18, f"{t:g}", "tick middle") for t in ticks(*x_range) if t == int(t)
    ]
    if chosen:
        x, anchor = percent(chosen[0], x_range), "end" if chosen[0] > sum(x_range) / 2 else "start"
        parts.append(_line(x, 0, x, LINE_HEIGHT, "chosen"))
        parts.append(_text(x, -6, f"chosen: depth {chosen[0]:g}", f"label {anchor}"))
    for level in levels:
        if y_range[0] <= level.value <= y_range[1]:
            y = pixels(level.value, y_range, LINE_HEIGHT)
            hint = f"{level.name}: {y_format(level.value)}"
            parts.append(_line("0%", y, "100%", y, "level strong" if level.label else "level", hint))
    for one in series:
        parts.append(_polyline(one, x_range, y_range, y_format))
    if chosen:
        x, y = percent(chosen[0], x_range), pixels(chosen[1], y_range, LINE_HEIGHT)
        parts.append(Markup('<circle class="ring" cx="{}" cy="{}" r="7"/>').format(x, y))
    for level in levels:
        if level.label and y_range[0] <= level.value <= y_range[1]:
            parts.append(
                _text("100%", float(pixels(level.value, y_range, LINE_HEIGHT)) - 6, level.label, "label halo end")
            )
    return _svg(title, LINE_HEIGHT, parts, "plot axes")


def band_chart(
    bands: Sequence[Band],
    *,
    title: str,
    x_name: str,
    y_format: Callable[[float], str],
    tick_format: Callable[[float], str],
) -> Markup:
    """Lines over a few values of x on a logarithmic axis, each with its range shaded; x_name is for hints."""
    xs = sorted({x for band in bands for x, *_ in band.points})
    logs = {x: math.log10(x) for x in xs}
    margin = (logs[xs[-1]] - logs[xs[0]]) * 0.06 or 0.5
    x_range = (logs[xs[0]] - margin, logs[xs[-1]] + margin)
    y_range = padded([value for band in bands for _, *values in band.points for value in values])
    parts = _y_axis(y_range, LINE_HEIGHT, tick_format)
    parts += [_text(percent(logs[x], x_range), LINE_HEIGHT + 18, f"{x:g}", "tick middle") for x in xs]
    parts.append(_shades(bands, logs, x_range, y_range))
    for band in bands:
        ends = [(percent(logs[x], x_range), pixels(y, y_range, LINE_HEIGHT)) for x, y, *_ in band.points]
        inner = [_line(*a, *b, "segment") for a, b in pairwise(ends)]
        for (x, y, low, high), end in zip(band.points, ends, strict=True):
            hint = f"{band.name}, {x:g} {x_name}: {y_format(y)} ({y_format(low)} to {y_format(high)})"
            inner.append(_use(band.mark, "small", *end, "", hint))
        parts.append(Markup('<g class="series {}">{}</g>').format(band.tone, _join(inner)))
    return _svg(title, LINE_HEIGHT, parts, "plot axes")


def _shades(bands: Sequence[Band], logs: Mapping[float, float], x_range: Range, y_range: Range) -> Markup:
    """The ranges as areas; an area takes no percentages, so it is drawn in a stretched picture of its own."""
    areas = []
    for band in bands:
        across = [float(percent(logs[x], x_range)[:-1]) for x, *_ in band.points]
        low, high = ([float(pixels(p[i], y_range, LINE_HEIGHT)) for p in band.points] for i in (2, 3))
        if len(across) == 1:  # a single budget: a bar as wide as a mark
            across, low, high = [across[0] - 0.8, across[0] + 0.8], low * 2, high * 2
        outline = [*zip(across, high, strict=True), *reversed(list(zip(across, low, strict=True)))]
        points = " ".join(f"{x:.2f},{y:.2f}" for x, y in outline)
        areas.append(Markup('<polygon class="band {}" points="{}"/>').format(band.tone, points))
    return Markup('<svg viewBox="0 0 100 {}" width="100%" height="{}" preserveAspectRatio="none">{}</svg>').format(
        LINE_HEIGHT, LINE_HEIGHT, _join(areas)
    )


def dot_intervals(
    rows: Sequence[Dot], *, title: str, value_format: Callable[[float], str], tick_format: Callable[[float], str]
) -> Markup:
    """One strip a row: its name, its value in figures, and below them the value's mark on its interval."""
    scale = padded([end for row in rows for end in (*row.interval, row.value)])
    height = DOT_ROW * len(rows)
    parts = []
    for tick in ticks(*scale):
        x = percent(tick, scale)
        parts.append(_line(x, 0, x, height, "grid"))
        parts.append(_text(x, height + 16, tick_format(tick), "tick middle"))
    for i, row in enumerate(rows):
        y = i * DOT_ROW + 31
        hint = f"{row.name}: {value_format(row.value)}, 95% interval {value_format(row.interval[0])} to {value_format(row.interval[1])}"
        parts.append(_text("0%", y - 15, row.name, "label halo start"))
        parts.append(_text("100%", y - 15, value_format(row.value), "label halo end value"))
        parts.append(_line("0%", y, "100%", y, "grid"))
        parts.append(
            _line(percent(row.interval[0], scale), y, percent(row.interval[1], scale), y, f"interval {row.tone}")
        )
        parts.append(_use(row.mark, "large", percent(row.value, scale), y, row.tone, hint))
    return _svg(title, height, parts, "plot strips")


def reliability(bins: Sequence[Bin], *, title: str, mark: str, tone: str) -> Markup:
    """Accuracy against confidence by bin, the gap to the diagonal drawn, and the count of each bin below."""
    unit: Range = (0.0, 1.0)
    height = RELIABILITY_HEIGHT
    parts = _y_axis(unit, height, lambda t: f"{t:.0%}")
    parts += [_text(percent(t, unit), height + 18, f"{t:.0%}", "tick middle") for t in ticks(*unit)]
    parts.append(_line("0%", height, "100%", 0, "diagonal", "confidence equals accuracy"))
    most = max(one.count for one in bins)
    base = COUNTS_TOP + COUNTS_HEIGHT
    for one in (b for b in bins if b.count):
        x, y = percent(one.confidence, unit), pixels(one.accuracy, unit, height)
        hint = f"{one.low:.0%} to {one.high:.0%}: {one.count} rows, confidence {one.confidence:.1%}, accuracy {one.accuracy:.1%}"
        parts.append(_line(x, pixels(one.confidence, unit, height), x, y, f"gap {tone}"))
        parts.append(_use(mark, "large", x, y, tone, hint))
        tall = max(1.0, 30 * one.count / most)
        parts.append(
            Markup(
                '<rect class="count {}" x="{}" width="{}" y="{:.2f}" height="{:.2f}"><title>{}</title></rect>'
            ).format(
                tone, percent(one.low + 0.004, unit), percent(one.high - one.low - 0.008, unit), base - tall, tall, hint
            )
        )
        parts.append(
            _text(percent((one.low + one.high) / 2, unit), base - tall - 4, short_count(one.count), "tick tiny middle")
        )
    return _svg(title, base, parts, "plot axes counts")


def short_count(count: int) -> str:
    """A count in at most four characters, to stand above a narrow bar."""
    return str(count) if count < 1000 else f"{count / 1000:.1f}k" if count < 10_000 else f"{count / 1000:.0f}k"


def _y_axis(scale: Range, height: int, tick_format: Callable[[float], str]) -> list[Markup]:
    parts = []
    for tick in ticks(*scale):
        y = pixels(tick, scale, height)
        parts.append(_line("0%", y, "100%", y, "grid"))
        parts.append(_text("0%", float(y) + 4, tick_format(tick), "tick end outside"))
    return parts


def _polyline(series: Series, x_range: Range, y_range: Range, y_format: Callable[[float], str]) -> Markup:
    """Segments and marks; ``polyline`` itself takes no percentages."""
    ends = [(percent(x, x_range), pixels(y, y_range, LINE_HEIGHT)) for x, y in series.points]
    parts = [_line(*a, *b, "segment") for a, b in pairwise(ends)]
    for (x, y), end in zip(series.points, ends, strict=True):
        parts.append(_use(series.mark, "small", *end, "", f"{series.name}, depth {x:g}: {y_format(y)}"))
    return Markup('<g class="series {}">{}</g>').format(series.tone, _join(parts))


def _svg(title: str, height: int, parts: Sequence[Markup], style: str) -> Markup:
    return Markup('<div class="{}"><svg role="img" height="{}"><title>{}</title>{}</svg></div>').format(
        style, height, title, _join(parts)
    )


def _join(parts: Sequence[Markup]) -> Markup:
    return Markup("").join(parts)


def _line(x1: str, y1: float | str, x2: str, y2: float | str, style: str, hint: str = "") -> Markup:
    inside = Markup("<title>{}</title>").format(hint) if hint else Markup("")
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}">{}</line>').format(style, x1, y1, x2, y2, inside)


def _text(x: str, y: float, text: str, style: str) -> Markup:
    return Markup('<text class="{}" x="{}" y="{:g}">{}</text>').format(style, x, round(y, 2), text)


def _use(mark: str, size: str, x: str, y: float | str, tone: str, hint: str) -> Markup:
    return Markup('<use class="point {}" href="#{}-{}" x="{}" y="{}"><title>{}</title></use>').format(
        tone, mark, size, x, y, hint
    )
