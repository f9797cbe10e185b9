"""Replicas of a fleet: processes on one clock that are told of each request when it comes.

A replica alone knows when the next request arrives and cuts its runs of decode steps there. A member of a fleet does not:
it runs ahead, and when somebody arrives in the middle of a run, the run is cut behind the step in which they are let in.
Both give the same times.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.engine import Simulation
from simulator.serving.iteration import Pricer
from simulator.serving.kv_cache import KVCache
from simulator.serving.machine import Places
from simulator.serving.policies import Policy
from simulator.serving.prefix_cache import PrefixCache
from simulator.serving.scheduler import LONGEST_RUN, DecodeRun, Replica
from simulator.serving.tiers import Tier
from simulator.serving.workload import Floats, Requests

Answered = Callable[["Member", int, float], None]
"""Told of a member, a request that it has completed, and the time [s]."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a member runs: a simulation, its handles, and its name."""

    name: str
    simulation: Simulation
    places: Places


class Inbox:
    """Requests that a member has been given."""

    def __init__(self, at: Floats, answered: Callable[[int, float], None]) -> None:
        self.at, self.brings, self.next = at, True, np.inf
        self._answered = answered
        self._queue: deque[tuple[float, int]] = deque()

    def push(self, request: int, now: float) -> None:
        """Put a request in."""
        self._queue.append((now, request))
        self.next = self._queue[0][0]

    def take(self, until: float) -> list[int]:
        """Return who has arrived by some time, in order."""
        came = []
        while self.next <= until:
            came.append(self._queue.popleft()[1])
            self.next = self._queue[0][0] if self._queue else np.inf
        return came

    def answer(self, request: int, now: float) -> None:
        """A request is answered: whoever gave it is told."""
        self._answered(request, now)


class Member(Replica):
    """A replica of a fleet.

    Parameters
    ----------
    machine : Machine
        Where it runs.
    arrived : array, shape (n,)
        When each request of the fleet arrives; the fleet keeps it up to date [s].
    answered : function
        Told of each request that is complete.
    requests, policy, cache, pricer, prefixes, lower, swap
        As for :func:`~simulator.serving.scheduler.serve`; all requests of the fleet.
    one_by_one : bool
        A task for each iteration.

    Attributes
    ----------
    outstanding : int
        Requests that it has and that are not complete.
    outstanding_tokens : int
        Tokens of their prompts.
    twin : Member or None
        Another one on the same GPU, with blocks of the same cache.
    """

    def __init__(
        self,
        machine: Machine,
        arrived: Floats,
        answered: Answered,
        requests: Requests,
        policy: Policy,
        cache: KVCache,
        pricer: Pricer,
        *,
        prefixes: PrefixCache | None = None,
        lower: tuple[Tier, ...] = (),
        swap: Tier | None = None,
        one_by_one: bool = False,
    ) -> None:
        self.machine, self._answered = machine, answered
        self.twin: Member | None = None
        super().__init__(
            requests, policy, cache, pricer, ("", cache.capacity), {}, one_by_one, prefixes, lower, swap
        )
        self.arrivals = self.inbox = Inbox(arrived, self._answer)
        self.outstanding = self.outstanding_tokens = 0
        self._most = self.longest_run
        self._working = self._returning = False
        self._recorded: tuple[Any, ...] = ()

    def _machine(self, memory: tuple[str, float], resident: Mapping[str, float]) -> None:
        self._begin(self.machine.simulation, self.machine.places)

    @property
    def capacity(self) -> float:
        """Bytes of cache that this member may use: what its twin on the same GPU leaves of all [B]."""
        return self._whole - (self.twin.used if self.twin else 0.0)

    @capacity.setter
    def capacity(self, size: float) -> None:
        self._whole = size

    def give(self, request: int) -> None:
        """A request comes to this member now; it takes note when it is told to look."""
        self.outstanding += 1
        self.outstanding_tokens += int(self.requests.prompt[request])
        self.inbox.push(request, self.simulation.now)

    def look(self) -> None:
        """Somebody may have come: start working, or let them in as soon as a replica that saw them coming would."""
        if self._returning or self.arrivals.next == np.inf:
            return
        if not self._working:
            self._wake()
        elif self.run_ahead is not None:
            self._cut()

    def wake_up(self) -> None:
        """Blocks are free again: go on, if nothing is under way and somebody waits."""
        if not self._working and not self._returning and (self.line or self.decoding or self.swapped):
            self._wake()

    def _release(self, requests: list[int]) -> None:
        super()._release(requests)
        if self.twin is not None:
            self.simulation.at(self.simulation.now, self.twin.wake_up)

    def _answer(self, request: int, now: float) -> None:
        self.outstanding -= 1
        self.outstanding_tokens -= int(self.requests.prompt[request])
        self._answered(self, request, now)

    def _return_finished(self) -> None:
        # whoever an answer brings here is taken in by the wake-up that follows
        self._returning = True
        super()._return_finished()

    def _wake(self) -> None:
        self._working = self._returning = False
        super()._wake()

    def _submit(self, seconds: float, tag: str, name: str, end: Callable[[int], None]) -> int:
        self._working = True
        return super()._submit(seconds, tag, name, end)

    def _record(self, seconds: float, steps: int, *rest: Any) -> None:
        self._recorded = rest
        super()._record(seconds, steps, *rest)

    def _start_decode(self) -> None:
        self.longest_run = self._most
        if self.twin is not None:
            # what a run reserves for later steps would be missing to the other phase now
            self.longest_run = 1
        elif self.prefixes is not None and self.prefixes.idle:
            # blocks that are evicted for steps that are cut later would be lost
            room = self.capacity - self.used - self.prefixes.idle * self.block
            self.longest_run = max(1, min(self._most, self._steps_within(room)))
        super()._start_decode()

    def _steps_within(self, room: float) -> int:
        low, high = 0, LONGEST_RUN
        while low < high:
            middle = (low + high + 1) // 2
            fits = len(self.decoding) * self.cache.most(middle) <= room
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

    def _cut(self) -> None:
        """End the run of decode steps behind the one in which somebody who has come is let in."""
        run = self.run_ahead
        if run is not None:
            self._cut_to(run, self._steps_to_arrival(run.ends, run.start))

    def _cut_to(self, run: DecodeRun, count: int) -> None:
        if count >= run.count:
            return
        now, planned = self.simulation.now, run.count
        self.simulation.cancel(run.task)
        if not self.policy.static:
            self._grow(count)
            self.mapping = 0.0
        lost = run.times[count:planned] - run.steps.seconds[count:planned]
        self.waiting_for_pages -= float(lost.sum())
        self.decode_account = self.decode_account + (run.steps.total(count) - run.steps.total(planned))
        run.count = count
        self.last_start = run.last_start
        for column in vars(self.log).values():
            column.pop()
        self._record(float(run.ends[count - 1]), count, *self._recorded)
        self.log.start[-1] = run.start
        left = max(0.0, run.start + float(run.ends[count - 1]) - now)
        self._hold()
        run.task = self.simulation.compute(
            self.stream, left, tag="decode", name=f"decode: {len(run.ids)} sequences, {count} steps",
            on_end=lambda task: self._end_decode(run),
        )  # fmt: skip
