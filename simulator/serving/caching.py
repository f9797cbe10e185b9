"""The KV cache of a replica as its strategy says: layout, prefix cache, and the tiers that blocks move to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from simulator.graph import ModelGraph
from simulator.serving.joined_cache import JoinedCache
from simulator.serving.kv_cache import ContiguousCache, KVCache, PagedCache, VirtualCache, layer_groups
from simulator.serving.prefix_cache import PrefixCache
from simulator.serving.prefixes import own_texts
from simulator.serving.tiers import Tier, find_tier
from simulator.serving.workload import Requests
from simulator.specs import Calibration, Hardware, MemroofError, Model, ServingStrategy

PAGE = 2.0 * 2**20
"""Smallest page that CUDA's interface maps without a changed driver (Prabhu et al. 2024, section 6.1) [B]."""
SMALLEST_PAGE, LARGEST_PAGE = 64.0 * 2**10, 2.0 * 2**20


class CacheParts(TypedDict):
    """What :func:`~simulator.serving.scheduler.serve` is given beside the blocks of one GPU."""

    prefixes: PrefixCache | None
    lower: tuple[Tier, ...]
    swap: Tier | None


@dataclass(frozen=True, slots=True)
class Caching:
    """Whether prefixes are cached, and the tiers that blocks of one GPU move to."""

    prefixes: bool = False
    lower: tuple[Tier, ...] = ()
    swap: Tier | None = None

    def parts(self, requests: Requests, cache: KVCache) -> CacheParts:
        """Return what serves some requests: an empty prefix cache, and the tiers."""
        found = None
        if self.prefixes and isinstance(cache, PagedCache):
            texts = requests.texts or own_texts(requests.prompt, requests.output)
            room = [int(tier.capacity // cache.block_bytes) for tier in self.lower]
            found = PrefixCache(texts, cache.block_size, room)
        return {"prefixes": found, "lower": self.lower, "swap": self.swap}


NOTHING = Caching()


def make_cache(strategy: ServingStrategy, model: Model, graph: ModelGraph, room: float) -> KVCache:
    """Cut ``room`` bytes [B] of one GPU into what sequences hold, by the strategy's layout.

    Raises
    ------
    MemroofError
        For pages that are no multiple of 64 KiB up to 2 MiB, or that hold less than a token.
    """
    groups = layer_groups(graph, 1 if model.mla is not None else 2)
    if strategy.kv_layout == "contiguous":
        reserved = strategy.reserved_tokens or model.max_position_embeddings
        return ContiguousCache(groups, reserved, room)
    if strategy.kv_layout == "joined":
        return JoinedCache(groups, room)
    if strategy.kv_layout == "virtual":
        page = float(strategy.page_size or PAGE)
        if not SMALLEST_PAGE <= page <= LARGEST_PAGE or page % SMALLEST_PAGE:
            raise MemroofError(
                f"page_size {page / 2**10:g} KiB: GPU drivers map multiples of 64 KiB up to 2 MiB"
            )
        return VirtualCache(groups, page, room, float(strategy.mapping_latency or 0.0))
    return PagedCache.of(graph, strategy.block_size, room)


def make_caching(
    strategy: ServingStrategy, hardware: Hardware, calibration: Calibration, cache: KVCache, gpus: int
) -> Caching:
    """Find the tiers that a strategy moves blocks to.

    Parameters
    ----------
    strategy : ServingStrategy
        What is asked for.
    hardware : Hardware
        Where DRAM and drives are.
    calibration : Calibration
        Constants of copies.
    cache : KVCache
        Blocks of one GPU.
    gpus : int
        GPUs of a replica: those of a node copy at once.

    Raises
    ------
    MemroofError
        If a tier is missing or too small, or layers of a model with a window would share prefixes.
    """
    asked = strategy.prefix_cache
    if asked and any(np.isfinite(group.window) for group in cache.groups):
        raise MemroofError(
            "prefix_cache needs layers that all keep the same positions; the model has a sliding window"
        )
    sizes = {} if asked is None else {"dram": asked.dram, "nvme": asked.nvme}
    lower = tuple(
        find_tier(hardware, calibration, name, float(size), gpus)
        for name, size in sizes.items()
        if size is not None
    )
    swap = None
    if strategy.preemption == "swap":
        space = None if strategy.swap_space is None else float(strategy.swap_space)
        swap = find_tier(hardware, calibration, "dram", space, gpus)
    taken = sum(tier.capacity for tier in (*lower, swap) if tier is not None and tier.name == "dram")
    if swap and lower:
        whole = find_tier(hardware, calibration, "dram", None, gpus).capacity
        if taken > whole * (1.0 + 1e-12):
            raise MemroofError(
                "prefix_cache.dram and swap_space exceed the DRAM together; give swap_space less"
                if strategy.swap_space
                else "prefix_cache.dram leaves no DRAM for preemption 'swap'; say how much with swap_space"
            )
    return Caching(asked is not None, lower, swap)
