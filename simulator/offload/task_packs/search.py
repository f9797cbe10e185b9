"""The fastest schedule: every pair of micro-batch sizes, packs of every kind that fit, the least simulated time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from simulator.engine import Timeline, execute
from simulator.offload.columns import BOTTLENECKS
from simulator.offload.task_packs.layers import Layers, known_micro_batches
from simulator.offload.task_packs.lower import Lowered, lower
from simulator.offload.task_packs.packing import Pack, Schedule, pack, reused
from simulator.offload.task_packs.server import Server
from simulator.offload.task_packs.tasks import (
    BACKWARD,
    FORWARD,
    Task,
    all_reduce_time,
    order,
    reserved_memory,
)
from simulator.specs import MemroofError, TaskPacksScenario, TaskPacksStrategy
from simulator.specs.task_packs_scenario import PackMethod

TRIES = 8
"""How often packs are cut anew under a limit lowered by what buffers beside them would exceed the memory."""


@dataclass(frozen=True)
class Candidate:
    """A schedule and how long it takes."""

    schedule: Schedule
    bound: float
    """Seconds that it takes at least: computation, all-reduce and deletion on the busiest GPU."""
    time: float | None = None
    """Simulated; None where the bound alone ruled it out."""


@dataclass(frozen=True)
class Found:
    """The fastest schedule, how it ran, and what it was compared with."""

    schedule: Schedule
    lowered: Lowered
    timeline: Timeline
    tried: tuple[Candidate, ...]


def samples_of(scenario: TaskPacksScenario, gpus: int) -> int:
    """Return the samples that one GPU takes through each pack: its share, or in a pipeline the whole minibatch.

    Raises
    ------
    MemroofError
        If the minibatch cannot be shared evenly.
    """
    minibatch = scenario.workload.minibatch
    if scenario.strategy.mode == "pipeline":
        return minibatch
    if minibatch % gpus:
        raise MemroofError(
            f"workload.minibatch: {minibatch} samples cannot be shared evenly by {gpus} GPUs; choose a multiple of {gpus}"
        )
    return minibatch // gpus


def search(scenario: TaskPacksScenario, layers: Layers, server: Server, capacity: float) -> Found | None:
    """Return the fastest schedule that fits; None if none does.

    Schedules are simulated in the order of their lower bounds, until the next bound exceeds the best time.

    Parameters
    ----------
    scenario : TaskPacksScenario
        What is fixed of the schedule, and what is searched.
    layers, server : Layers, Server
        What runs, and where; of equal GPUs one.
    capacity : float
        Bytes of a GPU, where the scenario sets packs no limit.

    Raises
    ------
    MemroofError
        If what is fixed contradicts itself or the minibatch.
    """
    strategy, minibatch = scenario.strategy, scenario.workload.minibatch
    bounded: list[tuple[float, int, Schedule, tuple[Task, ...]]] = []
    for schedule in candidates(scenario, layers, server.gpus, capacity):
        tasks = order(schedule, minibatch, server.gpus, strategy.mode)
        bounded.append((_bound(layers, server, tasks, strategy), len(bounded), schedule, tasks))
    best: tuple[float, Schedule, Lowered, Timeline] | None = None
    tried = []
    for bound, _, schedule, tasks in sorted(bounded, key=lambda item: item[:2]):
        if best is not None and bound >= best[0]:
            tried.append(Candidate(schedule, bound))
            continue
        lowered = lower(
            scenario.name, layers, server, tasks, prefetch=strategy.prefetch, overhead=strategy.task_overhead
        )
        timeline = execute(lowered.program)
        tried.append(Candidate(schedule, bound, timeline.makespan))
        if best is None or timeline.makespan < best[0]:
            best = (timeline.makespan, schedule, lowered, timeline)
    return Found(best[1], best[2], best[3], tuple(tried)) if best else None


def candidates(scenario: TaskPacksScenario, layers: Layers, gpus: int, capacity: float) -> Iterator[Schedule]:
    """Yield the schedules that fit, each once: forward micro-batches are no smaller than backward ones."""
    strategy, share = scenario.strategy, samples_of(scenario, gpus)
    sizes = {
        which: known_micro_batches(layers, share, which, asked, f"strategy.{which}_micro_batch")
        for which, asked in (
            (FORWARD, strategy.forward_micro_batch),
            (BACKWARD, strategy.backward_micro_batch),
        )
    }
    if max(sizes[FORWARD], default=0) < min(sizes[BACKWARD], default=0):
        raise MemroofError(
            f"strategy.forward_micro_batch: {max(sizes[FORWARD])} is below the backward micro-batch; "
            f"expected at least {min(sizes[BACKWARD])}"
        )
    if "greedy" in strategy.packing and (strategy.forward_packs is not None or strategy.backward_packs):
        raise MemroofError(
            "strategy.packing: greedy finds the count of packs itself; leave out forward_packs and backward_packs"
        )
    seen: set[tuple[int, tuple[Pack, ...], int, tuple[Pack, ...]]] = set()
    for backward in sizes[BACKWARD]:
        for method in dict.fromkeys(strategy.packing):
            for forward in sizes[FORWARD]:
                if forward < backward:
                    continue
                for schedule in _schedules(layers, strategy, forward, backward, method, capacity):
                    key = (forward, schedule.forward_packs, backward, schedule.backward_packs)
                    if key not in seen:
                        seen.add(key)
                        yield schedule


def _schedules(
    layers: Layers,
    strategy: TaskPacksStrategy,
    forward: int,
    backward: int,
    method: PackMethod,
    capacity: float,
) -> Iterator[Schedule]:
    """Yield the schedules of two micro-batch sizes with the backward packs of one kind."""
    ways: tuple[PackMethod | None, ...] = (*dict.fromkeys(strategy.packing), None)
    for way in ways:
        limit = strategy.memory_limit or capacity
        for _ in range(TRIES):
            schedule = _packed(layers, strategy, forward, backward, method, way, limit)
            if schedule is None:
                break
            # a limit that is given is a limit of packs; a GPU's memory must hold the buffers beside them too
            excess = 0.0 if strategy.memory_limit else reserved_memory(layers, schedule) - capacity
            if excess <= 0.0:
                yield schedule
                break
            limit -= excess


def _packed(
    layers: Layers,
    strategy: TaskPacksStrategy,
    forward: int,
    backward: int,
    method: PackMethod,
    way: PackMethod | None,
    limit: float,
) -> Schedule | None:
    """Pack backward by ``method`` and forward by ``way``, or as backward where that is None."""
    if limit <= 0.0:
        return None
    table = layers.at(backward)
    packs = pack(method, table, BACKWARD, layers.count, limit, strategy.backward_packs)
    if packs is None or (len(packs) == 1 and forward != backward):
        return None
    before, earlier = packs[-1][0], layers.at(forward)
    if way is None:
        first = reused(packs[:-1], earlier, FORWARD, limit)
        fixed = strategy.forward_packs
        if first is not None and fixed is not None and len(first) != fixed:
            first = None
    else:
        first = pack(way, earlier, FORWARD, before, limit, strategy.forward_packs)
    if first is None:
        return None
    return Schedule(forward, first, backward, packs, f"{way or 'as backward'}, {method}")


def _bound(layers: Layers, server: Server, tasks: tuple[Task, ...], strategy: TaskPacksStrategy) -> float:
    seconds = [0.0] * len(server.ranks)
    for task in tasks:
        low, high = task.pack
        table = layers.at(task.micro_batch)
        rows = table.forward[low:high] + (table.backward[low:high] if task.which == BACKWARD else 0.0)
        seconds[task.rank] += task.count * float(rows[:, : len(BOTTLENECKS)].sum()) + strategy.task_overhead
        if task.which == BACKWARD and server.twins > 1:
            size = float(layers.gradients[low:high].sum())
            seconds[task.rank] += all_reduce_time(size, server.twins, server.peer_rate)
    return max(seconds)
