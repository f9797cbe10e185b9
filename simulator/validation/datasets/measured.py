"""Rows of `memroof measure`: kernels, copies and collectives of the user's own machine, one data set an operator.

They are added to the rows that an operator class is fitted on (``MORE_ROWS``), so that a device without other data is
fitted on them alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from simulator.cost import CostModel, peak_flops
from simulator.graph import Work
from simulator.measure import MEASUREMENTS
from simulator.measure.record import parse_shape
from simulator.measure.works import OPERATORS, work
from simulator.specs import Catalog, MemroofError, OperatorClass
from simulator.specs.machine import Span
from simulator.specs.scenario_base import HardwareChoice
from simulator.validation.dataset import FloatArray, Part, TableDataSet, keep, labels
from simulator.validation.fit import Constant, Fit

if TYPE_CHECKING:
    import pandas as pd

CLASSES: Mapping[str, OperatorClass] = {
    "matmul": "matmul",
    "attention": "attention",
    "decode-attention": "decode-attention",
    "elementwise": "elementwise",
    "collective": "collective",
}
GROUPS: Mapping[str, tuple[str, ...]] = {
    "matmul": ("n", "k"),
    "attention": ("heads", "kv_heads", "head_dim", "batch"),
    "decode-attention": ("heads", "kv_heads", "head_dim", "batch"),
    "elementwise": ("kernel", "rows"),
    "collective": ("kind", "ranks", "size"),
}
"""Dimensions whose combinations are not split between fitting and judging."""


def _rows(frame: pd.DataFrame, operator: str, catalog: Catalog, skipped: Counter[str]) -> pd.DataFrame:
    """Return an operator's rows with its dimensions as columns."""
    import pandas as pd

    rows = frame[frame["operator"] == operator]
    rows = keep(rows, rows["device"].isin(catalog.names("device")), "device is not in the catalog", skipped)
    rows = keep(rows, rows["time_s"] > 0.0, "no time", skipped)
    shapes = pd.DataFrame([parse_shape(str(text)) for text in rows["shape"]], index=rows.index)
    # the column of the library's kernel would hide the dimension of that name
    return rows.drop(columns=["shape", "bytes", "flops"]).rename(columns={"kernel": "library"}).join(shapes)


def _kernels(operator: str) -> Callable[[pd.DataFrame, Catalog, Counter[str]], Sequence[Part]]:
    def split(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
        rows = _rows(frame, operator, catalog, skipped)
        if rows.empty:
            return []
        texts = [name for name in OPERATORS[operator] if name in ("kernel", "kind", "ranks", "gpus")]
        parts = []
        for key, members in rows.groupby(["device", "format", *texts], sort=True):
            device, format, *fixed = (str(value) for value in key)
            named = dict(zip(texts, fixed, strict=True))
            try:
                if operator != "collective":
                    peak_flops(catalog.processor(device), format, matrix=operator != "elementwise")
                span = _span(catalog, device, named) if operator == "collective" else None
                shape = {
                    **named,
                    **{n: members[n].to_numpy(float) for n in OPERATORS[operator] if n not in named},
                }
                asked = work(operator, format, shape)
            except MemroofError as error:
                skipped[str(error)] += len(members)
                continue
            parts.append(_part(device, members, _price(asked, span), CLASSES[operator], GROUPS[operator]))
        return parts

    return split


def _price(asked: Work, span: Span | None) -> Callable[[CostModel], FloatArray]:
    return lambda cost: np.asarray(cost.price(asked, span).time)


def _span(catalog: Catalog, device: str, named: Mapping[str, str]) -> Span:
    """What the ranks span in a machine of as many GPUs as were there, wired as the device's fabric wires them."""
    choice = HardwareChoice(device=device, count=int(named["gpus"]))
    return catalog.hardware(choice).span(int(named["ranks"]))


def _transfers(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    rows = _rows(frame, "transfer", catalog, skipped)
    if rows.empty:
        return []
    rows = keep(rows, rows["memory"] == "pinned", "pageable memory: the driver copies it twice", skipped)
    parts = []
    for name, members in rows.groupby("device", sort=True):
        device = str(name)
        link = catalog.processor(device).host_link
        if link is None:
            skipped["the catalog names no link to the host"] += len(members)
            continue
        size, wire = members["size"].to_numpy(float), catalog.link(link)

        def predict(
            cost: CostModel,
            size: FloatArray = size,
            rate: float = wire.bandwidth,
            latency: float = wire.latency,
        ) -> FloatArray:
            return np.asarray(cost.transfer(size, rate, latency).time)

        parts.append(_part(device, members, predict, "transfer", ("direction", "size")))
    return parts


def _part(
    device: str, rows: pd.DataFrame, predict: Callable[[CostModel], FloatArray], operator_class: OperatorClass,
    groups: Sequence[str],
) -> Part:  # fmt: skip
    return Part(
        device, rows["time_s"].to_numpy(float), predict, labels(rows, groups), rows["line"].to_numpy(np.int64),
        rows, operator_class,
    )  # fmt: skip


def _other(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    """Count what no data set covers: whole steps, and operators that a user's own rows name."""
    rows = frame[~frame["operator"].isin([*CLASSES, "transfer"])]
    for operator, count in rows["operator"].astype(str).value_counts(sort=False).items():
        skipped[f"{operator}: not one kernel; compare it with a scenario"] += int(count)
    return []


DATASETS = (
    *(TableDataSet(f"{MEASUREMENTS}#{operator}", _kernels(operator)) for operator in CLASSES),
    TableDataSet(f"{MEASUREMENTS}#transfer", _transfers),
    TableDataSet(f"{MEASUREMENTS}#other", _other),
)

MORE_ROWS: Mapping[OperatorClass, tuple[str, ...]] = {
    CLASSES[operator]: (f"{MEASUREMENTS}#{operator}",) for operator in CLASSES
}
"""Data sets whose rows the fits of other modules use too, by operator class."""

FITS = (
    Fit(
        "transfer",
        (
            Constant("transfer", "efficiency", 0.2, 1.0),
            Constant("transfer", "half_bytes", 1e3, 1e8),
        ),
        (f"{MEASUREMENTS}#transfer",),
        "direction and size",
    ),
)
