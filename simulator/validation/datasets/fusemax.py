"""FuseMax's modelled accelerators: latency and traffic of its artifact, and the figures that the paper states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.specs import Catalog, MemroofError
from simulator.validation.dataset import Part, TableDataSet
from simulator.validation.datasets.claim import Claim, figure
from simulator.validation.datasets.runs import UNKNOWN_MODEL, Content, Metrics, named, run_parts

if TYPE_CHECKING:
    import pandas as pd

BATCH = 64
LAYERS: Mapping[str, Mapping[str, int]] = {
    "BERT": {"heads": 12, "head_dim": 64, "hidden": 768, "feed_forward": 3072},
    "TrXL": {"heads": 16, "head_dim": 64, "hidden": 1024, "feed_forward": 4096},
    "T5": {"heads": 8, "head_dim": 64, "hidden": 512, "feed_forward": 2048},
    "XLM": {"heads": 16, "head_dim": 128, "hidden": 2048, "feed_forward": 8192},
}
"""BERT-Base, Transformer-XL (WikiText-103), T5-small and XLM, as FLAT and FuseMax take them; sizes of their papers."""
LENGTHS = {"1K": 2**10, "4K": 2**12, "16K": 2**14, "64K": 2**16, "256K": 2**18, "1M": 2**20}
NO_HOLD = ("BERT", "TrXL", "T5")
"""FLAT's own search streams the queries of heads of 64, and holds those of XLM's heads of 128: inferred from the traffic of
its rows at 1K, which reads queries once for each 256 keys in the one case and once in the other."""
FLAT_ROWS = 1024
"""Query rows that FLAT holds where its scores do not fit: at 256K and 1M keys and values are read once for each 1,024."""
LINEAR = "linear layers only"
SIZES = {"latency": ("latency_s", "time"), "traffic": ("traffic_B", "traffic")}


def _content(row: Any) -> Content:
    """FLAT's units for all up to +Cascade, which has FuseMax's smaller buffer."""
    layer = named({name: name for name in LAYERS}, row.model, UNKNOWN_MODEL)
    return _scenario(row.accelerator, {layer: LAYERS[layer]}, [LENGTHS[row.seq_len]], layer in NO_HOLD)


def _scenario(
    machine: str, layers: Mapping[str, Mapping[str, int]], lengths: Sequence[int], no_hold: bool
) -> Content:
    device = "flat-cloud"
    strategy: dict[str, Any] = {"method": "waterfall", "dataflow": "one-pass"}
    hardware: dict[str, Any] = {}
    if machine == "unfused" or machine == f"{LINEAR} (flat array)":
        strategy["dataflow"] = "unfused"
    elif machine == "FLAT":
        # of tiles whose scores fit FLAT takes the largest, so that the limit is felt where none does
        short = max(lengths) <= LENGTHS["64K"]
        limit = {} if short else {"tile_rows": FLAT_ROWS}
        strategy |= {"dataflow": "row-fused", **limit, **({"hold_queries": False} if no_hold else {})}
    elif machine == "+Cascade":
        hardware = {"changes": {"cache": {"buffer": {"capacity": "16 MiB"}}}}
    elif machine == "+Architecture":
        device, strategy = "fusemax-cloud", {**strategy, "interleaved": False}
    elif machine in ("+Binding (FuseMax)", f"{LINEAR} (fusemax array)"):
        device = "fusemax-cloud"
    else:
        raise MemroofError("accelerator is not modelled")
    return {
        "kind": "offload", "hardware": {"device": device, **hardware}, "strategy": strategy,
        "workload": {"batch": BATCH, "sequence": list(lengths), "layers": layers},
    }  # fmt: skip


def _quantity(metrics: Metrics, row: Any, *, suffix: str) -> tuple[float, float]:
    part = "linear" if row.accelerator.startswith(LINEAR) else "attention"
    found = metrics[f"{part}_{suffix}"]
    return found.value, found.error


def _split(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str], *, quantity: str) -> Sequence[Part]:
    column, suffix = SIZES[quantity]
    return run_parts(
        frame, catalog, skipped, content=_content, measured=lambda rows: rows[column].to_numpy(float),
        quantity=partial(_quantity, suffix=suffix), groups=("model",),
    )  # fmt: skip


def claim(row: Any) -> Claim:
    """Read a published figure: a latency or traffic of one point, or a mean ratio over all models and lengths."""
    metric, workload = str(row.metric), str(row.workload)
    if "energy" in metric:
        raise MemroofError("energy of an accelerator that was modelled by its access counts: not modelled")
    if metric in ("latency", "DRAM traffic"):
        length = workload.split("sequence ")[1].split(",")[0]
        content = _scenario(str(row.strategy), {"BERT": LAYERS["BERT"]}, [LENGTHS[length]], "BERT" in NO_HOLD)
        name = "attention_time" if metric == "latency" else "attention_traffic"
        return Claim(float(row.value), (content,), figure(name))
    mine, other = _compared(metric)
    contents = tuple(
        _scenario(machine, {name: layer}, [length], name in NO_HOLD)
        for name, layer in LAYERS.items()
        for length in LENGTHS.values()
        for machine in (mine, other)
    )
    key = "time" if metric.startswith("end-to-end") else "attention_time"
    return Claim(float(row.value), contents, partial(_mean_ratio, key=key))


def _compared(metric: str) -> tuple[str, str]:
    """The machine that a ratio is of, and the one that it is over."""
    mine = next(
        (name for name in ("+Cascade", "+Architecture") if metric.startswith(name)), "+Binding (FuseMax)"
    )
    if "speedup" not in metric:
        raise MemroofError("no speed, and no traffic, of an accelerator")
    return mine, "unfused" if "over unfused" in metric else "FLAT"


def _mean_ratio(found: Sequence[Metrics], *, key: str) -> tuple[float, float]:
    pairs = zip(found[::2], found[1::2], strict=True)
    return float(np.mean([other[key].value / mine[key].value for mine, other in pairs])), 0.0


DATASETS = tuple(
    TableDataSet(f"seed_claims/offload_fusemax_artifact.csv#{name}", partial(_split, quantity=name))
    for name in SIZES
)
