from __future__ import annotations

import pytest

from probekd.report import formats

DASH = "\N{EN DASH}"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formats.duration(None), DASH),
        (formats.duration(3.21), "3.2 s"),
        (formats.duration(412.7), "6 min 53 s"),
        (formats.duration(59.97), "1 min 0 s"),
        (formats.duration(4021), "1 h 7 min"),
        (formats.size(None), DASH),
        (formats.size(999), "999 B"),
        (formats.size(734_003_200), "734.0 MB"),
        (formats.size(2.5e13), "25.0 TB"),
        (formats.pct(0.7125), "71.2%"),
        (formats.pct(None), DASH),
        (formats.num(float("nan")), DASH),
        (formats.p_value(0.0002), "< 0.001"),
        (formats.p_value(0.31), "0.310"),
        (formats.p_value(None), DASH),
        (formats.points(-0.031, "accuracy"), "\N{MINUS SIGN}3.1"),
        (formats.points(0.031, "nll"), "+0.031"),
    ],
)
def test_numbers_in_words(written: str, expected: str) -> None:
    assert written == expected
