"""From a scenario with a fleet to its pools, ready to run; what cannot be is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from simulator.cost import CostModel
from simulator.cost.grouped import FILL
from simulator.graph import Partition, Shape, build
from simulator.serving.accounts import TRAFFIC
from simulator.serving.fleet import HandOver, PoolPlan, Role
from simulator.serving.layout import make_layout
from simulator.serving.plan import ReplicaPlan, check, check_lengths, plan_replica
from simulator.serving.router import Router
from simulator.serving.workload import Requests, draw_requests
from simulator.specs import MemroofError, ServingScenario
from simulator.specs.serving_fleet import Fleet, Pool
from simulator.strategy import Setup


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """A fleet, ready to run."""

    requests: Requests
    pools: tuple[PoolPlan, ...]
    setups: tuple[Setup, ...]
    """What each pool rests on."""
    router: Router
    hand_over: HandOver

    @property
    def fits(self) -> bool:
        """Whether weights and the longest request fit the GPUs of every pool."""
        return all(pool.plan.needed <= pool.plan.usable for pool in self.pools)


def make_fleet(setup: Setup, fleet: Fleet) -> FleetPlan:
    """Plan the fleet of a serving scenario.

    Raises
    ------
    MemroofError
        If a pool's strategy is not legal for model and hardware, pools need more GPUs than there are, or nothing is known of
        the way between prefill and decode.
    """
    scenario = setup.scenario
    if not isinstance(scenario, ServingScenario):
        raise MemroofError(f"scenario {scenario.name!r} is of kind {scenario.kind!r}, not 'serving'")
    requests = draw_requests(scenario.workload)
    setups = tuple(_setup_of(setup, scenario, index, pool) for index, pool in enumerate(fleet.all_pools))
    if fleet.prefill_share is not None:
        setups = _shared(setups, fleet.prefill_share)
    pools: list[PoolPlan] = []
    free = setup.hardware.size
    for index, (pool, own) in enumerate(zip(fleet.all_pools, setups, strict=True)):
        planned = _plan(own, pool, index, fleet, requests, free)
        if pool.hardware is None and not (fleet.prefill_share is not None and index):
            free -= planned.gpus
        pools.append(planned)
    if free < 0:
        needs = ", ".join(f"{pool.name} {pool.gpus}" for pool in pools)
        raise MemroofError(
            f"the pools need more GPUs than the {setup.hardware.size} of {setup.hardware.name}: {needs}"
        )
    if fleet.router == "prefix-aware" and not any(pool.plan.caching.prefixes for pool in pools):
        raise MemroofError("router 'prefix-aware' needs replicas with a 'prefix_cache'")
    hand_over = HandOver()
    if fleet.apart:
        pools, hand_over = _joined(setups, pools, fleet)
    router = Router(fleet.router, fleet.imbalance, scenario.workload.seed)
    return FleetPlan(requests, tuple(pools), setups, router, hand_over)


def _setup_of(setup: Setup, scenario: ServingScenario, index: int, pool: Pool) -> Setup:
    given = setup.pools[index] if index < len(setup.pools) else None
    if pool.hardware is not None and given is None:
        raise MemroofError(
            "a pool with hardware of its own needs a loaded scenario: load it by its file or mapping"
        )
    hardware, cost = given or (setup.hardware, setup.cost)
    # the same strategy object as in an earlier run, so that its prices are found again
    key = ("pool", id(scenario.strategy), index)
    kept = setup.memo.get(key)
    if kept is None or kept[0] is not scenario.strategy or kept[1] != pool:
        kept = setup.memo[key] = (scenario.strategy, pool, scenario.of_pool(pool).strategy)
    changed = {"strategy": kept[2], "fleet": None, "hardware": pool.hardware or scenario.hardware}
    return replace(
        setup, scenario=scenario.model_copy(update=changed), hardware=hardware, cost=cost, pools=()
    )


def _plan(setup: Setup, pool: Pool, index: int, fleet: Fleet, requests: Requests, free: int) -> PoolPlan:
    scenario = setup.scenario
    if not isinstance(scenario, ServingScenario):
        raise MemroofError("a pool serves")
    strategy, hardware = scenario.strategy, setup.hardware
    phases: tuple[Role, Role] = ("prefill", "decode")
    role: Role = phases[index] if fleet.apart else "whole"
    name = pool.name or (
        role if fleet.apart else ("replica" if len(fleet.all_pools) == 1 else f"pool {index + 1}")
    )
    if fleet.apart and (strategy.batching == "static" or strategy.preemption == "swap"):
        option = "batching 'static'" if strategy.batching == "static" else "preemption 'swap'"
        raise MemroofError(f"{option} has no meaning where prefill and decode are apart")
    if role == "decode" and (strategy.batch_wait or strategy.receive_interval > 1):
        option = "batch_wait" if strategy.batch_wait else "receive_interval"
        raise MemroofError(f"'{option}' has no meaning for who decodes: requests come with their cache")
    check(strategy, setup.model, hardware)
    own = replace(requests, output=np.ones_like(requests.output)) if role == "prefill" else requests
    check_lengths(own, strategy, setup.model)
    layout = make_layout(strategy, setup.model, hardware)
    room = hardware.size if pool.hardware or fleet.prefill_share is not None else free
    if pool.autoscale:
        replicas = pool.autoscale.maximum
    elif pool.replicas is not None:
        replicas = pool.replicas
    else:
        sharing = sum(other.hardware is None for other in fleet.all_pools)
        if sharing > 1 and pool.hardware is None and fleet.prefill_share is None:
            raise MemroofError(f"pool {name!r} needs 'replicas': pools share the GPUs of {hardware.name}")
        replicas = room // layout.gpus
    if pool.hardware and replicas * layout.gpus > hardware.size:
        raise MemroofError(
            f"{replicas} replicas of {layout.gpus} GPUs exceed the {hardware.size} of {hardware.name}"
        )
    plan = plan_replica(setup, scenario, layout, replicas, own)
    return PoolPlan(name, role, plan, replicas, pool.autoscale)


# --- prefill and decode apart ---


def _joined(
    setups: tuple[Setup, ...], pools: list[PoolPlan], fleet: Fleet
) -> tuple[list[PoolPlan], HandOver]:
    prefill, decode = pools
    late, layers = fleet.first_token == "decode", setups[0].model.num_hidden_layers
    if prefill.plan.pricer.numerics.kv_bytes != decode.plan.pricer.numerics.kv_bytes:
        raise MemroofError(
            "prefill and decode need the same 'kv_precision': the cache is handed over as it is"
        )
    if fleet.prefill_share is not None:
        if prefill.plan.layout.gpus != decode.plan.layout.gpus or prefill.groups != decode.groups:
            raise MemroofError(
                "with 'prefill_share' both phases run on the same GPUs: they need the same degrees"
            )
        # one copy of the weights, and the larger of the workspaces, leave one cache for both
        smaller = min((pool.plan for pool in pools), key=lambda plan: plan.cache.capacity)
        pools = [
            replace(pool, plan=replace(pool.plan, cache=smaller.cache, resident=smaller.resident))
            for pool in pools
        ]
        return pools, HandOver(within=True)
    bandwidth, latency = _link(setups, pools, fleet)
    constants = setups[0].cost.calibration.transfer
    bandwidth *= float(constants.efficiency or 1.0)
    # the half-performance length is a time before each hand-over (Hockney 1994)
    latency += float(constants.half_bytes or 0.0) / bandwidth
    plan = decode.plan
    whole = build(
        setups[1].model, Shape(1, 1, 0, "prefill"), Partition(plan.layout.tensor), plan.pricer.numerics
    )
    per_token = float(whole.kv_bytes(1.0)) * plan.layout.tensor
    wired = [
        replace(pool, bandwidth=bandwidth * pool.plan.layout.tensor * pool.plan.layout.pipeline)
        for pool in pools
    ]
    return wired, HandOver(latency, per_token, layers if fleet.transfer == "layerwise" else 1, False, late)


def _link(setups: tuple[Setup, ...], pools: list[PoolPlan], fleet: Fleet) -> tuple[float, float]:
    """Bandwidth of one GPU, each way [B/s], and latency [s] between the pools."""
    if fleet.bandwidth is not None:
        return float(fleet.bandwidth), float(fleet.latency or 0.0)
    first, second = (setup.hardware for setup in setups)
    if first is not second:
        raise MemroofError(
            "prefill and decode on hardware of their own need 'fleet.bandwidth': what joins them is not known"
        )
    # the first GPU of one pool and the last of the other: nodes apart if the pools are
    tier = first.pair(0, pools[0].gpus + pools[1].gpus - 1).tiers[-1]
    latency = tier.latency if fleet.latency is None else float(fleet.latency)
    return tier.bandwidth, latency


def _shared(setups: tuple[Setup, ...], share: float) -> tuple[Setup, ...]:
    """Give prefill a share of the multiprocessors of each GPU, and decode the others.

    Each phase reaches what its units can draw of the memory's bandwidth, all of it from :data:`~simulator.cost.grouped.FILL`
    of them on; where both together want more than there is, the one that wants less has what it wants, and no less than half.
    """
    shares = (share, 1.0 - share)
    parts = [
        replace(setup, cost=part_of(setup.cost, own, min(1.0, own / FILL)))
        for setup, own in zip(setups, shares, strict=True)
    ]
    wanted = [_drawn(part, prompts=index == 0) for index, part in enumerate(parts)]
    if sum(wanted) <= 1.0:
        return tuple(parts)
    left = [max(0.5, 1.0 - wanted[1]), max(0.5, 1.0 - wanted[0])]
    return tuple(
        replace(setup, cost=part_of(setup.cost, own, min(1.0, own / FILL, bandwidth)))
        for setup, own, bandwidth in zip(setups, shares, left, strict=True)
    )


def _drawn(setup: Setup, *, prompts: bool) -> float:
    """Share of the memory's bandwidth that a full iteration of one phase draws."""
    scenario = setup.scenario
    if not isinstance(scenario, ServingScenario):
        return 0.0
    requests = draw_requests(scenario.workload)
    layout = make_layout(scenario.strategy, setup.model, setup.hardware)
    plan: ReplicaPlan = plan_replica(setup, scenario, layout, 1, requests)
    none = np.zeros(0, np.int64)
    if prompts:
        new = np.array([min(plan.policy.max_tokens, int(requests.prompt.mean()))], np.int64)
        steps = plan.pricer.mixed(new, np.zeros(1, np.int64), none, 1)
    else:
        context = np.full(
            min(plan.policy.max_batch, len(requests)), int((requests.prompt + requests.output / 2).mean())
        )
        steps = plan.pricer.decode(context, 1)
    bandwidth = setup.hardware.memory.read.bandwidth
    return float(min(1.0, steps.total(1)[TRAFFIC] / (float(steps.seconds[0]) * bandwidth)))


def part_of(cost: CostModel, units: float, bandwidth: float) -> CostModel:
    """Return the cost model of a share of a device's units, with a share of its memory's bandwidth."""
    device = cost.device
    compute = device.compute
    scaled = compute.model_copy(
        update={
            "units": max(1, round(compute.units * units)),
            "matrix": {name: peak * units for name, peak in compute.matrix.items()},
            "vector": {name: peak * units for name, peak in compute.vector.items()},
        }
    )
    whole = cost.kernels.common["bandwidth"]
    return replace(
        cost, device=device.model_copy(update={"compute": scaled}), memory_bandwidth=whole * bandwidth
    )
