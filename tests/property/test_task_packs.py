"""Laws of task packs on random layers, schedules and servers: bytes are conserved, bounds never beaten."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "offload"))
from packs_toy import profile, server

from simulator.engine import execute
from simulator.offload.task_packs.layers import measured_layers
from simulator.offload.task_packs.lower import _Lowering, lower
from simulator.offload.task_packs.moves import Moves
from simulator.offload.task_packs.packing import Schedule, fits, pack
from simulator.offload.task_packs.server import alone, divided
from simulator.offload.task_packs.tasks import order
from simulator.offload.task_packs.virtual import demand
from simulator.offload.task_packs.volume import weight_swap
from simulator.offload.tiers import DRAM, GPU

GENTLE = settings(max_examples=40, derandomize=True, deadline=None)
SIZES = st.sampled_from([1, 2, 4, 8])


@st.composite
def schedules(draw):
    """Draw a count of layers and a schedule: backward packs, forward packs over those before the last of them."""
    count = draw(st.integers(2, 7))
    cuts = sorted(draw(st.sets(st.integers(1, count - 1), min_size=1)))
    backward = tuple(zip([0, *cuts], [*cuts, count], strict=True))
    before = backward[-1][0]
    inner = sorted(draw(st.sets(st.integers(1, before - 1)))) if before > 1 else []
    forward = tuple(zip([0, *inner], [*inner, before], strict=True))
    small = draw(SIZES)
    large = draw(SIZES.filter(lambda size: size >= small))
    return count, Schedule(large, forward, small, backward)


def ran(drawn, gpus, mode, prefetch, where=None):
    """Execute a drawn schedule with eight samples a GPU, in a pipeline eight in all."""
    count, schedule = drawn
    whole = server(gpus)
    where = where or (whole if mode == "pipeline" else alone(whole))
    minibatch = 8 if mode == "pipeline" else 8 * gpus
    tasks = order(schedule, minibatch, gpus, mode)
    lowered = lower("random", measured_layers(profile(count)), where, tasks, prefetch=prefetch, overhead=0.04)
    return lowered, execute(lowered.program)


MODES = st.sampled_from(["data-parallel", "pipeline"])


@GENTLE
@given(schedules(), st.sampled_from([1, 2, 3]), MODES, st.booleans())
def test_bytes_are_conserved(drawn, gpus, mode, prefetch):
    """What queues of swaps carry is what the closed form says of weights, and what tasks ask for of all else."""
    lowered, timeline = ran(drawn, gpus, mode, prefetch)
    count, schedule = drawn
    low, high = schedule.backward_packs[-1]
    twins = gpus if mode == "data-parallel" else 1
    weights = (lowered.moves.swapped["weights"] + lowered.moves.swapped["gradients"]) * twins
    closed = weight_swap(mode, count * 100e6, gpus=gpus, fused=(high - low) * 100e6)
    assert weights == pytest.approx(closed, rel=1e-12)
    moved = sum(
        float(timeline.bytes[task])
        for task in range(timeline.n_tasks)
        if timeline.stream[task] >= 0
        and any(
            way in timeline.program.resources[timeline.stream[task]].name
            for way in ("dram to gpu", "gpu to dram")
        )
    )
    assert moved == pytest.approx(sum(lowered.moves.swapped.values()), rel=1e-9)


@GENTLE
@given(schedules(), st.sampled_from([1, 2, 3]), MODES, st.booleans())
def test_no_bound_is_beaten(drawn, gpus, mode, prefetch):
    """An iteration takes no less than computation on the busiest GPU, nor than what crosses the uplink either way."""
    lowered, timeline = ran(drawn, gpus, mode, prefetch)
    tasks = sum(1 for task in lowered.tasks if task.rank == 0)
    assert timeline.makespan >= max(lowered.moves.computing) * (1 - 1e-12)
    assert timeline.makespan >= tasks * 0.04
    rate = lowered.emit.ranks[0].channels[DRAM, GPU].rate
    inward = lowered.moves.swapped["weights"] / rate
    outward = lowered.moves.swapped["gradients"] / rate
    assert timeline.makespan >= max(inward, outward) * (1 - 1e-12)
    assert not np.isnan(timeline.end).any()


@GENTLE
@given(schedules(), st.sampled_from([2, 3]))
def test_copies_ahead_never_hold_a_data_parallel_gpu_up(drawn, gpus):
    serial, ahead = (ran(drawn, gpus, "data-parallel", prefetch)[1].makespan for prefetch in (False, True))
    assert ahead <= serial * (1 + 1e-9)


@GENTLE
@given(schedules(), st.sampled_from([2, 3]))
def test_two_gpus_of_a_pipeline_compute_all_samples_once(drawn, gpus):
    """Computation is shared, not repeated, however links are shared."""
    count, schedule = drawn
    for where in (server(gpus), divided(server(gpus))):
        lowered, _ = ran(drawn, gpus, "pipeline", False, where)
        before = schedule.backward_packs[-1][0]
        assert sum(lowered.moves.computing) == pytest.approx(8 * (before * 1.0 + count * 3.0), rel=1e-9)


@GENTLE
@given(
    st.integers(1, 8),
    st.sampled_from(["balanced-time", "balanced-memory", "greedy"]),
    SIZES,
    st.floats(100e6, 3e9),
    st.sampled_from(["forward", "backward"]),
)
def test_packs_cover_all_layers_within_their_limit(count, method, size, limit, which):
    table = measured_layers(profile(count)).at(size)
    packs = pack(method, table, which, count, limit)
    if packs is None:
        # then no single layer fits
        assert not fits(table, which, np.arange(count + 1), limit)
        return
    assert packs[0][0] == 0 and packs[-1][1] == count
    assert all(a[1] == b[0] for a, b in pairwise(packs))
    assert fits(table, which, np.array([0, *(end for _, end in packs)]), limit)


@GENTLE
@given(st.integers(1, 6), st.integers(1, 6), st.floats(420e6, 3e9))
def test_more_memory_never_swaps_more(count, batches, capacity):
    """Virtualised memory of twice the size swaps no more, and no pass more than (4 m + 2) N W of weights."""
    layers = measured_layers(profile(count))
    less, more = (demand(layers, size, 1, batches) for size in (capacity, 2 * capacity))
    assert sum(more.swapped.values()) <= sum(less.swapped.values()) + 1.0
    limit = weight_swap("virtualised", count * 100e6, micro_batches=batches)
    assert less.swapped["weights"] <= limit


@GENTLE
@given(schedules(), st.sampled_from([2, 3]), st.booleans())
def test_one_gpu_with_its_share_tells_of_all(drawn, gpus, prefetch):
    """GPUs that do the same at once, all simulated, take as long as one with its part of the uplink."""
    count, schedule = drawn
    # reductions over peers apart, which only equal GPUs that are not simulated stand for
    whole = replace(server(gpus), peer_rate=math.inf)
    layers = measured_layers(profile(count))
    tasks = order(schedule, 8 * gpus, gpus, "data-parallel")
    moves = Moves("all", layers, whole)
    for rank in range(gpus):
        _Lowering(moves, [replace(task, rank=rank) for task in tasks], prefetch, 0.04).run()
    every = execute(moves.emit.program).makespan
    one = execute(
        lower("one", layers, alone(whole), tasks, prefetch=prefetch, overhead=0.04).program
    ).makespan
    assert one == pytest.approx(every, rel=1e-9)
