"""Answers as lines of text: compact, aligned, the same byte for byte, readable without colour."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from simulator.report.layout import between, bullets, columns, labelled, percent, quantity, signed_percent

if TYPE_CHECKING:
    from simulator.analysis import Check, FitReport, RemedyTried, Result, Sweep, Value
    from simulator.strategy import MemoryUse

FORMULAS: Mapping[str, str] = {
    "matmul": "matmul_time",
    "attention": "attention_time",
    "decode-attention": "decode_attention_time",
    "elementwise": "stream_time",
    "embedding": "stream_time",
    "collective": "collective_time",
    "custom-collective": "custom_all_reduce_time",
    "expert-exchange": "exchange_time",
    "transfer": "transfer_time",
}
"""Operator class to the function of :mod:`simulator.cost` that prices it; its documentation cites the source."""
STATISTICS = ("mean", "p50", "p90", "p95", "p99")
_SHARES = 6
_CATEGORIES = 6


def run_lines(result: Result) -> list[str]:
    """Return the answer of ``memroof run``: how fast, against what, does it fit, what binds it, what it rests on."""
    lines = [title(result), "", *summary_lines(result.values, result.headline.key)]
    if not result.fits and result.outcome.total_time > 0.0:
        lines.append("these figures hold if the memory were large enough; it is not, see below")
    lines += ["", *fits_lines(result), *check_lines(result), *remedy_lines(result)]
    lines += labelled("cost", cost_line(result))
    lines += ["", *bottleneck_lines(result)]
    lines += labelled("interval", interval_line(result))
    return [*lines, *labelled("assumptions", [f"- {text}" for text in result.assumptions])]


def title(result: Result) -> str:
    """Return what was asked in one line."""
    hardware, outcome = result.setup.hardware, result.outcome
    devices = " and ".join(device.name for device in hardware.devices)
    if devices == hardware.name:
        place = f"{outcome.devices} x {hardware.name}"
    else:
        nodes = f"{hardware.nodes} x " if hardware.nodes > 1 and not hardware.others else ""
        place = f"{nodes}{hardware.name}, {outcome.devices} x {devices}"
    subject = f" of {result.setup.subject}" if result.setup.subject else ""
    return f"{result.name}: {result.kind}{subject} on {place}"


def summary_lines(values: Mapping[str, Value], headline: str) -> list[str]:
    """Return figures in brief: the headline first, means and percentiles side by side, counts of nothing left out."""
    spread: dict[str, dict[str, Value]] = {}
    for key, value in values.items():
        stem, _, statistic = key.rpartition("_")
        if statistic in STATISTICS:
            spread.setdefault(stem, {})[statistic] = value
    single = {
        key: value
        for key, value in values.items()
        if key.rpartition("_")[0] not in spread or key == headline
        if value.value != 0.0 or value.dimension != "count"
    }
    return [*value_lines(single.values(), headline), *_spread_lines(spread)]


def value_lines(values: Iterable[Value], headline: str) -> list[str]:
    """Return figures with their 80 % intervals, the headline first; exact ones stand without an interval."""
    ordered = sorted(values, key=lambda value: value.key != headline)
    rows = []
    for value in ordered:
        exact = math.isclose(value.low, value.high, rel_tol=1e-9)
        spread = "" if exact else f"(80 %: {between(value.low, value.high, value.dimension)})"
        rows.append((f"{value.label:<14}", quantity(value.value, value.dimension), spread))
    return columns(rows)


def fits_lines(result: Result) -> list[str]:
    """Return whether it fits and the bytes by tier; what is missing where it does not."""
    if not result.memory:
        return labelled("fits", "nothing is held")
    lines = labelled("fits", "yes" if result.fits else ["NO", *result.shortfalls])
    for use in fullest(result.memory):
        others = [other.peak for other in result.memory if other.tier == use.tier and other is not use]
        more = [f"{len(others)} more, the emptiest at {quantity(min(others), 'bytes')}"] if others else []
        lines += labelled(f"  {use.tier}", [_memory_line(use), categories_line(use.by_category), *more])
    return lines


def further_lines(result: Result) -> list[str]:
    """Return metrics that take longer to find, in a line."""
    found = [f"{value.label} {quantity(value.value, value.dimension)}" for value in result.further.values()]
    return labelled("reserved", ", ".join(found)) if found else []


def fullest(memory: Sequence[MemoryUse]) -> list[MemoryUse]:
    """Return the memory of each tier that has the least room left."""
    tiers = dict.fromkeys(use.tier for use in memory)
    return [min((use for use in memory if use.tier == tier), key=lambda use: use.free) for tier in tiers]


def check_lines(result: Result) -> list[str]:
    """Return the answer against what was published, and against its limits."""
    checks = [*map(_expectation, result.expectations), *map(_limit, result.limits)]
    return [line for label, text in checks for line in labelled(label, text)]


def remedy_lines(result: Result) -> list[str]:
    """Return what would make it fit or hold its limits, tried out; nothing where all is well."""
    if result.ok:
        return []
    found, goal = remedies(result)
    if not found:
        return [f"{goal}: no single change that was tried"]
    rows = []
    for remedy in found:
        speed = remedy.headline
        figure = f"{speed.label} {quantity(speed.value, speed.dimension)}" if speed else ""
        rows.append((f"- {remedy.description}", figure, as_options(remedy)))
    return [f"{goal}:", *columns(rows, indent="  ")]


def remedies(result: Result) -> tuple[list[RemedyTried], str]:
    """Return the changes that make it fit (and hold its limits, where only these are missed), and what they achieve."""
    if not result.fits:
        return list(result.remedies()), "what would make it fit"
    return [remedy for remedy in result.remedies() if remedy.ok], "what would hold the limit"


def as_options(remedy: RemedyTried) -> str:
    """Return a change as a user types it."""
    return " ".join(f"--set {shlex.quote(f'{key}={value}')}" for key, value in remedy.overrides.items())


def cost_line(result: Result) -> str:
    """Return dollars and joules in one line; says so where no price is known."""
    from simulator.analysis.money import rent

    parts = []
    for key, value in result.money.items():
        unit = key.removeprefix("dollars_per_").replace("_", " ")
        amount = (
            quantity(value, "dollars/s") if unit == "second" else f"{quantity(value, 'dollars')} a {unit}"
        )
        parts.append(
            amount if unit != "million tokens" else f"{quantity(value, 'dollars')} per million tokens"
        )
    basis = rent(result)[1]
    text = f"{', '.join(parts)} ({basis})" if parts else "no price known"
    watts, joules = result.energy.get("watts"), result.energy.get("joules_per_token")
    if watts is not None:
        text += f"; accelerators draw {quantity(watts, 'watts')}"
    if joules is not None:
        text += f", {quantity(joules, 'joules')} a token"
    return text


def bottleneck_lines(result: Result) -> list[str]:
    """Return what the time is lost to, over all and by phase where there are several."""
    lines = labelled("bottleneck", bottleneck_line(result.shares))
    for phase, shares in result.phases.items():
        lines += labelled(f"  {phase}", bottleneck_line(shares))
    return lines


def bottleneck_line(shares: Mapping[Any, float]) -> str:
    """Return what the time is lost to, the largest shares first."""
    listed = [f"{name} {percent(share)}" for name, share in list(shares.items())[:_SHARES]]
    return ", ".join(listed) or "nothing runs"


def interval_line(result: Result) -> str:
    """Return the headline's interval and where the doubt comes from."""
    value = result.headline
    doubt = ", ".join(
        f"{name} {percent(share)}" for name, share in list(result.doubt().items())[:3] if share > 0
    )
    spread = between(value.low, value.high, value.dimension)
    return f"80 % for {value.label}: {spread}" + (f"; doubt from {doubt}" if doubt else "")


