"""Task packs: packing, order and time of tasks by hand, volumes against closed forms, published figures."""

from __future__ import annotations

import numpy as np
import pytest
from packs_toy import hardware, layers, profile, server, setup

from simulator.analysis import load, run
from simulator.engine import execute
from simulator.offload import remedies, simulate
from simulator.offload.task_packs.layers import measured_layers, seconds
from simulator.offload.task_packs.lower import lower
from simulator.offload.task_packs.packing import Schedule, balanced, pack, reused
from simulator.offload.task_packs.run import find_layers
from simulator.offload.task_packs.search import candidates, search
from simulator.offload.task_packs.server import alone, divided
from simulator.offload.task_packs.tasks import order, reserved_memory
from simulator.offload.task_packs.virtual import demand, run_virtual, update_rows, virtual_time
from simulator.offload.task_packs.volume import reduction, weight_swap
from simulator.offload.tiers import DRAM, GPU
from simulator.specs import Catalog, MemroofError

MB = 1e6
WHOLE = Schedule(1, ((0, 2),), 1, ((0, 2), (2, 4)))


def ran(
    schedule, minibatch=4, gpus=1, mode="data-parallel", *, prefetch=False, overhead=0.0, count=4, last=None
):
    """Lower and execute a schedule on the toy server."""
    where = server(gpus)
    where = where if mode == "pipeline" else alone(where)
    tasks = order(schedule, minibatch, gpus, mode)
    lowered = lower("toy", layers(count, last=last), where, tasks, prefetch=prefetch, overhead=overhead)
    return lowered, execute(lowered.program)


# --- packing ---------------------------------------------------------------------------------------------------------


def test_packs_are_cut_where_the_running_sum_passes_equal_shares():
    assert balanced(np.array([1.0, 1, 1, 1, 1, 1]), 3).tolist() == [0, 2, 4, 6]
    assert balanced(np.array([3.0, 1, 1, 1]), 2).tolist() == [0, 1, 4]
    assert (
        balanced(np.array([1.0, 9.0, 1.0]), 3) is None
    )  # the second share is passed in the layer that passes the first


def test_the_fewest_packs_that_fit_are_taken():
    table = layers().at(1)
    # a pack of n layers takes n x 230 MB less n - 1 inputs of 10 MB backward
    assert table.pack_memory("backward", np.array([0, 2, 4])).tolist() == [450 * MB, 450 * MB]
    assert pack("balanced-time", table, "backward", 4, 900 * MB) == ((0, 4),)
    assert len(pack("balanced-time", table, "backward", 4, 700 * MB)) == 2
    assert pack("balanced-time", table, "backward", 4, 200 * MB) is None


def test_greedy_packs_leave_the_rest_to_the_first():
    table = layers().at(1)
    assert pack("greedy", table, "backward", 4, 700 * MB) == ((0, 1), (1, 4))
    assert pack("greedy", table, "backward", 4, 200 * MB) is None


def test_a_forward_pass_takes_the_packs_of_the_backward_pass_where_they_fit():
    table = layers().at(1)
    assert reused(((0, 2), (2, 3)), table, "forward", 300 * MB) == ((0, 2), (2, 3))
    assert reused(((0, 2), (2, 3)), table, "forward", 200 * MB) is None


# --- time ------------------------------------------------------------------------------------------------------------


def test_one_gpu_without_prefetch_by_hand():
    """Every copy and every computation one after the other; the link moves 10 GB/s, so 100 MB take 10 ms."""
    _, timeline = ran(WHOLE, minibatch=2)
    weights, data = 0.02, 0.001
    # forward task of two layers: weights, then for each of two samples its input in, stashed, two layers, output out
    forward = weights + 2 * (data + data + 2.0 + data)
    # last pack: weights, then input in, two layers forward and backward, gradient out; gradients out at the end
    last = weights + 2 * (data + 6.0 + data) + 2 * 0.01
    # first pack: no gradient goes out, but stash and gradient of the output come in
    first = weights + 2 * (2 * data + 6.0) + 2 * 0.01
    assert timeline.makespan == pytest.approx(
        forward + last + first + 2 * 0.5, rel=1e-9
    )  # and the last update


def test_deletion_holds_the_gpu_up_after_each_task():
    slow, fast = ran(WHOLE, overhead=0.04)[1], ran(WHOLE)[1]
    # the last deletion runs beside the last update
    assert slow.makespan - fast.makespan == pytest.approx(2 * 0.04, rel=1e-9)


def test_prefetch_hides_copies_of_all_but_the_first_micro_batches():
    lowered, timeline = ran(WHOLE, prefetch=True)
    _, serial = ran(WHOLE)
    assert timeline.makespan < serial.makespan
    computing = 4 * (2.0 + 6.0 + 6.0)
    assert lowered.moves.computing[0] == pytest.approx(computing)
    # weights of three tasks, gradients, the first input, and the last update stay exposed
    assert timeline.makespan - computing < 0.2 + 1.0


