"""Answers about memory tiers as text: what each held and carried, what more hardware gives, what is the largest that fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from simulator.report.layout import columns, percent, quantity, signed_percent

if TYPE_CHECKING:
    from simulator.analysis.largest import Largest
    from simulator.analysis.tiers import Tiers
    from simulator.analysis.upgrades import Upgrade

NOTHING = 5e-3
"""Relative gain below which a build is called no better."""


def tiers_lines(name: str, found: Tiers) -> list[str]:
    """Return the lines of ``memroof tiers``: memories over time, streams and links, and what overlaps with what."""
    lines = [f"{name}: {quantity(found.makespan, 'seconds')} event by event", ""]
    table = [("memory", "capacity", "peak", "", "mean", "peak at")]
    for row in found.memories:
        share = percent(row.peak / row.capacity) if 0.0 < row.capacity < float("inf") else ""
        table.append(
            (
                row.memory, quantity(row.capacity, "bytes"), quantity(row.peak, "bytes"), share,
                quantity(row.mean, "bytes"), quantity(row.peak_time, "seconds"),
            )
        )  # fmt: skip
    lines += [*columns(table, right=range(1, 6)), ""]
    table = [("stream or link", "bytes", "while busy", "of bandwidth", "busy", "on critical path")]
    for flow in found.flows:
        if not flow.busy:
            continue
        moved = (
            (quantity(flow.bytes, "bytes"), quantity(flow.achieved, "bytes/s")) if flow.bytes else ("", "")
        )
        width = percent(flow.achieved / flow.bandwidth) if flow.bandwidth else ""
        table.append((flow.name, *moved, width, percent(flow.busy), percent(flow.critical)))
    lines += columns(table, right=range(1, 6))
    if len(found.streams) > 1:
        lines += ["", "share of the run in which both were busy", *_overlap(found)]
    return lines


def _overlap(found: Tiers) -> list[str]:
    heads = [chr(ord("a") + index) for index in range(len(found.streams))]
    table = [("", "", *heads)]
    for index, name in enumerate(found.streams):
        cells = [percent(float(share)) if share else "" for share in found.overlap[index]]
        table.append((heads[index], name, *cells))
    return columns(table, right=range(2, 2 + len(heads)))


def upgrade_lines(found: Sequence[Upgrade]) -> list[str]:
    """Return the lines of ``memroof upgrades``: a build a line, those that fit and the best gain first."""
    base = found[0].result
    assert base is not None  # a scenario without an answer is an error, not a list
    lines = [f"{base.name}: what more hardware would give, one change at a time", ""]
    last = "bottleneck, or what is missing"
    heads = ("build", base.headline.label, "change", "added", "per million tokens", last)
    lines += columns([heads, *(_build(one, compared=base.fits) for one in found)], right=(1, 2, 3, 4))
    if any(one.unpriced for one in found):
        lines += [
            "",
            "?: no price is known of it, and none is in the cost; give one with --set device.NAME.price.purchase",
        ]
    best = next((one for one in found[1:] if one.fits and (one.gain > NOTHING or not base.fits)), None)
    if best is not None:
        lines += [
            "",
            f"{best.description}, with --set:",
            *(f"  {key}={text}" for key, text in best.overrides.items()),
        ]
    elif base.fits:
        lines += ["", "nothing of it helps: something else binds"]
    return lines


def _build(one: Upgrade, *, compared: bool) -> tuple[str, ...]:
    if one.result is None:
        return (one.description, "", "", "", "", one.problem)
    added = f"{quantity(one.added, 'dollars')}" if one.added else ""
    added += " + ?" if added and one.unpriced else "?" if one.unpriced else ""
    if not one.fits:
        return (one.description, "does not fit", "", added, "", "; ".join(one.result.shortfalls))
    name, share = one.result.bottleneck
    dollars = one.dollars_per_million_tokens
    return (
        one.description, one.result.headline.text(), signed_percent(one.change) if one.overrides and compared else "", added,
        quantity(dollars, "dollars") if dollars else "", f"{name} {percent(share)}",
    )  # fmt: skip


def largest_lines(name: str, found: Sequence[Largest]) -> list[str]:
    """Return the lines of ``memroof largest``: a quantity a line, and what stops the next."""
    table = [("", "largest that fits", "now", "the next", "which is stopped by")]
    table += [(row.what, row.value or "none", row.now, row.next, row.reason) for row in found]
    return [f"{name}: the largest of each, everything else as it is", "", *columns(table, right=())]
