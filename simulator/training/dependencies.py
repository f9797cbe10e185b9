"""From a schedule table to its recurrence: what each row waits for, in which level it is, and how the schedule repeats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.specs import MemroofError
from simulator.training.layer_walk import Integers
from simulator.training.recurrence import PARTS, Recurrence
from simulator.training.schedules import Order, Pipeline, pipeline

_NONE: Integers = np.zeros(0, dtype=np.int64)


@lru_cache(maxsize=1024)
def recurrence(
    name: str, stages: int, micro_batches: int, chunks: int = 1, *, pair: bool = False, periodic: bool = True
) -> Recurrence:
    """Return the recurrence of a schedule table, with its period where the schedule repeats.

    Parameters
    ----------
    name, stages, micro_batches, chunks
        As for :func:`simulator.training.schedules.pipeline`.
    pair : bool
        Whether rows that may run in pairs do so.
    periodic : bool
        Whether to look for the period.

    Raises
    ------
    MemroofError
        If a rule of the schedule is broken.
    """
    compiler = _Compiler(pipeline(name, stages, micro_batches, chunks, pair=pair), pair)
    step = period_of(name, stages, chunks, pair=pair) if periodic else 0
    longer = _rows_of(pipeline(name, stages, micro_batches + step, chunks, pair=pair), pair) if step else ()
    return compiler.recurrence(step, longer)


@lru_cache(maxsize=1024)
def period_of(name: str, stages: int, chunks: int = 1, *, pair: bool = False) -> int:
    """Return the micro-batches after which a schedule repeats; 0 if it never does."""
    for step in dict.fromkeys((1, 2, stages)):
        some = 6 * stages * (step if step <= 2 else 1)
        try:
            tables = (
                pipeline(name, stages, some, chunks, pair=pair),
                pipeline(name, stages, some + step, chunks, pair=pair),
            )
        except MemroofError:
            continue
        short, long = (_rows_of(table, pair) for table in tables)
        shift = step // len(tables[0].routes)
        if shift and all(_cut(a, b, shift) for a, b in zip(short, long, strict=True)):
            return step
    return 0


class _Row(NamedTuple):
    """What a row does: the passes in it, each with the number of its micro-batch among those of its route."""

    passes: tuple[Order, ...]
    numbers: tuple[int, ...]

    def same(self, other: _Row, shift: int) -> bool:
        """Whether the other row does the same for micro-batches that come ``shift`` later."""
        return len(self.passes) == len(other.passes) and all(
            x + shift == y and a.chunk == b.chunk and a.part == b.part
            for x, y, a, b in zip(self.numbers, other.numbers, self.passes, other.passes, strict=True)
        )


def _rows_of(table: Pipeline, pair: bool) -> tuple[tuple[_Row, ...], ...]:
    """Return the rows of each stage; those that run in a pair as one."""
    counts: dict[int, int] = {}
    number = []
    for route in table.route_of:
        number.append(counts.get(route, 0))
        counts[route] = number[-1] + 1
    found = []
    for orders in table.orders:
        rest = iter(orders)
        rows = ((order, next(rest)) if pair and order.paired else (order,) for order in rest)
        found.append(tuple(_Row(row, tuple(number[order.micro_batch] for order in row)) for row in rows))
    return tuple(found)


def _cut(short: Sequence[_Row], long: Sequence[_Row], shift: int) -> tuple[int, int] | None:
    """Return where a stage's longer table has rows inserted, and how many; none if it differs otherwise."""
    added = len(long) - len(short)
    cut = next((i for i, (a, b) in enumerate(zip(short, long, strict=False)) if not a.same(b, 0)), len(short))
    return (cut, added) if _shifted(short[cut:], long[cut + added :], shift) else None


def _shifted(early: Sequence[_Row], late: Sequence[_Row], shift: int) -> bool:
    return len(early) == len(late) and all(a.same(b, shift) for a, b in zip(early, late, strict=True))


def _repeats(rows: Sequence[_Row], cut: int, length: int, shift: int) -> int:
    """Return how many periods before the cut have the same rows."""
    found = 1
    while cut - (found + 1) * length >= 0:
        early = rows[cut - (found + 1) * length : cut - found * length]
        if not _shifted(early, rows[cut - found * length : cut - (found - 1) * length], shift):
            break
        found += 1
    return found


