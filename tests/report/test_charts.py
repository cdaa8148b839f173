from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from probekd.report import charts


def parse(markup: object) -> ET.Element:
    return ET.fromstring(str(markup))


def share(text: str | None) -> float:
    assert text is not None and text.endswith("%")
    return float(text[:-1]) / 100


def points(root: ET.Element) -> list[tuple[float, float]]:
    return [(share(use.get("x")), float(use.get("y", "nan"))) for use in root.iter("use")]


def texts(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter("text")]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-0.5, 24.5, [0, 5, 10, 15, 20]),
        (0.471, 0.529, [0.48, 0.49, 0.5, 0.51, 0.52]),
        (-3.0, 900.0, [0, 200, 400, 600, 800]),
    ],
)
def test_ticks_are_round_numbers_inside_the_range(low: float, high: float, expected: list[float]) -> None:
    assert charts.ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("values", [[0.4], [0.0, 0.0], [2.0, 2.0, 2.0]])
def test_a_range_of_equal_values_is_not_empty(values: list[float]) -> None:
    low, high = charts.padded(values)
    assert low < min(values) and high > max(values)


def line(**changes: object) -> ET.Element:
    settings = {
        "title": "Accuracy by depth",
        "x_range": (0.0, 10.0),
        "y_range": (0.5, 1.0),
        "y_format": lambda v: f"{v:.3f}",
        "tick_format": lambda v: f"{v:g}",
        **changes,
    }
    series = charts.Series(name="listed", mark="circle", tone="probe", points=((0.0, 0.5), (5.0, 0.75), (10.0, 1.0)))
    return parse(charts.line_chart([series], **settings))  # type: ignore[arg-type]


def test_a_line_goes_through_its_points() -> None:
    root = line()
    height = charts.LINE_HEIGHT
    assert points(root) == [(0.0, height), (0.5, height / 2), (1.0, 0.0)]
    segments = [e for e in root.iter("line") if e.get("class") == "segment"]
    assert [(share(s.get("x1")), share(s.get("x2"))) for s in segments] == [(0.0, 0.5), (0.5, 1.0)]


def test_levels_and_the_choice_stand_where_their_numbers_say() -> None:
    levels = [charts.Level(name="inside", value=0.6, label="best"), charts.Level(name="outside", value=0.2)]
    root = line(levels=levels, chosen=(5.0, 0.75))
    drawn = [e for e in root.iter("line") if (e.get("class") or "").startswith("level")]
    assert [float(e.get("y1", "nan")) for e in drawn] == [pytest.approx(0.8 * charts.LINE_HEIGHT)]
    ring = next(root.iter("circle"))
    assert share(ring.get("cx")) == 0.5 and float(ring.get("cy", "nan")) == charts.LINE_HEIGHT / 2
    assert "chosen: depth 5" in texts(root) and "best" in texts(root)


def test_a_dot_lies_on_its_interval_and_the_order_is_that_of_the_rows() -> None:
    rows = [
        charts.Dot(name="a", value=0.6, interval=(0.5, 0.7), mark="square", tone="teacher"),
        charts.Dot(name="b", value=0.8, interval=(0.75, 0.9), mark="circle", tone="probe"),
    ]
    root = parse(charts.dot_intervals(rows, title="Accuracy", value_format=str, tick_format=str))
    intervals = [e for e in root.iter("line") if (e.get("class") or "").startswith("interval")]
    (xa, ya), (xb, yb) = points(root)
    assert ya < yb and [float(e.get("y1", "nan")) for e in intervals] == [ya, yb]
    low, high = share(intervals[0].get("x1")), share(intervals[1].get("x2"))
    for x, value in ((xa, 0.6), (xb, 0.8), (share(intervals[0].get("x2")), 0.7), (share(intervals[1].get("x1")), 0.75)):
        assert (x - low) / (high - low) == pytest.approx((value - 0.5) / (0.9 - 0.5), abs=1e-3)


def test_reliability_puts_bins_at_confidence_and_accuracy_with_their_counts() -> None:
    bins = [
        charts.Bin(low=0.0, high=0.5, count=0, confidence=0.0, accuracy=0.0),
        charts.Bin(low=0.5, high=0.75, count=1234, confidence=0.6, accuracy=0.25),
        charts.Bin(low=0.75, high=1.0, count=617, confidence=0.9, accuracy=1.0),
    ]
    root = parse(charts.reliability(bins, title="Reliability", mark="circle", tone="probe"))
    height = charts.RELIABILITY_HEIGHT
    assert points(root) == [(0.6, pytest.approx(0.75 * height)), (0.9, 0.0)]
    bars = [float(e.get("height", "nan")) for e in root.iter("rect")]
    assert bars[0] == 2 * bars[1]
    assert {"1.2k", "617"} <= set(texts(root))


def test_names_are_escaped_and_charts_have_an_accessible_name() -> None:
    rows = [charts.Dot(name='<b onload="x">&', value=0.6, interval=(0.5, 0.7), mark="square", tone="teacher")]
    root = parse(charts.dot_intervals(rows, title="A < B", value_format=str, tick_format=str))
    svg = next(root.iter("svg"))
    assert svg.get("role") == "img" and svg[0].tag == "title" and svg[0].text == "A < B"
    assert not list(root.iter("b")) and '<b onload="x">&' in texts(root)


def test_every_mark_is_defined_once_in_both_sizes() -> None:
    names = re.findall(r'id="([\w-]+)"', charts.mark_definitions())
    assert sorted(names) == sorted(f"{mark}-{size}" for mark in charts.MARKS for size in charts.MARK_SIZES)


@pytest.mark.parametrize(
    ("count", "expected"), [(7, "7"), (999, "999"), (1000, "1.0k"), (9949, "9.9k"), (12_345, "12k")]
)
def test_short_counts(count: int, expected: str) -> None:
    assert charts.short_count(count) == expected
