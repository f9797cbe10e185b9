"""Constants of the cost model as written: named, with their physical meaning, beside their provenance.

A class file (``gpu.yaml``) holds wide defaults; an architecture's or a device's file may replace any key with a fitted
value. Constants are dimensionless or SI; each operator class has a relative standard error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from pydantic import Field

from simulator.specs.base import Number, Seconds, Spec

OperatorClass = Literal[
    "matmul", "attention", "decode-attention", "elementwise", "embedding", "collective", "transfer", "host"
]
OPERATOR_CLASSES: tuple[OperatorClass, ...] = get_args(OperatorClass)
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]


class MatmulConstants(Spec):
    """GEMM: what full tiles reach, and what edges, waves and short loops lose."""

    peak_efficiency: Number | None = None
    """Sustained share of the dense peak where tiles and waves are full (clock droop, issue slots)."""
    memory_efficiency: Number | None = None
    """Sustained share of the memory bandwidth where operands are streamed once."""
    tile_m: Number | None = None
    tile_n: Number | None = None
    """Largest output tile of one unit, elements."""
    prologue_k: Number | None = None
    """Length of the k loop, in elements, that filling and draining the pipeline is worth."""
    grouped_efficiency: Number | None = None
    """Further factor of grouped (MoE) products over the same product ungrouped."""


class AttentionConstants(Spec):
    """Attention kernels, prefill and training."""

    peak_efficiency: Number | None = None
    """Sustained share of the dense matrix peak, forward, long sequences."""
    backward_efficiency: Number | None = None
    memory_efficiency: Number | None = None
    tile: Number | None = None
    """Query rows of one tile; causal work is rounded up to it."""


class StreamConstants(Spec):
    """Kernels bound by a memory: element-wise, norms, gathers, decode attention."""

    memory_efficiency: Number | None = None
    """Sustained share of the bandwidth for large kernels."""
    half_bytes: Number | None = None
    """Bytes at which half of the sustained bandwidth is reached."""


class CollectiveConstants(Spec):
    """Collectives and point-to-point messages by α-β."""

    bandwidth_efficiency: Number | None = None
    """Sustained share of the link bandwidth for large messages inside a node."""
    network_efficiency: Number | None = None
    """The same between nodes."""
    half_bytes: Number | None = None
    """Message bytes a rank at which half of the sustained bandwidth is reached."""
    base_latency: Seconds | None = None
    """Of any collective: launch and synchronisation."""


class TransferConstants(Spec):
    """Copies between memories."""

    efficiency: Number | None = None
    """Sustained share of the narrowest link for large pinned copies."""
    storage_efficiency: Number | None = None
    """The same where the path begins or ends in flash."""


class HostConstants(Spec):
    """What the CPU adds to a step."""

    launch: Seconds | None = None
    """Shortest time of a kernel: launch and tail."""
    step: Seconds | None = None
    """Serving iteration: scheduling, sampling and de-tokenising that are not hidden."""
    context_bytes: Number | None = None
    """Device memory taken by driver context, communication library and workspaces, bytes."""


class Calibration(Spec):
    """Constants for a device, an architecture or a kind, and the doubt about them."""

    kind: Literal["calibration"]
    name: str
    source: str
    note: str = ""
    matmul: MatmulConstants = MatmulConstants()
    attention: AttentionConstants = AttentionConstants()
    decode_attention: StreamConstants = StreamConstants()
    elementwise: StreamConstants = StreamConstants()
    collective: CollectiveConstants = CollectiveConstants()
    transfer: TransferConstants = TransferConstants()
    host: HostConstants = HostConstants()
    error: dict[OperatorClass, Fraction] = {}
    """Relative standard error of a predicted time, by operator class."""


def merge_calibration(layers: Sequence[Calibration]) -> Calibration:
    """Lay special constants over general ones, key by key; the name and sources of all layers are kept."""
    merged = layers[0]
    for layer in layers[1:]:
        update: dict[str, object] = {"error": {**merged.error, **layer.error}}
        for name in Calibration.model_fields:
            value = getattr(layer, name)
            if isinstance(value, Spec):
                given = {k: v for k, v in value if v is not None}
                update[name] = getattr(merged, name).model_copy(update=given)
        update["name"] = layer.name
        update["source"] = "; ".join(dict.fromkeys((layer.source, merged.source)))
        merged = merged.model_copy(update=update)
    return merged
