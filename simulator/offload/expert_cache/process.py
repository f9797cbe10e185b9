"""The process that generates: layer after layer, experts looked up, fetched, computed here or elsewhere, as they are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile

import numpy as np

from simulator.engine import ChunkQueue, Request, Simulation, SlotCache
from simulator.offload.columns import BOTTLENECKS, COLUMNS, Rows
from simulator.offload.emit import COPYING, Emitter
from simulator.offload.expert_cache.balance import split_by_load
from simulator.offload.expert_cache.plan import BUFFERS, Plan
from simulator.offload.expert_cache.prices import Layer
from simulator.offload.expert_cache.record import Counts, Pass, Ran
from simulator.offload.expert_cache.routing import Drawn, Integers
from simulator.offload.tiers import NVME, Channel
from simulator.strategy import Bottleneck

Key = tuple[int, int]
"""MoE layer and expert."""
REQUIRED, PREDICTED = 0, 1
"""Priorities of copies: what a gate has named goes before what a predictor has."""


class Process:
    """Generates requests one after another on a simulation.

    Parameters
    ----------
    plan : Plan
        What is generated.
    emit : Emitter
        Whose program has the resources and what stays in memory; tasks' shares are noted in it.
    requests : list of Drawn
        Routing of each.
    caches : list of SlotCache
        Of the MoE layers, as they are when the first request comes.
    popularity : array, shape (layers, experts)
        Weights by which wrong predictions fall on experts.
    """

    def __init__(
        self,
        plan: Plan,
        emit: Emitter,
        requests: Sequence[Drawn],
        caches: Sequence[SlotCache],
        popularity: Rows,
    ) -> None:
        self.plan, self.emit, self.requests, self.caches = plan, emit, requests, caches
        self.popularity = popularity
        self.random = np.random.default_rng([plan.strategy.routing.seed, 2])
        self.ran = Ran()
        self._streams = {name: emit.stream(name) for name in ("fetch", "return", "near", "predictor")}
        near = () if plan.near is None else (plan.near.channel,)
        self._paths = {channel.name: emit.path(channel) for channel in (plan.fetch, plan.back, *near)}
        self.simulation = Simulation(emit.program)
        self._shares: dict[int, Rows] = {}  # by task, where it is no copy of an expert
        chunk = plan.expert_bytes / plan.strategy.chunks
        self._queue, self._layer_queue = (self._chunks(size) for size in (chunk, chunk * plan.num_experts))
        self._sent: dict[Key, Request] = {}  # queued or under way
        self._unsent: list[int] = []  # missing experts that there is no room for yet
        self._turns = plan.strategy.loads == "in-turn"
        self._request = self._step = self._place = 0
        self._moe = -1  # layer whose experts are looked up or computed
        self._named: dict[int, frozenset[int]] = {}  # by layer ahead, what the predictor says
        self._wanted: dict[int, frozenset[int]] = {}
        self._buffered: set[Key] = set()  # arrived before their gate, without a slot
        self._whole: set[int] = set()  # layers of which all experts have come
        self._carry: Rows = np.zeros(len(COLUMNS))
        self._idle = True

    def run(self) -> Ran:
        """Run all requests."""
        self._begin_pass()
        self.ran.timeline = timeline = self.simulation.run()
        copying = COPYING["storage" if self.plan.strategy.experts == NVME else "host link"]
        self.emit.shares[:] = [self._shares.get(task, copying) for task in range(timeline.n_tasks)]
        self.emit.carry(self.plan.fetch, self._queue.delivered + self._layer_queue.delivered)
        return self.ran

    def _chunks(self, size: float) -> ChunkQueue:
        fetch = self.plan.fetch
        return ChunkQueue(
            self.simulation, self._paths[fetch.name], size, max_rate=fetch.rate, latency=fetch.latency,
            stream=self._streams["fetch"], tag="fetch",
        )  # fmt: skip

    # --- passes and layers ---------------------------------------------------------------------------------------

    @property
    def _prefill(self) -> bool:
        return self._step == 0

    @property
    def _index(self) -> int:
        """Row of the prices of this pass."""
        return max(self._step - 1, 0)

    @property
    def _counts(self) -> Counts:
        return self.ran.prefill if self._prefill else self.ran.decode

    def _tokens_of(self, moe: int) -> Integers:
        """Tokens of each expert of a layer in this pass."""
        drawn = self.requests[self._request]
        table: Integers = (drawn.prompt if self._prefill else drawn.steps[self._step - 1])[moe]
        return table

    def _begin_pass(self) -> None:
        self.ran.passes.append(Pass(self._prefill, self.simulation.now))
        self._place, self._moe = 0, -1
        self._named, self._wanted = {}, {}
        self._next_layer()

    def _next_layer(self) -> None:
        """Compute up to the next gate, or to the end of the pass."""
        layers = self.plan.layers[0 if self._prefill else 1]
        while self._place < len(layers):
            current = self.ran.passes[-1]
            if self._prefill and self._place == self.plan.encoder_layers + 1 > 1 and not current.encoded:
                self._compute("layer", "encoder", self._encoded)
                return
            layer = layers[self._place]
            self._place += 1
            self._carry = self._carry + layer.to_gate.rows[self._index]
            if layer.moe is not None:
                self._predict(layer.moe)
                if self.plan.strategy.loads == "whole-layer":
                    self._send_for_all(layer.moe)
                self._compute("layer", layer.name, partial(self._gate, layer))
                return
            self._carry = self._carry + layer.beside.rows[self._index] + layer.behind.rows[self._index]
        self._compute("layer", "head", self._end_pass)

    def _encoded(self) -> None:
        self.ran.passes[-1].encoded = self.simulation.now
        self._next_layer()

    def _end_pass(self) -> None:
        self.ran.passes[-1].end = self.simulation.now
        self._step += 1
        if self._step > len(self.requests[self._request].steps):
            self._step, self._request = 0, self._request + 1
        if self._request < len(self.requests):
            self._begin_pass()

    # --- what the gate says --------------------------------------------------------------------------------------

    def _gate(self, layer: Layer) -> None:
        """Look experts up, send for what is missing, drop what is not needed, and begin to compute."""
        assert layer.moe is not None
        strategy, moe, tokens = self.plan.strategy, layer.moe, self._tokens_of(layer.moe)
        used = np.flatnonzero(tokens).tolist()
        self._layer, self._moe = layer, moe
        self._load = {expert: int(tokens[expert]) for expert in used}
        self._price = dict(zip(used, self.plan.experts.rows(tokens[used]), strict=True))
        self._ready: set[int] = set()
        self._asked = -1
        self._away = False
        self._carry = layer.beside.rows[self._index]
        self._counts.used += len(used)
        self._judge(set(used))
        if self._turns:
            self._pending = used
        else:
            hits, misses = self._look_up(used)
            self._counts.hits += len(hits)
            here = hits
            if strategy.misses == "substitute":
                self._counts.substituted += len(misses)
                here, misses = hits + misses, []
            elif strategy.misses in ("home", "balanced"):
                misses = self._stay(misses)
            # computed elsewhere or replaced, a miss leaves the cache as it is
            self.caches[moe].step([*hits, *misses])
            self._ready = set(here)
            self._pending = here + misses if strategy.order == "ready" else sorted(here + misses)
            self._send_for(misses)
        self._advance()

    def _look_up(self, used: list[int]) -> tuple[list[int], list[int]]:
        """Return the experts that are there and those that are not."""
        there = {expert: self._there(expert) for expert in used}
        self._buffered = {key for key in self._buffered if key[0] != self._moe}
        return [expert for expert in used if there[expert]], [expert for expert in used if not there[expert]]

    def _there(self, expert: int) -> bool:
        rate = self.plan.strategy.routing.hit_rate
        if rate is not None:
            return bool(self.random.random() < rate)
        return expert in self.caches[self._moe] or (self._moe, expert) in self._buffered

    def _send_for(self, misses: list[int]) -> None:
        """Hurry what is missing, drop what was predicted in vain, and ask for the rest."""
        if self.plan.strategy.loads == "whole-layer":
            if self._moe in self._whole:
                self._ready.update(misses)
            return
        for key in [key for key in self._sent if key[0] == self._moe]:
            if key[1] in misses:
                self._queue.reprioritise(self._sent[key], REQUIRED)
            else:
                # the chunk under way comes to nothing
                self._queue.cancel(self._sent.pop(key))
        self._unsent = [expert for expert in misses if (self._moe, expert) not in self._sent]

    def _send_more(self) -> None:
        """Ask for missing experts as far as slots and buffers have room: what waits to be computed holds some."""
        room = self.plan.slots[self._moe] + self.plan.buffers
        while self._unsent:
            under_way = sum(key[0] == self._moe for key in self._sent)
            if under_way and under_way + len(self._ready.intersection(self._pending)) >= room:
                return
            self._send((self._moe, self._unsent.pop(0)), REQUIRED)

    def _send(self, key: Key, priority: int) -> None:
        self._sent[key] = self._queue.submit(
            self.plan.expert_bytes, priority=priority, name=f"expert {key[1]} of {key[0]}",
            on_end=lambda _: self._come(key),
        )  # fmt: skip

    def _come(self, key: Key) -> None:
        if self._sent.pop(key, None) is None:
            return  # dropped while its last chunk was under way
        moe, expert = key
        if moe == self._moe:
            self._ready.add(expert)
            self._asked = -1 if expert == self._asked else self._asked
            self._advance()
            return
        cache = self.caches[moe]
        cache.admit(expert, keep=self._named.get(moe, ()))
        if expert not in cache:
            self._buffered.add(key)

    def _advance(self) -> None:
        """Give the accelerator what is ready; where experts come in turn, ask for the next; else end the layer."""
        if not self._idle:
            return
        chosen = self._take()
        for expert in chosen:
            self._carry = self._carry + self._price[expert]
        # those being computed leave their slots one by one, faster than experts come in
        self._send_more()
        if self._carry.any():
            self._compute("experts", self._layer.name, self._advance)
        elif self._turns and self._asked >= 0:
            if (self._moe, self._asked) not in self._sent:
                self._send((self._moe, self._asked), REQUIRED)
        elif not self._pending and not self._away:
            self._whole.discard(self._moe)
            self._carry = self._layer.behind.rows[self._index]
            self._next_layer()

    def _take(self) -> list[int]:
        """Remove from what is pending the experts to compute next."""
        if self._turns:
            chosen = []
            while self._pending and self._asked < 0 and self._in_turn(self._pending[0]):
                chosen.append(self._pending.pop(0))
            return chosen
        if self.plan.strategy.order == "ready":
            chosen = [expert for expert in self._pending if expert in self._ready]
        else:
            chosen = list(takewhile(lambda expert: expert in self._ready, self._pending))
        self._pending = [expert for expert in self._pending if expert not in chosen]
        return chosen

    def _in_turn(self, expert: int) -> bool:
        """Whether an expert whose turn has come is there; it is sent for if not, and the cache takes it."""
        if expert in self._ready:
            return True
        there = self._there(expert)
        self.caches[self._moe].access(expert)
        self._counts.hits += there
        if not there:
            self._asked = expert
        return there

    def _send_for_all(self, moe: int) -> None:
        """Ask for every expert of a layer that has none resident, its matrices whole."""
        if not len(self.caches[moe]):
            self._layer_queue.submit(
                self.plan.expert_bytes * self.plan.num_experts,
                name=f"experts of {moe}",
                on_end=lambda _: self._all_come(moe),
            )

    def _all_come(self, moe: int) -> None:
        self._whole.add(moe)
        if moe == self._moe:
            self._ready.update(self._pending)
            self._advance()

    # --- the predictor -------------------------------------------------------------------------------------------

    def _predict(self, moe: int) -> None:
        """Have the predictor read the input of a layer, and fetch what it names of a later one."""
        prefetch = self.plan.strategy.prefetch
        if prefetch is None:
            return
        target, number = moe + prefetch.lead, len(self.ran.passes)
        if target >= self.plan.moe_layers or not (self._prefill or self.plan.decoding[target]):
            return
        task = self.simulation.compute(
            self._streams["predictor"], prefetch.latency, tag="predict", name=f"predict {target}",
            on_end=lambda _: self._name(target, number),
        )  # fmt: skip
        self._shares[task] = COPYING["host"]

    def _name(self, target: int, number: int) -> None:
        """Fetch what is named and not there, at low priority, unless its gate has spoken."""
        if number != len(self.ran.passes) or target <= self._moe:
            return
        prefetch, cache = self.plan.strategy.prefetch, self.caches[target]
        assert prefetch is not None
        named = self._guess(self._tokens_of(target), self.popularity[target], prefetch.accuracy)
        there = [expert for expert in named if expert in cache]
        room = self.plan.slots[target] - len(there) + max(0, BUFFERS - len(self._buffered))
        missing = [expert for expert in named if expert not in there]
        self._named[target], self._wanted[target] = frozenset(named), frozenset(missing)
        for expert in missing[:room]:
            self._send((target, expert), PREDICTED)

    def _guess(self, tokens: Integers, popularity: Rows, accuracy: float) -> list[int]:
        """Return the experts that a predictor names that is right about each token's experts with a probability."""
        missed = (1.0 - accuracy) ** tokens
        named = set(np.flatnonzero(self.random.random(len(tokens)) >= missed).tolist())
        wrong = self.random.binomial(int(tokens.sum()), 1.0 - accuracy)
        named.update(self.random.choice(len(tokens), size=wrong, p=popularity).tolist())
        return sorted(named)

    def _judge(self, used: set[int]) -> None:
        """Count what the predictor got right, and what of it has come in time."""
        named, wanted = (table.pop(self._moe, None) for table in (self._named, self._wanted))
        if named is None or wanted is None:
            return
        counts, cache = self._counts, self.caches[self._moe]
        come = {expert for expert in wanted if expert in cache or (self._moe, expert) in self._buffered}
        counts.predicted += len(named)
        counts.right += len(named & used)
        counts.wanted += len(wanted)
        counts.timely += len(come)
        counts.useful += len(come & used)

    # --- experts computed where they lie -------------------------------------------------------------------------

    def _stay(self, misses: list[int]) -> list[int]:
        """Have experts computed where they lie, all of them or those of least load; return those to fetch."""
        plan, near = self.plan, self.plan.near
        assert near is not None
        misses = sorted(misses, key=lambda expert: -self._load[expert])
        loads = np.array([self._load[expert] for expert in misses], np.int64)
        seconds = plan.experts.elsewhere(loads, near.device, near.count, near.channel.rate)
        fetched = 0
        if plan.strategy.misses == "balanced" and misses:
            copied = plan.strategy.chunks * plan.fetch.seconds(plan.expert_bytes / plan.strategy.chunks)
            here = [copied + _seconds(self._price[expert]) for expert in misses]
            fetched = split_by_load(here, seconds.tolist())
        if len(misses) > fetched:
            self._send_tokens(loads[fetched:], float(seconds[fetched:].sum()))
            for expert in misses[fetched:]:
                self.ran.passes[-1].elsewhere += _seconds(self._price[expert])
        self._counts.elsewhere += len(misses) - fetched
        return misses[:fetched]

    def _send_tokens(self, loads: Integers, seconds: float) -> None:
        """Send tokens to the experts, compute there, and fetch what comes out."""
        plan, near = self.plan, self.plan.near
        assert near is not None
        tokens = plan.tokens[self._moe] if self._prefill else 1
        size = min(float(loads.sum()), float(tokens * plan.workload.batch)) * plan.activation_bytes
        weights = len(loads) * plan.whole_expert_bytes
        self._away = True

        def compute() -> None:
            self._transfer(near.channel, weights, weights / seconds, "near", "host", near.name, back)

        def back() -> None:
            self._transfer(plan.fetch, size, plan.fetch.rate, "return", "host link", "outputs", done)

        def done() -> None:
            self._away = False
            self._advance()

        self._transfer(plan.back, size, plan.back.rate, "return", "host link", "tokens", compute)

    # --- tasks ---------------------------------------------------------------------------------------------------

    def _compute(self, tag: str, name: str, then: Callable[[], None]) -> None:
        """Have the accelerator do what has gathered."""
        rows, self._carry = self._carry, np.zeros(len(COLUMNS))
        seconds = _seconds(rows)
        self._idle = False
        self.ran.passes[-1].computing += seconds

        def ended(task: int) -> None:
            self._idle = True
            then()

        task = self.simulation.compute(self.emit.gpu, seconds, tag=tag, name=name, on_end=ended)
        self._shares[task] = rows / seconds if seconds else rows

    def _transfer(
        self, channel: Channel, size: float, rate: float, stream: str, kind: Bottleneck, name: str,
        then: Callable[[], None],
    ) -> None:  # fmt: skip
        self.emit.carry(channel, size)
        task = self.simulation.transfer(
            self._paths[channel.name], size, latency=channel.latency, max_rate=rate, stream=self._streams[stream],
            tag=stream, name=name, on_end=lambda _: then(),
        )  # fmt: skip
        self._shares[task] = COPYING[kind]


def _seconds(rows: Rows) -> float:
    return float(rows[: len(BOTTLENECKS)].sum())
