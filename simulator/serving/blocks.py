"""Sequences of a replica and the blocks that they hold, share and give back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from simulator.engine import Simulation
from simulator.serving.copies import Copies
from simulator.serving.kv_cache import KVCache, stored
from simulator.serving.machine import Places
from simulator.serving.policies import Key, Policy
from simulator.serving.prefix_cache import PrefixCache
from simulator.serving.tiers import Tier
from simulator.serving.workload import Floats, Integers, Requests


class Sequences:
    """Requests that prefill and decode, what they have cached, and whose the bytes are.

    ``used`` counts the bytes that requests hold alone and those that they share, once; idle blocks of the prefix cache are
    not in it and make room for it.
    """

    def __init__(
        self,
        requests: Requests,
        policy: Policy,
        cache: KVCache,
        prefixes: PrefixCache | None,
        lower: tuple[Tier, ...],
        swap: Tier | None,
    ) -> None:
        self.requests, self.policy, self.cache = requests, policy, cache
        self.capacity, self.growth_time = cache.capacity, cache.growth_time
        count = len(requests)
        self.prefilling: list[int] = []
        self.decoding: list[int] = []
        self.swapped: list[tuple[Key, int]] = []
        self._decoding: tuple[list[int], Integers] = (self.decoding, np.zeros(0, np.int64))
        self.cached = np.zeros(count, np.int64)
        self.produced = np.zeros(count, np.int64)
        self.target = requests.prompt.copy()
        self.held = np.zeros(count)
        self.shared = np.zeros(count)
        self.used = 0.0
        self.tokens = 0
        self.windowed = any(np.isfinite(group.window) for group in cache.groups)
        self.token_bytes = sum(group.token_bytes for group in cache.groups)
        self.prefixes, self.lower, self.swap = prefixes, lower, swap
        self.block = float(cache.size(prefixes.block_size)) if prefixes else 0.0
        self.copies = Copies(policy.overlap, swap, lower)
        self.mapping = self.waiting_for_pages = 0.0

    def _begin(self, simulation: Simulation, places: Places) -> None:
        """Take up work on a machine that runs."""
        self.simulation, self.stream, self.copies.streams = simulation, places.stream, places.copies
        self.buffer = simulation.allocate(places.memory, 0.0, "KV cache", name="KV cache")
        kept = [places.memory, *(places.tiers[tier.name] for tier in self.lower)] if self.prefixes else []
        self.kept = [
            [simulation.allocate(where, 0.0, "prefix cache", name="prefix cache"), 0.0] for where in kept
        ]
        if self.swap:
            self.copies.buffer = simulation.allocate(
                places.tiers[self.swap.name], 0.0, "swapped KV", name="swapped KV"
            )

    @property
    def _ids(self) -> Integers:
        """Those who decode, as an array; a list that changes is another list."""
        if self._decoding[0] is not self.decoding:
            self._decoding = (self.decoding, np.array(self.decoding, np.int64))
        return self._decoding[1]

    def _sizes(self, steps: int) -> Floats:
        ids = self._ids
        sizes = np.asarray(self.cache.size(self.cached[ids] + steps))
        return sizes if self.prefixes is None else sizes - self.shared[ids]

    def _overfull(self, steps: int) -> bool:
        # a cheap bound first: a sequence takes at most one block more than its new tokens fill
        if self.used + len(self.decoding) * self.cache.most(steps) <= self.capacity:
            return False
        more = self._sizes(steps).sum() - self.held[self._ids].sum()
        return bool(self.used + more > self.capacity)

    def _grow(self, steps: int) -> None:
        ids, sizes = self._ids, self._sizes(steps)
        more = float(sizes.sum() - self.held[ids].sum())
        self.used += more
        self.held[ids] = sizes
        self.mapping += more * self.growth_time
        self._evict()

    def _release(self, requests: list[int]) -> None:
        if self.prefixes is not None:
            for request in requests:
                self._publish(request, int(self.cached[request]))
                self.used -= self.prefixes.release(request) * self.block
                self.shared[request] = 0.0
        self.used -= float(self.held[requests].sum())
        self.tokens -= int(self.cached[requests].sum())
        self.held[requests] = 0.0

    def _publish(self, request: int, tokens: int) -> None:
        """Share a request's whole blocks; those that others share already are given back."""
        if self.prefixes is None:
            return
        moved, double, woken = self.prefixes.publish(request, tokens)
        if moved:
            self.held[request] -= moved * self.block
            self.shared[request] += moved * self.block
            self.used += (woken - double) * self.block

    def _evict(self) -> None:
        """Cached prefixes that nobody refers to give way to those who run."""
        if self.prefixes is not None and self.prefixes.idle:
            self.prefixes.shrink(int((self.capacity - self.used) / self.block * (1.0 + 1e-12)))

    def _hold(self) -> None:
        self.simulation.resize(self.buffer, self.used)
        if self.prefixes is not None:
            blocks = (self.prefixes.idle, *self.prefixes.lower)
            for kept, count in zip(self.kept, blocks, strict=True):
                if kept[1] != count:
                    kept[1] = count
                    self.simulation.resize(int(kept[0]), count * self.block)
        self.copies.hold(self.simulation)

    def _stored(self, tokens: int, steps: int, pieces: Mapping[int, int]) -> float:
        """Keys and values of those who run after iterations that add ``tokens`` in all [B]."""
        if not self.windowed:
            size = (self.tokens + tokens) * self.token_bytes
            if self.prefixes is not None:
                running = self.decoding + self.prefilling
                size += self.prefixes.active * self.block - float(self.shared[running].sum())
            return size
        prompts = self.cached[self.prefilling] + [pieces.get(request, 0) for request in self.prefilling]
        contexts = np.concatenate((self.cached[self._ids] + steps, prompts.astype(np.int64)))
        return float(np.sum(stored(self.cache, contexts)))
