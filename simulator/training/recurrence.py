"""A schedule table as a max-plus recurrence: levels of rows that are computed together, and the periods they fall into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.specs import MemroofError
from simulator.training.schedules import Order, Part, Pipeline, pipeline

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

PARTS: tuple[Part, ...] = ("forward", "backward", "input-gradient", "weight-gradient")
_NONE: Integers = np.zeros(0, dtype=np.int64)
TOLERANCE = 1e-10
"""Relative difference of two periods that count as equal; the rounding of a sum of thousands of passes is below."""


Rows = Literal["first", "final", "gradients", "all"]
"""Rows that are gone through by layer: the first forward pass of each chunk, the last backward pass (or weight gradient), every
one of these, or all that gather or reduce (ZeRO-3)."""


@dataclass(frozen=True, slots=True)
class Link:
    """What collectives of layers ask of a link beside each other: arrays as those of :class:`LayerSeconds`."""

    bandwidth: Floats
    """(stages, configurations): of the link [B/s]."""
    gather_latency: Floats
    """Seconds of a gather in which nothing flows."""
    gather_rate: Floats
    """Bytes a second of its flow."""
    reduce_latency: Floats
    reduce_rate: Floats


@dataclass(frozen=True, slots=True)
class LayerSeconds:
    """Rows that communicate with replicas layer by layer: arrays (durations, layers, configurations) in execution order.

    A layer waits for its own gathers, which queue on one stream; its reductions queue on another when it has ended.
    """

    rows: frozenset[Rows]
    compute: Floats
    gather: Floats
    """Seconds of the gathers that a layer waits for; 0 for none."""
    reduce: Floats
    replicate: Floats
    """More reductions of the final pass alone."""
    update: Floats
    """Seconds of an update right behind a layer, which waits for all reductions so far."""
    count: Integers
    """(durations): layers of each pass."""
    prefetch: int = 1
    """Layers whose gathers run ahead of the one that runs; those of ``first`` rows begin at once."""
    link: Link | None = None
    """The link that gathers and reductions share; none where they need not."""
    bounded: bool = False
    """Whether a layer waits until the reduction of the layer before the last is over: two buffers of gradients (ZeRO-2, -3)."""


@dataclass(frozen=True, slots=True)
class Times:
    """Start and end of each node, the arrival of its messages, and when its stage's streams of gathers and reductions are free.

    Arrays (nodes, configurations).
    """

    start: Floats
    end: Floats
    arrival: Floats
    gathered: Floats
    reduced: Floats


@dataclass(frozen=True, slots=True)
class Recurrence:
    """The rows of a table (a pair is one row), ordered by level; node 0 is the start of the step, row i is node i + 1.

    A row begins when the row before it on its stage has ended and the messages that it waits for have arrived. It sends up to
    as many messages as it has passes; a message flows when the one before it on its link has flowed. Message k of node i is
    number ``k * nodes + i``.
    """

    levels: tuple[tuple[int, int], ...]
    """First row of each level and first row of the next."""
    before: Integers
    """Node before each row on its stage."""
    seconds: Integers
    """Which duration each row takes."""
    waits: tuple[Integers, ...]
    """Message that each row waits for, one array for each pass of a row; 0 for none."""
    sends: tuple[Integers, ...]
    """Kind of message that each row sends (by direction and place), the last kind for none."""
    queues: tuple[Integers, ...]
    """Message before it on its link."""
    together: npt.NDArray[np.bool_]
    """Whether both messages of a row are sent at once over the same link, which they share."""
    last: Integers
    """(stages): node of the last row."""
    stage: Integers
    """Stage of each row."""
    first: npt.NDArray[np.bool_]
    """Whether a row is the first forward pass through its chunk."""
    final: npt.NDArray[np.bool_]
    """Whether a row is the last backward pass (or weight gradient) of its chunk."""
    part: Integers
    """Part of each row, as numbered by :data:`PARTS`; that of a pair is -1."""
    step: int
    """Micro-batches of a period; 0 where the schedule has none or the table is too short to show it."""
    reach: int
    """Periods back that a row can see."""
    blocks: Integers
    """(periods, rows): nodes of the periods before the cut at which longer tables have more of them, the last one first."""

    def run(
        self, seconds: Floats, latency: Floats, flow: Floats, layers: LayerSeconds | None = None
    ) -> Times:
        """Go through the table.

        Parameters
        ----------
        seconds : array (durations, configurations)
            By stage, chunk and part (:data:`PARTS`); then those of pairs by stage, forward and backward chunk.
        latency, flow : arrays (kinds of messages, configurations)
            Of a message; the last kind is no message at all and takes no time.
        layers : LayerSeconds, optional
            For rows that are gone through by layer.
        """
        nodes, count = len(self.before) + 1, seconds.shape[1]
        start, end = np.zeros((nodes, count)), np.zeros((nodes, count))
        arrival = np.zeros((len(self.waits) * nodes, count))
        walk = _LayerWalk(self, layers, count) if layers is not None else None
        for low, high in self.levels:
            begins = end[self.before[low:high]]
            for waits in self.waits:
                np.maximum(begins, arrival[waits[low:high]], out=begins)
            start[low + 1 : high + 1] = begins
            ends = np.add(begins, seconds[self.seconds[low:high]], out=end[low + 1 : high + 1])
            if walk is not None:
                walk.through(low, high, begins, ends)
            for slot, (sends, queues) in enumerate(zip(self.sends, self.queues, strict=True)):
                kinds = sends[low:high]
                arrives = ends + latency[kinds]
                np.maximum(arrives, arrival[queues[low:high]], out=arrives)
                first = slot * nodes + low + 1
                np.add(arrives, flow[kinds], out=arrival[first : first + high - low])
            shared = np.flatnonzero(self.together[low:high]) + low + 1
            arrival[shared] = arrival[nodes + shared] if len(shared) else 0.0
        if walk is None:
            return Times(start, end, arrival, np.zeros((0, count)), np.zeros((0, count)))
        return Times(start, end, arrival, walk.gathered, walk.reduced)

    def ends(self, times: Times) -> Floats:
        """Return (stages, 2, configurations): when the last row of each stage ends, and when its reductions have too."""
        last = times.end[self.last]
        reduced = times.reduced[self.last] if len(times.reduced) else last
        return np.stack([last, np.maximum(last, reduced)], axis=1)

    def period(self, times: Times) -> tuple[Integers, Floats]:
        """Return after how many periods all times repeat, by configuration (0: not yet), and the seconds of so many.

        A chain of waiting that goes around several stages gains a micro-batch at each of them, and the times of the stages
        repeat after so many only.
        """
        count = times.end.shape[1]
        cycle, seconds = np.zeros(count, dtype=np.int64), np.zeros(count)
        nodes = len(times.end)
        for tried in range(1, len(self.blocks) - self.reach + 1):
            open_ = np.flatnonzero(cycle == 0)
            if not len(open_):
                break
            late, early = self.blocks[: self.reach].ravel(), self.blocks[tried : tried + self.reach].ravel()
            shifts = [times.end[late][:, open_] - times.end[early][:, open_]]
            for slot in range(0, len(times.arrival), nodes):
                shifts.append(times.arrival[slot + late][:, open_] - times.arrival[slot + early][:, open_])
            low, high = (
                np.min([s.min(axis=0) for s in shifts], axis=0),
                np.max([s.max(axis=0) for s in shifts], axis=0),
            )
            found = high - low <= TOLERANCE * high
            cycle[open_[found]], seconds[open_[found]] = tried, high[found]
        return cycle, seconds


class _LayerWalk:
    """Goes through rows layer by layer, and keeps when each stage's streams are free."""

    def __init__(self, table: Recurrence, layers: LayerSeconds, count: int) -> None:
        self.table, self.layers = table, layers
        nodes, stages = len(table.before) + 1, len(table.last)
        self.gathered, self.reduced = np.zeros((nodes, count)), np.zeros((nodes, count))
        self.done = np.zeros((layers.prefetch + 1, stages, count))
        """Ends of the latest layers of each stage, the latest first."""
        self.sent = np.zeros((2, stages, count))
        """The same of their reductions."""
        self.flows = np.zeros((2, 3, stages, count))
        """(latest first; begin, end and rate): the flows of the last two."""
        self.asked = np.zeros((3, stages, count))
        """Begin, end and rate of the gathers of each stage's next layer."""
        self.following = np.full(len(table.before), -1)
        """Next row of the same stage; -1 for none."""
        behind = table.before > 0
        self.following[table.before[behind] - 1] = np.flatnonzero(behind)
        rows = layers.rows
        backward = (table.part == 1) | (table.part == 3)
        self.reduces = backward & (table.final | ("gradients" in rows) | ("all" in rows))
        self.reduces &= bool(rows & {"final", "gradients", "all"})
        self.gathers = (
            (table.part >= 0) & (table.part != 3) if "all" in rows else table.first & ("first" in rows)
        )
        self.walked = self.reduces | self.gathers
        self.waits = "all" in rows or layers.bounded or bool(layers.update.any())
        """Whether layers wait for what depends on other layers of their stage."""

    def through(self, low: int, high: int, begins: Floats, ends: Floats) -> None:
        """Replace the ends of the rows of a level that are gone through by layer."""
        table, layers = self.table, self.layers
        before = table.before[low:high]
        gathered, reduced = self.gathered[before], self.reduced[before]
        picked = np.flatnonzero(self.walked[low:high])
        for start in _runs(layers.count[table.seconds[low:high][picked]]):
            rows = picked[start]
            through = self._walk if self.waits else self._summed
            through(low + rows, rows, begins, ends, gathered, reduced)
        self.gathered[low + 1 : high + 1], self.reduced[low + 1 : high + 1] = gathered, reduced

    def _walk(
        self, rows: Integers, at: Integers, begins: Floats, ends: Floats, gathered: Floats, reduced: Floats
    ) -> None:
        table, layers = self.table, self.layers
        kinds, stage = table.seconds[rows], table.stage[rows]
        walk = _Streams(self, rows, begins[at], gathered[at], reduced[at])
        count = int(layers.count[kinds[0]])
        if not walk.ahead and walk.gathers.any():
            walk.ask(kinds, 0, walk.gathers)
        elif walk.ahead:
            walk.ask(kinds, 0, walk.gathers & (table.before[rows] == 0)[:, None])
        # gathers that run ahead are asked for by the row before
        following = self.following[rows]
        next_kinds = np.minimum(table.seconds[following], len(layers.count) - 1)
        next_gathers = ((following >= 0) & self.gathers[following])[:, None] & walk.ahead
        for layer in range(count):
            walk.compute(layers.compute[kinds, layer], walk.sent_by(kinds, layer))
            if layer + 1 < count:
                walk.ask(kinds, layer + 1, walk.gathers)
            else:
                walk.ask(next_kinds, 0, next_gathers)
            walk.send(kinds, layer)
        self.done[:, stage], self.sent[:, stage] = walk.done, walk.sent
        self.flows[:, :, stage], self.asked[:, stage] = walk.flows, walk.asked
        ends[at], gathered[at], reduced[at] = walk.end, walk.gather, walk.reduce

    def _summed(
        self, rows: Integers, at: Integers, begins: Floats, ends: Floats, gathered: Floats, reduced: Floats
    ) -> None:
        """Do the same where gathers begin at once and nothing waits for a reduction: all layers in one go.

        A chain ends at the latest, over its layers, of when one may begin and all from it on have run.
        """
        table, layers = self.table, self.layers
        kinds = table.seconds[rows]
        count = int(layers.count[kinds[0]])
        compute = layers.compute[kinds, :count]
        first = self.gathers[rows][:, None, None]
        arrives = np.cumsum(layers.gather[kinds, :count] * first, axis=1) + gathered[at][:, None]
        # the first layer also waits for the row to begin
        waits = np.where(layers.gather[kinds, :count] * first > 0.0, arrives, 0.0)
        waits[:, 0] = np.maximum(waits[:, 0], begins[at])
        layer_ends = _chained(waits, compute)
        reduces, final = self.reduces[rows][:, None, None], table.final[rows][:, None, None]
        sent = np.where(final, layers.replicate[kinds, :count], 0.0) + layers.reduce[kinds, :count]
        sent = np.where(reduces, sent, 0.0)
        queued = np.where(sent > 0.0, layer_ends, 0.0)
        queued[:, 0] = np.maximum(queued[:, 0], reduced[at])
        ends[at], gathered[at] = layer_ends[:, -1], arrives[:, -1]
        reduced[at] = np.maximum(reduced[at], _chained(queued, sent)[:, -1])


