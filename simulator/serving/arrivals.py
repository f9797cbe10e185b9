"""Who arrives next: requests of given times, and those that an answer brings (closed loops, turns of a session)."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Protocol

import numpy as np

from simulator.serving.policies import Policy
from simulator.serving.workload import Floats, Requests


class Incoming(Protocol):
    """Who comes to a replica: from the workload, or from a router.

    Attributes
    ----------
    at : array
        When each arrives; infinite while nobody knows [s].
    next : float
        When the next one does; infinite if none is on its way [s].
    brings : bool
        Whether an answer may bring a request.
    """

    at: Floats
    next: float
    brings: bool

    def take(self, until: float) -> list[int]:
        """Return who has arrived by some time, in order."""
        ...

    def answer(self, request: int, now: float) -> None:
        """A request is answered: its client's next one is on its way, if there is one."""
        ...


class Arrivals:
    """Requests of a workload on their way."""

    def __init__(self, requests: Requests, policy: Policy) -> None:
        self.at = requests.arrival.astype(float)
        known = np.flatnonzero(np.isfinite(self.at))
        self._order: list[int] = known.tolist()
        self._times: list[float] = [*self.at[known].tolist(), np.inf]
        self._taken = 0
        self._brought: list[tuple[float, int]] = []
        self._following = None if requests.following is None else requests.following.tolist()
        self._pause = None if requests.pause is None else requests.pause.tolist()
        first = requests.first_turns
        waiting = first[np.isinf(self.at[first])] if requests.closed else first[:0]
        self._starts = iter(waiting.tolist())
        self.brings = requests.closed or requests.following is not None
        self._turnaround, self._round_trip = policy.turnaround, policy.round_trip
        self._read = policy.prompt_token * requests.prompt
        self.next = self._times[0]

    def take(self, until: float) -> list[int]:
        """Return who has arrived by some time, in order."""
        came: list[int] = []
        while self.next <= until:
            if self._brought and self._brought[0][0] < self._times[self._taken]:
                came.append(heappop(self._brought)[1])
            else:
                came.append(self._order[self._taken])
                self._taken += 1
            self._look()
        return came

    def answer(self, request: int, now: float) -> None:
        """A request is answered: its client's next one is on its way, if there is one."""
        following = -1 if self._following is None else self._following[request]
        if following >= 0:
            pause = 0.0 if self._pause is None else self._pause[following]
            self._bring(following, now + self._round_trip + float(self._read[following]) + pause)
        elif (start := next(self._starts, None)) is not None:
            self._bring(start, now + self._turnaround + float(self._read[start]))

    def _bring(self, request: int, time: float) -> None:
        self.at[request] = time
        heappush(self._brought, (time, request))
        self._look()

    def _look(self) -> None:
        given = self._times[self._taken]
        self.next = min(given, self._brought[0][0]) if self._brought else given
