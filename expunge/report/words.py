"""Values of a report in words that a person reads, and letters as what they are."""

import math
import unicodedata
from datetime import datetime

from expunge.report.strips import finite

# What a reader may safely be shown


def visible(value: object) -> object:
    """Spell out the letters that are not seen yet change what is seen, such as U+202E; line breaks and tabs stay."""
    if hasattr(value, "__html__") or not isinstance(value, str):  # markup of our own, or a number
        return value
    return "".join(_spell(letter) if _hides(letter) else letter for letter in value)


def _hides(letter: str) -> bool:
    if letter in "\n\t\u200c\u200d":  # the joiners are ordinary spelling in Persian, Hindi and emoji
        return False
    return unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _spell(letter: str) -> str:
    return f"\\u{ord(letter):04x}" if ord(letter) <= 0xFFFF else f"\\U{ord(letter):08x}"


# Numbers for people


def number(value: object) -> str:
    """0.97, 5.31, 121.8, 1.2e-05; a dash where there is none."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or value == 0:
        return f"{value:,}" if value else "0"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.1e}"
    return f"{value:.2g}" if abs(value) < 0.1 else f"{value:,.2f}" if abs(value) < 100 else f"{value:,.1f}"


def interval(low: float, high: float, between: str = " to ") -> str:
    """0.07 to 0.32; nothing where both ends are one number, which is a value without an interval, such as a p-value."""
    return "" if low == high else f"{number(low)}{between}{number(high)}"


def precise(value: object) -> str:
    """Four digits, so that a value and the bound that it just missed do not look the same."""
    return f"{value:.4g}" if finite(value) else number(value)


def with_sign(value: float) -> str:
    """+0.12, -3.9: a difference."""
    return f"{'+' if value > 0 else '−' if value < 0 else ''}{number(abs(value))}"


def short(value: object) -> str:
    """1,234 or 134.5 M"""
    return _scale(value, {"T": 1e12, "B": 1e9, "M": 1e6}) or (f"{value:,}" if finite(value) else number(value))


def storage(value: object) -> str:
    """2.4 GB; powers of a thousand, as disks and cards are sold."""
    return _scale(value, {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}) or f"{number(value)} bytes"


def _scale(value: object, units: dict[str, float]) -> str:
    fits = [f"{value / size:.1f} {unit}" for unit, size in units.items() if finite(value) and value >= size]
    return fits[0] if fits else ""


def duration(value: object) -> str:
    """1.2 s, 1 min 22 s, 3 h 5 min"""
    if not finite(value):
        return number(value)
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def moment(value: object) -> str:
    """22 November 2026, 09:00 UTC; what is no date is shown as it is."""
    try:
        when = datetime.fromisoformat(str(value))
    except ValueError:
        return str(value)
    return f"{when.day} {when:%B %Y, %H:%M} {when.tzname() or ''}".strip()
