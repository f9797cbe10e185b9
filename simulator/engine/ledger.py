"""Who held how many bytes of which memory, when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING

import numpy as np

from simulator.engine.errors import ProgramError
from simulator.engine.program import Memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.int64]
    BoolArray = NDArray[np.bool_]

_LARGEST_HOLDERS = 5


@dataclass(frozen=True, slots=True)
class Peak:
    """The fullest moment of a memory.

    Attributes
    ----------
    memory : str
        Its name.
    time : float
        When it is first that full [s].
    bytes : float
        Bytes resident [B].
    by_category : Mapping[str, float]
        The same by category [B], largest first.
    holders : tuple of (str, float)
        The five largest buffers at that moment, by name, and their bytes [B].
    """

    memory: str
    time: float
    bytes: float
    by_category: Mapping[str, float]
    holders: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A memory that would have to be larger.

    Attributes
    ----------
    memory : str
        Its name.
    time : float
        When it first overflows [s].
    needed_bytes : float
        Bytes at its peak [B].
    capacity : float
        Bytes it has [B].
    """

    memory: str
    time: float
    needed_bytes: float
    capacity: float


@dataclass(slots=True)
class BufferRow:
    """A buffer that a client of a simulation holds: `size` bytes from `start` to `end`."""

    memory: int
    category: str
    name: str
    size: float
    start: float
    end: float = inf


class MemoryLedger:
    """The buffers of a run, one row each; a buffer is resident from `start` up to, but not at, `end`.

    So what ends at an instant makes room for what starts at it, and a buffer of no duration takes none.

    Parameters
    ----------
    memories : mapping
        The memories by handle.
    memory, category, name, size, start, end : arrays or sequences, one entry a buffer
        Handle; category; name; bytes [B]; times [s], `end` infinite for what is never freed.
    """

    def __init__(
        self,
        memories: Mapping[int, Memory],
        memory: IntArray,
        category: Sequence[str],
        name: Sequence[str],
        size: FloatArray,
        start: FloatArray,
        end: FloatArray,
    ) -> None:
        self.memories = dict(memories)
        self.memory = memory
        self.category = category
        self.name = name
        self.size = size
        self.start = start
        self.end = end

    def resident(self, memory: str | int) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Return the bytes resident over time.

        Parameters
        ----------
        memory : str or int
            Name or handle.

        Returns
        -------
        times : array, shape (n,)
            Strictly increasing, the first is 0 [s].
        by_category : dict of arrays, shape (n,)
            Bytes from each time up to the next [B].

        Raises
        ------
        ProgramError
            If there is no such memory.
        """
        rows = self._rows(self._handle(memory))
        times, slots = self._moments(rows)
        categories: dict[str, list[int]] = {}
        for position, row in enumerate(rows):
            categories.setdefault(self.category[row], []).append(position)
        return times, {
            category: self._level(rows[positions], slots[:, positions], len(times))
            for category, positions in categories.items()
        }

    def peak(self, memory: str | int) -> Peak:
        """Return the fullest moment of a memory (name or handle); ProgramError if there is no such memory."""
        handle = self._handle(memory)
        rows = self._rows(handle)
        times, slots = self._moments(rows)
        time = float(times[int(np.argmax(self._level(rows, slots, len(times))))])
        held = rows[(self.start[rows] <= time) & (self.end[rows] > time)]
        by_category: dict[str, float] = {}
        for row in held:
            by_category[self.category[row]] = by_category.get(self.category[row], 0.0) + float(self.size[row])
        largest = held[np.argsort(-self.size[held], kind="stable")[:_LARGEST_HOLDERS]]
        return Peak(
            memory=self.memories[handle].name,
            time=time,
            bytes=sum(by_category.values()),
            by_category=dict(sorted(by_category.items(), key=lambda item: -item[1])),
            holders=tuple((self.name[row], float(self.size[row])) for row in largest),
        )

    @cached_property
    def shortfalls(self) -> tuple[Shortfall, ...]:
        """The memories that do not suffice, in the order of their handles."""
        found = []
        for handle, memory in self.memories.items():
            peak = self.peak(handle)
            # Blocking memories are never overfilled but by the rounding of sums.
            if memory.on_full == "report" and peak.bytes > memory.capacity:
                rows = self._rows(handle)
                times, slots = self._moments(rows)
                over = self._level(rows, slots, len(times)) > memory.capacity
                time = float(times[int(np.argmax(over))]) if over.any() else peak.time
                found.append(Shortfall(memory.name, time, peak.bytes, memory.capacity))
        return tuple(found)

    def _handle(self, memory: str | int) -> int:
        for handle, resource in self.memories.items():
            if memory in (handle, resource.name):
                return handle
        names = ", ".join(repr(resource.name) for resource in self.memories.values())
        raise ProgramError(f"no memory {memory!r}; there are {names or 'none'}")

    def _rows(self, handle: int) -> IntArray:
        chosen: IntArray = np.flatnonzero((self.memory == handle) & (self.end > self.start))
        return chosen

    def _moments(self, rows: IntArray) -> tuple[FloatArray, IntArray]:
        """Return the moments of change and, by row, the positions of its start and its end among them."""
        ends = self.end[rows]
        times, slots = np.unique(np.concatenate([[0.0], self.start[rows], ends]), return_inverse=True)
        slots = slots[1:].reshape(2, -1)
        if len(times) > 1 and np.isinf(times[-1]):
            times = times[:-1]
        return times, slots

    def _level(self, rows: IntArray, slots: IntArray, n_times: int) -> FloatArray:
        sizes = self.size[rows]
        change = np.bincount(slots[0], sizes, n_times + 1) - np.bincount(slots[1], sizes, n_times + 1)
        level: FloatArray = np.cumsum(change)[:n_times]
        return level
