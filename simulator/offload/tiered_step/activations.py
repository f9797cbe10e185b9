"""What becomes of the activations of each unit: kept on the GPU, moved to a tier, or computed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.offload.tiered_step.ledger import others, sweep_batches, traffic
from simulator.offload.tiered_step.placement import Shares
from simulator.offload.tiered_step.plan import Plan
from simulator.offload.tiered_step.units import Level, Unit
from simulator.offload.tiers import CXL, DRAM, GPU, NVME


@dataclass(frozen=True, slots=True)
class Kept:
    """What a unit keeps of one micro-batch, and where."""

    level: Level
    shares: Shares
    """Of its bytes, by tier."""

    @property
    def away(self) -> dict[str, float]:
        """Bytes that leave the GPU, by tier."""
        return {tier: self.level.saved * share for tier, share in self.shares.items() if tier != GPU}

    @property
    def resident(self) -> float:
        """Bytes that stay on the GPU."""
        return self.level.saved * self.shares.get(GPU, 0.0)


def keep(plan: Plan) -> tuple[Kept, ...]:
    """Return what each unit keeps and where, in forward order."""
    stays = [Kept(unit.levels[0], {GPU: 1.0}) for unit in plan.units]
    if plan.strategy.activations == GPU:
        return tuple(stays)
    leaving = _leaving(plan)
    if plan.strategy.activations == "balanced":
        return _balanced(plan, leaving)
    amounts = dict.fromkeys(leaving, 1.0)
    if plan.strategy.activation_amount == "hidden":
        amounts = _hidden(plan, leaving)
    for index, amount in amounts.items():
        if amount <= 0.0:
            continue
        shares = {tier: share * amount for tier, share in plan.place.activations.items()}
        if amount < 1.0:
            shares[GPU] = 1.0 - amount
        stays[index] = Kept(plan.units[index].levels[0], shares)
    return tuple(stays)


def _leaving(plan: Plan) -> list[int]:
    """Units whose activations may leave: sublayers but the last ones, which are needed at once."""
    found = [index for index, unit in enumerate(plan.units) if unit.sublayer]
    return found[: max(0, len(found) - plan.strategy.kept_sublayers)]


def _hidden(plan: Plan, leaving: Sequence[int]) -> dict[int, float]:
    """Return what share of each unit's activations leaves, the first units first: as much as is written in the forward time.

    Wu et al. 2024 (SSDTrain, arXiv:2408.10013), section 3: bytes up to the write bandwidth times the seconds of the forward pass.
    """
    rate = min(rate_to(plan, tier) / share for tier, share in plan.place.activations.items())
    budget = rate * sum(unit.forward.time(0) for unit in plan.units)
    found: dict[int, float] = {}
    for index in leaving:
        size = plan.units[index].levels[0].saved
        found[index] = min(1.0, budget / size) if size else 0.0
        budget = max(0.0, budget - found[index] * size)
    return found


def rate_to(plan: Plan, tier: str) -> float:
    """Return the rate at which one GPU of all that write at once reaches a tier [B/s]."""
    return _rate(plan, GPU, tier)


def _rate(plan: Plan, source: str, target: str) -> float:
    """Slowest leg of the way that a copy takes, memories that all GPUs share divided among them."""
    tiers, count = plan.tiers, len(plan.ranks)
    if NVME not in (source, target):
        return tiers.channels[source, target].rate
    if plan.strategy.direct_storage or not tiers.staged:
        alone = tiers.channels[source, target].rate
        flash = tiers.channels[(DRAM, NVME) if target == NVME else (NVME, DRAM)].rate if tiers.staged else alone
        return min(alone, flash / count)
    legs = ((GPU, DRAM), (DRAM, NVME)) if target == NVME else ((NVME, DRAM), (DRAM, GPU))
    return min(tiers.channels[leg].rate / (count if NVME in leg else 1) for leg in legs)


# --- balanced: a linear program --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Budget:
    """Seconds of a sweep, forward and backward, that do not depend on what becomes of activations."""

    forward: float
    """Computation."""
    backward: float
    traffic: Mapping[tuple[str, str], float]
    """Seconds of other bytes by link (``h2d``, ``d2h``, ``read``, ``write``) and pass (``forward``, ``backward``)."""


def _balanced(plan: Plan, leaving: Sequence[int]) -> tuple[Kept, ...]:
    """Choose by a linear program over shares of levels and of tiers.

    It minimises the forward and the backward time, each the longest of computation (with recomputation), both directions of the
    GPU's link and both of flash, subject to the room in each memory: the model of Liao et al. 2024 (Fuyou, arXiv:2403.06504)
    with tiers as further choices. Shares are rounded to units.
    """
    from scipy.optimize import linprog

    units = [plan.units[i] for i in leaving]
    if not units:
        return tuple(Kept(unit.levels[0], {GPU: 1.0}) for unit in plan.units)
    repeats = sweep_batches(plan)
    kinds = sorted({unit.kind for unit in units})
    columns = [(kind, level) for kind in kinds for level in _of_kind(units, kind).levels]
    counts = {kind: sum(unit.kind == kind for unit in units) for kind in kinds}
    size = np.array([level.saved * counts[kind] * repeats for kind, level in columns])
    unit = float(size.max())
    """Bytes in which the program counts, so that its coefficients are seconds."""
    again = np.array([level.seconds * counts[kind] * repeats for kind, level in columns])
    tiers = [tier for tier in (GPU, DRAM, NVME) if tier in plan.tiers.pools]
    n, width = len(columns), len(columns) + len(tiers) + 2
    budget = _budget(plan)
    t_forward, t_backward = width - 2, width - 1
    at = {tier: n + i for i, tier in enumerate(tiers)}
    rows: list[np.ndarray] = []
    bounds: list[float] = []

    def at_least(time: int, fixed: float, terms: Mapping[int, float]) -> None:
        row = np.zeros(width)
        row[time] = -1.0
        for column, value in terms.items():
            row[column] += value
        rows.append(row)
        bounds.append(-fixed)

    at_least(t_forward, budget.forward, {})
    at_least(t_backward, budget.backward, dict(enumerate(again)))
    away = [tier for tier in tiers if tier != GPU]
    out = {at[tier]: unit / _link_rate(plan, tier, out=True) for tier in away}
    back = {at[tier]: unit / _link_rate(plan, tier, out=False) for tier in away}
    at_least(t_forward, budget.traffic["d2h", "forward"], out)
    at_least(t_forward, budget.traffic["h2d", "forward"], {})
    at_least(t_backward, budget.traffic["d2h", "backward"], {})
    at_least(t_backward, budget.traffic["h2d", "backward"], back)
    if NVME in at:
        at_least(t_forward, budget.traffic["write", "forward"], {at[NVME]: unit / rate_to(plan, NVME)})
        at_least(t_forward, budget.traffic["read", "forward"], {})
        at_least(t_backward, budget.traffic["write", "backward"], {})
        at_least(t_backward, budget.traffic["read", "backward"], {at[NVME]: unit / _rate(plan, NVME, GPU)})
    equal = [np.zeros(width) for _ in range(len(kinds) + 1)]
    for row, kind in zip(equal, kinds, strict=False):
        row[[i for i, (other, _) in enumerate(columns) if other == kind]] = 1.0
    equal[-1][:n] = size / unit
    equal[-1][n : n + len(tiers)] = -1.0
    room = room_for_activations(plan)
    # of equal times the one that moves and repeats least
    worth = np.zeros(width)
    worth[[t_forward, t_backward]] = 1.0
    slight = 1e-5 * (budget.forward + budget.backward)
    worth[:n] = 1e-5 * again
    for tier in away:
        worth[at[tier]] = slight * (2.0 if tier == NVME else 1.0)
    limits = [(0.0, 1.0)] * n + [(0.0, max(0.0, room[tier]) / unit) for tier in tiers] + [(0.0, None)] * 2
    found = linprog(
        worth, A_ub=np.array(rows), b_ub=np.array(bounds), A_eq=np.array(equal), b_eq=np.append(np.ones(len(kinds)), 0.0),
        bounds=limits, method="highs",
    )  # fmt: skip
    if found.status != 0:  # nothing fits: recompute all that can be, and let the ledger say what is missing
        levels = {kind: _of_kind(units, kind).levels[-1:] * counts[kind] for kind in kinds}
        return _assigned(plan, leaving, levels, {GPU: 1.0})
    levels = {
        kind: _rounded(
            [level for other, level in columns if other == kind],
            [float(found.x[i]) for i, (other, _) in enumerate(columns) if other == kind],
            counts[kind],
        )
        for kind in kinds
    }
    return _assigned(plan, leaving, levels, {tier: float(found.x[at[tier]]) * unit / repeats for tier in tiers})


def _of_kind(units: Sequence[Unit], kind: int) -> Unit:
    return next(unit for unit in units if unit.kind == kind)


def _rounded(levels: Sequence[Level], shares: Sequence[float], count: int) -> tuple[Level, ...]:
    """Return a level for each of ``count`` units: those that keep least first, since they wait longest."""
    ends = np.round(np.cumsum(shares[::-1]) / sum(shares) * count).astype(int)
    found: list[Level] = []
    for level, end in zip(levels[::-1], ends.tolist(), strict=True):
        found += [level] * (end - len(found))
    return tuple(found)


def _assigned(
    plan: Plan, leaving: Sequence[int], levels: Mapping[int, Sequence[Level]], size: Mapping[str, float]
) -> tuple[Kept, ...]:
    """Give each unit its level; the last ones stay on the GPU as far as they fit, the others share the tiers."""
    kept = [Kept(unit.levels[0], {GPU: 1.0}) for unit in plan.units]
    used = dict.fromkeys(levels, 0)
    chosen: dict[int, Level] = {}
    for index in leaving:
        kind = plan.units[index].kind
        chosen[index] = levels[kind][used[kind]]
        used[kind] += 1
    total = sum(size.get(tier, 0.0) for tier in (DRAM, CXL, NVME))
    left = size.get(GPU, 0.0) if total else float("inf")
    for index in reversed(leaving):
        level = chosen[index]
        stays = min(1.0, left / level.saved) if level.saved else 1.0
        left -= stays * level.saved
        shares = {
            tier: (1.0 - stays) * size[tier] / total
            for tier in (DRAM, NVME)
            if total and size.get(tier) and stays < 1.0
        }
        kept[index] = Kept(level, {GPU: stays, **shares} if stays > 0.0 else shares)
    return tuple(kept)


def _link_rate(plan: Plan, tier: str, *, out: bool) -> float:
    """Rate of the GPU's own link to a tier."""
    direct = plan.strategy.direct_storage or not plan.tiers.staged
    near = NVME if tier == NVME and direct else DRAM
    pair = (GPU, near) if out else (near, GPU)
    return plan.tiers.channels[pair].rate


def room_for_activations(plan: Plan) -> dict[str, float]:
    """Return the bytes of each tier that one GPU's activations can take, beside everything else that is there."""
    used = others(plan)
    leaving = set(_leaving(plan))
    stays = sum(unit.levels[0].saved for i, unit in enumerate(plan.units[:-1]) if i not in leaving)
    used[GPU] += sweep_batches(plan) * stays
    return {
        tier: (pool.capacity - used.get(tier, 0.0)) / (1 if tier == GPU else len(plan.ranks))
        for tier, pool in plan.tiers.pools.items()
    }


def _budget(plan: Plan) -> Budget:
    repeats = sweep_batches(plan)
    forward = repeats * sum(unit.forward.time(0) for unit in plan.units)
    backward = repeats * sum(unit.backward.time(0) for unit in plan.units)
    return Budget(forward, backward, traffic(plan))
