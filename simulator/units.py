"""Quantities at the edge: text such as ``80 GiB`` or ``3.35 TB/s`` to SI floats and back.

Inside memroof every figure is a plain SI number (bytes, seconds, FLOP, bytes/s, watts, dollars). This module is
the only place that knows prefixes and unit names.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_SMALL = {"": 1.0, "m": 1e-3, "u": 1e-6, "µ": 1e-6, "μ": 1e-6, "n": 1e-9, "p": 1e-12}
_QUANTITY = re.compile(r"(\$?)\s*([-+]?(?:\d[\d_,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([^\d\s].*)?")


class UnitError(ValueError):
    """A text is not a quantity of the expected dimension."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """A physical dimension: its name, the units that it may be written in, and an example for messages."""

    name: str
    units: dict[str, float]
    example: str


def _scaled(prefixes: dict[str, float], *names: str, scale: float = 1.0) -> dict[str, float]:
    return {prefix + name: factor * scale for name in names for prefix, factor in prefixes.items()}


_BYTES = _scaled(_DECIMAL, "B", "byte", "bytes") | _scaled(_BINARY, "B")
_BITS = _scaled(_DECIMAL, "b", "bit", scale=0.125) | _scaled(_BINARY, "b", "bit", scale=0.125)
_TIME = _scaled(_SMALL, "s") | {
    "sec": 1.0,
    "min": 60.0,
    "h": 3600.0,
    "hour": 3600.0,
    "d": 86400.0,
    "day": 86400.0,
}
_TIME |= {"hours": 3600.0, "days": 86400.0}
_OPERATIONS = _scaled(_DECIMAL, "FLOP", "OP")

DIMENSIONS: dict[str, Dimension] = {
    dimension.name: dimension
    for dimension in (
        Dimension("bytes", _BYTES, "80 GB"),
        Dimension(
            "bytes/s",
            {f"{unit}/s": factor for unit, factor in (_BYTES | _BITS).items()}
            | _scaled(_DECIMAL, "bps", scale=0.125),
            "3.35 TB/s",
        ),
        Dimension("seconds", _TIME, "5 us"),
        Dimension("FLOP", _OPERATIONS, "6 TFLOP"),
        Dimension(
            "FLOP/s",
            {f"{u}/s": f for u, f in _OPERATIONS.items()} | _scaled(_DECIMAL, "FLOPS", "OPS"),
            "989 TFLOP/s",
        ),
        Dimension("hertz", _scaled(_DECIMAL, "Hz"), "1.98 GHz"),
        Dimension("watts", _scaled(_DECIMAL | {"m": 1e-3}, "W"), "700 W"),
        Dimension("joules", _scaled(_DECIMAL | {"m": 1e-3}, "J"), "5 J"),
        Dimension("dollars", _scaled({"": 1.0, "k": 1e3, "M": 1e6}, "USD", "$"), "30000 USD"),
        Dimension(
            "dollars/s",
            {
                f"{money}/{time}": 1.0 / _TIME[time]
                for money in ("USD", "$")
                for time in ("s", "h", "hour", "d", "day")
            },
            "2.50 USD/h",
        ),
        Dimension(
            "1/s",
            {
                f"{noun}/{time}": 1.0 / _TIME[time]
                for noun in ("", "1", "req", "requests", "tokens")
                for time in ("s", "min", "h", "d")
            }
            | _scaled(_DECIMAL, "IOPS"),
            "5 req/s",
        ),
        Dimension(
            "tokens",
            _scaled({"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}, "tokens", " tokens", "token"),
            "300 B tokens",
        ),
    )
}


def parse(text: str, dimension: str) -> float:
    """Read a quantity such as ``80 GiB`` as an SI number.

    Parameters
    ----------
    text : str
        A number followed by a unit; decimal (``GB``) and binary (``GiB``) prefixes are told apart.
    dimension : str
        A key of :data:`DIMENSIONS`, such as ``"bytes"`` or ``"FLOP/s"``.

    Returns
    -------
    float
        The value in SI base units [of the dimension].

    Raises
    ------
    UnitError
        If there is no number, no unit, or a unit of another dimension.

    Examples
    --------
    >>> parse("80 GiB", "bytes")
    85899345920.0
    >>> parse("400 Gb/s", "bytes/s")
    50000000000.0
    """
    kind = DIMENSIONS[dimension]
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise UnitError(f"{text!r} is not a quantity; write it like '{kind.example}'")
    dollar, digits, unit = match.groups()
    number = float(digits.replace(",", "").replace("_", ""))
    if not math.isfinite(number):
        raise UnitError(f"{text!r} is not a finite number; write it like '{kind.example}'")
    unit = (unit or "").strip()
    if dollar and kind.name.startswith("dollars"):
        unit = "$" + unit if unit.startswith(("/", "")) and not unit.startswith("$") else unit
    if not unit:
        raise UnitError(f"{text!r} has no unit; write it like '{kind.example}'")
    factor = kind.units.get(unit, kind.units.get(unit.replace(" ", "")))
    if factor is None:
        near = difflib.get_close_matches(unit, kind.units, n=1, cutoff=0.4)
        other = next((d.name for d in DIMENSIONS.values() if unit in d.units), None)
        found = f"is in {other}, not in {kind.name}" if other else f"has no unit of {kind.name}"
        hint = f"; did you mean '{digits} {near[0]}'?" if near else f"; write it like '{kind.example}'"
        raise UnitError(f"{text!r} {found}{hint}")
    return number * factor


_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_BINARY_PREFIXES = (
    (2.0**50, "Pi"),
    (2.0**40, "Ti"),
    (2.0**30, "Gi"),
    (2.0**20, "Mi"),
    (2.0**10, "Ki"),
    (1.0, ""),
)
_SYMBOLS = {
    "bytes": "B",
    "bytes/s": "B/s",
    "FLOP": "FLOP",
    "FLOP/s": "FLOP/s",
    "hertz": "Hz",
    "watts": "W",
    "joules": "J",
}


def format_quantity(value: float, dimension: str, digits: int = 3) -> str:
    """Print an SI number with a readable unit; bytes in binary units, times from nanoseconds to days.

    Examples
    --------
    >>> format_quantity(85899345920, "bytes")
    '80.0 GiB'
    >>> format_quantity(0.0000052, "seconds")
    '5.20 us'
    """
    if not math.isfinite(value):
        return "unbounded" if value > 0 else str(value)
    if dimension == "seconds":
        return _format_seconds(value, digits)
    if dimension == "dollars":
        return f"${significant(value, digits)}"
    if dimension == "dollars/s":
        return f"${value * 3600:,.2f}/h"
    if dimension in ("tokens", "1/s", "count"):
        return significant(value, digits) + ("/s" if dimension == "1/s" else "")
    prefixes = _BINARY_PREFIXES if dimension == "bytes" else _PREFIXES
    scale, prefix = next(((s, p) for s, p in prefixes if abs(value) >= s * 0.9995), prefixes[-1])
    return f"{significant(value / scale, digits)} {prefix}{_SYMBOLS[dimension]}"


def significant(value: float, digits: int = 3) -> str:
    """Print a number with a count of significant digits, without exponents where it is readable.

    Examples
    --------
    >>> significant(13.7512), significant(1234567.0), significant(0.00012)
    ('13.8', '1,234,567', '0.000120')
    """
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -6:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def _format_seconds(value: float, digits: int) -> str:
    for scale, unit in ((86400.0, "d"), (3600.0, "h"), (1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if abs(value) >= scale * (2.0 if scale > 1.0 else 0.9995):
            return f"{significant(value / scale, digits)} {unit}"
    return f"{significant(value / 1e-9, digits)} ns" if value else "0 s"
