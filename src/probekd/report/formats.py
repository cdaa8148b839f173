"""Numbers as the page writes them."""

from __future__ import annotations

import math

DASH = "\N{EN DASH}"


def pct(value: float | None) -> str:
    """A share as a percentage with one decimal."""
    return num(None if value is None else 100 * value, 1) + ("" if _unknown(value) else "%")


def whole_pct(value: float) -> str:
    """A share at a tick of an axis."""
    return f"{100 * value:g}%"


def plain(value: float) -> str:
    """A number at a tick of an axis."""
    return f"{value:g}"


def num(value: float | None, digits: int = 3) -> str:
    """A number; an en dash where there is none."""
    return DASH if value is None or _unknown(value) else f"{value:.{digits}f}"


def points(value: float, metric: str) -> str:
    """A signed difference: percentage points of a share, else the metric's own unit."""
    return signed(100 * value, 1) if metric in ("accuracy", "macro_f1") else signed(value, 3)


def p_value(value: float | None) -> str:
    """A p value with three decimals."""
    return "< 0.001" if value is not None and value < 0.001 else num(value)


def duration(seconds: float | None) -> str:
    """Seconds in the two largest units that matter."""
    if seconds is None:
        return DASH
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(count: float | None) -> str:
    """Bytes in decimal units."""
    if count is None:
        return DASH
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _unknown(value: float | None) -> bool:
    return value is None or math.isnan(value)


def signed(value: float, digits: int) -> str:
    """A number with its sign, minus being U+2212; what rounds to zero has none."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else ("+" if value > 0 else "\N{MINUS SIGN}") + text
