"""Gradients on their way to the optimizer, and the update: on the GPU what it holds, on CPUs the rest, by way of flash or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from simulator.graph.work import CollectiveKind
from simulator.offload.columns import Price
from simulator.offload.emit import Emitter
from simulator.offload.tiered_step.optimizer import FLOPS, cpu_peak
from simulator.offload.tiered_step.plan import Plan
from simulator.offload.tiered_step.routes import Routes
from simulator.offload.tiers import CXL, DRAM, GPU, NVME


@dataclass(frozen=True, slots=True)
class Held:
    """Gradients that wait in a tier, since some task."""

    tier: str
    size: float
    since: int
    rank: int


class Updates:
    """Emits what follows a backward pass."""

    def __init__(self, plan: Plan, emit: Emitter, routes: Routes) -> None:
        self.plan, self.emit, self.routes = plan, emit, routes
        self.ranks = range(len(plan.ranks))
        self.left: list[list[int]] = []
        """By buffer of gradients in order, the copies that empty it, of each GPU."""
        self.arrived: dict[int, list[int]] = {}
        """By unit, the tasks behind which its gradients are where they wait."""
        self.produced: dict[int, list[int]] = {}
        """By unit, the backward passes that first make its gradients, of each GPU."""
        self.written: list[list[int]] = []
        """By update in order, the copies of states back to flash."""
        self.held: dict[int, list[Held]] = {}
        """By unit, gradients that wait for its update."""
        self.prices: dict[tuple[object, ...], Price] = {}

    # --- gradients -------------------------------------------------------------------------------------------------------

    def gradients(self, unit: int, batch: int, passes: Sequence[int]) -> None:
        """Reduce what a backward pass made, send it to where it waits and, where layers are updated at once, update."""
        plan = self.plan
        last = batch == plan.micro_batches - 1
        self.produced.setdefault(unit, list(passes))
        by_batch = plan.strategy.accumulation == "batch" and plan.strategy.gradients != GPU
        if not last and not by_batch:
            return
        found = plan.units[unit]
        if not found.parameters:
            return
        size = found.parameters * plan.widths.gradient
        reduced: Sequence[int] = passes
        if plan.cuts > 1:
            reduced = [self.collective("reduce-scatter", size, passes, f"{found.name}: reduce")] * len(passes)
        self.arrived[unit] = self._leave(unit, size, passes, reduced, first=batch == 0 or not by_batch)
        if last and plan.strategy.update == "layer":
            self.update(unit, self.arrived[unit])

    def _leave(
        self, unit: int, size: float, passes: Sequence[int], reduced: Sequence[int], *, first: bool
    ) -> list[int]:
        plan, name = self.plan, self.plan.units[unit].name
        tier = plan.strategy.gradients
        if tier == GPU:
            for rank in self.ranks:
                self._hold(unit, GPU, size, self.produced[unit][rank], rank)
            return list(dict.fromkeys(reduced))
        found: list[int] = []
        shares = plan.place.gradients
        self.left.append([])
        for rank in self.ranks:
            sent = [
                self.routes.send(each, size * share / plan.cuts, [reduced[rank]], "gradients", f"{name}: gradients", rank)
                for each, share in shares.items()
            ]  # fmt: skip
            start = self.produced[unit][rank] if plan.strategy.accumulation == "layer" else passes[rank]
            until = [moved.left for moved in sent]
            self.left[-1].append(until[-1])
            buffer = size / plan.strategy.parameter_tiles
            self.emit.keep(GPU, buffer, "gradients", f"gradients of {name}", at=start, until=until, rank=rank)
            found += [moved.last for moved in sent]
        whole = size * plan.tensor
        copies = plan.data if plan.cuts < plan.data else 1
        if copies > 1 or not first:
            found = [self._add(whole, copies + (not first), found, f"{name}: gradients added")]
        if first:
            for each, share in shares.items():
                self._hold(unit, each, whole * share, found[0], 0)
        return found

    def _add(self, size: float, copies: int, after: Sequence[int], name: str) -> int:
        """Add gradients of replicas, or of a micro-batch to those before, on CPUs."""
        channel, rate = self.plan.updates[DRAM]
        return self.emit.transfer(channel, size * (copies + 1), rate, "cpu", after, "optimizer", name, "host")

    def collective(self, kind: str, size: float, after: Sequence[int], name: str) -> int:
        """Gather or reduce among replicas, all groups at once."""
        key = (kind, size)
        if key not in self.prices:
            self.prices[key] = self.plan.collective(cast(CollectiveKind, kind), size)
        price = self.prices[key]
        stream = self.emit.stream("collectives")
        return self.emit.work(
            stream, price.time(0), price.shares(0), list(dict.fromkeys(after)), "collective", name
        )

    # --- updates ---------------------------------------------------------------------------------------------------------

    def previous(self) -> None:
        """Update with the gradients of the step before, which wait in host memory."""
        plan = self.plan
        for unit in reversed(range(len(plan.units))):
            found = plan.units[unit]
            if not found.parameters:
                continue
            end = self.update(unit, [])
            for tier, share in plan.place.gradients.items():
                if tier != GPU:
                    size = found.parameters * plan.tensor * plan.widths.gradient * share
                    self.emit.keep(
                        tier, size, "gradients", f"gradients of {found.name}, step before", until=end
                    )

    def all(self, last: Sequence[int]) -> None:
        """Update all units behind the last backward pass."""
        for unit in list(self.arrived):
            self.update(unit, [*self.arrived[unit], *last])

    def update(self, unit: int, after: Sequence[int]) -> list[int]:
        """Update one unit; returns the tasks behind which it is done."""
        plan = self.plan
        on_gpu = plan.place.states.get(GPU, 0.0)
        done: list[int] = []
        if on_gpu > 0.0:
            done += self._on_gpu(unit, on_gpu, after)
        if on_gpu < 1.0:
            done += self._on_cpu(unit, after)
        self._release(unit, done)
        return done

    def finish(self) -> None:
        """Hold to the end what no update has used up."""
        for unit in list(self.held):
            self._release(unit, [])

    def _hold(self, unit: int, tier: str, size: float, since: int, rank: int) -> None:
        self.held.setdefault(unit, []).append(Held(tier, size, since, rank))

    def _release(self, unit: int, until: Sequence[int]) -> None:
        name = f"gradients of {self.plan.units[unit].name}"
        for held in self.held.pop(unit, []):
            self.emit.keep(
                held.tier, held.size, "gradients", name, at=held.since, until=until, rank=held.rank
            )

    def _on_gpu(self, unit: int, share: float, after: Sequence[int]) -> list[int]:
        plan, found = self.plan, self.plan.units[unit]
        elements = found.parameters * share / plan.cuts
        key = ("update", found.kind, share)
        if key not in self.prices:
            self.prices[key] = plan.gpu_update(elements)
        name = f"{found.name}: update"
        done = [
            self.emit.compute(self.prices[key], 0, after, "optimizer", name, rank=rank) for rank in self.ranks
        ]
        away = {tier: part for tier, part in plan.place.parameters.items() if tier != GPU}
        for tier, part in away.items():
            size = elements * part * plan.widths.parameter
            done = [
                self.routes.send(tier, size, [done[rank]], "weights", f"{name}, parameters back", rank).last
                for rank in self.ranks
            ]
        if plan.cuts > 1 and not away:
            size = found.parameters * share * plan.widths.parameter
            done = [self.collective("all-gather", size, done, f"{name}, gather")]
        return done

    def _on_cpu(self, unit: int, after: Sequence[int]) -> list[int]:
        """Read states from flash into a buffer, update, write them back and send parameters to where they lie."""
        plan, found, widths = self.plan, self.plan.units[unit], self.plan.widths
        away = 1.0 - plan.place.states.get(GPU, 0.0)
        elements = found.parameters * plan.tensor
        name = f"{found.name}: update"
        if plan.strategy.gradients == GPU:
            size = found.parameters * away * widths.gradient / plan.cuts
            after = [
                self.routes.send(DRAM, size, after, "gradients", f"{found.name}: gradients", rank).last
                for rank in self.ranks
            ]
        read = self._read(unit, elements, after, name)
        updated = self._computed(elements, away, [*after, *read], name)
        done = list(updated)
        states = plan.place.states.get(NVME, 0.0) * elements * widths.state
        parameters = plan.place.parameters.get(NVME, 0.0) * elements * widths.parameter * away
        if states or parameters:
            written = self.emit.copy(
                DRAM, NVME, states + parameters, updated, "states", f"{name}, written", queue="states dram to nvme"
            )  # fmt: skip
            start = read[0] if read else updated[0]
            self.emit.keep(
                DRAM, states + parameters, "buffers", f"states of {found.name}", at=start, until=[written]
            )
            self.written.append([written])
            done.append(written)
        return done + self._returned(unit, away, updated, name)

    def _read(self, unit: int, elements: float, after: Sequence[int], name: str) -> list[int]:
        """Fetch what lies in flash; states may come ahead of their gradients, as far as there are buffers."""
        plan = self.plan
        size = plan.place.states.get(NVME, 0.0) * elements * plan.widths.state
        found: list[int] = []
        before = len(self.written) - plan.strategy.state_buffers * plan.layer_units
        free = self.written[before] if before >= 0 else []
        queue = "states nvme to dram"
        # behind a step nothing is read before the update begins; inside the backward pass reading runs ahead
        start = [*free, *(after if plan.strategy.update == "step" else [])]
        if size:
            found.append(self.emit.copy(NVME, DRAM, size, start, "states", f"{name}, read", queue=queue))
        gradients = plan.place.gradients.get(NVME, 0.0) * elements * plan.widths.gradient
        if gradients:
            copy = self.emit.copy(
                NVME, DRAM, gradients, [*free, *after], "gradients", f"{name}, gradients", queue=queue
            )
            found.append(copy)
        return found

    def _computed(self, elements: float, away: float, after: Sequence[int], name: str) -> list[int]:
        """CPU work by memory in turn: cores wait for states and gradients, while stores of parameters to CXL are posted."""
        plan = self.plan
        traffic = update_traffic(plan, elements, away)
        seconds = elements * away * FLOPS[plan.strategy.optimizer] / self._peak()
        found: list[int] = []
        for tier, size in traffic.items():
            channel, rate = plan.updates[tier]
            least = seconds * size / sum(traffic.values())
            rate = min(rate, size / least) if least else rate
            found.append(self.emit.transfer(channel, size, rate, "cpu", after, "optimizer", name, "host"))
        posted = elements * away * plan.place.parameters.get(CXL, 0.0) * plan.widths.parameter
        if posted:
            channel, _ = plan.updates[CXL]
            task = self.emit.transfer(
                channel, posted, channel.rate, "cpu stores to cxl", after, "optimizer", f"{name}, stores", "host"
            )  # fmt: skip
            found.append(task)
        return found

    def _peak(self) -> float:
        host = self.plan.tiers.host
        return cpu_peak(host) if host is not None else 1.0

    def _returned(self, unit: int, away: float, updated: Sequence[int], name: str) -> list[int]:
        """Send updated parameters to GPUs that keep them: each its share, then a gather, or all of them."""
        plan, found = self.plan, self.plan.units[unit]
        share = plan.place.parameters.get(GPU, 0.0) * away
        if not share:
            return []
        size = found.parameters * share * plan.widths.parameter
        sent = [
            self.routes.fetch(
                DRAM, size / plan.cuts, updated, "weights", f"{name}, parameters back", rank
            ).last
            for rank in self.ranks
        ]
        if plan.cuts > 1:
            return [self.collective("all-gather", size, sent, f"{name}, gather")]
        return sent


def update_traffic(plan: Plan, elements: float, away: float) -> dict[str, float]:
    """Return the bytes that CPUs read and write to update some elements, by memory, stores of parameters to CXL left out.

    States are read and written, gradients read, 16-bit parameters written. What lies in flash or on GPUs is in DRAM meanwhile.
    """
    place, widths = plan.place, plan.widths
    found = {DRAM: 0.0, CXL: 0.0}
    for tier, share in place.states.items():
        if tier != GPU:
            found[CXL if tier == CXL else DRAM] += share * 2.0 * widths.state * elements
    for tier, share in place.gradients.items():
        found[CXL if tier == CXL else DRAM] += share * widths.gradient * away * elements
    found[DRAM] += (1.0 - place.parameters.get(CXL, 0.0)) * widths.parameter * away * elements
    return {tier: size for tier, size in found.items() if size}