def categories_line(by_category: Mapping[str, float]) -> str:
    """Return bytes by category, the largest first."""
    ordered = sorted(by_category.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {quantity(size, 'bytes')}" for name, size in ordered[:_CATEGORIES] if size > 0)


def explain_lines(result: Result) -> list[str]:
    """Return the answer of ``memroof explain``: ledger, time, sensitivity, doubt, sources, assumptions."""
    lines = [
        title(result),
        "",
        *value_lines(result.values.values(), result.headline.key),
        "",
        "memory at its fullest",
    ]
    for use in fullest(result.memory):
        lines += ledger_lines(use)
    lines += _other_memories(result.memory)
    lines += further_lines(result)
    if not result.fits:
        lines += labelled("fits", ["NO", *result.shortfalls])
        lines += remedy_lines(result)
    total = result.outcome.total_time
    lines += ["", f"time by bottleneck ({quantity(total, 'seconds')} in all)"]
    lines += _share_rows([(name, share * total, share) for name, share in result.shares.items()])
    lines += ["", "time by class of operator, its standard error, and its share of the doubt"]
    lines += columns(class_rows(result), right=[1, 2, 3], indent="  ")
    lines += ["", f"sensitivity of {result.headline.label} to 10 % more of"]
    effects = [row for row in result.sensitivity() if abs(row.effect) >= 5e-4]
    lines += columns([(row.figure, signed_percent(row.effect)) for row in effects], right=[1], indent="  ")
    if not effects:
        lines.append("  nothing: no hardware figure binds it")
    checks = check_lines(result)
    lines += ["", *checks] if checks else []
    lines += ["", "formulas", *_formula_rows(row[0] for row in class_rows(result) if row[0] != "composition")]
    lines += ["", "sources", *bullets(result.sources)]
    lines += ["", "assumptions", *bullets(result.assumptions)]
    lines += ["", *bottleneck_lines(result)]
    return [*lines, *labelled("interval", interval_line(result))]


def class_rows(result: Result) -> list[tuple[str, str, str, str]]:
    """Return operator class, time, standard error and share of the doubt, the longest first.

    The last row is what the whole is uncertain by on top of its kernels, where the strategy states it.
    """
    doubt, errors = result.doubt(), result.class_errors
    classes = sorted(result.outcome.class_times.items(), key=lambda item: (-item[1], item[0]))
    rows: list[tuple[str, str, str, str]] = [
        (name, quantity(seconds, "seconds"), percent(errors.get(name, 0.0)), percent(doubt.get(name, 0.0)))
        for name, seconds in classes
        if seconds > 0
    ]
    beyond = result.outcome.composition_error
    if beyond:
        total = quantity(sum(seconds for _, seconds in classes), "seconds")
        rows.append(("composition", total, percent(beyond), percent(doubt["composition"])))
    return rows


def ledger_lines(use: MemoryUse) -> list[str]:
    """Return one memory's ledger: bytes by category at the peak, its moment, the largest holders."""
    ordered = sorted(use.by_category.items(), key=lambda item: (-item[1], item[0]))
    rows = [
        (name, quantity(size, "bytes"), percent(size / use.capacity if use.capacity else 0.0))
        for name, size in ordered
    ]
    rows += [
        ("in all", quantity(use.peak, "bytes"), percent(use.peak / use.capacity if use.capacity else 0.0)),
        ("free" if use.free >= 0 else "MISSING", quantity(abs(use.free), "bytes"), ""),
    ]
    lines = [
        f"  {place(use)}: {quantity(use.peak, 'bytes')} of {quantity(use.capacity, 'bytes')}"
        f" at {quantity(use.peak_time, 'seconds')}",
        *columns(rows, right=[1, 2], indent="    "),
    ]
    if use.largest:
        held = [(holding.name, quantity(holding.size, "bytes")) for holding in use.largest]
        lines += ["    largest holders", *columns(held, right=[1], indent="      ")]
    return lines


def place(use: MemoryUse) -> str:
    """Return a memory's name with the rank or stage that it belongs to, where the name does not say so."""
    return use.memory if not use.label or use.label in use.memory else f"{use.memory} of {use.label}"


def bound_text(check: Check) -> str:
    """Return a limit in words: ``step time at most 2 s``."""
    side = "at least" if check.text.lstrip().startswith(">") else "at most"
    return f"{check.found.label} {side} {check.text.lstrip(' ><=')}"


def sweep_lines(sweep: Sweep) -> list[str]:
    """Return the table of ``memroof whatif``: the varied keys, then what came out; why a row has no answer."""
    headline = sweep.headline.replace("_", " ")
    short = [key.rpartition(".")[2] for key in sweep.keys]
    labels = [key if short.count(name) > 1 else name for key, name in zip(sweep.keys, short, strict=True)]
    rows: list[Sequence[str]] = [(*labels, headline, "80 %", "fits", "free", "bottleneck")]
    problems: list[str] = []
    for row in sweep.rows:
        settings = [str(row[key]) for key in sweep.keys]
        if row["problem"]:
            problems.append(f"{', '.join(settings)}: {'; '.join(row['problem'].splitlines())}")
            rows.append((*settings, "-", "-", "-", "-", "not possible, see below"))
            continue
        dimension = row["dimension"]
        free = "-" if row["free"] is None else quantity(row["free"], "bytes")
        rows.append(
            (
                *settings, quantity(row["value"], dimension), between(row["low"], row["high"], dimension),
                "yes" if row["fits"] else "NO", free, f"{row['bottleneck']} {percent(row['share'])}",
            )
        )  # fmt: skip
    lines = columns(rows, right=[*range(len(sweep.keys) + 2), len(sweep.keys) + 3])
    return [*lines, *(["", "not possible", *bullets(problems)] if problems else [])]


def fit_lines(report: FitReport) -> list[str]:
    """Return the answer of ``memroof fit``."""
    degree = report.tensor_parallel
    over = f"cut over {degree} of {report.devices}" if report.devices > 1 else "one device"
    lines = [
        f"{report.model} on {report.hardware} ({over}), weights in {report.precision}, KV in {report.kv_precision}",
        "",
    ]
    verdict = "yes" if report.fits else f"NO: {quantity(report.shortfall, 'bytes')} short on each device"
    lines += labelled("fits", f"{verdict} (one sequence of {report.context:,} tokens)")
    lines += labelled("capacity", f"{quantity(report.capacity, 'bytes')} usable on each device")
    lines += labelled(
        "weights", f"{quantity(report.weights, 'bytes')} on each device ({report.parameters:,} parameters)"
    )
    lines += labelled(
        "reserved", f"{quantity(report.reserved, 'bytes')} for driver context, libraries and workspaces"
    )
    lines += labelled("KV cache", f"{report.kv_per_token:,.0f} bytes a token on each device")
    lines += labelled("largest batch", f"{report.largest_batch:,} sequences of {report.context:,} tokens")
    lines += labelled("largest context", f"{report.largest_context:,} tokens, one sequence")
    if report.longest_cached > report.largest_context:
        lines += labelled("", f"memory alone would allow {report.longest_cached:,}; the model ends before")
    if report.remedies:
        lines += ["what would make it fit:", *bullets(report.remedies)]
    return lines


def _spread_lines(spread: Mapping[str, Mapping[str, Value]]) -> list[str]:
    """Return one row a figure with its mean and percentiles."""
    if not spread:
        return []
    used = [name for name in STATISTICS if any(name in group for group in spread.values())]
    rows: list[tuple[str, ...]] = [("", *used)]
    for group in spread.values():
        label = next(iter(group.values())).label.rpartition(",")[0] or next(iter(group.values())).label
        cells = (group.get(name) for name in used)
        rows.append((label, *(quantity(cell.value, cell.dimension) if cell else "" for cell in cells)))
    return ["", *columns(rows, right=range(1, len(used) + 1))]


def _memory_line(use: MemoryUse) -> str:
    share = use.peak / use.capacity if use.capacity else 0.0
    free = f"{quantity(use.free, 'bytes')} free" if use.free >= 0 else f"{quantity(-use.free, 'bytes')} SHORT"
    where = f" in {place(use)}"
    return f"{quantity(use.peak, 'bytes')} of {quantity(use.capacity, 'bytes')} ({percent(share)}), {free}{where}"


def _expectation(check: Check) -> tuple[str, str]:
    missed = "" if check.ok else ", outside its tolerance"
    error = signed_percent(check.relative_error) if math.isfinite(check.relative_error) else "no comparison"
    return "published", f"{check.found.label} {check.text}: {error}{missed} ({check.source})"


def _limit(check: Check) -> tuple[str, str]:
    verdict = "held" if check.ok else "MISSED"
    return "limit", f"{bound_text(check)}: {quantity(check.found.value, check.found.dimension)}, {verdict}"


def _other_memories(memory: Sequence[MemoryUse]) -> list[str]:
    shown = [id(use) for use in fullest(memory)]
    rows = [
        (
            place(use),
            quantity(use.peak, "bytes"),
            f"of {quantity(use.capacity, 'bytes')} at {quantity(use.peak_time, 'seconds')}",
        )
        for use in memory
        if id(use) not in shown
    ]
    return ["  the others", *columns(rows, right=[1], indent="    ")] if rows else []


def _formula_rows(classes: Iterable[str]) -> list[str]:
    """Return the formula of each operator class: its function, and what its documentation says in one line."""
    from simulator import cost

    rows = []
    for name in classes:
        function = FORMULAS.get(name, "")
        documentation = (
            (getattr(cost, function).__doc__ or "") if function else "The constants of the calibration."
        )
        rows.append(
            (
                name,
                f"simulator.cost.{function}" if function else "-",
                documentation.partition("\n")[0].replace("``", ""),
            )
        )
    return columns(rows, indent="  ")


def _share_rows(rows: Iterable[tuple[Any, float, float]]) -> list[str]:
    from simulator.report.layout import bar

    cells = [
        (str(name), quantity(seconds, "seconds"), percent(share), bar(share)) for name, seconds, share in rows
    ]
    return columns(cells, right=[1, 2], indent="  ")
