"""Work that a compressed cache adds to iterations: keys and values made again, blocks chosen and fetched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.cost import CostModel
from simulator.graph import Elementwise, Numerics, Work
from simulator.serving.accounts import FETCH
from simulator.serving.extras import charge, charge_steps
from simulator.serving.kv_compression import accumulated, rematerialized
from simulator.serving.tiers import Tier
from simulator.serving.workload import Floats, Integers
from simulator.specs import Model
from simulator.specs.serving_techniques import BlockRetrieval, Rematerialization

SCORE_WRITES = 6.0
"""By the product, a mask, the scaling, the joining of both parts, the softmax and a second mask (InfLLM's repository,
multi-stage attention of plain tensor operations)."""
SCORE_READS = 6.5
"""By all of these but the product, by the product with the values, and, of the window's scores, by the sum that chooses what
stands for a block: about half."""
SCORE_KERNELS = 12


@dataclass(frozen=True)
class RematerializedKeys:
    """Products that make keys and values of cached positions again, in every layer.

    An :class:`~simulator.serving.extras.Extra` of one rank.
    """

    rematerialization: Rematerialization
    model: Model
    tensor: int
    numerics: Numerics
    cost: CostModel
    group: int | None

    def decode(self, contexts: Integers, steps: int, queries: int) -> tuple[tuple[int, Floats], ...]:
        """Of all positions of all sequences."""
        batch = len(contexts)
        positions = float(contexts.sum()) + batch * np.arange(1.0, steps + 1.0)
        return charge_steps(self.cost, self._works(positions), steps)

    def mixed(self, new: Integers, cached: Integers, contexts: Integers, seconds: float) -> Floats:
        """Of those before the pieces of prompts, and of decodes."""
        positions = float(cached.sum() + contexts.sum() + len(contexts))
        return charge(self.cost, self._works(positions) if positions else [])

    def _works(self, positions: Any) -> list[tuple[Work, float]]:
        layers = float(self.model.num_hidden_layers)
        works: list[tuple[Work, float]] = [
            (rematerialized(self.model, self.tensor, positions, self.numerics), layers)
        ]
        if self.rematerialization.cross_layer:
            works.append((accumulated(self.model, positions, self.group), layers))
        return works


@dataclass(frozen=True)
class RetrievedBlocks:
    """Choice of distant blocks by the keys that stand for them, and copies of those that are not on the accelerator.

    An :class:`~simulator.serving.extras.Extra` of one rank. A decode chooses for its token, a prompt for each block of queries
    (Xiao et al. 2024, section 3.2); copies are waited for.
    """

    retrieval: BlockRetrieval
    cost: CostModel
    layers: int
    heads: float
    """Query heads of the rank."""
    kv_width: float
    """Elements of keys and values of a position in one layer, on the rank."""
    kv_bytes: float
    activation_bytes: float
    dram: Tier

    def decode(self, contexts: Integers, steps: int, queries: int) -> tuple[tuple[int, Floats], ...]:
        """One choice for each sequence in every step."""
        grown = np.arange(1.0, steps + 1.0)
        distant = self._distant(contexts[:, None] + grown)
        scored = charge_steps(self.cost, self._scores(distant.sum(axis=0)), steps)
        return (*scored, (FETCH, self._fetched(distant, 1.0).sum(axis=0)))

    def mixed(self, new: Integers, cached: Integers, contexts: Integers, seconds: float) -> Floats:
        """Choices of each block of queries of the prompts, and of each decode."""
        ends, decodes = self._distant(cached + new), self._distant(contexts + 1.0)
        choices = np.ceil(new / self.retrieval.query_block)
        works = self._scores(float((ends * choices).sum() + decodes.sum()))
        if not self.retrieval.fused and new.sum():
            works.append((self._plain_attention(new, cached), float(self.layers)))
        account = charge(self.cost, works)
        account[FETCH] += float(self._fetched(ends, choices).sum() + self._fetched(decodes, 1.0).sum())
        return account

    def _distant(self, positions: Any) -> Any:
        return np.maximum(positions - (self.retrieval.sinks + self.retrieval.window), 0.0)

    def _scores(self, distant: Any) -> list[tuple[Work, float]]:
        """Products of a query with the keys of all representatives."""
        keys = distant * (self.retrieval.representatives / self.retrieval.block)
        if not np.any(keys):
            return []
        width = 0.5 * self.kv_width
        flops = 2.0 * keys * width * max(self.heads / width, 1.0)
        kernels: Any = np.where(np.asarray(keys) > 0.0, 1.0, 0.0)
        scored = Elementwise(keys * width * self.kv_bytes, 4.0 * keys, flops, kernels=kernels)
        return [(scored, float(self.layers))]

    def _plain_attention(self, new: Any, cached: Any) -> Elementwise:
        """Traffic of scores that go through memory: those of each block of queries with the keys before it.

        The window and what is retrieved are two products, joined before their softmax, so that each score is accessed
        `SCORE_READS` and `SCORE_WRITES` times.
        """
        r = self.retrieval
        ends = np.asarray(cached + new, float)
        near = np.minimum(ends, float(r.window + r.query_block))
        far = np.minimum(np.maximum(ends - r.window, 0.0), float(r.sinks + r.blocks * r.block))
        scores = self.heads * float((new * (near + far)).sum()) * self.activation_bytes
        blocks = float(np.ceil(new / r.query_block).sum())
        return Elementwise(SCORE_READS * scores, SCORE_WRITES * scores, kernels=SCORE_KERNELS * blocks)

    def _fetched(self, distant: Any, choices: Any) -> Any:
        r = self.retrieval
        blocks = np.minimum(r.blocks, distant / r.block) * (1.0 - r.hit_rate)
        up = self.dram.up
        size = r.block * self.kv_width * self.kv_bytes
        # one copy for all blocks of a layer and choice
        return self.layers * choices * (blocks * size / up.rate + (blocks > 0.0) * up.latency)
