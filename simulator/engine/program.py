"""A program: the tasks, resources and buffers that a strategy hands to the executor.

Everything is kept in flat columns, one entry a task (or an edge, or an allocation), so that a program of a
million tasks is built in about a second and read by the executor and by numpy without conversion.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import inf
from typing import Literal, NamedTuple

from simulator.engine.errors import ProgramError

OnFull = Literal["report", "block"]


class Stream(NamedTuple):
    """A serial queue of tasks, run in program order."""

    name: str


class Link(NamedTuple):
    """A directed link of `bandwidth` [B/s], shared max-min fairly by the transfers on it."""

    name: str
    bandwidth: float


class Memory(NamedTuple):
    """A memory of `capacity` [B] that blocks the tasks which overfill it, or reports them."""

    name: str
    capacity: float
    on_full: OnFull


class Slowdown(NamedTuple):
    """A link that has 1/`factor` of its bandwidth while anything flows over another one."""

    victim: int
    by: int
    factor: float


class Route(NamedTuple):
    """How a transfer travels: the links it crosses, its latency [s] and its own rate limit [B/s]."""

    path: tuple[int, ...]
    latency: float
    max_rate: float


class Allocations:
    """Columns of the buffers that tasks allocate and free."""

    __slots__ = ("at", "category", "holder", "holder_task", "memory", "name", "size")

    def __init__(self) -> None:
        self.memory = array("i")
        self.size = array("d")
        self.category: list[str] = []
        self.name: list[str] = []
        self.at = array("q")  # -1: resident from time 0
        self.holder = array("q")  # pairs (allocation, task whose end it outlives)
        self.holder_task = array("q")

    def __len__(self) -> int:
        return len(self.size)

    def copy(self) -> Allocations:
        """Return an independent copy."""
        twin = Allocations()
        for column in self.__slots__:
            setattr(twin, column, getattr(self, column)[:])
        return twin


class Program:
    """A DAG of tasks over streams, links and memories.

    Resources and tasks are known by integer handles. Tasks are numbered from 0 in the order of their
    creation and may depend only on earlier ones, so a program cannot be cyclic. A task starts when all tasks
    of `after` and the previous task of its stream have ended and the buffers allocated at its start fit (in
    memories with ``on_full="block"``). Among things that happen at one instant the lower `priority` goes
    first, then the earlier.

    Parameters
    ----------
    name : str
        For messages and traces.

    Examples
    --------
    >>> program = Program("copy, then compute")
    >>> gpu, bus = program.stream("gpu"), program.link("pcie", 25e9)
    >>> copied = program.transfer([bus], 50e9, tag="copy")
    >>> program.compute(gpu, 1.0, after=[copied], tag="matmul")
    1
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.resources: list[Stream | Link | Memory] = []
        self.streams = array("i")  # by task; -1 for none
        self.route = array("i")  # by task, index into `routes`; -1 for what is no transfer
        self.amount = array("d")  # by task; seconds of a compute, bytes of a transfer
        self.priority = array("i")
        self.tag = array("i")  # by task, index into `tags`
        self.names: list[str] = []
        self.routes: list[Route] = []
        self.tags: list[str] = []
        self.edge_source = array("q")  # the edges source -> target, stream order included
        self.edge_target = array("q")
        self.allocations = Allocations()
        self.slowdowns: list[Slowdown] = []
        self._handles: dict[str, int] = {}
        self._last_on_stream: dict[int, int] = {}
        self._route_index: dict[Route, int] = {}
        self._tag_index: dict[str, int] = {}

    @property
    def n_tasks(self) -> int:
        """Number of tasks so far."""
        return len(self.names)

    def stream(self, name: str) -> int:
        """Add a stream: a serial queue that runs its tasks in program order.

        Returns
        -------
        int
            Handle of the stream.

        Raises
        ------
        ProgramError
            If a resource has that name already.
        """
        handle = self._add(Stream(name))
        self._last_on_stream[handle] = -1
        return handle

    def link(self, name: str, bandwidth: float) -> int:
        """Add a directed link of `bandwidth` [B/s] that its transfers share max-min fairly.

        Returns
        -------
        int
            Handle of the link.

        Raises
        ------
        ProgramError
            If the name is taken, or the bandwidth is not positive and finite.
        """
        if not 0.0 < bandwidth < inf:
            raise ProgramError(f"link {name!r}: bandwidth must be positive and finite, not {bandwidth} B/s")
        return self._add(Link(name, float(bandwidth)))

    def slow(self, victim: int, by: int, factor: float) -> None:
        """Let a link have 1/`factor` of its bandwidth while anything flows over another one.

        For engines that hold each other up by more than a shared bandwidth explains: two kernels on one GPU, or
        computing and loading on a phone, where one way and the other have factors of their own. A processor
        takes part as a link of bandwidth 1 over which its work flows as transfers of seconds with a `max_rate`
        of 1, on its stream. Factors of several links that slow the same one multiply. A transfer that crosses
        both links slows itself, and one whose own `max_rate` is the tighter bound feels nothing.

        Parameters
        ----------
        victim, by : int
            Handles of two links.
        factor : float
            At least 1; a measured ratio of the times beside each other and alone.

        Raises
        ------
        ProgramError
            If a handle is no link, both are the same, the pair has a factor already, or the factor is below 1.
        """
        for link in (victim, by):
            if not (0 <= link < len(self.resources) and isinstance(self.resources[link], Link)):
                raise ProgramError(f"slowdown: {self._describe(link)} is not a link")
        if victim == by:
            raise ProgramError(f"slowdown: {self._describe(victim)} cannot slow itself")
        if any((known.victim, known.by) == (victim, by) for known in self.slowdowns):
            raise ProgramError(
                f"slowdown: {self._describe(victim)} is slowed by {self._describe(by)} already"
            )
        if not 1.0 <= factor < inf:
            raise ProgramError(f"slowdown: a factor must be at least 1 and finite, not {factor}")
        self.slowdowns.append(Slowdown(victim, by, float(factor)))

    def memory(self, name: str, capacity: float, *, on_full: OnFull = "report") -> int:
        """Add a memory of `capacity` [B] (may be infinite).

        Parameters
        ----------
        name : str
            Unique among all resources.
        capacity : float
            Bytes it holds [B].
        on_full : {"report", "block"}
            What happens to a task whose buffers do not fit: it runs and the shortfall is reported by the
            ledger, or it waits, first come first served, until room is freed.

        Returns
        -------
        int
            Handle of the memory.

        Raises
        ------
        ProgramError
            If the name is taken, the capacity negative, or the policy unknown.
        """
        if not capacity >= 0.0:
            raise ProgramError(f"memory {name!r}: capacity must not be negative, is {capacity} B")
        if on_full not in ("report", "block"):
            raise ProgramError(f"memory {name!r}: on_full must be 'report' or 'block', not {on_full!r}")
        return self._add(Memory(name, float(capacity), on_full))

    def handle(self, name: str) -> int:
        """Return the handle of the resource called `name`; ProgramError if there is none."""
        if name not in self._handles:
            raise ProgramError(f"program {self.name!r} has no resource {name!r}")
        return self._handles[name]

    def compute(
        self,
        stream: int,
        duration: float,
        *,
        after: Sequence[int] = (),
        tag: str = "",
        name: str = "",
        priority: int = 0,
    ) -> int:
        """Add `duration` seconds of work on a stream.

        Returns
        -------
        int
            Identifier of the task.

        Raises
        ------
        ProgramError
            If `stream` is no stream, the duration negative or infinite, or `after` names a task that does
            not exist yet.
        """
        if stream not in self._last_on_stream:
            raise ProgramError(f"task {name!r}: {self._describe(stream)} is not a stream")
        if not 0.0 <= duration < inf:
            raise ProgramError(f"task {name!r}: duration must be finite and not negative, is {duration} s")
        return self._task(stream, -1, duration, after, tag, name, priority)

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
    ) -> int:
        """Add a transfer of `size` bytes that flows over all links of `path` at once.

        Parameters
        ----------
        path : sequence of int
            The links crossed, each once. Without links only `latency` and `max_rate` hold it up.
        size : float
            Bytes [B]. None take the latency alone.
        after : sequence of int
            Earlier tasks that must have ended.
        latency : float
            Seconds at the start in which no bandwidth is taken [s].
        max_rate : float
            The most it takes even if the links have more [B/s].
        stream : int, optional
            A stream (say, a DMA queue) that it occupies from start to end.
        tag, name : str
            What it is for; which one it is.
        priority : int
            Lower goes first at one instant.

        Returns
        -------
        int
            Identifier of the task.

        Raises
        ------
        ProgramError
            If a handle, an amount or a dependency is wrong.
        """
        if stream is None:
            stream = -1
        elif stream not in self._last_on_stream:
            raise ProgramError(f"task {name!r}: {self._describe(stream)} is not a stream")
        if not 0.0 <= size < inf:
            raise ProgramError(f"task {name!r}: size must be finite and not negative, is {size} B")
        route = Route(tuple(path), latency, max_rate)
        index = self._route_index.get(route)
        if index is None:
            index = self._add_route(route, name)
        return self._task(stream, index, size, after, tag, name, priority)

    def barrier(self, *, after: Sequence[int], tag: str = "", name: str = "") -> int:
        """Add a task that takes no time and no resource and ends when all of `after` have ended.

        Returns
        -------
        int
            Identifier of the task.
        """
        return self._task(-1, -1, 0.0, after, tag, name, 0)

    def allocate(
        self,
        memory: int,
        size: float,
        category: str,
        *,
        at: int | None = None,
        until: Sequence[int] = (),
        name: str = "",
    ) -> int:
        """Keep `size` bytes in a memory from the start of a task to the end of the last of some others.

        Parameters
        ----------
        memory : int
            Handle of the memory.
        size : float
            Bytes [B].
        category : str
            What it is (weights, activations, ...); the ledger adds up by it.
        at : int, optional
            Task whose start allocates; from time 0 if None.
        until : sequence of int
            Tasks whose ends, all of them, free it; never freed if empty.
        name : str
            Shown among the largest holders of a peak.

        Returns
        -------
        int
            Number of the allocation.

        Raises
        ------
        ProgramError
            If a handle, the size or a task is wrong.
        """
        if not (0 <= memory < len(self.resources) and isinstance(self.resources[memory], Memory)):
            raise ProgramError(f"allocation {name!r}: {self._describe(memory)} is not a memory")
        if not 0.0 <= size < inf:
            raise ProgramError(f"allocation {name!r}: size must be finite and not negative, is {size} B")
        for task in (*until, *(() if at is None else (at,))):
            if not 0 <= task < len(self.names):
                raise ProgramError(f"allocation {name!r}: there is no task {task}")
        table = self.allocations
        index = len(table)
        table.memory.append(memory)
        table.size.append(size)
        table.category.append(category)
        table.name.append(name)
        table.at.append(-1 if at is None else at)
        for task in until:
            table.holder.append(index)
            table.holder_task.append(task)
        return index

    def copy(self) -> Program:
        """Return an independent copy with the same handles."""
        twin = Program(self.name)
        for key, value in vars(self).items():
            if isinstance(value, array):
                setattr(twin, key, value[:])
            elif not isinstance(value, str):
                setattr(twin, key, value.copy())
        return twin

    def _add(self, resource: Stream | Link | Memory) -> int:
        if resource.name in self._handles:
            raise ProgramError(f"resource name {resource.name!r} is used twice")
        handle = len(self.resources)
        self._handles[resource.name] = handle
        self.resources.append(resource)
        return handle

    def _add_route(self, route: Route, name: str) -> int:
        for link in route.path:
            if not (0 <= link < len(self.resources) and isinstance(self.resources[link], Link)):
                raise ProgramError(f"task {name!r}: {self._describe(link)} is not a link")
        if len(set(route.path)) < len(route.path):
            raise ProgramError(f"task {name!r}: its path crosses a link twice")
        if not 0.0 <= route.latency < inf:
            raise ProgramError(
                f"task {name!r}: latency must be finite and not negative, is {route.latency} s"
            )
        if not route.max_rate > 0.0:
            raise ProgramError(f"task {name!r}: max_rate must be positive, is {route.max_rate} B/s")
        index = self._route_index[route] = len(self.routes)
        self.routes.append(route)
        return index

    def _task(
        self, stream: int, route: int, amount: float, after: Sequence[int], tag: str, name: str, priority: int
    ) -> int:
        task = len(self.names)
        for source in after:
            if not 0 <= source < task:
                raise ProgramError(f"task {task} {name!r} depends on task {source}, which does not exist yet")
        tag_index = self._tag_index.get(tag)
        if tag_index is None:
            tag_index = self._tag_index[tag] = len(self.tags)
            self.tags.append(tag)
        for source in after:
            self.edge_source.append(source)
            self.edge_target.append(task)
        if stream >= 0:
            previous = self._last_on_stream[stream]
            if previous >= 0 and previous not in after:
                self.edge_source.append(previous)
                self.edge_target.append(task)
            self._last_on_stream[stream] = task
        self.streams.append(stream)
        self.route.append(route)
        self.amount.append(amount)
        self.priority.append(priority)
        self.tag.append(tag_index)
        self.names.append(name)
        return task

    def _describe(self, handle: int) -> str:
        if 0 <= handle < len(self.resources):
            resource = self.resources[handle]
            return f"{type(resource).__name__.lower()} {resource.name!r}"
        return f"handle {handle}"