def test_data_parallel_gpus_share_the_uplink_and_keep_their_own_links():
    whole = server(4)
    one = alone(whole)
    way, shared = whole.ranks[0].channels[DRAM, GPU], one.ranks[0].channels[DRAM, GPU]
    before, after = dict(way.links), dict(shared.links)
    assert after["cpu>pcie_switch"] == before["cpu>pcie_switch"] / 4
    assert after["pcie_switch>gpu0"] == before["pcie_switch>gpu0"]
    assert shared.rate == pytest.approx(10e9 / 4)
    assert one.twins == 4


def test_measured_rates_replace_those_of_the_links():
    found = server(2, rates={"swap": "5 GB/s", "peer": "4 GB/s", "message": "8 GB/s"})
    assert found.ranks[1].channels[GPU, DRAM].rate == pytest.approx(5e9)
    assert found.peer_rate == 4e9 and found.messages.rate == 8e9


def test_all_reduce_of_a_ring_follows_the_backward_pass():
    """2 (N - 1)/N of the gradients over peers at 10 GB/s, while the GPU waits."""
    _, timeline = ran(WHOLE, minibatch=4, gpus=2)
    names = timeline.program.names
    reduced = [i for i, name in enumerate(names) if name.startswith("all-reduce")]
    assert (timeline.end - timeline.start)[reduced] == pytest.approx(2 * 0.5 * 0.2e9 / 10e9)


def test_packs_of_a_pipeline_go_round_the_gpus_and_copy_from_peer_to_peer():
    lowered, _ = ran(WHOLE, gpus=2, mode="pipeline")
    assert [task.rank for task in lowered.tasks] == [0, 1, 0]
    # four samples: the forward output to GPU 1, the gradient back
    assert lowered.moves.peer_bytes == pytest.approx(2 * 4 * 10 * MB)
    # the stash of layer 0 stays with the process of GPU 0
    assert lowered.moves.message_bytes == 0.0


def test_other_micro_batches_backward_pass_through_the_cpu():
    schedule = Schedule(2, ((0, 2),), 1, ((0, 2), (2, 4)))
    lowered, timeline = ran(schedule, gpus=2, mode="pipeline")
    assert lowered.moves.message_bytes == pytest.approx(4 * 10 * MB)
    assert lowered.moves.peer_bytes == pytest.approx(4 * 10 * MB)
    assert not np.isnan(timeline.end).any()


def test_fixed_parts_of_a_link_are_never_faster_than_fair_ones():
    schedule = Schedule(2, ((0, 1), (1, 3)), 2, ((0, 1), (1, 2), (2, 3), (3, 4)))
    whole, tasks = server(2), order(schedule, 8, 2, "pipeline")
    fair, even = (
        execute(lower("toy", layers(), where, tasks, prefetch=False, overhead=0.0).program).makespan
        for where in (whole, divided(whole))
    )
    assert fair <= even


# --- memory ----------------------------------------------------------------------------------------------------------


def test_what_a_task_may_hold_with_double_buffers():
    """Backward: pack 450 MB, two more inputs, the gradient of its output and of its input; forward is smaller."""
    assert reserved_memory(layers(), WHOLE) == pytest.approx(
        450 * MB + 3 * 10 * MB
    )  # the last pack has no output
    assert reserved_memory(layers(), Schedule(1, ((0, 3),), 1, ((0, 3), (3, 4)))) == pytest.approx(
        (670 + 30) * MB
    )


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("mode", ["data-parallel", "pipeline"])
def test_tasks_hold_no_more_than_that(mode, prefetch):
    schedule = Schedule(2, ((0, 2),), 1, ((0, 2), (2, 4)))
    lowered, timeline = ran(schedule, minibatch=8, gpus=2, mode=mode, prefetch=prefetch)
    reserved = reserved_memory(layers(), schedule)
    for pool in lowered.emit.pools.values():
        if pool.tier == GPU:
            # weights of the next pack come in while the last micro-batch's tensors are still there
            assert timeline.ledger.peak(pool.name).bytes <= reserved + 200 * MB
    assert timeline.ledger.peak("dram").bytes >= 4 * (100 + 100 + 200) * MB


# --- volume ----------------------------------------------------------------------------------------------------------


def test_two_orders_of_magnitude():
    """(4 m + 2) N W against 3 W: 344 times less with 64 micro-batches on 4 GPUs (Li et al. 2021)."""
    assert reduction(4, 64) == 344.0


