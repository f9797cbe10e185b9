"""The text of ``memroof search``: the best strategies side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from simulator.report.layout import bullets, columns, percent, quantity

if TYPE_CHECKING:
    from simulator.analysis.search import Search

SHORT = {
    "tensor_parallel": "tp", "pipeline_parallel": "pp", "context_parallel": "cp", "data_parallel": "dp", "expert_parallel": "ep",
    "micro_batch": "micro-batch", "virtual_stages": "chunks", "sequence_parallel": "sp", "zero_stage": "zero",
    "overlap_gradient_reduction": "reduce beside", "overlap_parameter_gather": "gather beside",
}  # fmt: skip


def search_lines(found: Search) -> list[str]:
    """Return the table of the best strategies, the best first, and what was left out."""
    varied = [name for name, values in found.axes.items() if len(values) > 1]
    best = "fastest" if found.objective == "step_time" else "cheapest"
    head = (
        f"{found.points:,} combinations, {found.legal:,} legal, {found.fitting:,} fit; the {best}, run in the event engine:"
        if found.fits
        else f"{found.points:,} combinations, {found.legal:,} legal, none fits; the closest:"
    )
    labels = [SHORT.get(name, name.replace("_", " ")) for name in varied]
    rows: list[Sequence[str]] = [("step time", "MFU", "peak", "GPUs", *labels, "bottleneck", "closed form")]
    for one in found.candidates:
        values = one.result.values
        name, share = one.result.bottleneck
        rows.append(
            (
                quantity(one.step_time, "seconds"), quantity(values["model_flops_utilization"].value, "fraction"),
                quantity(values["peak_memory"].value, "bytes"), str(one.result.outcome.devices),
                *(_shown(one.strategy[field]) for field in varied), f"{name} {percent(share)}",
                f"{(one.closed_form / one.step_time - 1.0) * 100.0:+.2f} %",
            )
        )  # fmt: skip
    lines = [head, "", *columns(rows, right=[0, 1, 2, 3, len(rows[0]) - 1])]
    if found.illegal:
        broken = [f"{name}: {count:,}" for name, count in found.illegal.items()]
        lines += ["", "not legal, by the rule that is broken first", *bullets(broken)]
    return lines


def search_document(found: Search) -> dict[str, Any]:
    """Return the same as plain data in SI units."""
    return {
        "objective": found.objective, "points": found.points, "legal": found.legal, "fitting": found.fitting,
        "illegal": dict(found.illegal), "axes": {name: list(values) for name, values in found.axes.items()},
        "candidates": [
            {
                "strategy": dict(one.strategy), "fits": one.result.fits, "gpus": one.result.outcome.devices,
                "closed_form_step_time": one.closed_form, "bottleneck": one.result.bottleneck[0],
                "values": {key: value.value for key, value in one.result.values.items()},
            }
            for one in found.candidates
        ],
    }  # fmt: skip


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
