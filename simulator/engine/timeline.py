"""What ran: one entry a task in columns, the links' bytes, the critical path, the memory ledger."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from simulator.engine.ledger import MemoryLedger
from simulator.engine.program import Link, Program, Stream

if TYPE_CHECKING:
    import pandas as pd

    from simulator.engine.ledger import BoolArray, FloatArray, IntArray

COMPUTE, TRANSFER, BARRIER = 0, 1, 2
KINDS = ("compute", "transfer", "barrier")


@dataclass(frozen=True, slots=True)
class CriticalPath:
    """The chain of tasks that sets the makespan, in order of time.

    Attributes
    ----------
    tasks : array of int, shape (n,)
        Identifiers.
    durations : array, shape (n,)
        Seconds that each took [s].
    waits : array, shape (n,)
        Seconds between the end of the one before (or time 0) and its start [s]; zero unless a client of a
        simulation submitted it later.
    released_by : tuple of str, length n
        What its start waited for: "start" (nothing that ran), "dependency" (also: submitted when the task
        before ended), "stream" (the one before on its stream), "memory" (room that the task before freed).
    """

    tasks: IntArray
    durations: FloatArray
    waits: FloatArray
    released_by: tuple[str, ...]

    @property
    def total(self) -> float:
        """Durations and waits together: the makespan [s]."""
        return float(self.durations.sum() + self.waits.sum())


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates of transfers as step functions: from `time` on, `task` moves at `rate` until its next row or end.

    Attributes
    ----------
    time : array, shape (n,)
        Not decreasing [s]; of two rows of a task at one time the later holds.
    task : array of int, shape (n,)
        Identifier of the transfer.
    rate : array, shape (n,)
        Bytes per second [B/s].
    """

    time: FloatArray
    task: IntArray
    rate: FloatArray


@dataclass(frozen=True, eq=False)
class Timeline:
    """A run in columns, indexed by task.

    Attributes
    ----------
    program : Program
        What ran: names, resources and routes.
    start, end : array, shape (n,)
        Seconds; NaN for what did not start, or end, before the run stopped [s].
    bytes : array, shape (n,)
        Bytes that transfers have moved; 0 for other tasks [B].
    cause : array of int, shape (n,)
        Task whose end released it; -1 for none.
    after_memory : array of bool, shape (n,)
        It had waited for room in a memory when it was released.
    cancelled : array of bool, shape (n,)
        It was dropped before it was complete.
    ledger : MemoryLedger
        Bytes resident over time.
    rates : Rates or None
        Rates of the transfers, if they were recorded.
    """

    program: Program
    start: FloatArray
    end: FloatArray
    bytes: FloatArray
    cause: IntArray
    after_memory: BoolArray
    cancelled: BoolArray
    ledger: MemoryLedger
    rates: Rates | None = None

    @property
    def n_tasks(self) -> int:
        """Number of tasks."""
        return len(self.start)

    @cached_property
    def makespan(self) -> float:
        """End of the last task [s]; 0 if none ended."""
        ended = self.end[~np.isnan(self.end)]
        return float(ended.max()) if len(ended) else 0.0

    @cached_property
    def stream(self) -> IntArray:
        """Handle of each task's stream; -1 for none."""
        return np.array(self.program.streams[: self.n_tasks], dtype=np.int64)

    @cached_property
    def route(self) -> IntArray:
        """Index of each transfer's route in ``program.routes``; -1 for other tasks."""
        return np.array(self.program.route[: self.n_tasks], dtype=np.int64)

    @cached_property
    def kind(self) -> IntArray:
        """Index of each task's kind in `KINDS`."""
        return np.where(self.route >= 0, TRANSFER, np.where(self.stream >= 0, COMPUTE, BARRIER))

    @cached_property
    def resource(self) -> IntArray:
        """Handle of each task's stream, else of the first link of its path, else -1."""
        first = [route.path[0] if route.path else -1 for route in self.program.routes]
        first_link = np.array([*first, -1], dtype=np.int64)[self.route]
        return np.where(self.stream >= 0, self.stream, first_link)

    @cached_property
    def tag(self) -> IntArray:
        """Index of each task's tag in ``program.tags``."""
        return np.array(self.program.tag[: self.n_tasks], dtype=np.int64)

    @property
    def duration(self) -> FloatArray:
        """Seconds from start to end [s]; NaN for what has not ended."""
        return self.end - self.start

    def moved(self) -> dict[str, float]:
        """Return the bytes that crossed each link [B]."""
        transfers = np.flatnonzero(self.route >= 0)
        by_route = np.bincount(self.route[transfers], self.bytes[transfers], len(self.program.routes))
        moved = {resource.name: 0.0 for resource in self.program.resources if isinstance(resource, Link)}
        for route, size in zip(self.program.routes, by_route.tolist(), strict=True):
            for link in route.path:
                moved[self.program.resources[link].name] += size
        return moved

    def busy(self) -> dict[str, float]:
        """Return the seconds [s] for which each stream was occupied, each link would be at full bandwidth."""
        busy = {}
        moved = self.moved()
        done = (self.stream >= 0) & ~np.isnan(self.end)
        by_handle = np.bincount(self.stream[done], self.duration[done], len(self.program.resources)).tolist()
        for handle, resource in enumerate(self.program.resources):
            if isinstance(resource, Stream):
                busy[resource.name] = by_handle[handle]
            elif isinstance(resource, Link):
                busy[resource.name] = moved[resource.name] / resource.bandwidth
        return busy

    def critical_path(self) -> CriticalPath:
        """Return the tasks that follow on each other without a gap up to the makespan.

        Walked back from the first of the last tasks: each task names what released it.
        """
        tasks: list[int] = []
        if not np.isnan(self.end).all():
            tasks.append(int(np.nanargmax(self.end)))
            cause = self.cause
            while (before := int(cause[tasks[-1]])) >= 0:
                tasks.append(before)
            tasks.reverse()
        path = np.array(tasks, dtype=np.int64)
        waits = self.start[path] - np.concatenate([[0.0], self.end[path]])[:-1]
        reasons = ["start"] * len(tasks)
        previous = self._previous_on_stream()
        for position, task in enumerate(tasks):
            if self.after_memory[task]:
                reasons[position] = "memory"
            elif position and previous[task] == tasks[position - 1]:
                reasons[position] = "stream"
            elif position:
                reasons[position] = "dependency"
        return CriticalPath(path, self.duration[path], waits, tuple(reasons))

    def to_frame(self) -> pd.DataFrame:
        """Return the timeline as a data frame, one row a task."""
        import pandas as pd

        names = [*(resource.name for resource in self.program.resources), ""]
        return pd.DataFrame(
            {
                "name": self.program.names[: self.n_tasks],
                "kind": np.array(KINDS, dtype=object)[self.kind],
                "resource": np.array(names, dtype=object)[self.resource],
                "tag": np.array([*self.program.tags, ""], dtype=object)[self.tag],
                "start": self.start,
                "end": self.end,
                "bytes": self.bytes,
                "cancelled": self.cancelled,
            },
            index=pd.RangeIndex(self.n_tasks, name="task"),
        )

    def _previous_on_stream(self) -> IntArray:
        """Return the task before each one on its stream; -1 for none."""
        order = np.argsort(self.stream, kind="stable")
        previous = np.full(self.n_tasks, -1, dtype=np.int64)
        same = (self.stream[order[1:]] == self.stream[order[:-1]]) & (self.stream[order[1:]] >= 0)
        previous[order[1:][same]] = order[:-1][same]
        return previous
