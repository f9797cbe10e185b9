"""Queues of transfers in a simulation: by priority in chunks, FIFO by several workers, stores and their loads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import ceil, inf, nan

from simulator.engine.errors import ProgramError
from simulator.engine.simulation import Simulation

_ROUNDING = 1e-9

OnEnd = Callable[["Request"], None]


class Request:
    """A transfer that a queue was asked for.

    Attributes
    ----------
    size, delivered : float
        Bytes asked for; bytes of it that have arrived, in whole chunks [B].
    priority : int
        Lower goes first.
    name : str
        For the timeline.
    begun, ended : float
        When its first byte was asked for, and when it was complete or given up [s]; NaN before.
    cancelled : bool
        It was given up before all of it was moved.
    forwarded : bool
        A load that was served without a read, as what it wants was still there.
    """

    __slots__ = (
        "_entry",
        "_left",
        "_on_end",
        "begun",
        "cancelled",
        "delivered",
        "ended",
        "forwarded",
        "name",
        "priority",
        "size",
    )

    def __init__(self, size: float, priority: int, name: str, on_end: OnEnd | None) -> None:
        if not 0.0 <= size < inf:
            raise ProgramError(f"request {name!r}: size must be finite and not negative, is {size} B")
        self.size = size
        self.priority = priority
        self.name = name
        self.delivered = 0.0
        self.begun = nan
        self.ended = nan
        self.cancelled = False
        self.forwarded = False
        self._on_end = on_end
        self._left = 1  # transfers still to begin
        self._entry = -1  # number of the entry that is its place in a queue; any other is stale

    @property
    def done(self) -> bool:
        """Whether all of it has arrived."""
        return self.ended == self.ended and not self.cancelled

    @property
    def waiting(self) -> bool:
        """Whether nothing of it has begun and it was not given up."""
        return self.begun != self.begun and self.ended != self.ended


class ChunkQueue:
    """A queue whose requests are moved chunk by chunk, one at a time, those of the lowest priority first.

    A request goes before another of a higher number from the next chunk on; a chunk that is under way is never
    interrupted. Equal priorities are served first come, first served.

    Parameters
    ----------
    simulation : Simulation
        Whose clock and links it uses.
    path : sequence of int
        Links that every chunk crosses.
    chunk : float
        Bytes of a chunk; the last one of a request is what remains [B].
    max_rate : float
        The most it takes of its links [B/s].
    latency : float
        Of each chunk, as each is a copy of its own [s].
    stream : int, optional
        A stream that each chunk occupies (a copy engine).
    tag : str
        What the chunks are for.

    Attributes
    ----------
    delivered : float
        Bytes moved so far, in whole chunks [B].

    Examples
    --------
    A request of three chunks of 10 B at 10 B/s, and one that goes before it from 1.5 s on:

    >>> from simulator.engine import Program
    >>> program = Program()
    >>> queue = ChunkQueue(Simulation(program), [], 10.0, max_rate=10.0)
    >>> low = queue.submit(30.0, priority=1)
    >>> _ = queue.simulation.at(1.5, lambda: queue.submit(10.0, priority=0))
    >>> _ = queue.simulation.run()
    >>> low.ended
    4.0
    """

    def __init__(
        self,
        simulation: Simulation,
        path: Sequence[int],
        chunk: float,
        *,
        max_rate: float = inf,
        latency: float = 0.0,
        stream: int | None = None,
        tag: str = "",
    ) -> None:
        if not 0.0 < chunk < inf:
            raise ProgramError(f"a chunk must be positive and finite, is {chunk} B")
        self.simulation = simulation
        self.chunk = chunk
        self.delivered = 0.0
        self._copy = _Copy(simulation, path, max_rate, latency, stream, tag)
        self._heap: list[tuple[int, int, Request]] = []
        self._entries = count()
        self._busy = False

    def submit(
        self, size: float, *, priority: int = 0, name: str = "", on_end: OnEnd | None = None
    ) -> Request:
        """Ask for a transfer of `size` bytes; `on_end` is called when all of it has arrived."""
        request = Request(size, priority, name, on_end)
        request._left = self._n_chunks(size)
        self._enter(request)
        return request

    def cancel(self, request: Request) -> float:
        """Give up what has not begun of a request; its `on_end` is not called.

        Returns
        -------
        float
            Bytes that are not moved. The chunk under way is, and counts as delivered when it has arrived.
        """
        if not request._left or request.ended == request.ended:
            return 0.0
        moved = request.size - self._unbegun(request)
        request._left, request._entry = 0, -1
        request.cancelled = True
        request.ended = self.simulation.now
        return request.size - moved

    def reprioritise(self, request: Request, priority: int) -> None:
        """Give a request another priority, from its next chunk on; behind those that have it already."""
        if request.priority == priority:
            return
        request.priority = priority
        if request._left and not request.cancelled:
            self._enter(request)

    @property
    def waiting(self) -> float:
        """Bytes asked for of which the chunks have not begun [B]."""
        return sum(self._unbegun(request) for _, entry, request in self._heap if request._entry == entry)

    def _enter(self, request: Request) -> None:
        request._entry = next(self._entries)
        heappush(self._heap, (request.priority, request._entry, request))
        self._serve()

    def _n_chunks(self, size: float) -> int:
        # Rounding of a chunk that was computed as a part of the size makes no chunk of its own.
        return max(ceil(size / self.chunk * (1.0 - _ROUNDING)), 1)

    def _unbegun(self, request: Request) -> float:
        return request.size - (self._n_chunks(request.size) - request._left) * self.chunk

    def _serve(self) -> None:
        """Begin the next chunk, unless one is under way."""
        while not self._busy and self._heap:
            _, entry, request = self._heap[0]
            if request._entry != entry:
                heappop(self._heap)
                continue
            size = self.chunk if request._left > 1 else self._unbegun(request)
            request._left -= 1
            if not request._left:
                heappop(self._heap)
                request._entry = -1
            if request.begun != request.begun:
                request.begun = self.simulation.now
            self._busy = True
            self._copy(size, request, partial(self._arrived, size, request))

    def _arrived(self, size: float, request: Request, task: int) -> None:
        self.delivered += size
        request.delivered += size
        if not request._left and not request.cancelled:
            # Whatever its client asks for now is in the queue before the next chunk is chosen.
            _finish(request, self.simulation.now)
        self._busy = False
        self._serve()


class Pool:
    """A FIFO queue with some workers, each of which moves one request at a time.

    Parameters
    ----------
    simulation, path, max_rate, latency, tag
        As of `ChunkQueue`; a limit of rate is one of each worker.
    workers : int
        Requests under way at a time.

    Attributes
    ----------
    delivered : float
        Bytes of the requests that are complete [B].
    """

    def __init__(
        self,
        simulation: Simulation,
        path: Sequence[int],
        workers: int,
        *,
        max_rate: float = inf,
        latency: float = 0.0,
        tag: str = "",
    ) -> None:
        if workers < 1:
            raise ProgramError(f"a pool needs a worker at least, not {workers}")
        self.simulation = simulation
        self.workers = workers
        self.delivered = 0.0
        self._copy = _Copy(simulation, path, max_rate, latency, None, tag)
        self._queue: deque[Request] = deque()
        self._idle = workers

    def submit(self, size: float, *, name: str = "", on_end: OnEnd | None = None) -> Request:
        """Ask for a transfer of `size` bytes; `on_end` is called when it has arrived."""
        request = Request(size, 0, name, on_end)
        self._queue.append(request)
        self._serve()
        return request

    def cancel(self, request: Request) -> bool:
        """Drop a request that has not begun; False if there is nothing to drop. Its `on_end` is not called."""
        if not request.waiting:
            return False
        request.cancelled = True
        request.ended = self.simulation.now
        return True

    def _serve(self) -> None:
        while self._idle and self._queue:
            request = self._queue.popleft()
            if request.cancelled:
                continue
            request.begun = self.simulation.now
            self._idle -= 1
            self._copy(request.size, request, partial(self._arrived, request))

    def _arrived(self, request: Request, task: int) -> None:
        self.delivered += request.size
        request.delivered = request.size
        _finish(request, self.simulation.now)
        self._idle += 1
        self._serve()


class StoreLoad:
    """Stores to a lower tier and loads back, each FIFO; what has not left yet is not read back.

    A load whose store is queued or under way is *forwarded*: it is complete at once, as the bytes are still in
    the upper tier (Wu et al. 2024, *SSDTrain*). Whoever frees the buffer when its store ends must
    then keep it for the one that loaded it.

    Parameters
    ----------
    stores, loads : Pool
        Of the same simulation; where they share a link or a device, their paths say so.
    drop_forwarded : bool
        A store that has not begun is given up when its load is forwarded: nobody will read it, as is so where
        each store is loaded once.

    Attributes
    ----------
    forwarded, dropped : float
        Bytes of the loads that needed no read, and of the stores that were given up [B].
    """

    def __init__(self, stores: Pool, loads: Pool, *, drop_forwarded: bool = True) -> None:
        if stores.simulation is not loads.simulation:
            raise ProgramError("the stores and the loads must belong to one simulation")
        self.stores = stores
        self.loads = loads
        self.forwarded = 0.0
        self.dropped = 0.0
        self._drop = drop_forwarded
        self._stored: dict[Hashable, Request] = {}

    def store(self, key: Hashable, size: float, *, name: str = "", on_end: OnEnd | None = None) -> Request:
        """Store `size` bytes under a key, in the place of what was stored under it before."""
        request = self._stored[key] = self.stores.submit(size, name=name, on_end=on_end)
        return request

    def load(self, key: Hashable, *, name: str = "", on_end: OnEnd | None = None) -> Request:
        """Load what was stored under a key; ProgramError if nothing was, or its store was given up."""
        stored = self._stored.get(key)
        if stored is None:
            raise ProgramError(f"nothing is stored under {key!r}")
        if stored.done:
            return self.loads.submit(stored.size, name=name, on_end=on_end)
        simulation = self.stores.simulation
        request = Request(stored.size, 0, name, on_end)
        request.forwarded = True
        request.begun = simulation.now
        self.forwarded += stored.size
        if self._drop and self.stores.cancel(stored):
            self.dropped += stored.size
            del self._stored[key]
        # Not before the caller has got the request.
        simulation.soon(partial(_finish, request, simulation.now))
        return request

    def forget(self, key: Hashable) -> None:
        """Drop what is stored under a key; a store that has not begun is given up. Nothing happens if there is none."""
        stored = self._stored.pop(key, None)
        if stored is not None and self.stores.cancel(stored):
            self.dropped += stored.size


class _Copy:
    """One transfer of a queue, with all that its transfers have in common."""

    def __init__(
        self,
        simulation: Simulation,
        path: Sequence[int],
        max_rate: float,
        latency: float,
        stream: int | None,
        tag: str,
    ) -> None:
        self._simulation = simulation
        self._path = tuple(path)
        self._max_rate = max_rate
        self._latency = latency
        self._stream = stream
        self._tag = tag

    def __call__(self, size: float, request: Request, on_end: Callable[[int], None]) -> None:
        self._simulation.transfer(
            self._path,
            size,
            latency=self._latency,
            max_rate=self._max_rate,
            stream=self._stream,
            tag=self._tag,
            name=request.name,
            priority=request.priority,
            on_end=on_end,
        )


def _finish(request: Request, now: float) -> None:
    request.ended = now
    request.delivered = request.size
    if request._on_end is not None:
        request._on_end(request)
