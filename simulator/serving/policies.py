"""What a scheduler may do, as data; and the line of waiting requests that follows from it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Literal

Iteration = Literal["mixed", "prefill-first", "decode-first"]
Order = Literal["fcfs", "priority", "shortest-prompt"]


@dataclass(frozen=True, slots=True)
class Policy:
    """What the scheduler may do: sequences and tokens of an iteration, how prompts and batches are formed, who goes first."""

    max_batch: int
    max_tokens: int
    chunked: bool = True
    static: bool = False
    watermark: float = 0.01
    """Share of the cache that admission leaves free for those who run (none is left where nothing runs)."""
    ahead: bool = False
    """An iteration is put together while the one before it runs: it takes in who had arrived when that one began."""
    turnaround: float = 0.0
    """Between a client's answer and its next request, of a closed loop [s]."""
    iteration: Iteration | None = None
    """Whether prompts run beside decodes, before them, or after all of them; mixed if absent and chunked, else prefill-first."""
    order: Order = "fcfs"
    priority_preemption: bool = False
    """A waiting request that finds no room takes that of running ones of a higher number."""
    swap: bool = False
    """Who is preempted while it decodes moves its blocks out and in again, where there is room for them."""
    overlap: bool = True
    """Blocks are copied while the iteration that needs them computes, else before it."""
    round_trip: float = 0.0
    """Between client and scheduler, before the next turn of a session arrives [s]."""
    prompt_token: float = 0.0
    """What the front end takes for each token of the next prompt, beside the above [s]."""
    receive_interval: int = 1
    """Decode steps between two looks at who has arrived; iterations with prompts, and an idle engine, look at once."""
    wait_steps: int = 0
    """Decode steps that prompts wait for more of them at most."""
    wait_share: float = 1.0
    """Tokens of an iteration over its budget at which they no longer wait."""

    @property
    def mixes(self) -> bool:
        """Whether prompts run beside decodes."""
        chosen = self.iteration or ("mixed" if self.chunked else "prefill-first")
        return chosen == "mixed" and not self.static

    @property
    def decodes_first(self) -> bool:
        """Whether prompts wait until nothing decodes."""
        return self.iteration == "decode-first" and not self.static


Key = tuple[float, float, int]
"""Order of a request, of several that wait or run: the least goes first and is preempted last."""


class Line:
    """Waiting requests, the next one first.

    Parameters
    ----------
    key : function of a request, or None
        Its place in the order; first come, first served if None.
    """

    def __init__(self, key: Callable[[int], Key] | None = None) -> None:
        self._key = key
        self._queue: deque[int] = deque()
        self._heap: list[tuple[Key, int]] = []

    def __len__(self) -> int:
        return len(self._queue) + len(self._heap)

    def __contains__(self, request: int) -> bool:
        return request in self._queue or any(request == other for _, other in self._heap)

    @property
    def head(self) -> int:
        """Who is next."""
        return self._heap[0][1] if self._key else self._queue[0]

    def first(self, count: int) -> list[int]:
        """Return the next ``count``, or all."""
        if self._key:
            return [request for _, request in sorted(self._heap)[:count]]
        return [self._queue[i] for i in range(min(count, len(self._queue)))]

    def push(self, request: int) -> None:
        """Let one in who has just arrived."""
        if self._key:
            heappush(self._heap, (self._key(request), request))
        else:
            self._queue.append(request)

    def put_back(self, request: int) -> None:
        """Let one in again who ran before: at the front, unless the order says otherwise."""
        if self._key:
            self.push(request)
        else:
            self._queue.appendleft(request)

    def pop(self) -> int:
        """Take the next one out."""
        return heappop(self._heap)[1] if self._key else self._queue.popleft()
