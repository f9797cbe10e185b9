"""Iteration-level scheduling of one replica, as a process on the engine's clock.

*Continuous* batching (Yu et al. 2022, section 4) admits and releases requests between iterations, first come first
served. With chunked prefill an iteration fills its token budget with pieces of prompts beside the decodes (Agrawal et
al. 2024, section 4); without it whole prompts go first and decodes wait. *Static* batching is the baseline of Yu et
al.: a batch of waiting requests runs until its longest output is done, and only then are all of them returned.

Blocks are taken when a request is admitted and as it grows. Where none are left, the request admitted last gives its
blocks up and is computed again later (Kwon et al. 2023, section 4.5).

Decode steps between two events that could change the batch are priced in one evaluation and run as one task of the
engine; they are exactly the steps that would run one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from simulator.engine import Program, Simulation, Timeline
from simulator.serving.iteration import Pricer
from simulator.serving.kv_cache import PagedCache
from simulator.serving.workload import Floats, Requests

LONGEST_RUN = 4096
"""Decode steps that are priced at once; a longer run is cut, to the same result."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the scheduler may do: sequences and tokens of an iteration, how prompts and batches are formed."""

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


@dataclass
class Log:
    """What happened, one entry a run of iterations: start [s], steps, sequences, tokens, blocks held [B]."""

    start: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    decoding: list[int] = field(default_factory=list)
    prefilling: list[int] = field(default_factory=list)
    prefill_tokens: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    kv_bytes: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Served:
    """A run of one replica: times by request [s], the accounts by part, and what happened when."""

    requests: Requests
    admitted: Floats
    first_token: Floats
    end: Floats
    preemptions: int
    prefill_account: Floats
    """Iterations that process prompts."""
    decode_account: Floats
    """Iterations that only decode."""
    log: Log
    timeline: Timeline

    @property
    def account(self) -> Floats:
        """All iterations, by part."""
        return self.prefill_account + self.decode_account

    @property
    def makespan(self) -> float:
        """End of the last request [s]."""
        return float(self.end.max())


def serve(
    requests: Requests,
    policy: Policy,
    cache: PagedCache,
    pricer: Pricer,
    *,
    memory: tuple[str, float] = ("hbm", np.inf),
    resident: Mapping[str, float] | None = None,
    one_by_one: bool = False,
) -> Served:
    """Serve requests on one replica.

    Parameters
    ----------
    requests : Requests
        In order of arrival. Each must fit the cache, and without chunked prefill the token budget. In a closed loop the
        next one arrives when one ends.
    policy : Policy
        Limits and rules.
    cache : PagedCache
        Blocks of one GPU.
    pricer : Pricer
        Time of iterations.
    memory : (str, float)
        Name and usable bytes of the GPU's memory [B].
    resident : mapping of str to float
        What else it holds from the start, by category [B].
    one_by_one : bool
        A task for each iteration, where several decode steps would be taken at once.

    Returns
    -------
    Served
        Every request is complete.
    """
    return _Replica(requests, policy, cache, pricer, memory, resident or {}, one_by_one).run()


