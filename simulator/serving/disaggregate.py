"""Prefill and decode apart: who processes prompts hands their KV cache over to who decodes.

A request is prefilled, waits until a decoding replica has room and a slot for it, and its cache is sent over the links
between the two, which all hand-overs share; the prefilling replica holds the blocks until they are sent (Zhong et al. 2024,
arXiv:2401.09670, DistServe, section 4.3; Patel et al. 2024, arXiv:2311.18677, Splitwise, section 4; Qin et al. 2024,
arXiv:2407.00079, Mooncake). On one GPU with a share of the multiprocessors for each phase nothing is sent, and both phases
take blocks of one cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.serving.member import Member
from simulator.serving.scheduler import DecodeRun

Ready = Callable[[int, float], None]
"""Told of a request whose cache has arrived, and the time [s]."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a cache gets from one member to another."""

    path: tuple[int, ...]
    """Links of the engine; none where nothing is sent."""
    latency: float
    bytes_per_token: float
    """Of all ranks that the cache goes to [B]."""
    layers: int = 1
    """Pieces that are sent while the prompt is processed; 1: all of it afterwards."""
    rate: float = np.inf
    """Of the narrowest link [B/s]."""


class PrefillMember(Member):
    """Processes prompts; keeps the blocks of those that are done until they are handed over."""

    def __init__(self, *args: Any, exports: Callable[[int], bool], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._exports = exports
        self.waiting_for: set[int] = set()
        self.lasted = np.zeros(len(self.requests))
        """Of the iteration in which each prompt ended [s]."""

    def _release(self, requests: list[int]) -> None:
        kept = [request for request in requests if self._completes(request)]
        self.waiting_for.update(kept)
        self.lasted[kept] = self.simulation.now - self.last_start
        super()._release([request for request in requests if request not in self.waiting_for])

    def _completes(self, request: int) -> bool:
        return bool(self.produced[request] >= self.requests.output[request]) and self._exports(request)

    def hand_over(self, request: int) -> None:
        """Its cache has been sent: its blocks are free."""
        self.waiting_for.discard(request)
        super()._release([request])
        self.wake_up()


class DecodeMember(Member):
    """Takes requests with their cache and goes on with them."""

    def __init__(self, *args: Any, ready: Ready, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ready = ready
        self._dock: deque[tuple[int, PrefillMember, Way]] = deque()
        self._coming = 0
        self.waited = np.full(len(self.requests), np.nan)
        """Between the end of each prompt and the arrival of its cache [s]."""

    def offer(self, request: int, source: PrefillMember, way: Way) -> None:
        """A request is prefilled elsewhere: fetch its cache as soon as there is room."""
        self.outstanding += 1
        self.outstanding_tokens += int(self.requests.prompt[request])
        self.waited[request] = self.simulation.now
        self._dock.append((request, source, way))
        self.fetch()

    def fetch(self) -> None:
        """Begin the hand-overs for which there are slots and blocks, in order."""
        while self._dock:
            request, source, way = self._dock[0]
            running = len(self.decoding) + len(self.prefilling) + len(self.swapped) + self._coming
            size = float(self.cache.size(self.target[request]))
            own = float(source.held[request]) if not way.path else 0.0
            room = self.capacity + own - size
            if running >= self.policy.max_batch or self._used_now > room - self._kept_free:
                return
            if self.run_ahead is not None and self.used > room:
                # the steps that follow this one may have to make room
                self._cut_to(self.run_ahead, self._under_way(self.run_ahead))
            self._dock.popleft()
            self._coming += 1
            self.held[request] = size
            self.used += size
            self.mapping += size * self.growth_time
            self._evict()
            if not way.path:
                source.hand_over(request)
            self._send(request, source, way)

    def _under_way(self, run: DecodeRun) -> int:
        """Steps of a run that are over or under way."""
        return min(run.count, int(np.searchsorted(run.ends, self.simulation.now - run.start)) + 1)

    @property
    def _used_now(self) -> float:
        """Bytes that sequences hold in the step that is under way [B]; a run ahead has taken those of later steps."""
        run = self.run_ahead
        if run is None or self.policy.static:
            return self.used
        later = self._sizes(run.count) - self._sizes(self._under_way(run))
        return self.used - float(later.sum())

    def _send(self, request: int, source: PrefillMember, way: Way) -> None:
        def arrive(task: int) -> None:
            if way.path:
                source.hand_over(request)
            self.waited[request] = self.simulation.now - self.waited[request]
            self._ready(request, self.simulation.now)
            self.inbox.push(request, self.simulation.now)
            self.look()

        if not way.path:
            self.simulation.at(self.simulation.now, lambda: arrive(-1))
            return
        size = float(self.requests.prompt[request]) * way.bytes_per_token
        if way.layers > 1:
            # what has been sent beside the last iteration is gone; the last layer is not ready before its end
            size = max(size / way.layers, size - way.rate * float(source.lasted[request]))
        self.simulation.transfer(
            way.path, size, latency=way.latency, tag="KV hand-over", name="KV hand-over", on_end=arrive
        )

    @property
    def _shut(self) -> bool:
        # who comes with a cache has its slot and its blocks already
        return False

    def _wake(self) -> None:
        if not self.policy.static and self.decoding:
            # blocks that are reserved for who comes can leave no room for the last one who decodes
            self._make_room()
        now = self.simulation.now
        busy = self.policy.ahead and (self.decoding or self.prefilling)
        for request in self.arrivals.take(self.last_start if busy else now):
            self.cached[request] = self.target[request]
            self.tokens += int(self.cached[request])
            self.produced[request] = 1
            if np.isnan(self.admitted[request]):
                self.admitted[request] = now
            self._coming -= 1
            self.decoding = [*self.decoding, request]
        super()._wake()

    def _start_decode(self) -> None:
        if not self.policy.static:
            self._make_room()
            if not self.decoding and not self.swapped:
                self._wake()
                return
        super()._start_decode()

    def _release(self, requests: list[int]) -> None:
        super()._release(requests)
        if self._dock:
            # slots are free when those who are done have left
            self.simulation.at(self.simulation.now, self.fetch)
