"""What a stage does and holds in a step, as the lowering needs it: passes, messages, states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from simulator.training.passes import ChunkPass
from simulator.training.schedules import Schedule

Reduce = Literal["end", "last", "each"]
"""Gradients are reduced after the last backward pass, by layers beside the last one, or beside every one (ZeRO-2 and -3)."""
Gather = Literal["none", "end", "next", "each"]
"""Parameters are gathered never, after the optimizer step, beside the next forward pass, or before every layer (ZeRO-3)."""


@dataclass(frozen=True, slots=True)
class Message:
    """A communication as the engine sees it: bytes over a link of a bandwidth, after a latency, at a sustained rate."""

    size: float
    bandwidth: float
    latency: float
    rate: float

    @property
    def time(self) -> float:
        """Seconds when nothing else uses the link."""
        return self.latency + (self.size / self.rate if self.size else 0.0)

    def share(self, part: float) -> Message:
        """Return a part of it, as one of several buckets."""
        return Message(self.size * part, self.bandwidth, self.latency, self.rate)


@dataclass(frozen=True, slots=True)
class LayerMessages:
    """The data-parallel communication of one layer of a chunk, and what it holds meanwhile."""

    gather: tuple[Message, ...] = ()
    reduce: tuple[Message, ...] = ()
    replicate: tuple[Message, ...] = ()
    """Reduction between replicas of the shard group, once a step (HSDP)."""
    gathered: float = 0.0
    """Bytes of gathered parameters."""
    gradients: float = 0.0
    """Bytes of gradients that wait to be reduced."""
    optimizer: float = 0.0
    """Seconds of the update of this layer alone, where layers are updated inside the backward pass."""
    stays: bool = False
    """Whether gathered parameters are kept from the forward pass to the backward pass, whatever other layers do, where one
    micro-batch is under way at a time: PyTorch does not cut its root unit, embedding and head, in between."""


@dataclass(frozen=True, slots=True)
class Communication:
    """When a stage communicates with its replicas."""

    reduce: Reduce
    gather: Gather
    reshard: bool = True
    prefetch: int = 1
    occupancy: float = 0.0
    """Share of a GPU's units that exchanges of a paired pass take from the other's products."""
    crowding: float = 0.0
    """Share of the time of collectives by which they slow the passes they run beside."""


@dataclass(frozen=True, slots=True)
class StageWork:
    """What a stage does and holds in a step."""

    schedule: Schedule
    chunks: tuple[ChunkPass, ...]
    kept: tuple[ChunkPass, ...]
    """The same chunks for micro-batches that recompute nothing; equal to ``chunks`` where all do the same."""
    window: tuple[int, int]
    """Of how many micro-batches at a time how many recompute."""
    messages: tuple[tuple[LayerMessages, ...], ...]
    """By chunk and layer, in forward order."""
    communication: Communication
    reduction: tuple[Message, ...]
    """Gradient communication of the whole stage, where it comes at the end, one after another."""
    gather: tuple[Message, ...]
    """Parameters of the whole stage that are gathered after the optimizer step."""
    optimizer: float
    """Seconds of the optimizer step at the end."""
    resident: Mapping[str, float]
    """Bytes held through the whole step, by category."""
    capacity: float
    pairs: bool = False
    """Whether all-to-alls of paired passes hide behind the other's products."""

    def chunk(self, index: int, micro_batch: int) -> ChunkPass:
        """Return the passes of a micro-batch through a chunk."""
        return (self.chunks if self.repeats(micro_batch) else self.kept)[index]

    def repeats(self, micro_batch: int) -> bool:
        """Whether a micro-batch recomputes what the strategy says."""
        of, again = self.window
        return micro_batch % of < again
