"""A schedule table as a max-plus recurrence: levels of rows that are computed together, and the periods they fall into."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.training.layer_walk import Floats, Integers, LayerSeconds, LayerWalk
from simulator.training.schedules import Part

PARTS: tuple[Part, ...] = ("forward", "backward", "input-gradient", "weight-gradient")
TOLERANCE = 1e-10
"""Relative difference of two periods that count as equal; the rounding of a sum of thousands of passes is below."""


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
        walk = LayerWalk(self, layers, count) if layers is not None else None
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
