"""A running simulation: static programs and the processes that decide as they go, on one clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappush
from math import inf
from typing import cast

from simulator.engine.errors import ProgramError
from simulator.engine.events import CALLBACK, encode
from simulator.engine.executor import Executor
from simulator.engine.ledger import BufferRow
from simulator.engine.program import Program
from simulator.engine.timeline import Timeline


class Handle:
    """A callback that is due at some time and may be called off."""

    __slots__ = ("_callback", "cancelled")

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        """Call it off; it stays on the clock and does nothing."""
        self.cancelled = True

    def __call__(self) -> None:
        """Do what is due, unless it was called off."""
        if not self.cancelled:
            self._callback()


class RoomRequest:
    """Bytes of a memory that a process has asked for.

    Attributes
    ----------
    buffer : int or None
        Number of the buffer, once there was room for it.
    """

    __slots__ = ("_give_up", "buffer", "cancelled")

    def __init__(self, give_up: Callable[[RoomRequest], None]) -> None:
        self._give_up = give_up
        self.buffer: int | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """Wait no longer; a buffer that its process was not told of yet is freed, one that it was is its own to free."""
        if not self.cancelled:
            self._give_up(self)
            self.cancelled = True


class Simulation:
    """An event loop that a static program and dynamic processes share.

    A process is a set of callbacks: it looks at the state when it is called, submits work and asks to be
    called again. Its tasks use the same streams, links and memories as those of the program, and start at
    once if nothing holds them back. Everything is ordered by (time, priority, sequence).

    Parameters
    ----------
    program : Program, optional
        Resources, and the tasks and allocations to begin with. It is copied, so it stays as it is.
    record_rates : bool
        Keep the rate of every transfer over time.

    Attributes
    ----------
    program : Program
        The resources and all tasks submitted so far; to read, as new work goes through the simulation.

    Examples
    --------
    >>> program = Program()
    >>> gpu = program.stream("gpu")
    >>> simulation = Simulation(program)
    >>> def step(task: int) -> None:
    ...     if simulation.now < 3.0:
    ...         simulation.compute(gpu, 1.0, on_end=step)
    >>> step(0)
    >>> simulation.run().makespan
    3.0
    """

    def __init__(self, program: Program | None = None, *, record_rates: bool = False) -> None:
        self.program = Program() if program is None else program.copy()
        self._executor = Executor(self.program, track_all=True, record_rates=record_rates)
        self._rows: list[BufferRow] = []
        self._buffers: dict[int, BufferRow] = {}
        self._n_buffers = 0
        self._n_callbacks = 0
        self._tickets: dict[RoomRequest, int] = {}  # of requests that had to wait
        self._untold: dict[RoomRequest, Handle] = {}  # of requests granted at this instant
        self._running = False
        self._executor.begin_ready()

    @property
    def now(self) -> float:
        """The time [s]."""
        return self._executor.now

    def at(self, time: float, callback: Callable[[], None], *, priority: int = 0) -> Handle:
        """Have `callback` called at a time that is not past.

        Returns
        -------
        Handle
            To call it off.

        Raises
        ------
        ProgramError
            If `time` is past or not a number.
        """
        if not self.now <= time < inf:
            raise ProgramError(f"a callback at {time} s cannot be scheduled at {self.now} s")
        handle = Handle(callback)
        executor = self._executor
        number = self._n_callbacks
        self._n_callbacks += 1
        executor.callbacks[number] = handle
        heappush(executor.events, (time, priority, next(executor.sequence), encode(CALLBACK, number)))
        return handle

    def soon(self, callback: Callable[[], None]) -> Handle:
        """Have `callback` called at this instant, after what is being handled now.

        What it submits counts as released by the task whose end is being handled, if one is.
        """
        executor = self._executor
        cause = executor.current

        def call() -> None:
            executor.current = cause
            callback()
            executor.current = -1

        return self.at(self.now, call)

    def compute(
        self,
        stream: int,
        duration: float,
        *,
        after: Sequence[int] = (),
        tag: str = "",
        name: str = "",
        priority: int = 0,
        on_end: Callable[[int], None] | None = None,
    ) -> int:
        """Submit work on a stream, behind all that is on it; as `Program.compute`.

        `on_end` is called with the task when it has ended, after its dependents were started; not if it is
        cancelled.
        """
        n_edges = len(self.program.edge_source)
        task = self.program.compute(stream, duration, after=after, tag=tag, name=name, priority=priority)
        return self._submit(task, n_edges, on_end)

    def transfer(
        self,
        path: Sequence[int],
        size: float,
        *,
        after: Sequence[int] = (),
        latency: float = 0.0,
        max_rate: float = inf,
        stream: int | None = None,
        tag: str = "",
        name: str = "",
        priority: int = 0,
        on_end: Callable[[int], None] | None = None,
    ) -> int:
        """Submit a transfer; as `Program.transfer`, with `on_end` as in `compute`."""
        n_edges = len(self.program.edge_source)
        task = self.program.transfer(
            path,
            size,
            after=after,
            latency=latency,
            max_rate=max_rate,
            stream=stream,
            tag=tag,
            name=name,
            priority=priority,
        )
        return self._submit(task, n_edges, on_end)

    def barrier(
        self,
        *,
        after: Sequence[int],
        tag: str = "",
        name: str = "",
        on_end: Callable[[int], None] | None = None,
    ) -> int:
        """Submit a task that ends when all of `after` have ended; as `Program.barrier`."""
        n_edges = len(self.program.edge_source)
        return self._submit(self.program.barrier(after=after, tag=tag, name=name), n_edges, on_end)

    def cancel(self, task: int) -> bool:
        """Drop a task that has not ended; False if there is nothing to drop.

        A running task ends now, with the bytes it has moved so far. A task whose turn has not come takes,
        when it comes, no time, bandwidth or memory. Either way its stream, its buffers and its dependents
        are released as by a regular end, but its `on_end` is not called. Whoever wants the dependents
        dropped too cancels them first.
        """
        if not 0 <= task < self.program.n_tasks:
            raise ProgramError(f"there is no task {task}")
        return self._executor.cancel(task)

    def allocate(self, memory: int, size: float, category: str, *, name: str = "") -> int:
        """Take `size` bytes of a memory now, until they are freed, also before those who wait for room.

        Returns
        -------
        int
            Number of the buffer.

        Raises
        ------
        MemoryFullError
            If it does not fit a memory with ``on_full="block"``.
        ProgramError
            If `memory` is no memory or the size is negative.
        """
        self._check_memory(memory)
        row = BufferRow(memory, category, name, size, self.now)
        self._change(row, size, size)
        return self._register(row)

    def request(
        self, memory: int, size: float, category: str, on_grant: Callable[[int], None], *, name: str = ""
    ) -> RoomRequest:
        """Take `size` bytes of a memory as soon as they are free, until they are freed again.

        A memory with ``on_full="block"`` serves those who wait, requests and tasks alike, first come first
        served; any other has room at once.

        Parameters
        ----------
        memory, size, category, name
            As of `allocate`.
        on_grant : callable
            Called with the number of the buffer, at the instant in which the room is taken.

        Returns
        -------
        RoomRequest
            To wait no longer.

        Raises
        ------
        ProgramError
            If `memory` is no memory or the size is negative.
        """
        self._check_memory(memory)
        row = BufferRow(memory, category, name, size, self.now)
        _check_size(row, size)
        request = RoomRequest(self._give_up)
        executor = self._executor

        def grant() -> None:
            self._tickets.pop(request, None)
            row.start = self.now
            request.buffer = self._register(row)
            handles[request] = self.soon(tell)

        def tell() -> None:
            del handles[request]
            on_grant(cast(int, request.buffer))

        handles = self._untold
        ticket = executor.ask(memory, size, name, grant)
        if ticket is not None:
            self._tickets[request] = ticket
        return request

    def free(self, buffer: int) -> None:
        """Give back a buffer; ProgramError if there is none of that number."""
        row = self._row(buffer)
        del self._buffers[buffer]
        row.end = self.now
        self._change(row, -row.size, row.size)

    def resize(self, buffer: int, size: float) -> None:
        """Change a buffer to `size` bytes; MemoryFullError and ProgramError as for `allocate`."""
        row = self._row(buffer)
        self._change(row, size - row.size, size)
        if row.start == self.now:
            row.size = size
            return
        row.end = self.now
        grown = BufferRow(row.memory, row.category, row.name, size, self.now)
        self._buffers[buffer] = grown
        self._rows.append(grown)

    def used(self, memory: int) -> float:
        """Return the bytes resident in a memory now [B]."""
        self._check_memory(memory)
        return self._executor.admission.used[memory]

    def run(self, until: float = inf) -> Timeline:
        """Let time pass up to `until`, or until nothing is left to happen.

        Returns
        -------
        Timeline
            What has run since time 0. The simulation may be continued.

        Raises
        ------
        DeadlockError
            If nothing is left to happen (and `until` is infinite) but a task waits for memory.
        ProgramError
            If it is running already, or `until` is past.
        """
        if self._running:
            raise ProgramError("the simulation is running already")
        if not until >= self.now:
            raise ProgramError(f"cannot run until {until} s at {self.now} s")
        self._running = True
        try:
            self._executor.run(until)
        finally:
            self._running = False
        if until < inf:
            self._executor.now = until
        return self._executor.timeline(self._rows)

    def _submit(self, task: int, n_edges: int, on_end: Callable[[int], None] | None) -> int:
        if on_end is not None:
            self._executor.on_end[task] = on_end
        self._executor.adopt(task, n_edges)
        return task

    def _register(self, row: BufferRow) -> int:
        buffer = self._n_buffers
        self._n_buffers += 1
        self._buffers[buffer] = row
        self._rows.append(row)
        return buffer

    def _give_up(self, request: RoomRequest) -> None:
        if request.buffer is None:
            self._executor.withdraw(self._tickets.pop(request))
        elif request in self._untold:
            self._untold.pop(request).cancel()
            self.free(request.buffer)

    def _change(self, row: BufferRow, difference: float, size: float) -> None:
        _check_size(row, size)
        self._executor.admission.change(row.memory, difference)
        if difference < 0.0:
            self._executor.let_in(row.memory)

    def _check_memory(self, memory: int) -> None:
        if memory not in self._executor.admission.memories:
            raise ProgramError(f"handle {memory} is not a memory")

    def _row(self, buffer: int) -> BufferRow:
        if buffer not in self._buffers:
            raise ProgramError(f"there is no buffer {buffer}, or it was freed")
        return self._buffers[buffer]


def _check_size(row: BufferRow, size: float) -> None:
    if not 0.0 <= size < inf:
        raise ProgramError(f"buffer {row.name!r}: size must be finite and not negative, is {size} B")
