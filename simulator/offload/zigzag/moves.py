"""Copies of weights, cache and hidden states between the accelerator and their tiers, hop by hop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from simulator.offload.emit import Emitter
from simulator.offload.tiers import DRAM, GPU, NVME
from simulator.offload.zigzag.plan import PAGEABLE, Plan

TAGS: Mapping[str, str] = {"weights": "weights", "kv": "cache", "hidden": "hidden states"}


class Moves:
    """Adds copies of a plan to a program.

    Parameters
    ----------
    plan : Plan
        Says what is staged and what is pageable.
    emit : Emitter
        Takes the copies.
    """

    def __init__(self, plan: Plan, emit: Emitter) -> None:
        self._plan, self._emit = plan, emit

    def bring(
        self,
        kind: str,
        tier: str,
        size: float,
        after: Sequence[int],
        name: str,
        *,
        target: str = GPU,
        room: Sequence[int] | None = None,
    ) -> list[tuple[str, int]]:
        """Copy from a tier to a target, flash by way of DRAM unless it is read directly.

        Returns the tier that each hop reaches and its task. The first hop waits for ``after``; where buffers in DRAM are
        vacated apart, for ``room``, and the second for ``after``.
        """
        tiers = [tier, target]
        if tier == NVME and target != DRAM and self._plan.staged:
            tiers.insert(1, DRAM)
        hops: list[tuple[str, int]] = []
        for source, reached in pairwise(tiers):
            waits = after
            if len(tiers) > 2 and room is not None:
                waits = [*after, hops[-1][1]] if hops else room
            elif hops:
                waits = [hops[-1][1]]
            hops.append((reached, self._copy(kind, tier, source, reached, size, waits, name)))
        return hops

    def away(
        self, kind: str, parts: Mapping[str, float], after: Sequence[int], name: str, *, source: str = GPU
    ) -> list[int]:
        """Copy new bytes to their tiers, held at the source until they have left; those for flash pass DRAM with the rest.

        Returns the copies.
        """
        direct = dict(parts)
        staged = direct.pop(NVME, 0.0) if self._plan.staged else 0.0
        if staged:
            direct[DRAM] = direct.get(DRAM, 0.0) + staged
        copies = {
            tier: self._copy(kind, tier, source, tier, size, after, name)
            for tier, size in direct.items() if tier != source
        }  # fmt: skip
        if source == GPU:
            self._emit.keep(
                GPU, sum(parts.values()), "buffers", name, at=after[0], until=list(copies.values())
            )
        if staged:
            arrived = copies.get(DRAM, after[0])
            copies[NVME] = self._copy(kind, NVME, DRAM, NVME, staged, [arrived], name)
            self._emit.keep(DRAM, staged, "buffers", name, at=arrived, until=[copies[NVME]])
        return list(copies.values())

    def _copy(
        self, kind: str, tier: str, source: str, target: str, size: float, after: Sequence[int], name: str
    ) -> int:
        # what only passes DRAM has a pinned buffer there
        slow = kind in self._plan.pageable and tier == DRAM
        text = f"{name} to {'GPU' if target == GPU else target.upper() if target == DRAM else target}"
        # with a barrier, hidden states move on the stream that computes, not behind the weights of the next layer
        queue = "hidden states" if kind == "hidden" and self._plan.barrier else ""
        return self._emit.copy(
            source, target, size, after, TAGS[kind], text, queue=queue, efficiency=PAGEABLE if slow else 1.0
        )
