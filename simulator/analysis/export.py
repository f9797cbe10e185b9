"""A result as plain data: JSON-able, SI units, stable order."""

from __future__ import annotations

import math
from typing import Any

from simulator.analysis.money import rent
from simulator.analysis.result import Check, Result, Value
from simulator.strategy import MemoryUse


def to_dict(result: Result) -> dict[str, Any]:
    """Return everything that a result says as dicts, lists, texts and SI numbers."""
    _, priced_by = rent(result)
    document = {
        "scenario": result.name,
        "kind": result.kind,
        "model": result.setup.subject,
        "hardware": {
            "name": result.setup.hardware.name,
            "nodes": result.setup.hardware.nodes,
            "devices": result.outcome.devices,
        },
        "fits": result.fits,
        "ok": result.ok,
        "headline": result.headline.key,
        "metrics": {key: value_data(value) for key, value in (result.values | result.further).items()},
        "bottleneck": {"name": result.bottleneck[0], "share": result.bottleneck[1]},
        "time_by_bottleneck": dict(result.shares),
        "time_by_bottleneck_and_phase": result.phases,
        "doubt_by_class": dict(result.doubt()),
        "memory": [_memory(use) for use in result.memory],
        "shortfalls": list(result.shortfalls),
        "expectations": [_check(check) for check in result.expectations],
        "limits": [_check(check) for check in result.limits],
        "money": {**result.money, "basis": priced_by} if priced_by else {},
        "energy": result.energy,
        "assumptions": list(result.assumptions),
        "sources": list(result.sources),
    }
    data: dict[str, Any] = plain(document)
    return data


def value_data(value: Value) -> dict[str, Any]:
    """Return a value with its interval."""
    return {"value": value.value, "low": value.low, "high": value.high, "dimension": value.dimension}


def plain(data: Any) -> Any:
    """Turn numpy scalars and tuples into plain ones; infinite and missing numbers into None, as JSON has neither."""
    if isinstance(data, dict):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(item) for item in data]
    if isinstance(data, (str, bool)) or data is None:
        return data
    if hasattr(data, "tolist"):
        return plain(data.tolist())
    if isinstance(data, int):
        return data
    number = float(data)
    return number if math.isfinite(number) else None


def _memory(use: MemoryUse) -> dict[str, Any]:
    return {
        "memory": use.memory,
        "tier": use.tier,
        "label": use.label,
        "capacity": use.capacity,
        "peak": use.peak,
        "free": use.free,
        "peak_time": use.peak_time,
        "by_category": dict(use.by_category),
        "largest": [{"name": holding.name, "size": holding.size} for holding in use.largest],
    }


def _check(check: Check) -> dict[str, Any]:
    return {
        "metric": check.key,
        "expected": check.expected,
        "found": check.found.value,
        "relative_error": check.relative_error,
        "ok": check.ok,
        "source": check.source,
    }
