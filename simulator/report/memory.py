"""Answers about memory tiers as text: what each held and carried, what more hardware gives, what is the largest that fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from simulator.report.layout import columns, percent, quantity, signed_percent

if TYPE_CHECKING:
    from simulator.analysis.largest import Largest
    from simulator.analysis.tiers import Tiers
    from simulator.analysis.upgrades import Upgrade


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
    """Return the lines of ``memroof upgrades``: a build a line, the best gain first."""
    from simulator.analysis.money import money

    base = found[0].result
    assert base is not None  # a scenario without an answer is an error, not a list
    lines = [f"{base.name}: what more hardware would give, one change at a time", ""]
    table = [("build", base.headline.label, "change", "fits", "bottleneck", "$ per million tokens")]
    for one in found:
        if one.result is None:
            table.append((one.description, "", "", "no", one.problem, ""))
            continue
        name, share = one.result.bottleneck
        dollars = money(one.result).get("dollars_per_million_tokens")
        table.append(
            (
                one.description, one.result.headline.text(), signed_percent(one.change) if one.overrides else "",
                "yes" if one.result.fits else "no", f"{name} {percent(share)}", f"{dollars:,.4g}" if dollars else "",
            )
        )  # fmt: skip
    lines += columns(table, right=(1, 2, 5))
    best = found[1] if len(found) > 1 and found[1].gain > 0.0 else None
    if best is not None:
        lines += [
            "",
            "the best of them with --set:",
            *(f"  {key}={text}" for key, text in best.overrides.items()),
        ]
    return lines


def largest_lines(name: str, found: Sequence[Largest]) -> list[str]:
    """Return the lines of ``memroof largest``: a quantity a line, and what stops the next."""
    table = [("", "largest that fits", "now", "the next", "which is stopped by")]
    table += [(row.what, row.value or "none", row.now, row.next, row.reason) for row in found]
    return [f"{name}: the largest of each, everything else as it is", "", *columns(table, right=())]
