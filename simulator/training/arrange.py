"""Where ranks run and how unequal accelerators share the work: placement, balanced layers, batches and states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from simulator.cost import collective_traffic, peak_flops
from simulator.graph import Collective
from simulator.specs import Hardware, TrainingScenario
from simulator.strategy import Setup
from simulator.training.balance import balance_batch, balance_layers, state_shares, uneven_collective
from simulator.training.lower import Replica
from simulator.training.placement import Exchange, Load, place, rank_grid
from simulator.training.plan import Plan, given_layers, table_of
from simulator.training.schedules import in_flight
from simulator.training.work import Message, StageWork

if TYPE_CHECKING:
    from simulator.training.step import Step

CUT = {
    1: ("optimizer states",),
    2: ("optimizer states", "gradients"),
    3: ("optimizer states", "gradients", "weights"),
}
"""What is cut over replicas, by ZeRO stage."""


@dataclass(frozen=True, slots=True)
class ReplicaKind:
    """Replicas of the model that do the same."""

    devices: tuple[str, ...]
    """The slowest accelerator of each stage."""
    capacities: tuple[float, ...]
    """The least memory of any of its accelerators, by stage [B]."""
    micro_batches: int
    replicas: tuple[int, ...]
    label: str = ""


def replica_kinds(plan: Plan, hardware: Hardware) -> tuple[ReplicaKind, ...]:
    """Return the kinds of replicas of a plan: one where accelerators are equal and batches too."""
    counts = plan.batches or (plan.micro_batches,) * plan.data
    if not hardware.others:
        device, capacity = hardware.device.name, float(hardware.memory.capacity)
        keys = {
            count: ((device,) * plan.pipeline, (capacity,) * plan.pipeline, count) for count in set(counts)
        }
        found = [keys[count] for count in counts]
    else:
        grid = rank_grid(plan.groups)
        found = []
        for replica, count in enumerate(counts):
            stages = [
                _stage(plan, hardware, grid[stage, replica].ravel().tolist())
                for stage in range(plan.pipeline)
            ]
            found.append((tuple(name for name, _ in stages), tuple(room for _, room in stages), count))
    members: dict[tuple[tuple[str, ...], tuple[float, ...], int], list[int]] = {}
    for replica, key in enumerate(found):
        members.setdefault(key, []).append(replica)
    labels = [_label(group) for group in members.values()] if len(members) > 1 else [""]
    return tuple(
        ReplicaKind(*key, tuple(group), label)
        for (key, group), label in zip(members.items(), labels, strict=True)
    )


def least_memory(hardware: Hardware) -> float:
    """Return the least memory of any accelerator [B]."""
    if not hardware.others:
        return float(hardware.memory.capacity)
    firsts = np.cumsum([0, *(len(part.machine.ranks) * part.nodes for part in hardware.parts[:-1])])
    ranks = range(hardware.size) if hardware.order else firsts.tolist()
    return min(float(hardware.memory_of(rank).capacity) for rank in ranks)


def _label(replicas: Sequence[int]) -> str:
    more = f" and {len(replicas) - 1} more" if len(replicas) > 1 else ""
    return f"replica {replicas[0]}{more},"


def _stage(plan: Plan, hardware: Hardware, ranks: Sequence[int]) -> tuple[str, float]:
    devices = {hardware.device_of(rank).name: hardware.device_of(rank) for rank in ranks}
    slowest = min(devices.values(), key=lambda device: float(peak_flops(device, plan.numerics.compute)))
    return slowest.name, min(float(hardware.memory_of(rank).capacity) for rank in ranks)


def arranged(
    setup: Setup, scenario: TrainingScenario, plan: Plan, make: Callable[[Setup, Plan, str], Step]
) -> tuple[Setup, Plan]:
    """Place ranks and balance layers and batches as a strategy asks.

    Parameters
    ----------
    setup, scenario, plan
        Ranks in order, layers and batches even.
    make : function
        Returns the step of a setup and plan on a kind of accelerator.
    """
    strategy = scenario.strategy
    if strategy.placement == "annealed":
        step = make(setup, plan, "")
        placed = place(
            plan.groups,
            _loads(step),
            setup.hardware,
            seed=strategy.placement_seed,
            wraps=plan.table.chunks > 1,
        )
        setup = replace(setup, hardware=placed.hardware)
    if strategy.layer_split == "balanced":
        plan = replace(plan, layers=given_layers(_balanced_layers(setup, plan, make)))
    if strategy.batch_split == "balanced":
        batches = _balanced_batches(setup, scenario, plan, make)
        most = max(batches)
        table = table_of(strategy, plan.pipeline, most)
        plan = replace(
            plan, batches=batches if len(set(batches)) > 1 else None, micro_batches=most, table=table
        )
    return setup, plan


def _loads(step: Step) -> Mapping[Exchange, Load]:
    """What one rank sends in a step for each kind of parallelism."""
    plan = step.plan
    sent: dict[str, float] = {"tensor": 0.0, "context": 0.0, "expert": 0.0}
    hops = dict.fromkeys(sent, 0.0)
    for block, count in step.graph.all_blocks:
        for op in block.operators:
            for work in (*op.forward, *op.backward):
                if isinstance(work, Collective) and work.axis in sent and step.spans[work.axis].size > 1:
                    times = count * plan.micro_batches / plan.pipeline
                    traffic = collective_traffic(work.kind, step.spans[work.axis], float(work.size))
                    sent[work.axis] += times * float(sum(traffic))
                    hops[work.axis] += times
    loads: dict[Exchange, Load] = {
        name: Load(sent[name], hops[name]) for name in ("tensor", "context", "expert")
    }
    boundary = next(iter(step.boundaries().values()), None)
    if boundary is not None:
        passes = 2.0 * plan.micro_batches * plan.table.chunks
        loads["pipeline"] = Load(passes * boundary.size, passes)
    stage = step.stage(0)
    layers = [
        message for chunk in stage.messages for layer in chunk for message in (*layer.reduce, *layer.gather)
    ]
    messages = [*stage.reduction, *stage.gather, *layers]
    loads["data"] = Load(sum(message.size for message in messages), float(len(messages)))
    return loads


def _balanced_layers(setup: Setup, plan: Plan, make: Callable[[Setup, Plan, str], Step]) -> tuple[int, ...]:
    kinds = replica_kinds(plan, setup.hardware)
    stages = range(plan.pipeline)
    steps = {name: make(setup, plan, name) for kind in kinds for name in kind.devices}
    layers = len(steps[kinds[0].devices[0]].graph.layers)
    seconds, held = np.zeros((plan.pipeline, layers)), np.zeros((plan.pipeline, layers))
    fixed, fixed_bytes = np.zeros(plan.pipeline), np.zeros(plan.pipeline)
    for stage in stages:
        waiting = in_flight(plan.table.orders[stage]) / plan.table.chunks
        for step in {kind.devices[stage]: steps[kind.devices[stage]] for kind in kinds}.values():
            resident = step.resident(stage)
            elements = step.elements(stage)
            each = sum(resident[name] for name in CUT[3]) / float(elements.dense + elements.expert)
            for index, kind in enumerate(step.graph.layers):
                block = step.graph.blocks[kind]
                own = step.pricer.layer(block, step.repeated(block))
                time = sum(max(passed.host, passed.device) for passed in own.issued.values())
                seconds[stage, index] = max(seconds[stage, index], time)
                size = float(block.parameters) * each + waiting * float(own.memory.saved)
                held[stage, index] = max(held[stage, index], size)
            ends = [step.graph.embedding] * (stage == 0) + [step.graph.head] * (stage == plan.pipeline - 1)
            priced = [step.pricer.layer(block) for block in ends]
            own_fixed = sum(float(part.time) for layer in priced for part in layer.times.values())
            fixed[stage] = max(fixed[stage], own_fixed)
            others = sum(size for name, size in resident.items() if name not in CUT[3])
            own_bytes = others + sum(float(block.parameters) for block in ends) * each
            own_bytes += sum(
                waiting * float(layer.memory.saved) + float(layer.memory.backward_peak) for layer in priced
            )
            fixed_bytes[stage] = max(fixed_bytes[stage], own_bytes)
    capacity = np.array([min(kind.capacities[stage] for kind in kinds) for stage in stages])
    return balance_layers(
        seconds, held, capacity, micro_batches=plan.micro_batches, fixed_seconds=fixed, fixed_bytes=fixed_bytes,
        chunks=plan.table.chunks,
    )  # fmt: skip


def _balanced_batches(
    setup: Setup, scenario: TrainingScenario, plan: Plan, make: Callable[[Setup, Plan, str], Step]
) -> tuple[int, ...]:
    kinds = replica_kinds(plan, setup.hardware)
    steps = {name: make(setup, plan, name) for kind in kinds for name in kind.devices}
    slowest, fill = np.zeros(plan.data), np.zeros(plan.data)
    for kind in kinds:
        passes = [
            sum(
                steps[device].chunk(place).seconds(part)
                for place in plan.held(stage)
                for part in steps[device].pricer.parts
            )
            for stage, device in enumerate(kind.devices)
        ]
        slowest[list(kind.replicas)] = max(passes)
        fill[list(kind.replicas)] = sum(passes) - max(passes)
    return balance_batch(
        slowest, scenario.workload.global_batch // scenario.strategy.micro_batch, fixed_seconds=fill
    )


def shared_by_memory(step: Step, kinds: Sequence[ReplicaKind], replicas: Sequence[Replica]) -> list[Replica]:
    """Share the states that are cut over replicas out by what memory each rank has left, stage by stage."""
    cut = CUT[step.strategy.zero_stage]
    context = step.plan.context
    stages: list[list[StageWork]] = [list(replica.stages) for replica in replicas]
    for index in range(step.plan.pipeline):
        works = [replica.stages[index] for replica in replicas]
        counts = [len(kind.replicas) * context for kind in kinds]
        even = [sum(work.resident[name] for name in cut) for work in works]
        free = [
            work.capacity - sum(work.resident.values()) + own - _passing(work)
            for work, own in zip(works, even, strict=True)
        ]
        total = float(np.dot(counts, even))
        shares = state_shares(np.repeat(free, counts), total)
        slower = uneven_collective(shares)
        firsts = np.cumsum([0, *counts[:-1]])
        for place_, work in enumerate(works):
            factor = shares[firsts[place_]] * total / even[place_]
            stages[place_][index] = _reshared(work, cut, float(factor), slower)
    return [replace(replica, stages=own) for replica, own in zip(replicas, stages, strict=True)]


def _passing(work: StageWork) -> float:
    """Bytes of activations that a stage holds at most."""
    held = in_flight(work.schedule) / len(work.chunks)
    saved = sum(float(chunk.memory.saved) for chunk in work.chunks)
    return held * saved + max(float(max(c.memory.forward_peak, c.memory.backward_peak)) for c in work.chunks)


def _reshared(work: StageWork, cut: Sequence[str], factor: float, slower: float) -> StageWork:
    def longer(messages: tuple[Message, ...]) -> tuple[Message, ...]:
        return tuple(replace(message, rate=message.rate / slower) for message in messages)

    resident = {name: size * factor if name in cut else size for name, size in work.resident.items()}
    layers = tuple(
        tuple(replace(layer, gather=longer(layer.gather), reduce=longer(layer.reduce)) for layer in chunk)
        for chunk in work.messages
    )
    return replace(
        work, resident=resident, messages=layers, reduction=longer(work.reduction), gather=longer(work.gather)
    )
