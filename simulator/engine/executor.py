"""The event loop: runs the tasks of a program, and whatever a simulation adds while it runs."""

from __future__ import annotations

import gc
from array import array
from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from itertools import count, pairwise
from math import inf, isnan, nan
from typing import TYPE_CHECKING

import numpy as np

from simulator.engine.admission import Admission
from simulator.engine.events import BUNDLE_DONE, CALLBACK, LATENCY_OVER, Event, decode, encode
from simulator.engine.ledger import BufferRow, MemoryLedger
from simulator.engine.program import Link, Program
from simulator.engine.sharing import Bundle, LinkSharing
from simulator.engine.timeline import Rates, Timeline

if TYPE_CHECKING:
    from simulator.engine.ledger import BoolArray, FloatArray


def execute(program: Program, *, record_rates: bool = False) -> Timeline:
    """Run a program from time 0 until all its tasks have ended.

    Streams are serial and in program order; transfers share links max-min fairly, with rates that are
    constant between events; buffers that do not fit a memory with ``on_full="block"`` hold their task back,
    first come first served. Equal programs give equal timelines, bit for bit.

    A long program whose links are saturated is a chaotic system: a last-bit change of one duration moves
    later contention, and the makespan by some tenths of a per cent.

    Parameters
    ----------
    program : Program
        Not changed.
    record_rates : bool
        Keep the rate of every transfer over time.

    Returns
    -------
    Timeline
        Start, end and bytes of each task, and the memory ledger.

    Raises
    ------
    DeadlockError
        If a task waits for memory that nothing can ever free.
    """
    collecting = gc.isenabled()
    # A million live event tuples and successor lists, none of them cyclic, would be scanned again and again.
    gc.disable()
    try:
        executor = Executor(program, record_rates=record_rates)
        executor.begin_ready()
        executor.run(inf)
        return executor.timeline()
    finally:
        if collecting:
            gc.enable()


