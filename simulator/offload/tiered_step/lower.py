"""Lower one training step to a Program: passes of units in order, and all that moves for them on every GPU.

Parameters that are not on the GPU come in before a unit's passes, up to some layers ahead; activations leave behind the forward
pass and come back ahead of the backward pass; gradients leave behind it. What CPUs update is in
:mod:`simulator.offload.tiered_step.update`.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from simulator.offload.columns import Price
from simulator.offload.emit import Emitter, all_channels
from simulator.offload.tiered_step.kept import Kept, room_for_activations
from simulator.offload.tiered_step.ledger import activation_buffers, sweep_batches
from simulator.offload.tiered_step.plan import Plan
from simulator.offload.tiered_step.routes import Moved, Routes
from simulator.offload.tiered_step.update import Updates
from simulator.offload.tiers import CXL, GPU

GRADIENT_BUFFERS = 2
"""Units whose gradients may be on a GPU at once where they leave it: one fills, one empties."""
Key = tuple[int, int]
"""A unit and a micro-batch."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One pass of a micro-batch through a unit, and the run of visits that use the same parameters."""

    backward: bool
    unit: int
    batch: int
    run: int


@dataclass(slots=True)
class Lowered:
    """The program of a step and where its parts are."""

    emit: Emitter
    forwards: list[int] = field(default_factory=list)
    """Forward passes on the first GPU."""
    backwards: list[int] = field(default_factory=list)
    stores: dict[Key, int] = field(default_factory=dict)
    """By unit and micro-batch, the last task of a store on the first GPU."""
    gates: dict[Key, int] = field(default_factory=dict)
    """The pass whose end lets the same activations be fetched; -1 where nothing holds that up."""
    stored: float = 0.0
    """Bytes of activations of one GPU that leave it."""


def lower(plan: Plan, kept: Sequence[Kept], forwarded: Set[Key] = frozenset()) -> Lowered:
    """Return the program of a step.

    Parameters
    ----------
    plan : Plan
        What is trained.
    kept : sequence of Kept
        What each unit keeps, and where.
    forwarded : set of (unit, micro-batch)
        Activations that are needed while their store is under way, and used where they are.
    """
    return _Step(plan, kept, forwarded).lowered()


def visits(plan: Plan) -> tuple[Visit, ...]:
    """Return the passes of a step in the order in which a GPU runs them."""
    last = len(plan.units) - 1
    batches = range(plan.micro_batches)
    order: list[tuple[bool, int, int]] = []
    if plan.strategy.accumulation == "layer":
        order += [(False, unit, batch) for unit in range(last) for batch in batches]
        order += [(backward, last, batch) for batch in batches for backward in (False, True)]
        order += [(True, unit, batch) for unit in range(last - 1, -1, -1) for batch in batches]
    else:
        for batch in batches:
            order += [(False, unit, batch) for unit in range(last + 1)]
            order += [(True, unit, batch) for unit in range(last, -1, -1)]
    found: list[Visit] = []
    run = -1
    for backward, unit, batch in order:
        run += not found or found[-1].unit != unit
        found.append(Visit(backward, unit, batch, run))
    return tuple(found)