@pytest.mark.parametrize("last", [None, 0.0])
def test_a_task_swaps_the_weights_of_its_pack_once(last):
    """3 N W in data parallelism and 3 W in a pipeline, less the fused pack's weights, whatever the micro-batches."""
    one = Schedule(1, ((0, 2), (2, 3)), 1, ((0, 1), (1, 3), (3, 4)))
    fused = 100 * MB if last is None else last
    weights = 3 * 100 * MB + fused
    for gpus in (1, 2, 4):
        lowered, _ = ran(one, minibatch=8, gpus=gpus, last=last)
        found = gpus * (lowered.moves.swapped["weights"] + lowered.moves.swapped["gradients"])
        assert found == weight_swap("data-parallel", weights, gpus=gpus, fused=fused)
    lowered, _ = ran(one, minibatch=8, gpus=2, mode="pipeline", last=last)
    assert sum(lowered.moves.swapped[k] for k in ("weights", "gradients")) == weight_swap(
        "pipeline", weights, fused=fused
    )


@pytest.mark.parametrize("micro_batches", [1, 2, 8])
def test_virtualised_memory_swaps_weights_4_m_plus_2_times(micro_batches):
    """Memory of one layer: every pass moves every layer in and out, but for those at which passes turn round."""
    # 110 MB of weights and input and 215 MB of working memory forward; 220 and 100 MB backward
    found_layers = measured_layers(profile(6, states=0, forward_working=215 * MB, backward_working=100 * MB))
    found = demand(found_layers, 330 * MB, 1, micro_batches)
    assert found is not None and found.peak <= 330 * MB
    expected = weight_swap("virtualised", 600 * MB, micro_batches=micro_batches, turns=200 * MB)
    assert found.swapped["weights"] == pytest.approx(expected, rel=1e-12)
    assert (
        demand(found_layers, 1e12, 1, micro_batches).swapped["weights"] == 2 * 600 * MB
    )  # in once, out once


def test_virtualised_memory_takes_turns():
    """Copies and computation one after the other: the engine's makespan is their sum."""
    found_layers, where = layers(6), alone(server(2))
    updates = update_rows(found_layers, setup().cost)
    found = demand(found_layers, 400 * MB, 1, 4)
    _, timeline, _ = run_virtual("toy", found, found_layers, where, updates)
    assert timeline.makespan == pytest.approx(virtual_time(found, found_layers, where, updates), rel=1e-9)
    assert float(timeline.bytes.sum()) == pytest.approx(sum(found.swapped.values()))


def test_an_operation_that_exceeds_the_memory_is_not_run():
    assert demand(layers(), 150 * MB, 1, 1) is None


# --- search ----------------------------------------------------------------------------------------------------------


def test_the_fastest_of_all_schedules_is_found():
    """Schedules that their bound rules out are no faster."""
    found_setup = setup(1, 8, memory_limit="700 MB", prefetch=False)
    found_layers, where = layers(), alone(server(1))
    best = search(found_setup.scenario, found_layers, where, 1e9)
    for schedule in candidates(found_setup.scenario, found_layers, 1, 1e9):
        tasks = order(schedule, 8, 1, "data-parallel")
        lowered = lower("toy", found_layers, where, tasks, prefetch=False, overhead=0.04)
        assert best.timeline.makespan <= execute(lowered.program).makespan * (1 + 1e-12)


def test_what_is_fixed_is_kept():
    outcome = simulate(
        setup(1, 8, backward_micro_batch=2, forward_micro_batch=4, backward_packs=4, forward_packs=3)
    )
    keys = ("forward_micro_batch", "forward_packs", "backward_micro_batch", "backward_packs")
    assert [outcome.metrics[key].value for key in keys] == [4, 3, 2, 4]


def test_without_a_limit_buffers_count_too():
    """Toy GPUs have 1 GB."""
    outcome = simulate(setup(1, 8))
    assert outcome.fits
    assert outcome.metrics["reserved_memory"].value <= 1e9


def test_packs_that_fit_nowhere_are_reported_with_what_is_missing():
    found = setup(2, 8, memory_limit="100 MB")
    outcome = simulate(found)
    assert not outcome.fits and outcome.metrics["training_throughput"].value == 0.0
    assert outcome.memory[0].free == pytest.approx(-130 * MB)
    assert next(iter(remedies(found))).overrides == {"strategy.memory_limit": "null"}