class Executor:
    """State of a run and its event loop; `execute` and `Simulation` are its two faces.

    Parameters
    ----------
    program : Program
        Its tasks; new ones may be appended while it runs (then call `adopt`).
    track_all : bool
        Keep the bytes in use of all memories at hand, not only of the blocking ones.
    record_rates : bool
        Keep the rate of every transfer over time.
    """

    def __init__(self, program: Program, *, track_all: bool = False, record_rates: bool = False) -> None:
        n_tasks = program.n_tasks
        self.program = program
        self.now = 0.0
        self.current = -1  # the task whose end is being handled
        self.events: list[Event] = []
        self.sequence = count()
        self.start = array("d", [nan]) * n_tasks
        self.end = array("d", [nan]) * n_tasks
        self.cause = array("q", [-1]) * n_tasks
        self.successors, self.waiting = _successors(program)
        self.after_memory: set[int] = set()
        self.cancelled: dict[int, int] = {}  # by task, the sequence number of the event that ends it early
        self.dropped: set[int] = set()  # cancelled before they began
        self.undelivered: dict[int, float] = {}  # by cancelled transfer, bytes it did not move
        self.on_end: dict[int, Callable[[int], None]] = {}
        self.callbacks: dict[int, Callable[[], None]] = {}
        self._grants: dict[int, Callable[[], None]] = {}  # by ticket of a client that waits for room
        self.admission = Admission(program, track_all=track_all)
        self._trace: list[tuple[float, int, float]] | None = [] if record_rates else None
        bandwidths = [
            resource.bandwidth if isinstance(resource, Link) else inf for resource in program.resources
        ]
        self._bundles: list[Bundle | None] = []  # by route
        self.links = LinkSharing(bandwidths, self.events, self.sequence, self._trace, program.slowdowns)

    def begin_ready(self) -> None:
        """Start all tasks that wait for nothing, by priority and then in program order."""
        roots = [task for task, waiting in enumerate(self.waiting) if not waiting]
        for task in sorted(roots, key=self.program.priority.__getitem__):
            self._begin(task)

    def run(self, until: float) -> None:
        """Handle all events up to and including time `until`, in order of (time, priority, sequence)."""
        events, sequence, links, successors = self.events, self.sequence, self.links, self.successors
        waiting, cause, start, end = self.waiting, self.cause, self.start, self.end
        route, amount, priority = self.program.route, self.program.amount, self.program.priority
        claims, releases = self.admission.claims, self.admission.releases
        cancelled, on_end, dirty = self.cancelled, self.on_end, links.dirty
        now = self.now
        while events or dirty:
            if dirty and (not events or events[0][0] > now):
                links.settle(now)
                continue
            if events[0][0] > until:
                break
            now, _, number, code = heappop(events)
            self.now = now
            ended: Sequence[int]
            if code >= 0:
                if cancelled and cancelled.get(code, number) != number:
                    continue
                ended = (code,)
            else:
                ended = self._special(code, number)
            for task in ended:
                end[task] = now
                if task in releases:
                    self._let_in(self.admission.release(task), task)
                for successor in successors[task]:
                    left = waiting[successor] - 1
                    waiting[successor] = left
                    if not left:
                        cause[successor] = task
                        if route[successor] < 0 and successor not in claims:
                            start[successor] = now
                            heappush(
                                events,
                                (now + amount[successor], priority[successor], next(sequence), successor),
                            )
                        else:
                            self._begin(successor)
                if on_end and task in on_end:
                    self.current = task
                    on_end.pop(task)(task)
                    self.current = -1
        if not events and until == inf and self.admission.waiting():
            raise self.admission.deadlock()

    def adopt(self, task: int, n_edges_before: int) -> None:
        """Take up a task just appended to the program, with its edges from `n_edges_before` on."""
        program = self.program
        self.start.append(nan)
        self.end.append(nan)
        self.cause.append(-1)
        self.successors.append([])
        waiting = 0
        for source in program.edge_source[n_edges_before:]:
            if isnan(self.end[source]):
                waiting += 1
                insort(self.successors[source], task, key=program.priority.__getitem__)
        self.waiting.append(waiting)
        if not waiting:
            self.cause[task] = self.current
            self._begin(task)

    def cancel(self, task: int) -> bool:
        """End a task early; see `Simulation.cancel`."""
        if not isnan(self.end[task]) or task in self.cancelled:
            return False
        self.on_end.pop(task, None)
        if self.program.route[task] >= 0:
            bundle = self._bundle(task)
            left = None if bundle is None else self.links.leave(task, bundle, self.now)
            self.undelivered[task] = self.program.amount[task] if left is None else left
        if isnan(self.start[task]):
            self.dropped.add(task)
            admitted = self.admission.withdraw(task)
            if admitted is None and self.waiting[task]:
                # Not its turn yet: it will take no time, no room and no bandwidth when it comes.
                self.admission.claims[task] = []
                self.cancelled[task] = -1
                return True
            self._let_in(admitted or [], self.current)
            self.start[task] = self.now
        self._end_early(task)
        return True

    def ask(self, memory: int, size: float, name: str, grant: Callable[[], None]) -> int | None:
        """Take room for a client and call `grant`, at once or when there is some; return a ticket if it must wait."""
        ticket = self.admission.ask(memory, size, name)
        if ticket is None:
            grant()
        else:
            self._grants[ticket] = grant
        return ticket

    def withdraw(self, ticket: int) -> None:
        """Let a client wait no longer."""
        del self._grants[ticket]
        self._let_in(self.admission.withdraw(ticket) or [], self.current)

    def let_in(self, memory: int) -> None:
        """Start the tasks that fit after a client freed room in a memory."""
        self._let_in(self.admission.let_in([memory]), self.current)

    def timeline(self, dynamic_rows: Sequence[BufferRow] = ()) -> Timeline:
        """Return what has run so far."""
        program = self.program
        start, end = np.array(self.start), np.array(self.end)
        route = np.array(program.route, dtype=np.int64)
        ended = ~np.isnan(end)
        moved = np.where((route >= 0) & ended, np.array(program.amount), 0.0)
        for task, missing in self.undelivered.items():
            moved[task] = program.amount[task] - missing
        if not ended.all():
            for task in np.flatnonzero(~ended & (route >= 0) & ~np.isnan(start)).tolist():
                bundle = self._bundle(task)
                left = None if bundle is None else self.links.remaining(task, bundle, self.now)
                moved[task] = 0.0 if left is None else program.amount[task] - left
        return Timeline(
            program=program,
            start=start,
            end=end,
            bytes=moved,
            cause=np.array(self.cause, dtype=np.int64),
            after_memory=_mask(self.after_memory, len(start)),
            cancelled=_mask(self.cancelled, len(start)),
            ledger=self._ledger(start, end, dynamic_rows),
            rates=_rates(self._trace),
        )

    def _begin(self, task: int) -> None:
        """Start a task whose turn has come, unless it must wait for memory."""
        if task in self.cancelled:
            self.start[task] = self.now
            self._end_early(task)
        elif task not in self.admission.claims or self.admission.admit(task):
            self._start(task)

    def _start(self, task: int) -> None:
        program, now = self.program, self.now
        self.start[task] = now
        route = program.route[task]
        if route < 0:
            heappush(
                self.events, (now + program.amount[task], program.priority[task], next(self.sequence), task)
            )
            return
        latency = program.routes[route].latency
        if latency:
            code = encode(LATENCY_OVER, task)
            heappush(self.events, (now + latency, program.priority[task], next(self.sequence), code))
        else:
            self._flow(task)

    def _flow(self, task: int) -> None:
        size, priority = self.program.amount[task], self.program.priority[task]
        bundle = self._bundle(task)
        if bundle is not None and size:
            self.links.join(bundle, task, size, priority, self.now)
        else:
            finish = self.now + size / self.program.routes[self.program.route[task]].max_rate
            heappush(self.events, (finish, priority, next(self.sequence), task))

    def _special(self, code: int, number: int) -> Sequence[int]:
        """Handle an event that is not the planned end of a task; return the tasks that end with it."""
        kind, subject = decode(code)
        if kind == BUNDLE_DONE:
            done = self.links.complete(subject, number, self.now)
            # All have ended before the first one's `on_end` can ask, or cancel.
            for task in done:
                self.end[task] = self.now
            return done
        if kind == LATENCY_OVER:
            if subject not in self.cancelled:
                self._flow(subject)
        elif kind == CALLBACK:
            self.callbacks.pop(subject)()
        return ()

    def _let_in(self, admitted: list[int], cause: int) -> None:
        for task in admitted:
            if task < 0:
                current, self.current = self.current, cause
                self._grants.pop(task)()
                self.current = current
                continue
            self.cause[task] = cause
            self.after_memory.add(task)
            self._start(task)

    def _end_early(self, task: int) -> None:
        number = next(self.sequence)
        self.cancelled[task] = number
        heappush(self.events, (self.now, self.program.priority[task], number, task))

    def _bundle(self, task: int) -> Bundle | None:
        """Return the bundle of a transfer, None if it crosses no link."""
        route = self.program.route[task]
        while len(self._bundles) <= route:
            path, _, max_rate = self.program.routes[len(self._bundles)]
            self._bundles.append(self.links.bundle(path, max_rate) if path else None)
        return self._bundles[route]

    def _ledger(self, start: FloatArray, end: FloatArray, rows: Sequence[BufferRow]) -> MemoryLedger:
        table = self.program.allocations
        at = np.array(table.at, dtype=np.int64)
        begins = np.where(at >= 0, start[at], 0.0) if len(start) else np.zeros(len(at))
        holder, holder_task = (
            np.array(column, dtype=np.int64) for column in (table.holder, table.holder_task)
        )
        ends = np.full(len(at), -inf)
        np.maximum.at(ends, holder, np.nan_to_num(end[holder_task], nan=inf))
        ends[np.bincount(holder, minlength=len(at)) == 0] = inf
        # A task that has not begun, or was cancelled before its turn, has allocated nothing.
        void = np.isnan(begins)
        void |= np.isin(at, list(self.dropped))
        ends[void] = -inf
        return MemoryLedger(
            self.admission.memories,
            np.array([*table.memory, *(row.memory for row in rows)], dtype=np.int64),
            [*table.category, *(row.category for row in rows)],
            [*table.name, *(row.name for row in rows)],
            np.concatenate([np.array(table.size), [row.size for row in rows]]),
            np.concatenate([begins, [row.start for row in rows]]),
            np.concatenate([ends, [row.end for row in rows]]),
        )


def _successors(program: Program) -> tuple[list[list[int]], list[int]]:
    """Return for each task those that wait for it, by priority and number, and how many it waits for."""
    n_tasks = program.n_tasks
    source = np.array(program.edge_source, dtype=np.int64)
    target = np.array(program.edge_target, dtype=np.int64)
    order = np.lexsort((np.array(program.priority, dtype=np.int64)[target], source))
    targets = target[order].tolist()
    bounds = np.concatenate([[0], np.cumsum(np.bincount(source, minlength=n_tasks))]).tolist()
    waiting = np.bincount(target, minlength=n_tasks).tolist()
    return [targets[low:high] for low, high in pairwise(bounds)], waiting


def _mask(tasks: Iterable[int], n_tasks: int) -> BoolArray:
    mask = np.zeros(n_tasks, dtype=np.bool_)
    mask[list(tasks)] = True
    return mask


def _rates(trace: list[tuple[float, int, float]] | None) -> Rates | None:
    if trace is None:
        return None
    time, task, rate = np.array(trace, dtype=np.float64).reshape(-1, 3).T
    return Rates(time, task.astype(np.int64), rate)
