"""Copies between the GPU and a tier: straight, or by way of DRAM where flash has no path of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.offload.emit import Emitter
from simulator.offload.tiered_step.plan import Plan
from simulator.offload.tiers import DRAM, GPU, NVME


@dataclass(frozen=True, slots=True)
class Moved:
    """Copies of some bytes."""

    first: int
    last: int
    legs: tuple[int, ...] = ()

    @property
    def left(self) -> int:
        """The copy whose end frees the source."""
        return self.legs[0] if self.legs else self.last

    @property
    def arrives(self) -> int:
        """The copy whose start takes room at the target."""
        return self.legs[-1] if self.legs else self.last


class Routes:
    """Emits copies by tensor class, each class in a queue of its own: queues share links, not order."""

    def __init__(self, plan: Plan, emit: Emitter) -> None:
        self.plan, self.emit = plan, emit
        self.staged = plan.tiers.staged and not plan.strategy.direct_storage
        self.buffers = plan.strategy.prefetch * plan.layer_units + 2
        """Buffers in DRAM of each class, direction and GPU: those fetched ahead, one that fills and one that empties."""
        self.emptied: dict[tuple[str, str, str, int], list[int]] = {}

    def send(self, tier: str, size: float, after: Sequence[int], tag: str, name: str, rank: int) -> Moved:
        """Copy from a GPU to a tier."""
        if tier == NVME and self.staged:
            return self._two(GPU, NVME, size, after, tag, name, rank)
        return self._one(GPU, tier, size, after, tag, name, rank)

    def fetch(
        self,
        tier: str,
        size: float,
        after: Sequence[int],
        tag: str,
        name: str,
        rank: int,
        *,
        shared: dict[str, list[int]] | None = None,
    ) -> Moved:
        """Copy from a tier to a GPU.

        ``shared`` remembers what is read from flash into DRAM for all GPUs, so that only the first of them reads it.
        """
        if tier != NVME or not self.staged:
            return self._one(tier, GPU, size, after, tag, name, rank)
        if shared is None or tier not in shared:
            moved = self._two(NVME, GPU, size, after, tag, name, rank)
            if shared is not None:
                shared[tier] = [moved.legs[0]]
            return moved
        return self._one(DRAM, GPU, size, [*after, *shared[tier]], tag, name, rank)

    def _one(
        self, source: str, target: str, size: float, after: Sequence[int], tag: str, name: str, rank: int
    ) -> Moved:
        task = self.emit.copy(
            source, target, size, after, tag, name, queue=f"{tag} {source} to {target}", rank=rank
        )
        return Moved(task, task)

    def _two(
        self, source: str, target: str, size: float, after: Sequence[int], tag: str, name: str, rank: int
    ) -> Moved:
        """Copy by way of a buffer in DRAM."""
        copy, queue = self.emit.copy, f"{tag} {{}} to {{}}"
        emptied = self.emptied.setdefault((tag, source, target, rank), [])
        free = emptied[-self.buffers :][:1] if len(emptied) >= self.buffers else []
        first = copy(
            source, DRAM, size, [*after, *free], tag, name, queue=queue.format(source, DRAM), rank=rank
        )
        last = copy(DRAM, target, size, [first], tag, name, queue=queue.format(DRAM, target), rank=rank)
        emptied.append(last)
        self.emit.keep(DRAM, size, "buffers", f"{name}, on its way", at=first, until=[last], rank=rank)
        return Moved(first, last, (first, last))
