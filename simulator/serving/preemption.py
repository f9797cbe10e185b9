"""Who is next, whether there is room, and who gives way where there is none."""

from __future__ import annotations

from bisect import insort

from simulator.serving.arrivals import Arrivals, Incoming
from simulator.serving.blocks import Sequences
from simulator.serving.kv_cache import KVCache
from simulator.serving.policies import Key, Line, Policy
from simulator.serving.prefix_cache import PrefixCache
from simulator.serving.tiers import Tier
from simulator.serving.workload import Requests


class Preemption(Sequences):
    """Waiting requests, and running ones that are computed again or swapped out and in to make room for others."""

    def __init__(
        self,
        requests: Requests,
        policy: Policy,
        cache: KVCache,
        prefixes: PrefixCache | None,
        lower: tuple[Tier, ...],
        swap: Tier | None,
    ) -> None:
        super().__init__(requests, policy, cache, prefixes, lower, swap)
        self.arrivals: Incoming = Arrivals(requests, policy)
        self.line = Line(None if policy.order == "fcfs" else self._key)
        self.preemptions = 0

    def _key(self, request: int) -> Key:
        """Place in the order of requests that wait, and from the end in that of requests that are preempted."""
        value = 0.0
        if self.policy.order == "priority":
            value = float(self._priority(request))
        elif self.policy.order == "shortest-prompt":
            value = float(self.target[request])
        return value, self.arrivals.at[request], request

    def _priority(self, request: int) -> int:
        return 0 if self.requests.priority is None else int(self.requests.priority[request])

    def _precedes(self, request: int) -> bool:
        """Whether a waiting request goes before those who are swapped out."""
        return self.policy.order == "priority" and self._priority(request) < self.swapped[0][0][0]

    def _piece(self, left: int, budget: int) -> int:
        return min(left, budget) if self.policy.chunked or left <= budget else 0

    def _needs(self, request: int) -> tuple[float, int]:
        """Bytes that admission takes [B], and tokens that are found."""
        target = int(self.target[request])
        size = float(self.cache.size(target))
        if self.prefixes is None:
            return size, 0
        hit = self.prefixes.match(request, target)
        return size + (hit.room - hit.blocks) * self.block, min(
            hit.blocks * self.prefixes.block_size, target - 1
        )

    @property
    def _kept_free(self) -> float:
        running = self.decoding or self.prefilling
        return self.policy.watermark * self.capacity if running else 0.0

    def _fits(self, request: int) -> bool:
        return self.used + self._needs(request)[0] + self._kept_free <= self.capacity

    def _yield_to_urgent(self) -> None:
        """Preempt less urgent requests, the least urgent first, if that lets the next in line in."""
        policy = self.policy
        request = self.line.head
        urgency = self._priority(request)
        running = self.decoding + self.prefilling
        if len(running) < policy.max_batch and self._fits(request):
            return
        lesser = sorted((r for r in running if self._priority(r) > urgency), key=self._key, reverse=True)
        size, found = self._needs(request)
        freed, chosen = 0.0, 0
        keep = policy.watermark * self.capacity
        for victim in lesser:
            freed += float(self.held[victim])
            chosen += 1
            if chosen == len(running):
                keep = 0.0
            slots = len(running) - chosen < policy.max_batch
            if slots and self.used - freed + size + keep <= self.capacity:
                break
        else:
            return
        decoding = len([r for r in self.decoding if r not in lesser[:chosen]]) if policy.mixes else 0
        if not self._piece(int(self.target[request]) - found, policy.max_tokens - decoding):
            return
        for victim in lesser[:chosen]:
            self._preempt(victim)

    def _make_room(self) -> None:
        """Preempt the latest, or least urgent, requests until those who decode can add a token."""
        while self._overfull(1):
            running = self.prefilling or self.decoding
            if len(self.prefilling) + len(self.decoding) == 1 and self.swapped:
                self._forget(self.swapped.pop()[1])
            elif self.policy.order == "priority":
                self._preempt(max(self.decoding + self.prefilling, key=self._key))
            else:
                self._preempt(running[-1])

    def _preempt(self, request: int) -> None:
        self.preemptions += 1
        if request in self.prefilling:
            self.prefilling.remove(request)
        else:
            self.decoding = [other for other in self.decoding if other != request]
            size = float(self.held[request])
            content = float(self.cache.size(self.cached[request])) - float(self.shared[request])
            if self.policy.swap and self.copies.swap_out(request, min(size, content)):
                self.used -= size
                self.held[request] = 0.0
                self.tokens -= int(self.cached[request])
                key = float(self._priority(request)) if self.policy.order == "priority" else 0.0
                insort(self.swapped, ((key, self.arrivals.at[request], request), request))
                return
        self._release([request])
        self._again(request)

    def _again(self, request: int) -> None:
        """Let a request wait to be computed once more."""
        self.cached[request] = 0
        self.target[request] = self.requests.prompt[request] + self.produced[request]
        self.line.put_back(request)

    def _forget(self, request: int) -> None:
        """Drop the blocks of a request that is swapped out, and what it refers to."""
        self.copies.drop(request)
        if self.prefixes is not None:
            self.used -= self.prefixes.release(request) * self.block
            self.shared[request] = 0.0
        self._again(request)

    def _resume(self) -> None:
        """Swap in, first who was there first, while there is room."""
        while self.swapped and len(self.decoding) + len(self.prefilling) < self.policy.max_batch:
            request = self.swapped[0][1]
            running = self.decoding or self.prefilling
            if self.line and self._precedes(self.line.head) and (running or self._fits(self.line.head)):
                return
            size = float(self.cache.size(self.cached[request] + 1)) - float(self.shared[request])
            if self.used + size + self._kept_free > self.capacity:
                if running or len(self.swapped) == 1:
                    return
                self._forget(self.swapped.pop()[1])
                continue
            del self.swapped[0]
            self.copies.swap_in(request)
            self.decoding = [*self.decoding, request]
            self.held[request] = size
            self.used += size
            self.tokens += int(self.cached[request])
            self.mapping += size * self.growth_time
            self._evict()
