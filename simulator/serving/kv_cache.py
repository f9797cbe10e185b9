"""How many bytes of KV cache a sequence holds, and how many there are, by layout.

*Paged*: blocks of tokens in all layers (Kwon et al. 2023, section 4). *Contiguous*: every request reserves the longest
sequence, as before paging. *Virtual*: contiguous addresses, whose physical pages are mapped as a sequence grows (Prabhu et
al. 2024, section 5): each page is of one tensor, the keys or the values of a layer. *Joined*: see
:mod:`simulator.serving.joined_cache`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from simulator.graph import ModelGraph, Numeric


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that keep the same positions: bytes of one token in all of them [B], the window [tokens], and their tensors."""

    token_bytes: float
    window: float = np.inf
    tensors: int = 1
    """Keys and values count as two for each layer; what a layer keeps as one latent vector counts one."""


class KVCache(Protocol):
    """The KV cache of one GPU."""

    @property
    def groups(self) -> tuple[LayerGroup, ...]:
        """Layers by window."""
        ...

    @property
    def capacity(self) -> float:
        """Bytes that sequences may hold [B]."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens that fill it, of sequences that are shorter than any window and fill what they hold."""
        ...

    @property
    def growth_time(self) -> float:
        """Time that a sequence's further bytes take before they can be written, hidden by nothing [s/B]."""
        ...

    def size(self, tokens: Numeric) -> Any:
        """Bytes that a sequence of ``tokens`` positions holds [B]; an array gives an array."""
        ...

    def most(self, new: int) -> float:
        """Bytes that ``new`` further tokens of a sequence take at most [B]."""
        ...


def stored(cache: KVCache, tokens: Numeric) -> Any:
    """Bytes of the keys and values themselves of sequences of ``tokens`` positions [B]; what they hold beyond is lost."""
    counts = np.asarray(tokens, float)
    total: Any = 0.0
    for group in cache.groups:
        total = total + np.minimum(counts, group.window) * group.token_bytes
    return total


def layer_groups(graph: ModelGraph, layer_tensors: int = 2) -> tuple[LayerGroup, ...]:
    """Return a graph's layers by window; ``layer_tensors`` is 2 for keys and values, 1 for a latent vector."""
    merged: dict[float, LayerGroup] = {}
    for block, count in zip(graph.blocks, graph.counts, strict=True):
        width = float(block.kv_width) * graph.numerics.kv_bytes * count
        before = merged.get(block.kv_window, LayerGroup(0.0, block.kv_window, 0))
        merged[block.kv_window] = LayerGroup(
            before.token_bytes + width, block.kv_window, before.tensors + layer_tensors * count
        )
    return tuple(merged.values())


@dataclass(frozen=True, slots=True)
class PagedCache:
    """The KV cache of one GPU, cut into blocks of ``block_size`` tokens.

    Layers with a sliding window keep the blocks that the window touches and give back older ones.
    """

    groups: tuple[LayerGroup, ...]
    block_size: int
    capacity: float
    """Bytes of all blocks [B]: a whole number of them, where all layers keep the same positions."""
    block_bytes: float = field(init=False, repr=False, compare=False)
    """Bytes of a block of tokens in all layers [B]."""
    _windowed: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        size = sum(group.token_bytes for group in self.groups) * self.block_size
        object.__setattr__(self, "block_bytes", size)
        object.__setattr__(self, "_windowed", any(np.isfinite(group.window) for group in self.groups))

    @staticmethod
    def of(graph: ModelGraph, block_size: int, room: float) -> PagedCache:
        """Cut ``room`` bytes into blocks for a graph's layers; negative room holds none."""
        groups = layer_groups(graph)
        room = max(0.0, room)
        if len(groups) == 1:
            block_bytes = groups[0].token_bytes * block_size
            room = float(np.floor(room / block_bytes)) * block_bytes
        return PagedCache(groups, block_size, room)

    def size(self, tokens: Numeric) -> Any:
        """Bytes that a sequence of ``tokens`` positions holds, in whole blocks [B]; an array gives an array."""
        blocks = np.ceil(np.asarray(tokens, float) / self.block_size)
        if not self._windowed:
            return blocks * self.block_bytes
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
    def growth_time(self) -> float:
        """Nothing is mapped while requests run [s/B]."""
        return 0.0

    @property
    def tokens(self) -> int:
        """Tokens that fill the cache, of sequences that are shorter than any window."""
        return int(self.capacity // self.block_bytes) * self.block_size


@dataclass(frozen=True, slots=True)
class ContiguousCache:
    """The KV cache of one GPU, cut into slots of ``reserved`` tokens, one a request."""

    groups: tuple[LayerGroup, ...]
    reserved: int
    room: float
    """Bytes that slots are cut from [B]."""

    @property
    def growth_time(self) -> float:
        """Nothing is mapped while requests run [s/B]."""
        return 0.0

    @property
    def slot(self) -> float:
        """Bytes of a slot: layers with a window keep no more than it [B]."""
        return sum(min(float(self.reserved), group.window) * group.token_bytes for group in self.groups)

    @property
    def capacity(self) -> float:
        """Bytes of all slots [B]."""
        return float(np.floor(max(0.0, self.room) / self.slot)) * self.slot

    @property
    def tokens(self) -> int:
        """Tokens that fill all slots."""
        return round(self.capacity / self.slot) * self.reserved

    def size(self, tokens: Numeric) -> Any:
        """Bytes that a sequence holds [B]: a slot, however short it is."""
        return np.full(np.shape(tokens), self.slot)[()]

    def most(self, new: int) -> float:
        """Bytes that further tokens take [B]: none, as their place is reserved."""
        return 0.0


@dataclass(frozen=True, slots=True)
class VirtualCache:
    """The KV cache of one GPU in physical pages of ``page`` bytes, mapped behind contiguous addresses on demand."""

    groups: tuple[LayerGroup, ...]
    page: float
    room: float
    mapping: float = 0.0
    """Time to map a page that is not hidden behind computing [s]."""
    _steps: tuple[tuple[float, float, float], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # bytes of a token in one tensor, bytes of a page in all tensors, and most pages of a tensor
        steps = []
        for group in self.groups:
            row = group.token_bytes / group.tensors
            # pages wholly behind a window are unmapped
            steps.append((row, group.tensors * self.page, np.ceil(group.window * row / self.page) + 1.0))
        object.__setattr__(self, "_steps", tuple(steps))

    @property
    def capacity(self) -> float:
        """Bytes of all pages [B]."""
        return float(np.floor(max(0.0, self.room) / self.page)) * self.page

    @property
    def tokens(self) -> int:
        """Tokens that fill the pages."""
        rows = sum(tensors / self.page * row for row, tensors, _ in self._steps)
        return int(self.capacity / rows)

    @property
    def page_tokens(self) -> tuple[float, ...]:
        """Tokens that a page of each group holds: what paging calls a block."""
        return tuple(self.page / row for row, _, _ in self._steps)

    def size(self, tokens: Numeric) -> Any:
        """Bytes that a sequence of ``tokens`` positions holds, in whole pages of each tensor [B]; an array gives an array."""
        counts = np.asarray(tokens, float)
        total: Any = 0.0
        for row, together, most in self._steps:
            total = total + np.minimum(np.ceil(counts * (row / self.page)), most) * together
        return total

    def most(self, new: int) -> float:
        """Bytes that ``new`` further tokens of a sequence take at most [B]."""
        return sum(float(new * row // self.page + 1.0) * together for row, together, _ in self._steps)

    @property
    def growth_time(self) -> float:
        """Time to map a page, by its bytes [s/B]."""
        return self.mapping / self.page
