"""Iteration-level scheduling of one replica, as a process on the engine's clock.

*Continuous* batching (Yu et al. 2022, section 4) admits and releases requests between iterations. Where prompts and decodes
mix, an iteration fills its token budget with prompts beside the decodes: whole ones (Yu et al.) or pieces (Agrawal et al.
2024, section 4). Where prompts go first, iterations hold prompts alone and decodes wait (Kwon et al. 2023); where decodes go
first, prompts wait. *Static* batching is the baseline of Yu et al.: a batch of waiting requests runs until its longest
output is done, and only then are all of them returned.

Blocks are taken when a request is admitted and as it grows. Where none are left, the request admitted last (or the least
urgent one) gives its blocks up; it is computed again later, or its blocks are swapped out and in again (Kwon et al. 2023,
section 4.5). Blocks that requests have in common are held once (:mod:`~simulator.serving.prefix_cache`).

Decode steps between two events that could change the batch are priced in one evaluation and run as one task of the
engine; they are exactly the steps that would run one by one. That holds because between events blocks are only taken: who
found no room at the first step finds none at the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from simulator.engine import Program, Simulation
from simulator.serving.iteration import Pricer, Steps
from simulator.serving.kv_cache import KVCache
from simulator.serving.machine import Places, declare
from simulator.serving.policies import Policy
from simulator.serving.preemption import Preemption
from simulator.serving.prefix_cache import PrefixCache
from simulator.serving.reading import Collecting, Reading
from simulator.serving.served import Log, Served
from simulator.serving.tiers import Tier
from simulator.serving.workload import Floats, Integers, Requests

__all__ = ["DecodeRun", "Log", "Places", "Policy", "Replica", "Served", "declare", "serve"]

LONGEST_RUN = 4096
"""Decode steps that are priced at once; a longer run is cut, to the same result."""
LARGEST_TABLE = 1 << 18
"""Sequences times steps whose pages are counted at once."""


def serve(
    requests: Requests,
    policy: Policy,
    cache: KVCache,
    pricer: Pricer,
    *,
    memory: tuple[str, float] = ("hbm", np.inf),
    resident: Mapping[str, float] | None = None,
    prefixes: PrefixCache | None = None,
    lower: tuple[Tier, ...] = (),
    swap: Tier | None = None,
    one_by_one: bool = False,
) -> Served:
    """Serve requests on one replica.

    Parameters
    ----------
    requests : Requests
        In order of arrival. Each must fit the cache, and without chunked prefill the token budget. In a closed loop the
        next one arrives when one ends; a turn arrives when the one before it is answered.
    policy : Policy
        Limits and rules.
    cache : KVCache
        Blocks of one GPU.
    pricer : Pricer
        Time of iterations.
    memory : (str, float)
        Name and usable bytes of the GPU's memory [B].
    resident : mapping of str to float
        What else it holds from the start, by category [B].
    prefixes : PrefixCache, optional
        Empty; needs blocks that hold as many bytes wherever they are in a sequence.
    lower : tuple of Tier
        The tiers of ``prefixes``.
    swap : Tier, optional
        Where a policy that swaps moves blocks to.
    one_by_one : bool
        A task for each iteration, where several decode steps would be taken at once.

    Returns
    -------
    Served
        Every request is complete.
    """
    return Replica(
        requests, policy, cache, pricer, memory, resident or {}, one_by_one, prefixes, lower, swap
    ).run()


@dataclass(slots=True)
class DecodeRun:
    """Decode steps that run as one task: who, their prices, when each ends after the start [s], and how many are run."""

    ids: Integers
    steps: Steps
    times: Floats
    """With what they wait for pages [s]."""
    ends: Floats
    count: int
    start: float
    task: int = -1

    @property
    def last_start(self) -> float:
        """When the last step begins [s]."""
        return self.start + float(self.ends[self.count - 2] if self.count > 1 else 0.0)


class Replica(Preemption):
    """Waiting, prefilling and decoding requests; wakes up when the engine is free or a request arrives."""

    def __init__(
        self,
        requests: Requests,
        policy: Policy,
        cache: KVCache,
        pricer: Pricer,
        memory: tuple[str, float],
        resident: Mapping[str, float],
        one_by_one: bool,
        prefixes: PrefixCache | None = None,
        lower: tuple[Tier, ...] = (),
        swap: Tier | None = None,
    ) -> None:
        super().__init__(requests, policy, cache, prefixes, lower, swap)
        self.pricer = pricer
        self.longest_run = 1 if one_by_one else LONGEST_RUN
        self.last_start = 0.0
        self.reading, self.collecting = Reading(policy), Collecting(policy)
        self.admitted, self.first_token, self.end = (np.full(len(requests), np.nan) for _ in range(3))
        self.found = np.zeros(len(requests), np.int64)
        self.prefill_account: Floats | float = 0.0
        self.decode_account: Floats | float = 0.0
        self.log = Log()
        self.run_ahead: DecodeRun | None = None
        self.names: dict[str, str] = {}
        self._machine(memory, resident)

    def _machine(self, memory: tuple[str, float], resident: Mapping[str, float]) -> None:
        program = Program("serving replica")
        places = declare(program, "", memory, resident, self.lower, self.swap)
        self._begin(Simulation(program), places)

    def run(self) -> Served:
        """Serve all requests."""
        self.simulation.at(self.arrivals.next, self._wake)
        timeline = self.simulation.run()
        prefill = np.asarray(self.prefill_account)
        decode = np.zeros_like(prefill) + self.decode_account
        arrival = self.arrivals.at
        requests = replace(self.requests, arrival=arrival)
        times = (self.admitted, self.first_token, self.end)
        found = self.found
        order = np.argsort(arrival, kind="stable")
        if (order[1:] < order[:-1]).any():
            requests, found = requests.of(order), found[order]
            times = (self.admitted[order], self.first_token[order], self.end[order])
        return Served(
            requests, *times, self.preemptions, prefill, decode, self.log.columns(), timeline, found,
            dict(self.copies.moved), self.copies.stall, self.waiting_for_pages,
        )  # fmt: skip

    def _wake(self) -> None:
        for request in self.arrivals.take(self._read_until):
            self.line.push(request)
        pieces = self._prefill_pieces()
        if pieces:
            self._start_prefill(pieces)
        elif self.decoding or self.swapped:
            self._start_decode()
        else:
            self._hold()
            if self.arrivals.next < np.inf:
                self.simulation.at(self.arrivals.next, self._wake)

    @property
    def _read_until(self) -> float:
        """Who had come by then has been seen [s]: all where nothing runs."""
        looks_back = self.policy.ahead or self.policy.receive_interval > 1
        busy = looks_back and (self.decoding or self.prefilling)
        return self.reading.until if busy else self.simulation.now

    # --- what the next iteration holds ---

    def _prefill_pieces(self) -> list[tuple[int, int]]:
        """Admit what may run and return (request, new tokens) of the next iteration; blocks are taken."""
        policy = self.policy
        if policy.static and not self.decoding and not self.prefilling:
            self._admit_batch()
        mixing = policy.mixes and (self.decoding or self.swapped)
        if mixing:
            self._make_room()
            if self.decoding:
                self._grow(1)
        if policy.priority_preemption and self.line:
            self._yield_to_urgent()
        if mixing:
            self._resume()
        budget = policy.max_tokens - (len(self.decoding) if policy.mixes else 0)
        pieces: list[tuple[int, int]] = []
        for request in self.prefilling:
            piece = self._piece(int(self.target[request] - self.cached[request]), budget)
            if not piece:
                return pieces
            pieces.append((request, piece))
            self._publish(request, int(self.cached[request]) + piece)
            budget -= piece
        if not policy.static and not (policy.decodes_first and self.decoding) and not self._collects(budget):
            self._admit_line(pieces, budget)
        return pieces

    def _collects(self, budget: int) -> bool:
        """Whether those who wait, and could be let in, wait for more prompts while others decode."""
        policy = self.policy
        if not policy.wait_steps or not self.line or not self.decoding or self.prefilling:
            return False
        waiting = self.line.first(policy.max_batch - len(self.decoding))
        if not waiting or not self._fits(waiting[0]):
            return False
        prompts = int(np.minimum(self.target[waiting].sum(), budget))
        return self.collecting.look(prompts + policy.max_tokens - budget)

    def _admit_line(self, pieces: list[tuple[int, int]], budget: int) -> None:
        while self.line and len(self.decoding) + len(self.prefilling) < self.policy.max_batch:
            request = self.line.head
            if self.swapped and not self._precedes(request):
                return
            piece = self._admit(request, budget)
            if not piece:
                return
            pieces.append((request, piece))
            self._publish(request, int(self.cached[request]) + piece)
            budget -= piece

    def _admit(self, request: int, budget: int) -> int:
        """Return the tokens of a request's first piece if there is room for it, else 0."""
        size, found = self._needs(request)
        piece = self._piece(int(self.target[request]) - found, budget)
        if not piece or self.used + size + self._kept_free > self.capacity:
            return 0
        self.line.pop()
        self._enter(request, float(self.cache.size(self.target[request])))
        return piece

    def _enter(self, request: int, size: float) -> None:
        """Give a request that many bytes [B], less what is shared."""
        self.prefilling.append(request)
        first = np.isnan(self.admitted[request])
        if first:
            self.admitted[request] = self.simulation.now
        if self.prefixes is not None:
            target = int(self.target[request])
            hit = self.prefixes.lock(request, target)
            found = min(hit.blocks * self.prefixes.block_size, target - 1)
            self.shared[request] = hit.blocks * self.block
            self.cached[request] = found
            self.tokens += found
            self.used += hit.room * self.block
            size -= hit.blocks * self.block
            self.copies.load(hit.lower, self.block)
            if first:
                self.found[request] = found
        self.held[request] = size
        self.used += size
        self.mapping += size * self.growth_time
        self._evict()

    def _admit_batch(self) -> None:
        """Fill a static batch; each slot reserves its prompt and the batch's longest output."""
        head = np.array(self.line.first(self.policy.max_batch), np.int64)
        if not len(head):
            return

        def reserved(count: int) -> Floats:
            batch = head[:count]
            longest = self.requests.output[batch].max()
            return np.asarray(self.cache.size(self.requests.prompt[batch] + longest - 1))

        count = _largest(lambda count: bool(reserved(count).sum() <= self.capacity), len(head))
        for size in reserved(count).tolist():
            self._enter(self.line.pop(), size)

    # --- iterations ---

    def _start_prefill(self, pieces: list[tuple[int, int]]) -> None:
        decoding = self._ids if self.policy.mixes else self._ids[:0]
        ids = np.array([request for request, _ in pieces], np.int64)
        new = np.array([piece for _, piece in pieces], np.int64)
        finished = ids[self.cached[ids] + new == self.target[ids]].tolist()
        steps = self.pricer.mixed(new, self.cached[ids], self.cached[decoding], len(finished) + len(decoding))
        self.prefill_account = self.prefill_account + steps.total(1)
        count = int(new.sum())

        def end(task: int) -> None:
            self.reading.prompted(start, self.simulation.now)
            self.cached[ids] += new
            self.tokens += count + len(decoding)
            self.prefilling = [request for request in self.prefilling if request not in finished]
            self.produced[finished] += 1
            fresh = [request for request in finished if np.isnan(self.first_token[request])]
            self.first_token[fresh] = self.simulation.now
            if len(decoding):
                self.cached[decoding] += 1
                self.produced[decoding] += 1
            if finished:
                self.decoding = self.decoding + finished
            self._return_finished()

        start = self.last_start = self.simulation.now
        tag = "mixed" if len(decoding) else "prefill"
        seconds = self._first_step(float(steps.seconds[0]))
        self._record(seconds, 1, len(decoding), len(pieces), count, dict(pieces))
        self._submit(seconds, tag, f"{tag}: {count} tokens", end)

    def _start_decode(self) -> None:
        before = len(self.line), len(self.swapped)
        if not self.policy.static:
            self._make_room()
            self._resume()
        ids = self._ids
        left = self.requests.output[ids] - self.produced[ids]
        most = min(int(left.max() if self.policy.static else left.min()), self.longest_run)
        if before != (len(self.line), len(self.swapped)):
            # somebody gave way or came back after the line was looked at: it is looked at again after a step
            most = 1
        if self.collecting.waits:
            most = min(most, self.collecting.left)
        if self.growth_time:
            most = min(most, max(1, LARGEST_TABLE // len(ids)))
        if not self.policy.static:
            most = _largest(lambda steps: not self._overfull(steps), most)
        steps = self.pricer.decode(self.cached[ids], most)
        times = steps.seconds
        if self.growth_time:
            times = times + self._mapping_times(ids, most)
        first = self._first_step(float(times[0]))
        ends = np.cumsum(times) + (first - times[0])
        count = min(most, self._steps_to_arrival(ends))
        if self.growth_time:
            self.waiting_for_pages += float((times[:count] - steps.seconds[:count]).sum())
        if not self.policy.static:
            self._grow(count)
            self.mapping = 0.0
        self.decode_account = self.decode_account + steps.total(count)
        seconds = float(ends[count - 1])
        self._record(seconds, count, len(ids), 0, 0, {})
        run = DecodeRun(ids, steps, times, ends, count, self.simulation.now)
        self.last_start = run.last_start
        run.task = self._submit(
            seconds,
            "decode",
            f"decode: {len(ids)} sequences, {count} steps",
            lambda task: self._end_decode(run),
        )
        self.run_ahead = run

    def _end_decode(self, run: DecodeRun) -> None:
        self.run_ahead = None
        self.reading.decoded(run.start, run.ends, run.count)
        self.collecting.decoded(run.count)
        self.cached[run.ids] += run.count
        self.produced[run.ids] += run.count
        self.tokens += len(run.ids) * run.count
        self._return_finished()

    def _mapping_times(self, ids: Integers, steps: int) -> Floats:
        """Time that each of some decode steps waits for its pages [s]."""
        grown = np.arange(1, steps + 1)
        sizes = np.asarray(self.cache.size(self.cached[ids][:, None] + grown)).sum(axis=0)
        # what the first step takes may have been taken already beside prompts
        times: Floats = np.diff(sizes, prepend=float(self.held[ids].sum())) * self.growth_time
        return times

    def _first_step(self, seconds: float) -> float:
        """Return how long an iteration takes with the pages and copies that it waits for [s]."""
        self.waiting_for_pages += self.mapping
        seconds += self.mapping
        self.mapping = 0.0
        return self.copies.stretch(seconds)

    def _steps_to_arrival(self, ends: Floats, start: float | None = None) -> int:
        """Return how many steps are over, or under way, when a request arrives that may be let in.

        Where iterations are put together ahead, it is let in a step later, and not before somebody looks who has come.
        """
        if self._shut:
            return len(ends)
        gap = self.arrivals.next - (self.simulation.now if start is None else start)
        if gap == np.inf:
            return len(ends)
        steps = int(np.searchsorted(ends, gap)) + 1 + (self.policy.ahead and gap > 0.0)
        return self.reading.steps(steps)

    @property
    def _shut(self) -> bool:
        """Whether nobody who arrives can be let in before somebody is done."""
        policy = self.policy
        if policy.static or policy.decodes_first:
            return True
        if policy.order == "fcfs" and (self.line or self.swapped) and not self.collecting.waits:
            return True
        return len(self.decoding) >= policy.max_batch and not policy.priority_preemption

    def _return_finished(self) -> None:
        """Return requests whose output is complete; of a static batch all or none."""
        done = self.produced[self._ids] >= self.requests.output[self._ids]
        if done.any() and (not self.policy.static or (done.all() and not self.prefilling)):
            ends = done.tolist()
            finished = [request for request, over in zip(self.decoding, ends, strict=True) if over]
            self.decoding = [request for request, over in zip(self.decoding, ends, strict=True) if not over]
            now = self.simulation.now
            self.end[finished] = now
            self._release(finished)
            if self.arrivals.brings:
                for request in finished:
                    self.arrivals.answer(request, now)
        self._wake()

    def _record(
        self,
        seconds: float,
        steps: int,
        decoding: int,
        prefilling: int,
        tokens: int,
        pieces: Mapping[int, int],
    ) -> None:
        log = self.log
        log.start.append(self.simulation.now)
        log.seconds.append(seconds)
        log.steps.append(steps)
        log.decoding.append(decoding)
        log.prefilling.append(prefilling)
        log.prefill_tokens.append(tokens)
        log.waiting.append(len(self.line))
        log.swapped.append(len(self.swapped))
        log.kv_bytes.append(self.used)
        log.stored_bytes.append(self._stored(tokens + decoding * steps, steps if decoding else 0, pieces))
        log.idle_bytes.append(self.prefixes.idle * self.block if self.prefixes else 0.0)

    def _submit(self, seconds: float, tag: str, name: str, end: Callable[[int], None]) -> int:
        self._hold()
        after, before = self.copies.submit(self.simulation)
        # most runs look alike: one text for all of them
        name = self.names.setdefault(name, name)
        return self.simulation.compute(
            self.stream, seconds - before, after=after, tag=tag, name=name, on_end=end
        )


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest count up to ``most`` that fits, where fewer always fit and one is known to."""
    if fits(most):
        return most
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
