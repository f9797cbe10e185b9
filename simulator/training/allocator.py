"""What the framework takes of a GPU beside tensors: rounding and fragmentation of PyTorch's allocator, workspaces, NCCL buffers.

References: PyTorch, *CUDA semantics, memory management* and ``c10/cuda/CUDACachingAllocator`` (blocks of 512 B, segments of 2 and
20 MiB, best fit); cuBLAS, *cublasSetWorkspace* (workspace sizes recommended by architecture); NCCL, environment variables
``NCCL_BUFFSIZE``, ``NCCL_MAX_CTAS``.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from simulator.cost.numeric import ceil
from simulator.graph import Numeric

KIB, MIB = 1024, 1024**2
BLOCK = 512
"""Every allocation is rounded up to this [B]."""
SMALL = MIB
"""Largest allocation of the pool of small blocks [B]."""
SMALL_SEGMENT, SEGMENT, LARGE, GRAIN = 2 * MIB, 20 * MIB, 10 * MIB, 2 * MIB
"""Segments that are taken from the driver: for small blocks; for blocks below ``LARGE``; above in multiples of ``GRAIN`` [B]."""
CUBLAS_WORKSPACE: Mapping[str, int] = {"hopper": 32 * MIB, "blackwell": 32 * MIB}
CUBLAS_WORKSPACE_OLDER = 4096 * KIB * 2 + 16 * KIB * 8
"""PyTorch's workspace of a cuBLAS handle and stream by architecture [B] (``CUBLAS_WORKSPACE_CONFIG``)."""
NCCL_BUFFER = 4 * MIB
"""Of a connection with the simple protocol (``NCCL_BUFFSIZE``) [B]; the two low-latency protocols have their own:"""
NCCL_LOW_LATENCY = 512 * KIB + 1200 * KIB
"""LL: 512 threads x 8 lines x 8 steps of 16 B; LL128: 640 threads x 30 elements x 8 steps of 8 B [B]."""


def rounded(size: Numeric) -> Numeric:
    """Return the bytes that an allocation takes of its segment [B]."""
    blocks: Numeric = np.maximum(ceil(size / BLOCK), 1.0)
    return BLOCK * blocks


def segment_bytes(size: Numeric) -> Numeric:
    """Return the bytes that are taken from the driver for an allocation that no free block can hold [B]."""
    block = rounded(size)
    large: Numeric = np.where(np.asarray(block) < LARGE, SEGMENT, GRAIN * ceil(block / GRAIN))
    found = np.where(np.asarray(block) <= SMALL, SMALL_SEGMENT, large)
    return float(found) if np.ndim(found) == 0 else found


def cublas_workspaces(architecture: str, libraries: int = 2) -> float:
    """Return the bytes of cuBLAS workspaces.

    Parameters
    ----------
    architecture : str
        Of the device: ``hopper``, ``blackwell``, or an older one.
    libraries : int
        Handles with a workspace of their own: PyTorch's, and Transformer Engine's where it is used.
    """
    return float(libraries * CUBLAS_WORKSPACE.get(architecture, CUBLAS_WORKSPACE_OLDER))


def nccl_bytes(communicators: Numeric, channels: Numeric, connections: Numeric = 2.0) -> Numeric:
    """Return the bytes of NCCL's buffers on one GPU, which PyTorch's figures don't contain.

    Parameters
    ----------
    communicators : number or array
        Groups of more than one rank that the GPU belongs to.
    channels : number or array
        Channels (CTAs) of a communicator.
    connections : number or array
        Peers of a channel whose data is received into a buffer: 2 for a ring and a tree's parent, more for all-to-all.
    """
    return communicators * channels * connections * (NCCL_BUFFER + NCCL_LOW_LATENCY)


@dataclass(slots=True)
class _Block:
    size: int
    small: bool
    free: bool = False
    before: _Block | None = None
    behind: _Block | None = None
    place: int = 0
    """Number of the block: of equal sizes the oldest is taken."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """Most bytes that tensors took, and that the allocator held for them [B]."""

    allocated: int
    reserved: int

    @property
    def fragmentation(self) -> float:
        """Held beyond what was taken, over what was taken."""
        return self.reserved / self.allocated - 1.0 if self.allocated else 0.0


class CachingAllocator:
    """PyTorch's caching allocator on one stream: best fit, split where enough is left, free neighbours joined, all kept."""

    def __init__(self) -> None:
        self._free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        self._blocks: dict[int, _Block] = {}
        self._next = 0
        self._taken = 0
        self._most = 0
        self._reserved = 0

    @property
    def used(self) -> Allocation:
        """The peaks so far."""
        return Allocation(self._most, self._reserved)

    def allocate(self, size: float) -> int:
        """Take a block of at least ``size`` bytes; returns its number."""
        wanted = int(rounded(size))
        small = wanted <= SMALL
        block = self._best(wanted, small) or self._segment(wanted, small)
        left = block.size - wanted
        if left >= BLOCK if small else left > SMALL:
            self._split(block, wanted)
        block.free = False
        self._taken += block.size
        self._most = max(self._most, self._taken)
        return block.place

    def release(self, number: int) -> None:
        """Give a block back to the cache."""
        block = self._blocks[number]
        self._taken -= block.size
        block.free = True
        for one in (block.before, block.behind):
            if one is not None and one.free:
                self._forget(one)
                self._join(block, one)
        self._offer(block)

    def _best(self, wanted: int, small: bool) -> _Block | None:
        pool = self._free[small]
        place = bisect_left(pool, (wanted, -1))
        if place == len(pool):
            return None
        return self._blocks[pool.pop(place)[1]]

    def _segment(self, wanted: int, small: bool) -> _Block:
        size = int(segment_bytes(wanted))
        self._reserved += size
        return self._new(size, small)

    def _new(self, size: int, small: bool) -> _Block:
        block = _Block(size, small, place=self._next)
        self._blocks[block.place] = block
        self._next += 1
        return block

    def _split(self, block: _Block, wanted: int) -> None:
        rest = self._new(block.size - wanted, block.small)
        rest.free, rest.before, rest.behind = True, block, block.behind
        if block.behind is not None:
            block.behind.before = rest
        block.behind, block.size = rest, wanted
        self._offer(rest)

    def _join(self, block: _Block, other: _Block) -> None:
        block.size += other.size
        if other is block.before:
            block.before = other.before
            if other.before is not None:
                other.before.behind = block
        else:
            block.behind = other.behind
            if other.behind is not None:
                other.behind.before = block
        del self._blocks[other.place]

    def _offer(self, block: _Block) -> None:
        insort(self._free[block.small], (block.size, block.place))

    def _forget(self, block: _Block) -> None:
        pool = self._free[block.small]
        del pool[bisect_left(pool, (block.size, block.place))]
