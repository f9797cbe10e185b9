"""A cache of plain tensors: each chunk's keys and values are joined with the earlier ones in new, larger tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.cost import CostModel
from simulator.graph import Elementwise, Numeric
from simulator.serving.extras import charge, charge_steps
from simulator.serving.kv_cache import LayerGroup
from simulator.serving.workload import Floats, Integers


@dataclass(frozen=True, slots=True)
class JoinedCache:
    """The KV cache of one GPU as two tensors a layer, of which one at a time exists twice: before and after a join."""

    groups: tuple[LayerGroup, ...]
    room: float
    """Bytes that tensors may take [B]."""

    @property
    def capacity(self) -> float:
        """Bytes that sequences may hold [B]."""
        return max(0.0, self.room)

    @property
    def growth_time(self) -> float:
        """Joins are kernels, priced as such [s/B]."""
        return 0.0

    @property
    def tokens(self) -> int:
        """Tokens that fill it."""
        return int(self.capacity / float(self.size(1.0)))

    def size(self, tokens: Numeric) -> Any:
        """Bytes that a sequence holds, the tensor that is being joined twice [B]."""
        return self._live(tokens) * (1.0 + 1.0 / sum(group.tensors for group in self.groups))

    def most(self, new: int) -> float:
        """Bytes that ``new`` further tokens of a sequence take at most [B]."""
        return float(self.size(float(new)))

    def taken(self, prompts: Sequence[float], chunk: float) -> float:
        """Return the bytes that a caching allocator takes for prompts that run together, if nothing stops it [B].

        Each join asks for a little more than any tensor that was freed before, and tensors of this size are segments of their
        own, which are not merged (PyTorch, CUDA caching allocator): the tensors of every chunk stay.
        """
        total = 0.0
        for prompt in prompts:
            ends = np.minimum(np.arange(1.0, np.ceil(prompt / chunk) + 1.0) * chunk, prompt)
            total += float(self._live(ends).sum())
        return total

    def _live(self, tokens: Numeric) -> Any:
        counts = np.asarray(tokens, float)
        total: Any = 0.0
        for group in self.groups:
            total = total + np.minimum(counts, group.window) * group.token_bytes
        return total


@dataclass(frozen=True)
class Joins:
    """Copies of the whole cache that joining takes in every iteration.

    An :class:`~simulator.serving.extras.Extra` of one rank.
    """

    groups: tuple[LayerGroup, ...]
    cost: CostModel

    def decode(self, contexts: Integers, steps: int, queries: int) -> tuple[tuple[int, Floats], ...]:
        """Read as it was, written with the new tokens."""
        positions = float(contexts.sum()) + len(contexts) * np.arange(1.0, steps + 1.0)
        return charge_steps(self.cost, [(self._copy(positions, positions, len(contexts)), 1.0)], steps)

    def mixed(self, new: Integers, cached: Integers, contexts: Integers, seconds: float) -> Floats:
        """Of prompts that have a part already, and of decodes."""
        going = cached > 0
        read = float(cached.sum() + contexts.sum())
        written = float((cached + new)[going].sum() + contexts.sum())
        return charge(
            self.cost, [(self._copy(read, written, int(going.sum()) + len(contexts)), 1.0)] if read else []
        )

    def _copy(self, read: Any, written: Any, sequences: int) -> Elementwise:
        token = sum(group.token_bytes for group in self.groups)
        tensors = sum(group.tensors for group in self.groups)
        return Elementwise(read * token, written * token, kernels=tensors * sequences, reuse_distance=np.inf)
