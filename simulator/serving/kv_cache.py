"""Paged KV cache: how many bytes a sequence holds, and how many there are (Kwon et al. 2023, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.graph import ModelGraph, Numeric


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that keep the same positions: bytes of one token in all of them [B], and the window [tokens]."""

    token_bytes: float
    window: float = np.inf


@dataclass(frozen=True, slots=True)
class PagedCache:
    """The KV cache of one GPU, cut into blocks of ``block_size`` tokens.

    Layers with a sliding window keep the blocks that the window touches and give back older ones.
    """

    groups: tuple[LayerGroup, ...]
    block_size: int
    capacity: float
    """Bytes of all blocks [B]: a whole number of them, where all layers keep the same positions."""

    @staticmethod
    def of(graph: ModelGraph, block_size: int, room: float) -> PagedCache:
        """Cut ``room`` bytes into blocks for a graph's layers; negative room holds none."""
        merged: dict[float, float] = {}
        for block, count in zip(graph.blocks, graph.counts, strict=True):
            width = float(block.kv_width) * graph.numerics.kv_bytes * count
            merged[block.kv_window] = merged.get(block.kv_window, 0.0) + width
        groups = tuple(LayerGroup(width, window) for window, width in merged.items())
        room = max(0.0, room)
        if len(groups) == 1:
            block_bytes = groups[0].token_bytes * block_size
            room = float(np.floor(room / block_bytes)) * block_bytes
        return PagedCache(groups, block_size, room)

    def size(self, tokens: Numeric) -> Any:
        """Bytes that a sequence of ``tokens`` positions holds, in whole blocks [B]; an array gives an array."""
        blocks = np.ceil(np.asarray(tokens, float) / self.block_size)
        total: Any = 0.0
        for group in self.groups:
            # a window that is not aligned with blocks touches one more
            most = np.ceil(group.window / self.block_size) + 1.0
            total = total + np.minimum(blocks, most) * (group.token_bytes * self.block_size)
        return total

    def most(self, new: int) -> float:
        """Bytes that ``new`` further tokens of a sequence take at most: their blocks, and one that they begin [B]."""
        return (new // self.block_size + 1) * self.block_bytes

    @property
    def block_bytes(self) -> float:
        """Bytes of a block of tokens in all layers [B]."""
        return sum(group.token_bytes for group in self.groups) * self.block_size

    @property
    def tokens(self) -> int:
        """Tokens that fill the cache, of sequences that are shorter than any window."""
        return int(self.capacity // self.block_bytes) * self.block_size
