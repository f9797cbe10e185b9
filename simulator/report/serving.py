"""Answers about load as text and data: largest load, cost against load, fleets, the Pareto front, distributions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from simulator.report.layout import between, bullets, columns, labelled, percent, quantity
from simulator.report.text import bottleneck_lines, cost_line, summary_lines, title

if TYPE_CHECKING:
    from simulator.analysis.capacity import LargestLoad
    from simulator.analysis.curve import LoadCurve, LoadPoint
    from simulator.analysis.distribution import Distribution
    from simulator.analysis.fleet import Fleet
    from simulator.analysis.pareto import Pareto, ParetoPoint
    from simulator.analysis.result import Result

LOADS = {"rate": "request rate", "concurrency": "concurrency", "speed": "speed of the trace"}


def load_text(value: float, knob: str) -> str:
    """Print a load with its unit."""
    if knob == "rate":
        return f"{quantity(value, 'ratio')} req/s"
    return (
        f"{value:,.0f} clients" if knob == "concurrency" else f"{quantity(value, 'ratio')} times as recorded"
    )


def capacity_lines(found: LargestLoad) -> list[str]:
    """Return the largest load, its doubt, what binds it, and the answer at that load."""
    result = found.result
    lines = [title(result), ""]
    label = f"largest {LOADS[found.knob]}"
    if not found.value:
        lines += labelled(label, "none", 24)
        if not result.fits:
            return [*lines, *labelled("because", ["it does not fit", *result.shortfalls], 24)]
        reason = f"requests that come alone miss {binding_text(found.binding)}"
        return [*lines, *labelled("because", reason, 24), *labelled("goal", found.goal.text(), 24)]
    lines += labelled(label, load_text(found.value, found.knob), 24)
    if found.knob != "rate":
        lines += labelled("requests per second", quantity(found.rate, "1/s"), 24)
    lines += labelled("80 % interval", f"{_span(found.low, found.high, found.knob)} by the cost model", 24)
    if found.sampling:
        drawn = _span(*found.sampling_interval, found.knob)
        lines += labelled("", f"{drawn} by what was drawn ({found.requests:,} requests)", 24)
    lines += labelled("goal", found.goal.text(), 24)
    beyond = f"{binding_text(found.binding)}: missed at {load_text(found.misses, found.knob)}"
    lines += [*labelled("binds first", beyond, 24), "", "at that load"]
    lines += summary_lines(result.values, result.headline.key)
    lines += ["", *labelled("cost", cost_line(result)), *bottleneck_lines(result)]
    notes = [
        f"judged on the requests of the steady part of {found.requests:,}: who comes in the first and the last lifetime of a "
        f"request ({quantity(found.seen.life, 'seconds')}) is left out",
        "the interval by the cost model has all iterations slower or faster together; the queue answers to it",
    ]
    if found.knob == "rate":
        notes.append("arrivals are stretched so that those drawn come at exactly the rate")
    if not found.sampling:
        notes.append("a single sequence of requests: what another day would bring is not in the interval")
    return [*lines, *labelled("assumptions", [f"- {text}" for text in (*notes, *result.assumptions)])]


def capacity_document(found: LargestLoad) -> dict[str, Any]:
    """Return the same as plain data in SI units."""
    low, high = found.sampling_interval
    return {
        "scenario": found.result.name, "knob": found.knob, "largest": found.value, "low": found.low, "high": found.high,
        "sampling_error": found.sampling, "sampling_low": low, "sampling_high": high, "request_rate": found.rate,
        "misses_at": found.misses, "binding": found.binding, "goal": found.goal.text(), "requests": found.requests,
        "runs": found.runs, "fits": found.result.fits, "answer": found.result.to_dict(),
    }  # fmt: skip


def binding_text(binding: str) -> str:
    """Say what binds."""
    words = {"queue": "the queue grows without bound", "memory": "memory"}
    return words.get(binding, binding.replace("_", " "))


def curve_lines(curve: LoadCurve) -> list[str]:
    """Return a load curve as a table."""
    ahead = ("load", "held", "TTFT p50", "p99", "TPOT p50", "p99", "tokens/s", "busy", "J/token")
    objective, priced = curve.goal.slo is not None, bool(curve.priced_by)
    head = [
        *ahead,
        *(("attained", "goodput") if objective else ()),
        *(("$/M tokens",) if priced else ()),
        "bottleneck",
    ]
    rows: list[Sequence[str]] = [head]
    rows += [_curve_row(point, curve.knob, objective, priced) for point in curve.points]
    lines = [
        f"{curve.name}: {LOADS[curve.knob]} against latency and cost, {_accelerators(curve.devices)}",
        "",
    ]
    lines += [*columns(rows, right=range(2, len(head) - 1)), ""]
    lines += labelled("held", curve.goal.text())
    lines += labelled(
        "cost", f"output tokens; {curve.priced_by or 'no price known'}; accelerators' power alone"
    )
    return [*lines, *labelled("length", f"{curve.requests:,} requests at each load, the steady part of them")]


def curve_document(curve: LoadCurve) -> dict[str, Any]:
    """Return the same as plain data in SI units."""
    return {
        "scenario": curve.name, "knob": curve.knob, "goal": curve.goal.text(), "requests": curve.requests,
        "devices": curve.devices, "priced_by": curve.priced_by, "points": [point.row() for point in curve.points],
    }  # fmt: skip


def _curve_row(point: LoadPoint, knob: str, objective: bool, priced: bool) -> list[str]:
    row = [load_text(point.load, knob), "yes" if point.holds else "NO"]
    row += [quantity(seconds, "seconds") for seconds in point.latencies.values()]
    row += [
        quantity(point.output_rate, "ratio"),
        percent(point.busy),
        quantity(point.joules_per_token, "joules"),
    ]
    if objective:
        row += [percent(point.attainment or 0.0), f"{quantity(point.goodput or 0.0, 'ratio')}/s"]
    if priced:
        row.append(quantity(point.dollars_per_million_tokens or 0.0, "dollars"))
    name, share = point.bottleneck
    missed = "" if point.holds else f"; misses {binding_text(point.misses)}"
    return [*row, f"{name} {percent(share)}{missed}"]


def fleet_lines(found: Fleet) -> list[str]:
    """Return a fleet: replicas, nodes, power, dollars, and how it stands with all replicas and without its spares."""
    largest, knob = found.largest, found.largest.knob
    peak = found.load * (1.0 + found.headroom)
    asked = f"{load_text(found.load, knob)}, up to {load_text(peak, knob)} with {percent(found.headroom)} headroom"
    hardware = found.largest.result.setup.hardware
    whole = hardware.machine.node
    counted = f"{found.replicas} + {found.spares} spare, {_accelerators(found.devices)}"
    counted += (
        f" in {found.nodes:,} x {whole.name}"
        if whole is not None and whole.name != hardware.device.name
        else ""
    )
    each = (
        f"{load_text(found.per_replica, knob)} (80 %: {_span(*_per_replica(found), knob)} by the cost model)"
    )
    lines = [title(largest.result), "", *labelled("load", asked, 24), *labelled("replicas", counted, 24)]
    lines += labelled("a replica holds", each, 24)
    fewest, most = replica_interval(found)
    if (fewest, most) != (found.replicas, found.replicas):
        lines += labelled("80 % interval", f"{fewest:,} to {most:,} replicas, spares apart", 24)
    lines += labelled("goal", largest.goal.text(), 24)
    lines += labelled("binds first", binding_text(largest.binding), 24)
    power = f"{quantity(found.watts, 'watts')} accelerators at the load, {quantity(found.provisioned_watts, 'watts')} provisioned"
    lines += labelled("power", power, 24)
    if found.dollars_per_second:
        dollars = f"{quantity(found.dollars_per_second, 'dollars/s')}, {quantity(found.dollars_per_month, 'dollars')} a month"
        tokens = f"{quantity(found.dollars_per_million_tokens or 0.0, 'dollars')} per million output tokens"
        lines += labelled("cost", f"{dollars}, {tokens} ({found.priced_by})", 24)
    else:
        lines += labelled("cost", "no price known", 24)
    rows: list[Sequence[str]] = [("", "TTFT p50", "p99", "TPOT p50", "p99", "tokens/s", "busy", "held")]
    for name, point in (
        ("the load, all replicas", found.normal),
        ("with headroom, spares down", found.worst),
    ):
        seconds = [quantity(value, "seconds") for value in point.latencies.values()]
        held = "yes" if point.holds else f"NO: {binding_text(point.misses)}"
        rows.append((name, *seconds, quantity(point.output_rate, "ratio"), percent(point.busy), held))
    return [*lines, "", *columns(rows, right=range(1, 7))]


def replica_interval(found: Fleet) -> tuple[int, int]:
    """Return the fewest and the most replicas over the interval of what one holds."""
    peak = found.load * (1.0 + found.headroom)
    low, high = _per_replica(found)
    fewest = max(1, math.ceil(peak / high * (1.0 - 1e-9)))
    return fewest, math.ceil(peak / low * (1.0 - 1e-9)) if low > 0.0 else 10**9


def fleet_document(found: Fleet) -> dict[str, Any]:
    """Return the same as plain data in SI units."""
    low, high = _per_replica(found)
    fewest, most = replica_interval(found)
    return {
        "scenario": found.largest.result.name, "knob": found.largest.knob, "load": found.load, "headroom": found.headroom,
        "per_replica": found.per_replica, "per_replica_low": low, "per_replica_high": high, "replicas": found.replicas,
        "replicas_low": fewest, "replicas_high": most, "spares": found.spares, "devices": found.devices, "nodes": found.nodes,
        "binding": found.largest.binding, "goal": found.largest.goal.text(), "watts": found.watts,
        "provisioned_watts": found.provisioned_watts, "dollars_per_second": found.dollars_per_second or None,
        "dollars_per_million_tokens": found.dollars_per_million_tokens, "priced_by": found.priced_by,
        "normal": found.normal.row(), "worst": found.worst.row(),
    }  # fmt: skip


def _per_replica(found: Fleet) -> tuple[float, float]:
    scale = found.per_replica / found.largest.value
    return found.largest.low * scale, found.largest.high * scale


def pareto_lines(found: Pareto, *, every: bool = False) -> list[str]:
    """Return the front (or every point) as a table, the fastest for a user first."""
    points = found.points if every else found.front
    short = [key.rpartition(".")[2].replace("_", " ") for key in found.keys]
    objective = any(point.attainment is not None for point in points)
    priced = any(point.dollars_per_million_tokens is not None for point in points)
    extra = [*(("attained",) if objective else ()), *(("$/M tokens",) if priced else ())]
    head = ["tokens/s/user", "tokens/s/GPU", *short, "clients", "replicas", "TTFT p50", *extra, "bottleneck"]
    rows: list[Sequence[str]] = [head]
    rows += [_pareto_row(point, objective, priced) for point in points]
    what = "points" if every else "on the front"
    lines = [f"{found.name}: {len(points)} {what} of {len(found.points)} that ran", ""]
    lines += columns(rows, right=range(len(head) - 1))
    if found.refused:
        reasons = [f"{', '.join(settings.values())}: {why}" for settings, why in found.refused]
        lines += ["", "not possible", *bullets(reasons)]
    return [*lines, "", *labelled("clients", "of each replica, in a closed loop")]


def pareto_document(found: Pareto) -> dict[str, Any]:
    """Return the same as plain data in SI units."""
    return {
        "scenario": found.name, "keys": list(found.keys), "points": [point.row() for point in found.points],
        "refused": [{"settings": dict(settings), "problem": why} for settings, why in found.refused],
    }  # fmt: skip


def _pareto_row(point: ParetoPoint, objective: bool, priced: bool) -> list[str]:
    row = [
        quantity(point.tokens_per_user, "ratio"),
        quantity(point.tokens_per_gpu, "ratio"),
        *point.settings.values(),
    ]
    row += [f"{point.concurrency:,}", f"{point.replicas:,}", quantity(point.time_to_first_token, "seconds")]
    if objective:
        row.append(percent(point.attainment or 0.0))
    if priced:
        row.append(quantity(point.dollars_per_million_tokens or 0.0, "dollars"))
    name, share = point.bottleneck
    return [*row, f"{name} {percent(share)}"]


def latency_lines(result: Result, found: Sequence[Distribution]) -> list[str]:
    """Return a table of percentiles, a row a latency."""
    shown = list(found[0].percentiles)
    rows: list[Sequence[str]] = [("", "count", "mean", *(f"p{place:g}" for place in shown))]
    for one in found:
        seconds = [quantity(value, "seconds") for value in (one.mean, *one.percentiles.values())]
        rows.append((one.label, f"{one.count:,}", *seconds))
    lines = [title(result), "", *columns(rows, right=range(1, len(rows[0]))), ""]
    return [*lines, *bottleneck_lines(result)]


def latency_document(result: Result, found: Sequence[Distribution]) -> dict[str, Any]:
    """Return the same as plain data in SI units."""
    latencies: Mapping[str, Any] = {
        one.key: {
            "count": one.count,
            "mean": one.mean,
            **{f"p{place:g}": value for place, value in one.percentiles.items()},
        }
        for one in found
    }
    return {
        "scenario": result.name, "latencies": latencies, "time_by_bottleneck": dict(result.shares),
        "time_by_bottleneck_and_phase": result.phases,
    }  # fmt: skip


def _accelerators(count: int) -> str:
    return f"{count:,} accelerator{'' if count == 1 else 's'}"


def _span(low: float, high: float, knob: str) -> str:
    text = f"{low:,.0f} to {high:,.0f}" if knob == "concurrency" else between(low, high, "ratio")
    return f"{text} req/s" if knob == "rate" else text