class _Replica:
    """Waiting, prefilling and decoding requests; wakes up when the engine is free or a request arrives."""

    def __init__(
        self,
        requests: Requests,
        policy: Policy,
        cache: PagedCache,
        pricer: Pricer,
        memory: tuple[str, float],
        resident: Mapping[str, float],
        one_by_one: bool,
    ) -> None:
        self.requests, self.policy, self.cache, self.pricer = requests, policy, cache, pricer
        self.longest_run = 1 if one_by_one else LONGEST_RUN
        self.arrivals: list[float] = requests.arrival[np.isfinite(requests.arrival)].tolist()
        self.arrived = 0
        self.last_start = 0.0
        self.waiting: deque[int] = deque()
        self.prefilling: list[int] = []
        self.decoding: list[int] = []
        count = len(requests)
        self.cached = np.zeros(count, np.int64)
        self.produced = np.zeros(count, np.int64)
        self.target = requests.prompt.copy()
        self.held = np.zeros(count)
        self.used = 0.0
        self.admitted, self.first_token, self.end = (np.full(count, np.nan) for _ in range(3))
        self.preemptions = 0
        self.prefill_account: Floats | float = 0.0
        self.decode_account: Floats | float = 0.0
        self.log = Log()
        program = Program("serving replica")
        self.stream = program.stream("replica")
        handle = program.memory(*memory)
        for category, size in resident.items():
            program.allocate(handle, size, category, name=category)
        self.simulation = Simulation(program)
        self.buffer = self.simulation.allocate(handle, 0.0, "KV cache", name="KV cache")

    def run(self) -> Served:
        self.simulation.at(self.arrivals[0], self._wake)
        timeline = self.simulation.run()
        prefill = np.asarray(self.prefill_account)
        requests = replace(self.requests, arrival=np.array(self.arrivals))
        return Served(
            requests, self.admitted, self.first_token, self.end, self.preemptions,
            prefill, np.zeros_like(prefill) + self.decode_account, self.log, timeline,
        )  # fmt: skip

    def _wake(self) -> None:
        now = self.simulation.now
        busy = self.policy.ahead and (self.decoding or self.prefilling)
        self._take_in(self.last_start if busy else now)
        pieces = self._prefill_pieces()
        if pieces:
            self._start_prefill(pieces)
        elif self.decoding:
            self._start_decode()
        else:
            self._hold()
            if self.arrived < len(self.arrivals):
                self.simulation.at(self.arrivals[self.arrived], self._wake)

    def _take_in(self, until: float) -> None:
        while self.arrived < len(self.arrivals) and self.arrivals[self.arrived] <= until:
            self.waiting.append(self.arrived)
            self.arrived += 1

    # --- what the next iteration holds ---

    def _prefill_pieces(self) -> list[tuple[int, int]]:
        """Admit what may run and return (request, new tokens) of the next iteration; blocks are taken."""
        policy = self.policy
        budget = policy.max_tokens
        if self._mixes and self.decoding:
            self._make_room()
            self._grow(1)
            budget -= len(self.decoding)
        if policy.static and not self.decoding and not self.prefilling:
            self._admit_batch()
        pieces: list[tuple[int, int]] = []
        for request in self.prefilling:
            piece = self._piece(request, budget)
            if not piece:
                return pieces
            pieces.append((request, piece))
            budget -= piece
        while (
            not policy.static
            and self.waiting
            and len(self.decoding) + len(self.prefilling) < policy.max_batch
        ):
            request = self.waiting[0]
            piece = self._piece(request, budget)
            if not piece or not self._admit(request):
                break
            pieces.append((request, piece))
            budget -= piece
        return pieces

    @property
    def _mixes(self) -> bool:
        return self.policy.chunked and not self.policy.static

    def _piece(self, request: int, budget: int) -> int:
        left = int(self.target[request] - self.cached[request])
        return min(left, budget) if self.policy.chunked or left <= budget else 0

    def _admit(self, request: int) -> bool:
        size = float(self.cache.size(self.target[request]))
        running = self.decoding or self.prefilling
        keep = self.policy.watermark * self.cache.capacity if running else 0.0
        if self.used + size + keep > self.cache.capacity:
            return False
        self.waiting.popleft()
        self._enter(request, size)
        return True

    def _enter(self, request: int, size: float) -> None:
        self.prefilling.append(request)
        self.held[request] = size
        self.used += size
        if np.isnan(self.admitted[request]):
            self.admitted[request] = self.simulation.now

    def _admit_batch(self) -> None:
        """Fill a static batch; each slot reserves its prompt and the batch's longest output."""
        head = np.array(
            [self.waiting[i] for i in range(min(len(self.waiting), self.policy.max_batch))], np.int64
        )
        if not len(head):
            return

        def reserved(count: int) -> Floats:
            batch = head[:count]
            longest = self.requests.output[batch].max()
            return np.asarray(self.cache.size(self.requests.prompt[batch] + longest - 1))

        count = _largest(lambda count: bool(reserved(count).sum() <= self.cache.capacity), len(head))
        for size in reserved(count).tolist():
            self._enter(self.waiting.popleft(), size)

    # --- blocks ---

    def _sizes(self, steps: int) -> Floats:
        return np.asarray(self.cache.size(self.cached[self.decoding] + steps))

    def _overfull(self, steps: int) -> bool:
        # a cheap bound first: a sequence takes at most one block more than its new tokens fill
        if self.used + len(self.decoding) * self.cache.most(steps) <= self.cache.capacity:
            return False
        more = self._sizes(steps).sum() - self.held[self.decoding].sum()
        return bool(self.used + more > self.cache.capacity)

    def _make_room(self) -> None:
        """Preempt the latest requests until those who decode can add a token."""
        while self._overfull(1):
            request = self.prefilling.pop() if self.prefilling else self.decoding.pop()
            self._release([request])
            self.cached[request] = 0
            self.target[request] = self.requests.prompt[request] + self.produced[request]
            self.waiting.appendleft(request)
            self.preemptions += 1

    def _grow(self, steps: int) -> None:
        sizes = self._sizes(steps)
        self.used += float(sizes.sum() - self.held[self.decoding].sum())
        self.held[self.decoding] = sizes

    def _release(self, requests: list[int]) -> None:
        self.used -= float(self.held[requests].sum())
        self.held[requests] = 0.0

    def _hold(self) -> None:
        self.simulation.resize(self.buffer, self.used)

    # --- iterations ---

    def _start_prefill(self, pieces: list[tuple[int, int]]) -> None:
        decoding = self.decoding if self._mixes else []
        ids = np.array([request for request, _ in pieces], np.int64)
        new = np.array([piece for _, piece in pieces], np.int64)
        finished = ids[self.cached[ids] + new == self.target[ids]].tolist()
        steps = self.pricer.mixed(new, self.cached[ids], self.cached[decoding], len(finished) + len(decoding))
        self.prefill_account = self.prefill_account + steps.total(1)
        self._record(steps.seconds[0], 1, len(decoding), len(pieces), int(new.sum()))

        def end(task: int) -> None:
            self.cached[ids] += new
            self.prefilling = [request for request in self.prefilling if request not in finished]
            self.produced[finished] += 1
            fresh = [request for request in finished if np.isnan(self.first_token[request])]
            self.first_token[fresh] = self.simulation.now
            if decoding:
                self.cached[decoding] += 1
                self.produced[decoding] += 1
            self.decoding = self.decoding + finished
            self._return_finished()

        self.last_start = self.simulation.now
        tag = "mixed" if decoding else "prefill"
        self._submit(float(steps.seconds[0]), tag, f"{tag}: {int(new.sum())} tokens", end)

    def _start_decode(self) -> None:
        if not self.policy.static:
            self._make_room()
        ids = np.array(self.decoding, np.int64)
        left = self.requests.output[ids] - self.produced[ids]
        most = min(int(left.max() if self.policy.static else left.min()), self.longest_run)
        if not self.policy.static:
            most = _largest(lambda steps: not self._overfull(steps), most)
        steps = self.pricer.decode(self.cached[ids], most)
        ends = np.cumsum(steps.seconds)
        count = min(most, self._steps_to_arrival(ends))
        if not self.policy.static:
            self._grow(count)
        self.decode_account = self.decode_account + steps.total(count)
        self._record(ends[count - 1], count, len(ids), 0, 0)

        self.last_start = self.simulation.now + float(ends[count - 2] if count > 1 else 0.0)

        def end(task: int) -> None:
            self.cached[ids] += count
            self.produced[ids] += count
            self._return_finished()

        self._submit(float(ends[count - 1]), "decode", f"decode: {len(ids)} sequences, {count} steps", end)

    def _steps_to_arrival(self, ends: Floats) -> int:
        """Return how many steps are over, or under way, when a request arrives that may be let in.

        Where iterations are put together ahead, it is let in a step later.
        """
        closed = self.policy.static or self.waiting or len(self.decoding) >= self.policy.max_batch
        if closed or self.arrived == len(self.arrivals):
            return len(ends)
        gap = self.arrivals[self.arrived] - self.simulation.now
        return int(np.searchsorted(ends, gap)) + 1 + (self.policy.ahead and gap > 0.0)

    def _return_finished(self) -> None:
        """Return requests whose output is complete; of a static batch all or none."""
        done = self.produced[self.decoding] >= self.requests.output[self.decoding]
        if done.any() and (not self.policy.static or (done.all() and not self.prefilling)):
            finished = [request for request, over in zip(self.decoding, done.tolist(), strict=True) if over]
            self.decoding = [
                request for request, over in zip(self.decoding, done.tolist(), strict=True) if not over
            ]
            self.end[finished] = self.simulation.now
            self._release(finished)
            if self.requests.closed:
                coming = min(len(finished), len(self.requests) - len(self.arrivals))
                self.arrivals += [self.simulation.now + self.policy.turnaround] * coming
        self._wake()

    def _record(self, seconds: float, steps: int, decoding: int, prefilling: int, tokens: int) -> None:
        log = self.log
        log.start.append(self.simulation.now)
        log.seconds.append(float(seconds))
        log.steps.append(steps)
        log.decoding.append(decoding)
        log.prefilling.append(prefilling)
        log.prefill_tokens.append(tokens)
        log.waiting.append(len(self.waiting))
        log.kv_bytes.append(self.used)

    def _submit(self, seconds: float, tag: str, name: str, end: Callable[[int], None]) -> None:
        self._hold()
        self.simulation.compute(self.stream, seconds, tag=tag, name=name, on_end=end)


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest count up to ``most`` that fits, where fewer always fit and one is known to."""
    if fits(most):
        return most
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
