"""A block as a linear program: what each class of tensors holds and moves on each tier, in prefill and in a decode step."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from simulator.offload.emit import binding_links
from simulator.offload.placement import Item, Phase, Place, Problem
from simulator.offload.tiers import CXL, DRAM, GPU, NVME, Channel
from simulator.offload.zigzag.plan import PAGEABLE, PREFILL, Plan, Split, make_plan
from simulator.specs import ZigzagScenario
from simulator.specs.zigzag_scenario import Placement
from simulator.strategy import Setup

TIERS = (GPU, DRAM, CXL, NVME)
PASSES = ("prefill", "decode")
COMPUTE, BOTH = "computation", "computation on GPU and CPU"
FIRST, SERIAL = "weights beside the first batch", "copies and computation in turn"
"""Lanes that are no link; their rate is 1 and their units are seconds. GPU and CPU attend to a batch in turn."""


def build_problem(setup: Setup, short: Mapping[str, float]) -> Problem:
    """Return the linear program of a scenario.

    Times are those of whole passes in their steady state: each link carries its bytes at its sustained rate, and computation
    takes what the cost model says, of a decode step on average. With a barrier, weights have one batch's computation to hide
    behind; without prefetch, all seconds add up.

    Parameters
    ----------
    setup : Setup
        The scenario, with placements left open.
    short : mapping of str to float
        Bytes by tier to keep free.
    """
    scenario = setup.scenario
    assert isinstance(scenario, ZigzagScenario)
    plan = make_plan(setup)
    on_gpu = make_plan(_with(setup, kv=Placement(), attention="gpu", pageable=()))
    on_cpu = make_plan(_with(setup, kv=Placement(dram=1.0), pageable=())) if plan.cpu_attention else None
    return _Builder(plan, on_gpu, on_cpu, scenario.strategy.optimised, scenario.strategy.objective).problem(
        short
    )


def tier_of(memory: str) -> str:
    """Return the tier of a row of the program."""
    return memory.partition(" in ")[0]


def _with(setup: Setup, **update: object) -> Setup:
    assert isinstance(setup.scenario, ZigzagScenario)
    strategy = setup.scenario.strategy.model_copy(update=update)
    return replace(setup, scenario=setup.scenario.model_copy(update={"strategy": strategy}))


@dataclass(slots=True)
class _Sums:
    """What a class of tensors holds and uses on one tier."""

    holds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    uses: dict[str, dict[str, float]] = field(
        default_factory=lambda: {each: defaultdict(float) for each in PASSES}
    )


class _Builder:
    def __init__(
        self, plan: Plan, on_gpu: Plan, on_cpu: Plan | None, free: tuple[str, ...], objective: str
    ) -> None:
        self.plan, self.on_gpu, self.on_cpu, self.free, self.objective = plan, on_gpu, on_cpu, free, objective
        self.units = [plan.units[index] for index in plan.order]
        self.compute = BOTH if plan.cpu_attention else COMPUTE
        self.rate: dict[str, float] = {self.compute: 1.0}
        self.shared = shared_links(plan)

    def problem(self, short: Mapping[str, float]) -> Problem:
        plan = self.plan
        items = tuple(
            Item(name, self._places(name, split)) for name, split in
            (("weights", plan.weights), ("kv", plan.cache), ("hidden", plan.hidden))
        )  # fmt: skip
        compute = {name: self._fixed(name) for name in PASSES}
        runs = {
            "prefill": 0.0 if self.objective == "latency" and plan.steps else plan.fill,
            "decode": float(plan.steps),
        }
        phases = tuple(Phase(name, runs[name], self._lanes(compute[name])) for name in PASSES)
        capacity = {}
        for tier in (tier for tier in TIERS if tier in plan.tiers.pools):
            room = plan.tiers.pools[tier].capacity - short.get(tier, 0.0)
            for index, name in enumerate(PASSES):
                work = max(unit.workspace[index] for unit in self.units) if tier == GPU else 0.0
                capacity[f"{tier} in {name}"] = max(0.0, room - work)
        return Problem(items, phases, capacity, self.rate)

    # --- computation -------------------------------------------------------------------------------------------------

    def _fixed(self, name: str) -> float:
        """Seconds of computation of a pass that no placement changes."""
        plan, decode = self.plan, self._mean
        if name == "prefill":
            return self._times * sum(unit.prefill.time(0) for unit in self.units)
        attention = 0.0 if plan.cpu_attention else decode(self.on_gpu, "attention")
        return decode(self.on_gpu, "before") + decode(self.on_gpu, "after") + attention

    @property
    def _times(self) -> int:
        return self.plan.batches * self.plan.stages

    def _mean(self, plan: Plan, part: str) -> float:
        """Seconds of a part of decode steps on average, all batches."""
        steps = range(max(plan.steps, 1))
        prices = [getattr(plan.units[index], part) for index in plan.order]
        seconds = sum(float(price.time(step)) for price in prices if price is not None for step in steps)
        return self._times * seconds / len(steps)

    def _lanes(self, seconds: float) -> dict[str, float]:
        """Computation on the lanes that it is on."""
        uses = {self.compute: seconds}
        if self.plan.barrier:
            self.rate[FIRST] = 1.0
            uses[FIRST] = seconds * (1.0 - 1.0 / self.plan.batches)
        if not self.plan.prefetch:
            self.rate[SERIAL] = 1.0
            uses[SERIAL] = seconds
        return uses

    # --- places ------------------------------------------------------------------------------------------------------

    def _places(self, name: str, split: Split) -> tuple[Place, ...]:
        by_tier = {tier: self._sums(name, tier) for tier in TIERS if tier in self.plan.tiers.pools}
        if name in self.free:
            return tuple(Place(tier, sums.holds, sums.uses) for tier, sums in by_tier.items())
        mixed = _Sums()
        for tier, sums in by_tier.items():
            share = split.by_tier[tier]
            for memory, size in sums.holds.items():
                mixed.holds[memory] += share * size
            for each in PASSES:
                for lane, size in sums.uses[each].items():
                    mixed.uses[each][lane] += share * size
        return (Place("as written", mixed.holds, mixed.uses),)

    def _sums(self, name: str, tier: str) -> _Sums:
        sums = _Sums()
        {"weights": self._weights, "kv": self._cache, "hidden": self._hidden}[name](sums, tier)
        return sums

    def _weights(self, sums: _Sums, tier: str) -> None:
        plan = self.plan
        moved = plan.stages * sum(unit.weights for unit in self.units)
        buffers = (plan.prefetch + 1) * max(unit.weights for unit in self.units)
        for each in PASSES:
            sums.holds[f"{tier} in {each}"] += plan.stored_bytes()
            if tier != GPU:
                sums.holds[f"{GPU} in {each}"] += buffers
                if tier == NVME and plan.staged:
                    sums.holds[f"{DRAM} in {each}"] += buffers
                ahead = sum(unit.weights * plan.ahead(unit) for unit in self.units) / (moved / plan.stages)
                self._copy(sums, each, "weights", tier, GPU, moved * ahead, first=plan.barrier)
                self._copy(sums, each, "weights", tier, GPU, moved * (1.0 - ahead), beside=False)

    def _cache(self, sums: _Sums, tier: str) -> None:
        plan, tokens = self.plan, self.plan.prompt + self.plan.output - 1
        for each in PASSES:
            step, held = (PREFILL, plan.prompt) if each == "prefill" else (plan.steps // 2, tokens)
            full = plan.sequences * sum(unit.cache_bytes(held) for unit in self.units)
            sums.holds[f"{tier} in {each}"] += full
            new = plan.sequences * sum(unit.cache_bytes(plan.new(step)) for unit in self.units)
            cached = plan.sequences * sum(unit.cache_bytes(plan.cached(step)) for unit in self.units)
            buffers = 2.0 * plan.batch * max(unit.cache_bytes(held) for unit in self.units)
            if tier == GPU:
                if plan.cpu_attention and each == "decode":
                    self._compute(sums, each, self._mean(self.on_gpu, "attention"))
                continue
            if each == "prefill" or not plan.cpu_attention:
                sums.holds[f"{GPU} in {each}"] += buffers
                self._copy(sums, each, "kv", GPU, tier, new)
            if tier == NVME and plan.staged:
                sums.holds[f"{DRAM} in {each}"] += buffers
            if each == "decode":
                self._attended(sums, tier, cached, new)

    def _attended(self, sums: _Sums, tier: str, cached: float, new: float) -> None:
        """Bring the cache to where it is attended to in a decode step."""
        plan = self.plan
        if not plan.cpu_attention:
            self._copy(sums, "decode", "kv", tier, GPU, cached)
            return
        assert self.on_cpu is not None
        if tier != DRAM:
            self._copy(sums, "decode", "kv", tier, DRAM, cached)
            self._copy(sums, "decode", "kv", DRAM, tier, new)
        self._compute(sums, "decode", self._mean(self.on_cpu, "host"))
        host = plan.tiers.host
        assert host is not None  # or CPU attention had been refused
        traffic = self._times * sum(
            float(unit.host_bytes.mean()) for unit in (self.on_cpu.units[i] for i in plan.order)
        )
        self._carry(sums, "decode", host.channel, traffic, own=False)

    def _hidden(self, sums: _Sums, tier: str) -> None:
        plan = self.plan
        for each in PASSES:
            size = plan.new(PREFILL if each == "prefill" else 0) * plan.hidden_bytes
            sums.holds[f"{tier} in {each}"] += plan.block * size
            if tier != GPU:
                sums.holds[f"{GPU} in {each}"] += 3.0 * plan.batch * size
                # a single batch is always the one that is computed
                moved = plan.sequences * size * (len(self.units) - 1) * (plan.batches > 1)
                self._copy(sums, each, "hidden", GPU, tier, moved, beside=not plan.barrier)
                self._copy(sums, each, "hidden", tier, GPU, moved, beside=not plan.barrier)

    # --- lanes -------------------------------------------------------------------------------------------------------

    def _compute(self, sums: _Sums, each: str, seconds: float) -> None:
        for lane, size in self._lanes(seconds).items():
            sums.uses[each][lane] += size

    def _copy(
        self,
        sums: _Sums,
        each: str,
        kind: str,
        source: str,
        target: str,
        size: float,
        *,
        first: bool = False,
        beside: bool = True,
    ) -> None:
        """Put a copy on its channels; ``first``: with a barrier, it has one batch to hide behind; not ``beside``: none."""
        plan = self.plan
        staged = plan.staged and NVME in (source, target) and GPU in (source, target)
        hops = [(source, DRAM), (DRAM, target)] if staged else [(source, target)]
        far = target if source in (GPU, DRAM) and target != GPU else source
        seconds = 0.0
        for pair in hops:
            channel = plan.tiers.channels[pair]
            slow = kind in plan.pageable and far == DRAM
            seconds += size / channel.rate / (PAGEABLE if slow else 1.0)
            self._carry(sums, each, channel, size, efficiency=PAGEABLE if slow else 1.0)
        if first:
            sums.uses[each][FIRST] += seconds
        if not beside:
            self._compute(sums, each, seconds)
        elif not plan.prefetch:
            self.rate[SERIAL] = 1.0
            sums.uses[each][SERIAL] += seconds

    def _carry(
        self,
        sums: _Sums,
        each: str,
        channel: Channel,
        size: float,
        *,
        efficiency: float = 1.0,
        own: bool = True,
    ) -> None:
        if own:
            self.rate[channel.name] = channel.rate
            sums.uses[each][channel.name] += size / efficiency
        for name, bandwidth in channel.links:
            if (name, bandwidth) in self.shared:
                self.rate[name] = bandwidth
                sums.uses[each][name] += size


def used_channels(plan: Plan) -> tuple[Channel, ...]:
    """Return the channels that a placement may use, those of the CPUs among them if they attend."""
    tiers = plan.tiers
    pairs = [pair for pair in tiers.channels if not (plan.staged and set(pair) == {GPU, NVME})]
    host = (tiers.host.channel,) if plan.cpu_attention and tiers.host is not None else ()
    return (*(tiers.channels[pair] for pair in pairs), *host)


def shared_links(plan: Plan) -> frozenset[tuple[str, float]]:
    """Return the links that several channels cross and that can hold a copy up beyond what its channel does."""
    channels = used_channels(plan)
    crossing = Counter(link for channel in channels for link in dict.fromkeys(channel.links))
    return frozenset(link for link in binding_links(channels) if crossing[link] > 1)