class _Compiler:
    """Finds what each row of a table waits for, and puts rows in levels."""

    def __init__(self, table: Pipeline, pair: bool) -> None:
        self.table = table
        self.units = _rows_of(table, pair)
        self.slots = 1 + pair
        lengths = [len(units) for units in self.units]
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])
        self.stage = np.repeat(np.arange(len(lengths)), lengths)
        rows = [unit.passes for units in self.units for unit in units]
        self.rows = [np.arange(low, high) for low, high in pairwise(self.offsets.tolist())]
        """By stage: its rows in order."""
        self.before = np.where(np.isin(np.arange(len(rows)), self.offsets), -1, np.arange(len(rows)) - 1)
        passes = [[row[slot] if slot < len(row) else None for row in rows] for slot in range(self.slots)]
        self.part = [self._of(some, lambda order: PARTS.index(order.part)) for some in passes]
        self.micro_batch = [self._of(some, lambda order: order.micro_batch) for some in passes]
        self.chunk = [self._of(some, lambda order: order.chunk) for some in passes]
        self.place = self._places()
        self.waits = self._sources()
        self.sends, self.queues = self._messages()
        self.level = self._levels()

    @staticmethod
    def _of(passes: Sequence[Order | None], attribute: Callable[[Order], int]) -> Integers:
        return np.array([-1 if order is None else attribute(order) for order in passes], dtype=np.int64)

    def recurrence(self, step: int, longer: Sequence[Sequence[_Row]]) -> Recurrence:
        """Sort rows by level and renumber."""
        order = np.argsort(self.level, kind="stable")
        nodes = len(order) + 1
        node = np.zeros(nodes, dtype=np.int64)
        node[order] = np.arange(1, nodes)  # node of a row; that of row -1 is the last entry, 0
        bounds = np.concatenate([[0], np.cumsum(np.bincount(self.level))]).tolist()

        def messages(number: Integers) -> Integers:
            slot, row = np.divmod(number[order], nodes)
            return np.where(number[order] < 0, 0, node[row] + slot * nodes)

        reach, blocks = self._periods(step // len(self.table.routes), longer) if longer else (0, _NONE)
        queued = self.queues[1] if self.slots > 1 else self.queues[0]
        together = queued == np.arange(len(order)) if self.slots > 1 else np.zeros(len(order), dtype=np.bool_)
        part = self.part[0] if self.slots == 1 else np.where(self.part[1] >= 0, -1, self.part[0])
        first, final = self._flags()
        return Recurrence(
            tuple(pairwise(bounds)), node[self.before[order]], self._seconds()[order],
            tuple(messages(waits) for waits in self.waits), tuple(sends[order] for sends in self.sends),
            tuple(messages(queues) for queues in self.queues), together[order],
            node[np.array([rows[-1] for rows in self.rows])], self.stage[order], first[order], final[order], part[order],
            step if reach else 0, reach, node[blocks],
        )  # fmt: skip

    def _places(self) -> list[Integers]:
        stages, chunks = len(self.units), self.table.chunks
        places = np.array(
            [[self.table.place(stage, chunk) for chunk in range(chunks)] for stage in range(stages)]
        )
        return [np.where(chunk >= 0, places[self.stage, chunk], -1) for chunk in self.chunk]

    def _sources(self) -> list[Integers]:
        """Return by slot the message (slot x nodes + row) that each pass waits for; -1 for none."""
        nodes, places = len(self.stage) + 1, self.table.places
        sent = np.full((2, places + 2, len(self.table.route_of)), -1, dtype=np.int64)
        for slot in range(self.slots):
            for backward in (0, 1):
                rows = np.flatnonzero(self._moves(slot, backward))
                target = self.place[slot][rows] + (-1 if backward else 1)
                sent[backward, target, self.micro_batch[slot][rows]] = slot * nodes + rows
        found = []
        for slot in range(self.slots):
            waits = np.full(len(self.stage), -1, dtype=np.int64)
            for backward in (0, 1):
                rows = np.flatnonzero(self._moves(slot, backward))
                waits[rows] = sent[backward, self.place[slot][rows], self.micro_batch[slot][rows]]
            found.append(waits)
        return found

    def _moves(self, slot: int, backward: int) -> npt.NDArray[np.bool_]:
        """Return which passes go forward, or take a gradient backward."""
        part = self.part[slot]
        return np.asarray((part == 1) | (part == 2) if backward else part == 0)

    def _messages(self) -> tuple[list[Integers], list[Integers]]:
        """Return by slot the kind of message that each pass sends, and the message before it on its link."""
        table, nodes = self.table, len(self.stage) + 1
        routes = np.array([[stage for stage, _ in route] for route in table.routes])
        route_of = np.array(table.route_of)
        sends = [np.full(len(self.stage), 2 * table.places, dtype=np.int64) for _ in range(self.slots)]
        links: list[Integers] = []
        for slot in range(self.slots):
            neighbour = np.full(len(self.stage), -1, dtype=np.int64)
            for backward in (0, 1):
                rows = np.flatnonzero(self._moves(slot, backward))
                target = self.place[slot][rows] + (-1 if backward else 1)
                rows, target = rows[inside := (target >= 0) & (target < table.places)], target[inside]
                there = routes[route_of[self.micro_batch[slot][rows]], target]
                away = there != self.stage[rows]
                neighbour[rows[away]] = there[away]
                sends[slot][rows[away]] = backward * table.places + self.place[slot][rows[away]]
            links.append(np.where(neighbour < 0, -1, self.stage * len(self.units) + neighbour))
        # rows of a stage are numbered in order, and both messages of a pair follow each other
        link = np.stack(links, axis=1).ravel()
        number = np.stack(
            [slot * nodes + np.arange(len(self.stage)) for slot in range(self.slots)], axis=1
        ).ravel()
        used = np.flatnonzero(link >= 0)
        used = used[np.argsort(link[used], kind="stable")]
        queues = np.full(len(link), -1, dtype=np.int64)
        same = link[used[1:]] == link[used[:-1]]
        queues[used[1:][same]] = number[used[:-1][same]]
        return sends, list(queues.reshape(-1, self.slots).T)

    def _levels(self) -> Integers:
        """Return the length of the longest chain of rows before each row."""
        nodes = len(self.stage) + 1
        level = np.full(nodes, np.iinfo(np.int64).max)
        level[-1] = -1
        sources = np.stack([np.where(waits < 0, nodes - 1, waits % nodes) for waits in self.waits])
        position, end = self.offsets[:-1].copy(), self.offsets[1:]
        wave = 0
        open_ = np.flatnonzero(position < end)
        while len(open_):
            ready = open_[(level[sources[:, position[open_]]] < wave).all(axis=0)]
            level[position[ready]] = wave
            position[ready] += 1
            wave += 1
            open_ = open_[position[open_] < end[open_]]
        return level[:-1]

    def _seconds(self) -> Integers:
        stages, chunks = len(self.units), self.table.chunks
        single = (self.stage * chunks + self.chunk[0]) * len(PARTS) + self.part[0]
        if self.slots == 1:
            return single
        forward, backward = (
            np.where(self.part[0] == 0, first, second)
            for first, second in ((self.chunk[0], self.chunk[1]), (self.chunk[1], self.chunk[0]))
        )
        pair = stages * chunks * len(PARTS) + (self.stage * chunks + forward) * chunks + backward
        return np.where(self.part[1] >= 0, pair, single)

    def _flags(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Return which rows are the first forward pass of their chunk, and which its last backward pass."""
        first, final = (np.zeros(len(self.stage), dtype=np.bool_) for _ in range(2))
        for slot in range(self.slots):
            part, key = self.part[slot], self.stage * self.table.chunks + self.chunk[slot]
            forward = np.flatnonzero(part == 0)
            first[forward[np.unique(key[forward], return_index=True)[1]]] = True
            backward = np.flatnonzero((part == 1) | (part == 3))[::-1]
            final[backward[np.unique(key[backward], return_index=True)[1]]] = True
        return first, final

    def _periods(self, shift: int, longer: Sequence[Sequence[_Row]]) -> tuple[int, Integers]:
        """Return how far rows look back, and the rows of the last periods; nothing where there are too few."""
        block = np.zeros(len(self.stage), dtype=np.int64)
        cuts: list[tuple[int, int]] = []
        repeats = len(self.stage)
        for rows, units, more in zip(self.rows, self.units, longer, strict=True):
            cut = _cut(units, more, shift)
            if cut is None:
                return 0, _NONE
            cuts.append(cut)
            at, length = cut
            block[rows] = np.maximum(0, 1 + (at - 1 - np.arange(len(rows))) // length)
            repeats = min(repeats, _repeats(units, at, length, shift))
        reach = self._reach(block)
        if repeats < reach + 1:
            return 0, _NONE
        return reach, np.array([
            [row for rows, (at, length) in zip(self.rows, cuts, strict=True)
             for row in rows[at - back * length : at - (back - 1) * length]]
            for back in range(1, min(repeats, reach + len(self.units)) + 1)
        ])  # fmt: skip

    def _reach(self, block: Integers) -> int:
        """Return how many periods back a row of the last one, or one behind the cut, looks at most."""
        recent = block <= 1
        reach = 1
        nodes = len(self.stage) + 1
        columns = [
            self.before,
            *(np.where(some < 0, -1, some % nodes) for some in (*self.waits, *self.queues)),
        ]
        for column in columns:
            looks = recent & (column >= 0)
            if looks.any():
                reach = max(reach, int((block[column[looks]] - block[looks]).max()))
        return reach