class _Step:
    def __init__(self, plan: Plan, kept: Sequence[Kept], forwarded: Set[Key]) -> None:
        self.plan, self.kept, self.forwarded = plan, kept, forwarded
        # of memories that CPUs update in, only CXL's way is not among the tiers' own
        extra = [plan.updates[CXL][0]] if CXL in plan.updates else []
        self.emit = Emitter(plan.name, plan.ranks, channels=(*all_channels(plan.ranks), *extra))
        self.routes = Routes(plan, self.emit)
        self.updates = Updates(plan, self.emit, self.routes)
        self.visits = visits(plan)
        self.window = plan.strategy.prefetch * plan.layer_units
        self.ranks = range(len(plan.ranks))
        self.ends: list[list[int]] = []
        """By run, the last pass of each GPU."""
        self.ready: dict[int, list[list[int]]] = {}
        """By run, what each GPU's parameters arrive with."""
        self.buffers: dict[int, list[tuple[int, int, float]]] = {}
        """By run, buffers of parameters: GPU, task that fills it, bytes."""
        self.passes: list[list[int]] = []
        """By visit, the pass of each GPU."""
        self.stores: dict[Key, list[Moved]] = {}
        self.loads: dict[Key, list[Moved]] = {}
        self.latest: dict[int, list[int]] = {}
        """By micro-batch, its latest pass on each GPU."""
        self.starts: dict[Key, list[int]] = {}
        """By unit and micro-batch, the forward pass on each GPU."""
        self.first: dict[int, int] = {}
        """First visit of each run."""
        for index, visit in enumerate(self.visits):
            self.first.setdefault(visit.run, index)
        self.done = Lowered(self.emit)
        self.prices: dict[tuple[int, int], Price] = {}
        self.in_flight = self._in_flight()

    def lowered(self) -> Lowered:
        """Emit everything."""
        self._resident()
        if self.plan.strategy.update == "delayed":
            self.updates.previous()
        runs = self.visits[-1].run + 1
        fetched = 0
        loaded = 0
        for index, visit in enumerate(self.visits):
            while fetched < min(runs, visit.run + self.window + 1):
                self._fetch(fetched)
                fetched += 1
            while loaded < min(len(self.visits), index + self.window + 1) and self._stored(loaded):
                self._load(loaded)
                loaded += 1
            self._pass(index, visit)
        if self.plan.strategy.update == "step":
            self.updates.all(self.passes[-1])
        self.updates.finish()
        return self.done

    # --- what stays ------------------------------------------------------------------------------------------------------

    def _resident(self) -> None:
        plan, keep = self.plan, self.emit.keep
        for unit in plan.units:
            for key, width, shares, cut in (
                ("parameters", plan.widths.parameter, plan.place.parameters, 1),
                ("optimizer states", plan.widths.state, plan.place.states, plan.cuts),
            ):
                for tier, share in shares.items():
                    size = unit.parameters * width * share
                    name = f"{key} of {unit.name}"
                    if tier != GPU:
                        keep(tier, size * plan.tensor, key, name)
                        continue
                    for rank in self.ranks:
                        keep(GPU, size / cut, key, name, rank=rank)

    # --- parameters ------------------------------------------------------------------------------------------------------

    def _fetch(self, run: int) -> None:
        """Bring the parameters of a run to all GPUs, each its share, and gather them where replicas share them."""
        plan = self.plan
        away = {tier: share for tier, share in plan.place.parameters.items() if tier != GPU}
        unit = plan.units[self.visits[self.first[run]].unit]
        self.ready[run] = [[] for _ in self.ranks]
        if not away:
            return
        vacated = run - self.window - 1
        size = unit.needed * plan.widths.parameter
        shared: dict[str, list[int]] = {}
        tasks: list[list[int]] = []
        for rank in self.ranks:
            free = [self.ends[vacated][rank]] if vacated >= 0 else []
            found: list[int] = []
            for tier, share in away.items():
                part = size * share / plan.cuts
                moved = self.routes.fetch(
                    tier, part, free, "weights", f"{unit.name}: parameters", rank, shared=shared if plan.cuts == 1 else None
                )  # fmt: skip
                found.append(moved.last)
            tasks.append(found)
            buffer = size * sum(away.values()) / plan.strategy.parameter_tiles
            self.buffers.setdefault(run, []).append((rank, found[0], buffer))
        if plan.cuts > 1:
            every = [task for found in tasks for task in found]
            gathered = self.updates.collective(
                "all-gather", size * sum(away.values()), every, f"{unit.name}: gather"
            )
            tasks = [[gathered]] * len(tasks)
        self.ready[run] = tasks

    # --- passes ----------------------------------------------------------------------------------------------------------

    def _pass(self, index: int, visit: Visit) -> None:
        plan, unit, kept = self.plan, self.plan.units[visit.unit], self.kept[visit.unit]
        word = "backward" if visit.backward else "forward"
        name = f"{unit.name}: {word}" + (f" {visit.batch}" if plan.micro_batches > 1 else "")
        key = (visit.unit, visit.batch)
        tasks: list[int] = []
        for rank in self.ranks:
            after = list(self.ready[visit.run][rank])
            if visit.backward:
                price = self._backward_price(visit.unit)
                after += [self.loads[key][rank].last] if key in self.loads else []
                left = self.updates.left
                after += [left[-GRADIENT_BUFFERS][rank]] if len(left) >= GRADIENT_BUFFERS else []
            else:
                price = unit.forward
                after += self._room(index, rank)
            tasks.append(self.emit.compute(price, 0, after, word, name, rank=rank))
        self.passes.append(tasks)
        if index + 1 == len(self.visits) or self.visits[index + 1].run != visit.run:
            self.ends.append(tasks)
            for rank, task, size in self.buffers.pop(visit.run, []):
                self.emit.keep(
                    GPU,
                    size,
                    "buffers",
                    f"parameters of {unit.name}",
                    at=task,
                    until=[tasks[rank]],
                    rank=rank,
                )
        (self.done.backwards if visit.backward else self.done.forwards).append(tasks[0])
        self._workspace(visit, tasks)
        if visit.backward:
            self._dropped(key, kept, tasks)
            self.updates.gradients(visit.unit, visit.batch, tasks)
        else:
            self._store(key, kept, tasks)

    def _backward_price(self, unit: int) -> Price:
        found, level = self.plan.units[unit], self.kept[unit].level
        key = (found.kind, id(level))
        if key not in self.prices:
            self.prices[key] = found.backward + level.price
        return self.prices[key]

    def _workspace(self, visit: Visit, tasks: Sequence[int]) -> None:
        """Hold tensors inside a pass: in the backward pass those computed again, and gradients that mirror them."""
        unit, level = self.plan.units[visit.unit], self.kept[visit.unit].level
        size = max(0.0, unit.workspace - level.saved)
        if visit.backward:
            size = unit.workspace + max(0.0, unit.whole - level.saved)
        for rank, task in enumerate(tasks):
            self.emit.keep(
                GPU, size, "activations", f"tensors inside {unit.name}", at=task, until=[task], rank=rank
            )
        if visit.batch in self.latest:
            for rank, (task, start) in enumerate(zip(tasks, self.latest[visit.batch], strict=True)):
                self.emit.keep(
                    GPU,
                    self.plan.hidden_bytes,
                    "activations",
                    "hidden states",
                    at=start,
                    until=[task],
                    rank=rank,
                )
        self.latest[visit.batch] = list(tasks)

    # --- activations -----------------------------------------------------------------------------------------------------

    def _store(self, key: Key, kept: Kept, tasks: Sequence[int]) -> None:
        """Send what leaves behind a forward pass; what stays is held from here on."""
        name = f"activations of {self.plan.units[key[0]].name}"
        self.starts[key] = list(tasks)
        for tier, size in kept.away.items():
            for rank, task in enumerate(tasks):
                moved = self.routes.send(tier, size, [task], "activations", f"{name} to {tier}", rank)
                self.stores.setdefault(key, []).append(moved)
                if rank == 0:
                    self.done.stores[key] = moved.last
                    self.done.stored += size

    def _stored(self, index: int) -> bool:
        """Whether what a pass needs has been made: nothing is fetched before."""
        visit = self.visits[index]
        return not visit.backward or (visit.unit, visit.batch) in self.starts

    def _load(self, index: int) -> None:
        """Fetch what a backward pass needs, as soon as the pass that lies the window before it has ended."""
        visit = self.visits[index]
        key = (visit.unit, visit.batch)
        away = self.kept[visit.unit].away
        if not visit.backward or not away:
            return
        gate = index - self.window - 1
        self.done.gates[key] = self.passes[gate][0] if gate >= 0 else -1
        if key in self.forwarded:
            return
        name = f"activations of {self.plan.units[visit.unit].name}"
        for rank in self.ranks:
            after = [self.passes[gate][rank]] if gate >= 0 else []
            stored = [moved.last for moved in self.stores[key][rank :: len(self.plan.ranks)]]
            found = [
                self.routes.fetch(tier, size, [*after, *stored], "activations", f"{name} back", rank)
                for tier, size in away.items()
            ]
            last = found[-1].last if len(found) == 1 else self._joined([moved.last for moved in found])
            self.loads.setdefault(key, []).append(Moved(found[0].first, last))

    def _joined(self, tasks: Sequence[int]) -> int:
        """Return the task behind several."""
        shares = self.emit.shares[tasks[-1]]
        return self.emit.work(self.emit.stream("joins"), 0.0, shares, tasks, "activations", "all there")

    def _dropped(self, key: Key, kept: Kept, tasks: Sequence[int]) -> None:
        """Hold activations until their backward pass has used them."""
        name = f"activations of {self.plan.units[key[0]].name}"
        keep, starts = self.emit.keep, self.starts[key]
        count = len(self.plan.ranks)
        for rank, task in enumerate(tasks):
            keep(GPU, kept.resident, "activations", name, at=starts[rank], until=[task], rank=rank)
            for number, (tier, size) in enumerate(kept.away.items()):
                store = self.stores[key][number * count + rank]
                until = [store.left, task] if key in self.forwarded else [store.left]
                keep(GPU, size, "activations", f"{name}, leaving", at=starts[rank], until=until, rank=rank)
                keep(tier, size, "activations", name, at=store.arrives, until=[task], rank=rank)
                if key in self.loads:
                    load = self.loads[key][rank].first
                    keep(GPU, size, "activations", f"{name}, back", at=load, until=[task], rank=rank)

    def _in_flight(self) -> int:
        """Return how many forward passes may run ahead of the stores behind them, by the room that the GPU has."""
        sizes = [sum(kept.away.values()) for kept in self.kept]
        if not any(sizes):
            return 0
        leaving = (kept for kept in self.kept if kept.away)
        stays = sweep_batches(self.plan) * sum(kept.resident for kept in leaving)
        room = room_for_activations(self.plan)[GPU] - stays + activation_buffers(self.plan)
        return max(1, int(room // max(sizes)))

    def _room(self, index: int, rank: int) -> list[int]:
        """Return the store that must be done for a forward pass to have room."""
        back = index - self.in_flight
        if not self.in_flight or back < 0:
            return []
        visit = self.visits[back]
        found = self.stores.get((visit.unit, visit.batch))
        return [found[rank].left] if found and not visit.backward else []
