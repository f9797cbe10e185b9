"""Balanced activations: a linear program says which stay, wait in DRAM or in flash, or are computed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from simulator.offload.tiered_step.kept import Kept, rate_between, rate_to, room_for_activations
from simulator.offload.tiered_step.ledger import sweep_batches, traffic
from simulator.offload.tiered_step.plan import Plan
from simulator.offload.tiered_step.units import Level, Unit
from simulator.offload.tiers import DRAM, GPU, NVME

SLIGHT = 1e-5
"""Weight of moving and repeating beside that of time: of equal times the one that does least of them is taken."""
FORWARD, BACKWARD = -2, -1
"""Columns of the times of both passes, behind those of levels and tiers."""


def balanced(plan: Plan, moving: Sequence[int]) -> tuple[Kept, ...]:
    """Return what each unit keeps and where, so that a sweep takes least.

    A linear program over shares of units at each level of recomputation and bytes on each tier. It minimises the forward and the
    backward time, each the longest of computation (recomputation included), both directions of the GPU's link and both of
    flash, within the room of each memory: the model of Liao et al. 2024 (Fuyou, arXiv:2403.06504) with more tiers and levels.
    Shares are rounded to units. If nothing fits, all that can be is computed again, and the ledger says what is missing.

    Parameters
    ----------
    plan : Plan
        What is trained.
    moving : sequence of int
        Units whose activations may leave.
    """
    units = [plan.units[index] for index in moving]
    if not units:
        return tuple(Kept(unit.levels[0], {GPU: 1.0}) for unit in plan.units)
    program = _Program(plan, units)
    found = program.solved()
    if found is None:
        last = {kind: (unit.levels[-1],) * count for kind, (unit, count) in program.kinds.items()}
        return _assigned(plan, moving, last, {GPU: 1.0})
    levels = {
        kind: _rounded(
            unit.levels, [found[i] for i, (other, _) in enumerate(program.columns) if other == kind], count
        )
        for kind, (unit, count) in program.kinds.items()
    }
    size = {tier: found[column] * program.unit / program.repeats for tier, column in program.at.items()}
    return _assigned(plan, moving, levels, size)


Row = npt.NDArray[np.float64]


@dataclass
class _Program:
    """Variables: share of each kind of unit at each level, bytes on each tier in ``unit``, seconds of both passes."""

    plan: Plan
    units: Sequence[Unit]
    rows: list[Row] = field(default_factory=list)
    bounds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.repeats = sweep_batches(self.plan)
        numbers = [unit.kind for unit in self.units]
        self.kinds = {unit.kind: (unit, numbers.count(unit.kind)) for unit in reversed(self.units)}
        self.columns = [(kind, level) for kind, (unit, _) in self.kinds.items() for level in unit.levels]
        many = [self.kinds[kind][1] * self.repeats for kind, _ in self.columns]
        self.size = np.array([level.saved for _, level in self.columns]) * many
        self.again = np.array([level.seconds for _, level in self.columns]) * many
        self.unit = float(self.size.max())
        tiers = [tier for tier in (GPU, DRAM, NVME) if tier in self.plan.tiers.pools]
        self.at = {tier: len(self.columns) + i for i, tier in enumerate(tiers)}
        self.width = len(self.columns) + len(tiers) + 2

    def solved(self) -> list[float] | None:
        """Return the variables, or nothing where no choice fits."""
        from scipy.optimize import linprog

        self._times()
        equal = np.zeros((len(self.kinds) + 1, self.width))
        for row, kind in zip(equal, self.kinds, strict=False):
            row[[i for i, (other, _) in enumerate(self.columns) if other == kind]] = 1.0
        equal[-1, : len(self.columns)] = self.size / self.unit
        equal[-1, list(self.at.values())] = -1.0
        room = room_for_activations(self.plan)
        limits: list[tuple[float, float | None]] = [(0.0, 1.0)] * len(self.columns)
        # shares become whole activations, of which one may be over
        piece = max(level.saved for _, level in self.columns)
        limits += [
            (0.0, max(0.0, room[tier] - (piece if tier != GPU else 0.0)) / self.unit) for tier in self.at
        ]
        limits += [(0.0, None), (0.0, None)]
        found = linprog(
            self._worth(), A_ub=np.array(self.rows), b_ub=np.array(self.bounds), A_eq=equal,
            b_eq=np.append(np.ones(len(self.kinds)), 0.0), bounds=limits, method="highs",
        )  # fmt: skip
        if found.status != 0 or found.x is None:
            return None
        values: list[float] = found.x.tolist()
        return values

    def _times(self) -> None:
        """Both passes last at least as long as each processor and link works."""
        plan, at = self.plan, self.at
        other = traffic(plan)
        forward = self.repeats * sum(unit.forward.time(0) for unit in plan.units)
        backward = self.repeats * sum(unit.backward.time(0) for unit in plan.units)
        self._at_least(FORWARD, forward, {})
        self._at_least(BACKWARD, backward, dict(enumerate(self.again)))
        away = {tier: column for tier, column in at.items() if tier != GPU}
        out = {column: self.unit / _own_rate(plan, tier, out=True) for tier, column in away.items()}
        back = {column: self.unit / _own_rate(plan, tier, out=False) for tier, column in away.items()}
        self._at_least(FORWARD, other["d2h", "forward"], out)
        self._at_least(FORWARD, other["h2d", "forward"], {})
        self._at_least(BACKWARD, other["d2h", "backward"], {})
        self._at_least(BACKWARD, other["h2d", "backward"], back)
        if NVME in at:
            written, read = self.unit / rate_to(plan, NVME), self.unit / rate_between(plan, NVME, GPU)
            self._at_least(FORWARD, other["write", "forward"], {at[NVME]: written})
            self._at_least(FORWARD, other["read", "forward"], {})
            self._at_least(BACKWARD, other["write", "backward"], {})
            self._at_least(BACKWARD, other["read", "backward"], {at[NVME]: read})

    def _at_least(self, time: int, fixed: float, terms: Mapping[int, float]) -> None:
        row = np.zeros(self.width)
        row[time] = -1.0
        for column, value in terms.items():
            row[column] += value
        self.rows.append(row)
        self.bounds.append(-fixed)

    def _worth(self) -> Row:
        worth = np.zeros(self.width)
        worth[[FORWARD, BACKWARD]] = 1.0
        worth[: len(self.columns)] = SLIGHT * self.again
        longest = max(-bound for bound in self.bounds)
        for tier, column in self.at.items():
            worth[column] = SLIGHT * longest * {GPU: 0.0, DRAM: 1.0, NVME: 2.0}[tier]
        return worth


def _own_rate(plan: Plan, tier: str, *, out: bool) -> float:
    """Rate of the GPU's own link to a tier [B/s]."""
    direct = plan.strategy.direct_storage or not plan.tiers.staged
    near = NVME if tier == NVME and direct else DRAM
    pair = (GPU, near) if out else (near, GPU)
    return plan.tiers.channels[pair].rate


def _rounded(levels: Sequence[Level], shares: Sequence[float], count: int) -> tuple[Level, ...]:
    """Return a level for each of ``count`` units: those that keep least first, since they wait longest."""
    ends = np.round(np.cumsum(shares[::-1]) / sum(shares) * count).astype(int)
    found: list[Level] = []
    for level, end in zip(levels[::-1], ends.tolist(), strict=True):
        found += [level] * (end - len(found))
    return tuple(found)


def _assigned(
    plan: Plan, moving: Sequence[int], levels: Mapping[int, Sequence[Level]], size: Mapping[str, float]
) -> tuple[Kept, ...]:
    """Give each unit its level; the last ones stay on the GPU as far as they fit, the others share the tiers."""
    kept = [Kept(unit.levels[0], {GPU: 1.0}) for unit in plan.units]
    used = dict.fromkeys(levels, 0)
    chosen: dict[int, Level] = {}
    for index in moving:
        kind = plan.units[index].kind
        chosen[index] = levels[kind][used[kind]]
        used[kind] += 1
    total = sum(size.get(tier, 0.0) for tier in (DRAM, NVME))
    left = size.get(GPU, 0.0) if total else float("inf")
    for index in reversed(moving):
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