@pytest.mark.parametrize(
    ("minibatch", "strategy", "says"),
    [
        (7, {}, "workload.minibatch: 7 samples cannot be shared evenly by 2 GPUs"),
        (8, {"backward_micro_batch": 3}, "strategy.backward_micro_batch: 3 does not cut 4 samples evenly"),
        (32, {"backward_micro_batch": 16}, "exceeds the largest backward micro-batch measured, 8"),
        (
            8,
            {"forward_micro_batch": 1, "backward_micro_batch": 2},
            "strategy.forward_micro_batch: 1 is below",
        ),
        (8, {"packing": ["greedy"], "backward_packs": 2}, "strategy.packing: greedy finds the count"),
    ],
)
def test_what_cannot_be_cut_is_refused(minibatch, strategy, says):
    with pytest.raises(MemroofError, match=says):
        simulate(setup(2, minibatch, **strategy))


def test_hardware_without_dram_is_refused():
    with pytest.raises(MemroofError, match="needs DRAM beside the GPUs"):
        run("offload/gpt2-xl-4x1080ti", overrides={"hardware": "gtx-1080-ti"})


# --- priced layers ---------------------------------------------------------------------------------------------------


def test_gpt2_xl_on_four_consumer_gpus():
    """Weights, gradients and Adam's states of 1.558e9 parameters in fp32: 24.9 GB in DRAM, in 11 GB of GPU memory."""
    result = run("offload/gpt2-xl-4x1080ti")
    assert result.fits
    dram = next(use for use in result.memory if use.tier == "dram")
    parameters = 1557611200
    # the head's copy of the tied table has a gradient of its own
    assert dram.by_category["weights"] == pytest.approx(4 * parameters, rel=1e-3)
    assert dram.by_category["optimizer states"] == pytest.approx(8 * parameters, rel=1e-3)
    assert result.outcome.metrics["speedup"].value > 1.5
    assert sum(result.outcome.bottlenecks.values()) == pytest.approx(result.outcome.total_time)


def test_narrower_weights_swap_half():
    wide, narrow = (
        run(
            "offload/gpt2-xl-4x1080ti",
            overrides={"strategy.precision": precision, "hardware": "server-4x4090"},
        )
        for precision in ("fp32", "bf16")
    )
    assert narrow.outcome.metrics["weight_bytes"].value == wide.outcome.metrics["weight_bytes"].value / 2


@pytest.mark.parametrize(
    ("model", "sequence", "micro_batch"), [("gpt2-xl", 1024, 2), ("gpt2-xl", 1024, 8), ("bert-large", 512, 8)]
)
def test_priced_layers_against_harmonys_profile(model, sequence, micro_batch):
    """A layer on a GTX 1080 Ti in fp32: its backward pass needs what was measured within 5 %.

    Its seconds fall short by 27 to 32 %: no row of Pascal was fitted on, and the eager PyTorch of 2019 that was measured
    has kernels that today's are fused from. Smaller micro-batches wait for its launches, which are not priced.
    """
    content = {
        "kind": "offload",
        "hardware": "server-2x1080ti",
        "model": model,
        "workload": {"minibatch": 32, "sequence": sequence},
        "strategy": {"method": "task-packs", "fused_attention": False},
    }
    found = load(content)
    priced = find_layers(found).at(micro_batch)
    measured = measured_layers(Catalog(environment={}).layers(f"harmony-{model}")).at(micro_batch)
    layer = 5
    needed = priced.kept["backward"][layer] + priced.working["backward"][layer]
    assert needed == pytest.approx(measured.kept["backward"][layer], rel=0.05)
    times = [seconds(t.forward[layer]) + seconds(t.backward[layer]) for t in (priced, measured)]
    assert 0.66 < times[0] / times[1] < 0.75


# --- published -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "bert-96-2x1080ti",
        "bert-large-2x1080ti",
        "gpt2-xl-2x1080ti",
        "resnet-1026-2x1080ti",
        "resnet-1026-pipeline-2x1080ti",
    ],
)
def test_harmonys_own_simulator_within_half_a_per_cent(name):
    """Iteration times and peak memory that msr-fiddle/harmony publishes, from its own layer profiles."""
    result = run(f"published/harmony2022/{name}")
    for check in result.expectations:
        assert abs(check.relative_error) <= 0.005, check
    assert result.fits


def test_fair_sharing_of_the_uplink_is_a_little_faster_than_harmonys_halves():
    setting = {"strategy.link_sharing": "fair"}
    fair = run("published/harmony2022/resnet-1026-pipeline-2x1080ti", overrides=setting)
    assert fair.outcome.metrics["iteration_time"].value == pytest.approx(4.389, rel=1e-3)


def test_swap_load_falls_by_two_orders_of_magnitude():
    result = run("published/harmony2022/gpt2-xl-swap-load-4x1080ti")
    assert 10**1.5 < result.outcome.metrics["swap_reduction"].value < 10**2.5


def test_a_server_is_needed_for_peers(tmp_path):
    assert hardware(1).machine.ranks and not server(1).peers
    assert load("published/harmony2022/bert-96-2x1080ti").subject == "harmony-bert-96"
