"""Caches that keep less than all keys and values, as changes of a model's graph and as work of their own.

*Rematerialisation* caches the input X of a layer (or its projections onto the directions of keys and of values, where these
are fewer), and multiplies it by the weights again in every pass (Tomar et al. 2025, arXiv:2508.10395, XQuant, sections 3.1 to
3.3). A *budget* bounds the positions of a layer: sinks and a window (Xiao et al. 2024, arXiv:2309.17453, StreamingLLM), what
attends most (Zhang et al. 2023, arXiv:2306.14048, H2O), or budgets of layers (Li et al. 2025, arXiv:2505.19602, ScaleKV).
*Block retrieval* keeps distant blocks in DRAM and a few keys of each on the accelerator to choose by (Xiao et al. 2024,
arXiv:2402.04617, InfLLM, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from simulator.cost import CostModel, peak_flops
from simulator.graph import (
    Attention,
    Block,
    Elementwise,
    Matmul,
    ModelGraph,
    Numeric,
    Numerics,
    Operator,
    Work,
)
from simulator.serving.quantisation import cache_bytes
from simulator.specs import MemroofError, Model, ServingStrategy
from simulator.specs.serving_techniques import BlockRetrieval, CacheBudget, Rematerialization

ACCUMULATOR_BITS = 4.0
"""Of the sum of differences between layers (Tomar et al. 2025, section 3.4)."""


@dataclass(frozen=True, slots=True)
class CacheChange:
    """What a strategy makes of a model's cache.

    Attributes
    ----------
    model : Model
        The model that is served.
    tensor : int
        Ranks that its layers are cut over.
    device_format : str or None
        Format that attention multiplies in where it is not that of the linear layers.
    """

    model: Model
    tensor: int
    device_format: str | None = None
    rematerialization: Rematerialization | None = None
    budget: CacheBudget | None = None
    retrieval: BlockRetrieval | None = None
    group: int | None = None
    """Cached elements that share scales."""

    @property
    def changes(self) -> bool:
        """Whether anything is to do."""
        return any((self.device_format, self.rematerialization, self.budget, self.retrieval))

    def applied(self, graph: ModelGraph, *, prefill: bool) -> ModelGraph:
        """Return a graph with another cache; ``prefill`` says whether its attention is that of prompts."""
        budgets = self._budgets(len(graph.layers))
        kept: dict[tuple[int, float], int] = {}
        blocks: list[Block] = []
        layers: list[int] = []
        for index, budget in zip(graph.layers, budgets, strict=True):
            if (index, budget) not in kept:
                kept[index, budget] = len(blocks)
                blocks.append(self._block(graph.blocks[index], budget, prefill=prefill))
            layers.append(kept[index, budget])
        return replace(graph, blocks=tuple(blocks), layers=tuple(layers))

    def cache_graph(self, graph: ModelGraph) -> ModelGraph:
        """Return the graph that the cache is laid out by: with what a sequence holds beside its layers' own caches.

        That is the keys that blocks are chosen by, or one accumulator of differences between layers.
        """
        if self.rematerialization is not None and self.rematerialization.cross_layer:
            wider = cache_bytes(ACCUMULATOR_BITS, self.group) / graph.numerics.kv_bytes
            block = replace(graph.blocks[0], kv_width=graph.blocks[0].kv_width * wider, kv_window=np.inf)
            return replace(graph, blocks=(*graph.blocks, block), layers=(*graph.layers, len(graph.blocks)))
        if self.retrieval is None:
            return graph
        blocks, layers = list(graph.blocks), list(graph.layers)
        share = self.retrieval.representatives / self.retrieval.block / 2.0
        for index, count in enumerate(graph.counts):
            block = graph.blocks[index]
            layers += [len(blocks)] * count
            blocks.append(replace(block, kv_width=block.kv_width * share, kv_window=np.inf))
        return replace(graph, blocks=tuple(blocks), layers=tuple(layers))

    def _budgets(self, layers: int) -> list[float]:
        if self.budget is None:
            return [np.inf] * layers
        tokens = self.budget.tokens
        if isinstance(tokens, int):
            return [float(tokens + self.budget.sinks)] * layers
        if len(tokens) != layers:
            raise MemroofError(
                f"kv_budget.tokens has {len(tokens)} budgets; {self.model.name} has {layers} layers"
            )
        return [float(count + self.budget.sinks) for count in tokens]

    def _block(self, block: Block, budget: float, *, prefill: bool) -> Block:
        window = min(block.kv_window, budget)
        seen = window
        if self.budget is not None and self.budget.eviction == "after-prefill" and prefill:
            seen = block.kv_window
        width = block.kv_width
        if self.retrieval is not None:
            near = self.retrieval.sinks + self.retrieval.window
            window = min(window, float(near + self.retrieval.cached * self.retrieval.block))
            seen = min(seen, float(near + self.retrieval.blocks * self.retrieval.block))
        if self.rematerialization is not None:
            width = cached_width(self.model)

        def changed(operator: Operator) -> Operator:
            works = tuple(self._attention(w, seen, width) for w in operator.forward)
            return replace(operator, forward=works)

        operators = tuple(
            changed(op) if any(isinstance(w, Attention) for w in op.forward) else op for op in block.operators
        )
        return replace(block, operators=operators, kv_width=width, kv_window=window)

    def _attention(self, work: Work, seen: float, width: Numeric) -> Work:
        if not isinstance(work, Attention):
            return work
        return replace(
            work, window=float(np.minimum(work.window, seen)), format=self.device_format or work.format,
            kv_width=width if self.rematerialization is not None else work.kv_width,
        )  # fmt: skip


def change_of(strategy: ServingStrategy, model: Model, cost: CostModel, compute: str) -> CacheChange:
    """Return what a strategy makes of a model's cache.

    Raises
    ------
    MemroofError
        For what is not defined for the model: rematerialisation of a latent cache, retrieval beside a sliding window.
    """
    if strategy.kv_rematerialization and model.mla is not None:
        raise MemroofError(f"kv_rematerialization: {model.name} caches a latent vector already")
    if strategy.block_retrieval and (model.mla or model.sliding_window or model.attention_chunk_size):
        raise MemroofError(
            f"block_retrieval: {model.name} does not keep keys and values of all positions in every layer"
        )
    wide = None
    if compute in ("int8", "int4"):
        half = [f for f in ("bf16", "fp16") if f in cost.device.compute.matrix]
        wide = half[0] if half else "fp32"
        peak_flops(cost.device, wide)
    return CacheChange(
        model, strategy.tensor_parallel, wide, strategy.kv_rematerialization, strategy.kv_budget,
        strategy.block_retrieval, strategy.kv_group,
    )  # fmt: skip


def cache_numerics(numerics: Numerics, strategy: ServingStrategy) -> Numerics:
    """Return the bytes of a cached element where it has scales, or is no key or value."""
    remat = strategy.kv_rematerialization
    if remat is not None:
        return replace(numerics, kv_bytes=cache_bytes(remat.bits, strategy.kv_group))
    if strategy.kv_group is not None and strategy.kv_precision is not None:
        return replace(numerics, kv_bytes=cache_bytes(8.0 * numerics.kv_bytes, strategy.kv_group))
    return numerics


def cached_width(model: Model) -> float:
    """Elements that rematerialisation caches of a position and layer, on every rank alike.

    The input of the layer; where keys and values together have fewer elements, its two projections onto their directions
    (Tomar et al. 2025, section 3.3).
    """
    projected = 2.0 * model.kv_heads * model.attention_head_dim
    return min(float(model.hidden_size), projected)


def rematerialized(model: Model, tensor: int, positions: Numeric, numerics: Numerics) -> Matmul:
    """Return the product that makes keys and values of a layer again, of ``positions`` in all.

    Notes
    -----
    4·d² FLOPs a position where X is cached, 4·(d/g)² where its projections are (Tomar et al. 2025, sections 3.1 and 3.3). What
    is cached has been read by attention already, and keys and values stay on the chip.
    """
    columns = float(model.kv_heads * model.attention_head_dim)
    rows = float(model.hidden_size) if cached_width(model) == model.hidden_size else columns
    heads = max(columns / tensor, float(model.attention_head_dim))
    wide = numerics.compute if numerics.compute in ("fp16", "bf16", "fp32") else "bf16"
    return Matmul(positions, heads, rows, 2, wide, 0.0, numerics.activation_bytes, 0.0)


def accumulated(model: Model, positions: Numeric, group: int | None) -> Elementwise:
    """Return the traffic of the accumulator of differences between layers: read, summed and written in each layer."""
    size = positions * cached_width(model) * cache_bytes(ACCUMULATOR_BITS, group)
    return Elementwise(size, size)
