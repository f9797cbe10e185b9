"""Rows of a schedule table that communicate with replicas layer by layer: streams of kernels, gathers and reductions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from simulator.training.recurrence import Recurrence

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

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


class LayerWalk:
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
        self, walk: LayerWalk, rows: Integers, begins: Floats, gathered: Floats, reduced: Floats
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