def _chained(begins: Floats, seconds: Floats) -> Floats:
    """Return when tasks end that run one after the other, each not before its own time: arrays (rows, tasks, ...)."""
    total = np.cumsum(seconds, axis=1)
    latest = np.maximum.accumulate(begins - (total - seconds), axis=1)
    return np.asarray(latest + total)


class _Streams:
    """The three streams of the stages whose rows are gone through: kernels, gathers, reductions."""

    def __init__(
        self, walk: _LayerWalk, rows: Integers, begins: Floats, gathered: Floats, reduced: Floats
    ) -> None:
        layers = self.layers = walk.layers
        stage = walk.table.stage[rows]
        self.ahead = "all" in layers.rows
        self.link = layers.link
        self.bandwidth = np.zeros(()) if layers.link is None else layers.link.bandwidth[stage]
        self.gathers = walk.gathers[rows][:, None]
        self.reduces, self.final = walk.reduces[rows][:, None], walk.table.final[rows][:, None]
        self.end, self.gather, self.reduce = begins, gathered, reduced
        self.done, self.sent = walk.done[:, stage], walk.sent[:, stage]
        self.flows, self.asked = walk.flows[:, :, stage], walk.asked[:, stage]

    def sent_by(self, kinds: Integers, layer: int) -> Floats:
        """Return the seconds of a layer's reductions."""
        own = self.layers.reduce[kinds, layer]
        return np.where(
            self.reduces, np.where(self.final, own + self.layers.replicate[kinds, layer], own), 0.0
        )

    def ask(self, kinds: Integers, layer: int, which: npt.NDArray[np.bool_]) -> None:
        """Queue the gathers of a layer, which may begin when the layer so many before it has ended."""
        if not which.any():
            return
        own = np.where(which, self.layers.gather[kinds, layer], 0.0)
        some = own > 0.0
        starts = np.maximum(self.gather, self.done[-1]) if self.ahead else self.gather
        self.gather = np.where(some, starts + own, self.gather)
        rate = np.zeros_like(own)
        if self.link is not None:
            starts = starts + self.link.gather_latency[kinds, layer]
            rate = self.link.gather_rate[kinds, layer]
            for begin, end, other in self.flows[::-1]:
                shared = np.where(some, np.minimum(self.gather, end) - np.maximum(starts, begin), 0.0)
                self.gather = self.gather + self._longer(shared, rate, other)
        self.asked = np.where(which, np.stack([starts, np.where(some, self.gather, 0.0), rate]), self.asked)

    def compute(self, seconds: Floats, sends: Floats) -> None:
        """Run a layer behind its gathers, and where there is room for its gradients."""
        self.end = np.where(self.gathers, np.maximum(self.end, self.asked[1]), self.end)
        if self.layers.bounded:
            self.end = np.where(sends > 0.0, np.maximum(self.end, self.sent[1]), self.end)
        self.end = self.end + seconds
        self.done = np.concatenate([self.end[None], self.done[:-1]])

    def send(self, kinds: Integers, layer: int) -> None:
        """Queue the reductions of a layer that has ended."""
        if not self.reduces.any():
            return
        own = self.sent_by(kinds, layer)
        sends = own > 0.0
        starts = np.maximum(self.reduce, self.end)
        self.reduce = np.where(sends, starts + own, self.reduce)
        self.sent = np.where(sends, np.stack([self.reduce, self.sent[0]]), self.sent)
        if self.link is not None:
            flows, rate = starts + self.link.reduce_latency[kinds, layer], self.link.reduce_rate[kinds, layer]
            self.flows = np.where(
                sends, np.stack([np.stack([flows, self.reduce, rate]), self.flows[0]]), self.flows
            )
            begin, end, other = self.asked
            shared = np.where(sends, np.minimum(end, self.reduce) - np.maximum(begin, flows), 0.0)
            longer = self._longer(shared, other, rate)
            self.gather = self.gather + longer
            self.asked = np.stack([begin, end + longer, other])
        update = self.layers.update[kinds, layer]
        self.end = np.where(update > 0.0, np.maximum(self.end, self.reduce) + update, self.end)

    def _longer(self, shared: Floats, gather: Floats, reduce: Floats) -> Floats:
        """Return how much longer a gather takes that shares the link, and delay the reductions beside it.

        For ``shared`` seconds, at their own rates, both flow: each at half of the bandwidth, at what the other leaves, or at its
        own rate, whichever is best for it and no more than that.
        """
        half = 0.5 * self.bandwidth
        own = np.maximum(np.maximum(half, self.bandwidth - reduce), 1.0)
        other = np.maximum(np.maximum(half, self.bandwidth - gather), 1.0)
        shared = np.maximum(shared, 0.0)
        delay = shared * np.maximum(reduce / other - 1.0, 0.0)
        self.reduce = self.reduce + delay
        self.sent = np.stack([self.sent[0] + delay, self.sent[1]])
        self.flows = self.flows.copy()
        self.flows[0, 1] += delay
        return np.asarray(shared * np.maximum(gather / own - 1.0, 0.0))


def _runs(counts: Integers) -> list[Integers]:
    """Return the indices of rows with as many layers, for each count."""
    return [np.flatnonzero(counts == count) for count in np.unique(counts)]


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
