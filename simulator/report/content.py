"""What a sizing report says, apart from how it looks: decision figures, tables, lists."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.report import text
from simulator.report.layout import between, percent, quantity, signed_percent

if TYPE_CHECKING:
    from simulator.analysis import Result
    from simulator.strategy import MemoryUse


@dataclass(frozen=True, slots=True)
class Tile:
    """One decision figure: what it is, the figure, and what qualifies it."""

    label: str
    figure: str
    note: str
    state: str = ""
    """``good``, ``bad`` or empty."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a heading; ``right`` are the columns of numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[int, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Content:
    """Everything that a report says."""

    name: str
    question: str
    description: str
    verdict: str
    good: bool
    tiles: tuple[Tile, ...]
    figures: Table
    checks: Table | None
    remedies: Table | None
    ledger: tuple[Table, ...]
    bottleneck: Table
    classes: Table
    sensitivity: Table
    assumptions: tuple[str, ...]
    sources: tuple[str, ...]


def content(result: Result) -> Content:
    """Return what a report on a result says."""
    return Content(
        name=result.name,
        question=text.title(result).partition(": ")[2],
        description=result.setup.scenario.description,
        verdict=_verdict(result),
        good=result.ok,
        tiles=_tiles(result),
        figures=_figures(result),
        checks=_checks(result),
        remedies=_remedies(result),
        ledger=tuple(_ledger(use) for use in text.fullest(result.memory)),
        bottleneck=_bottleneck(result),
        classes=_classes(result),
        sensitivity=_sensitivity(result),
        assumptions=result.assumptions,
        sources=result.sources,
    )


def _verdict(result: Result) -> str:
    if not result.fits:
        return "does not fit"
    missed = [check.found.label for check in result.limits if not check.ok]
    return f"fits, but misses its limit: {', '.join(missed)}" if missed else "fits"


def _tiles(result: Result) -> tuple[Tile, ...]:
    value = result.headline
    spread = f"80 %: {between(value.low, value.high, value.dimension)}"
    tiles = [Tile(value.label, quantity(value.value, value.dimension), spread)]
    if result.memory:
        tightest = min(result.memory, key=lambda use: use.free)
        state = "good" if tightest.free >= 0 else "bad"
        note = f"of {quantity(tightest.capacity, 'bytes')} in {text.place(tightest)}"
        label = "free at the peak" if tightest.free >= 0 else "missing"
        tiles.append(Tile(label, quantity(abs(tightest.free), "bytes"), note, state))
    name, share = result.bottleneck
    tiles.append(Tile("bottleneck", name, f"{percent(share)} of the time"))
    money = [(key, amount) for key, amount in result.money.items() if key != "dollars_per_second"]
    if money:
        key, amount = money[-1]
        tiles.append(
            Tile("cost", quantity(amount, "dollars"), key.removeprefix("dollars_").replace("_", " "))
        )
    elif "joules_per_token" in result.energy:
        joules = quantity(result.energy["joules_per_token"], "joules")
        tiles.append(Tile("energy", joules, "per token, accelerators alone"))
    return tuple(tiles)


def _figures(result: Result) -> Table:
    ordered = sorted(result.values.values(), key=lambda value: value.key != result.headline.key)
    rows = tuple(
        (
            value.label,
            quantity(value.value, value.dimension),
            "exact"
            if math.isclose(value.low, value.high)
            else between(value.low, value.high, value.dimension),
        )
        for value in ordered
    )
    return Table("Figures", ("figure", "value", "80 % interval"), rows, (1, 2), text.cost_line(result))


def _checks(result: Result) -> Table | None:
    rows: list[tuple[str, ...]] = []
    for check in result.expectations:
        error = signed_percent(check.relative_error) if math.isfinite(check.relative_error) else "-"
        found = quantity(check.found.value, check.found.dimension)
        verdict = error if check.ok else f"{error}, outside its tolerance"
        rows.append((check.found.label, check.text, found, verdict, check.source))
    for check in result.limits:
        found = quantity(check.found.value, check.found.dimension)
        bound = text.bound_text(check).removeprefix(check.found.label).strip()
        rows.append((check.found.label, bound, found, "held" if check.ok else "MISSED", "limit"))
    header = ("figure", "expected", "found", "verdict", "source")
    return Table("Against what is known and required", header, tuple(rows), (1, 2)) if rows else None


def _remedies(result: Result) -> Table | None:
    if result.ok:
        return None
    found, goal = text.remedies(result)
    rows = tuple(
        (
            remedy.description,
            quantity(remedy.headline.value, remedy.headline.dimension) if remedy.headline else "-",
            text.as_options(remedy),
        )
        for remedy in found
    )
    note = "\n".join(result.shortfalls)
    return Table(
        goal[0].upper() + goal[1:], ("change", result.headline.label, "as options"), rows, (1,), note
    )


def _ledger(use: MemoryUse) -> Table:
    def share(size: float) -> str:
        return percent(size / use.capacity) if use.capacity else "-"

    ordered = sorted(use.by_category.items(), key=lambda item: (-item[1], item[0]))
    rows = [(name, quantity(size, "bytes"), share(size)) for name, size in ordered]
    rows.append(("in all", quantity(use.peak, "bytes"), share(use.peak)))
    rows.append(
        ("free" if use.free >= 0 else "MISSING", quantity(abs(use.free), "bytes"), share(abs(use.free)))
    )
    note = f"at its fullest, {quantity(use.peak_time, 'seconds')} after the start"
    if use.largest:
        held = ", ".join(f"{holding.name} {quantity(holding.size, 'bytes')}" for holding in use.largest)
        note += f"; largest holders: {held}"
    title = f"{text.place(use)} ({use.tier}, {quantity(use.capacity, 'bytes')} usable)"
    return Table(title, ("holds", "bytes", "of capacity"), tuple(rows), (1, 2), note)


def _bottleneck(result: Result) -> Table:
    total = result.outcome.total_time
    phases = result.phases
    rows = tuple(
        (
            name,
            quantity(share * total, "seconds"),
            percent(share),
            *(percent(each.get(name, 0.0)) for each in phases.values()),
        )
        for name, share in result.shares.items()
    )
    header = ("bottleneck", "seconds", "share", *(f"of {phase}" for phase in phases))
    return Table("Time by what binds it", header, rows, tuple(range(1, len(header))))


def _classes(result: Result) -> Table:
    header = ("class of operator", "seconds", "standard error", "share of the doubt")
    return Table("Time and doubt by class of operator", header, tuple(text.class_rows(result)), (1, 2, 3))


def _sensitivity(result: Result) -> Table:
    rows = tuple(
        (row.figure, signed_percent(row.effect)) for row in result.sensitivity() if abs(row.effect) >= 5e-4
    )
    header = ("10 % more of", f"change of {result.headline.label}")
    return Table("What more hardware would change", header, rows, (1,))
