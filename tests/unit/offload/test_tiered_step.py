"""A training step over tiers: bytes and seconds that can be checked by hand, and laws that hold whatever is asked."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.analysis.run import answer, load
from simulator.offload.answer import link_table
from simulator.offload.tiered_step.kept import leaving
from simulator.offload.tiered_step.lower import visits
from simulator.offload.tiered_step.optimizer import Widths, update_rates
from simulator.offload.tiered_step.plan import Plan, make_plan
from simulator.offload.tiered_step.remedies import remedies
from simulator.offload.tiered_step.run import Step, flash_written, lifetime, model_flops, run_step
from simulator.offload.tiered_step.update import update_traffic
from simulator.specs import MemroofError, SpecError
from simulator.strategy import Setup

ZERO_OFFLOAD: dict[str, Any] = {"states": "dram", "gradients": "dram", "recompute": "full"}
RATEL: dict[str, Any] = {
    "parameters": "nvme", "states": "nvme", "gradients": "dram", "update": "layer", "accumulation": "layer",
    "activations": "balanced", "kept_sublayers": 0,
}  # fmt: skip


def setup(
    hardware: Any = "server-1x4090",
    model: str = "gpt3-1.3b",
    batch: int = 8,
    sequence: int = 1024,
    **strategy: Any,
) -> Setup:
    return load(
        {
            "kind": "offload", "hardware": hardware, "model": model,
            "workload": {"global_batch": batch, "sequence": sequence},
            "strategy": {"method": "tiered-step", **strategy},
        }
    )  # fmt: skip


def plan_of(*args: Any, **kwargs: Any) -> Plan:
    return make_plan(setup(*args, **kwargs))


def step_of(*args: Any, **kwargs: Any) -> Step:
    return run_step(plan_of(*args, **kwargs))


def carried(step: Step, source: str, target: str) -> float:
    return sum(step.lowered.emit.carried.get(f"{source} to {target}", {}).values())


# --- bytes -----------------------------------------------------------------------------------------------------------


def test_adam_in_mixed_precision_has_twelve_bytes_of_states() -> None:
    """Rajbhandari et al. 2020, *ZeRO*, section 3.1: K = 12."""
    widths = Widths.of(plan_of().strategy)
    assert widths.state == 12
    assert widths.read + widths.written == 12 + 2 + 12 + 2


def test_plain_sgd_in_sixteen_bits_has_no_states() -> None:
    """SSDTrain's FP16 and SGD."""
    strategy = plan_of(optimizer="sgd", master_weights=False).strategy
    assert Widths.of(strategy).state == 0


def test_zero_offload_moves_four_bytes_a_parameter_between_gpu_and_cpu() -> None:
    """Ren et al. 2021, section 3: 16-bit gradients out and 16-bit parameters back, the least of all strategies."""
    step = step_of(**ZERO_OFFLOAD)
    assert carried(step, "gpu", "dram") == pytest.approx(2 * step.plan.elements)
    assert carried(step, "dram", "gpu") == pytest.approx(2 * step.plan.elements)


def test_every_micro_batch_sends_its_gradients_where_each_passes_all_layers() -> None:
    once = step_of(**ZERO_OFFLOAD, micro_batch=2, accumulation="layer")
    often = step_of(**ZERO_OFFLOAD, micro_batch=2)
    assert carried(once, "gpu", "dram") == pytest.approx(2 * once.plan.elements)
    assert carried(often, "gpu", "dram") == pytest.approx(4 * carried(once, "gpu", "dram"))


def test_states_on_flash_are_read_and_written_once_a_step() -> None:
    """Adam on flash: 12 bytes in, 12 and the 16-bit parameter out; parameters come in for both passes."""
    step = step_of(**{**RATEL, "activations": "gpu"})
    own = step.plan.elements
    borrowed = 2 * step.plan.units[-1].borrowed  # a tied head reads the table once more
    assert flash_written(step) == pytest.approx(14 * own)
    # the head's two passes follow one another and share one fetch of its parameters
    head = 2 * step.plan.units[-1].parameters
    assert carried(step, "nvme", "dram") == pytest.approx(12 * own + 4 * own - head + borrowed)


def test_each_replica_reads_its_share_over_its_own_link() -> None:
    """Rajbhandari et al. 2021 (ZeRO-Infinity), section 5: aggregate bandwidth grows with the GPUs."""
    strategy = {**ZERO_OFFLOAD, "parameters": "dram"}
    one = step_of(batch=2, **strategy)
    four = step_of("server-4x4090", batch=8, **strategy)
    everything = step_of("server-4x4090", batch=8, **strategy, exchange="host")
    assert carried(four, "dram", "gpu") == pytest.approx(carried(one, "dram", "gpu"))
    assert carried(everything, "dram", "gpu") == pytest.approx(4 * carried(one, "dram", "gpu"))


def test_a_layer_keeps_22_bytes_a_token_and_width_at_two_ranks() -> None:
    """Korthikanti et al. 2022, equation 2: sbh(10 + 24/t) without attention scores; SSDTrain's runs have t = 2."""
    plan = plan_of(
        "server-2xa100-p5800x", "bert-8192-4l", 16, tensor_parallel=2, optimizer="sgd", master_weights=False
    )  # fmt: skip
    layer = sum(unit.whole for unit in plan.units[1:3])
    assert layer == pytest.approx(22 * 1024 * 16 * 8192, rel=0.002)


def test_units_are_sublayers_unless_whole_layers_run_again() -> None:
    assert [unit.name for unit in plan_of().units[:3]] == ["embedding", "layer attention 0", "layer MLP 0"]
    whole = plan_of(recompute="full")
    assert [unit.name for unit in whole.units[:3]] == ["embedding", "layer 0", "layer 1"]
    kept = whole.units[1].levels[0]
    assert kept.saved == 2 * 8 * 1024 * 2048  # the layer's input in 16 bits
    assert kept.seconds == pytest.approx(whole.units[1].forward.time(0))


def test_levels_free_most_bytes_a_second_first() -> None:
    plan = plan_of(activations="balanced")
    mlp = plan.units[2]
    assert [max(level.again - before.again) for before, level in pairwise(mlp.levels)][:2] in (
        ["mlp.activation", "mlp.norm"],
        ["mlp.norm", "mlp.activation"],
    )  # element-wise kernels before products
    saved = [level.saved for level in mlp.levels]
    assert saved == sorted(saved, reverse=True)
    assert [level.seconds for level in mlp.levels] == sorted(level.seconds for level in mlp.levels)


def test_model_flops_are_six_a_parameter_and_token_and_attention() -> None:
    """Narayanan et al. 2021, equation 2, without its second forward pass: 72 B s l h² (1 + s/6h + V/12lh)."""
    plan = plan_of(model="gpt3-13b", batch=4, **ZERO_OFFLOAD)
    batch, sequence, layers, hidden, words = 4, 1024, 40, 5120, 50257
    published = 72 * batch * sequence * layers * hidden**2
    published *= 1 + sequence / (6 * hidden) + words / (12 * layers * hidden)
    assert model_flops(plan) == pytest.approx(published, rel=0.02)  # causal attention sees half of the pairs


# --- the optimizer on CPUs -------------------------------------------------------------------------------------------


def test_cpu_adam_takes_as_long_as_published_on_a_dgx_2() -> None:
    """Ren et al. 2021, table 4: 10 billion parameters in 2.57 s; the row that the share of bandwidth is taken from."""
    case = setup("server-1xv100-32gb", **ZERO_OFFLOAD)
    plan = make_plan(case)
    rates = update_rates(
        case.hardware, plan.tiers.host, dict(plan.tiers.pools), case.cost.calibration, plan.widths
    )
    assert 10e9 * 30 / rates["dram"][1] == pytest.approx(2.57, rel=0.02)


def test_an_update_in_cxl_memory_waits_as_much_longer_as_its_latency() -> None:
    """Liaw & Chen 2025, abstract: the optimizer step is about four times slower in CXL; 250 over 90 ns give 2.8."""
    places = {"states": "cxl", "gradients": "cxl", "parameters": "cxl"}
    near = step_of("cxl-server-1s", **dict.fromkeys(places, "dram"))
    far = step_of("cxl-server-1s", **places)
    ratio = near.plan.updates["dram"][1] / far.plan.updates["cxl"][1]
    assert ratio == pytest.approx(250 / 90)
    assert far.time > near.time


def test_what_cpus_touch_is_counted_where_it_lies() -> None:
    plan = plan_of("cxl-server-1s", states="dram", gradients="cxl", parameters="nvme")
    assert update_traffic(plan, 1e6, 1.0) == {"dram": 26e6, "cxl": 2e6}


def test_states_come_first_into_dram_and_the_rest_is_striped() -> None:
    strategy = {"states": "dram", "parameters": "dram", "gradients": "dram", "activations": "dram"}
    first = plan_of(
        "cxl-server-1s", **strategy, gradient_precision="fp32", host_allocation="latency-first"
    ).place
    assert first.states == {"dram": 1.0}
    assert first.gradients == {"dram": 1.0}
    assert first.parameters == first.activations == {"cxl": 1.0}
    pages = plan_of("cxl-server-1s", **strategy, host_allocation="interleaved").place
    assert pages.states == pytest.approx({"dram": 1 / 3, "cxl": 2 / 3})  # one node of DRAM, two cards


def test_states_that_exceed_dram_spill_into_cxl() -> None:
    small = {"node": "cxl-server-1s", "changes": {"components": {"dram": {"capacity": "8 GiB"}}}}
    place = plan_of(small, states="dram", gradients="dram", host_allocation="latency-first").place
    plan = plan_of(small, states="dram", gradients="dram")
    assert place.states["dram"] * plan.elements * 12 == pytest.approx(8 * 2**30)


# --- order and time --------------------------------------------------------------------------------------------------


def test_micro_batches_pass_all_layers_in_turn_or_a_layer_together() -> None:
    by_batch = visits(plan_of(micro_batch=4))
    last = len(plan_of().units) - 1
    assert [(v.backward, v.unit, v.batch) for v in by_batch[:2]] == [(False, 0, 0), (False, 1, 0)]
    by_layer = visits(plan_of(micro_batch=4, accumulation="layer"))
    assert [(v.backward, v.unit, v.batch) for v in by_layer[:3]] == [
        (False, 0, 0),
        (False, 0, 1),
        (False, 1, 0),
    ]
    head = [(v.backward, v.batch) for v in by_layer if v.unit == last]
    assert head == [(False, 0), (True, 0), (False, 1), (True, 1)]  # its logits wait for nothing
    assert len({v.run for v in by_layer}) == 2 * last + 1  # parameters of the head come once


def test_a_step_on_the_gpu_alone_takes_its_computation() -> None:
    step = step_of(batch=4)
    plan = step.plan
    compute = sum(unit.forward.time(0) + unit.backward.time(0) for unit in plan.units)
    update = plan.gpu_update(plan.elements).time(0)
    assert step.time == pytest.approx(compute + update, rel=0.01)


def test_phases_divide_the_step_and_the_gpu_idles_while_cpus_update() -> None:
    outcome = answer(setup(**ZERO_OFFLOAD)).outcome
    seconds = {name: sum(parts.values()) for name, parts in outcome.phases.items()}
    assert sum(seconds.values()) == pytest.approx(outcome.total_time)
    assert outcome.phases["update"]["host"] > 0.9 * seconds["update"]
    assert seconds["backward"] == pytest.approx(3 * seconds["forward"], rel=0.15)  # layers run again in it


def test_a_delayed_update_hides_behind_the_step() -> None:
    """Ren et al. 2021, section 5.2."""
    behind = step_of(**ZERO_OFFLOAD)
    beside = step_of(**ZERO_OFFLOAD, update="delayed")
    inside = step_of(**ZERO_OFFLOAD, update="layer")
    compute = sum(unit.forward.time(0) + unit.backward.time(0) for unit in behind.plan.units)
    compute += sum(unit.levels[0].seconds for unit in behind.plan.units)
    assert beside.time < inside.time < behind.time
    assert beside.time == pytest.approx(compute, rel=0.02)


def test_one_state_buffer_reads_updates_and_writes_in_turn() -> None:
    serial, pipelined = (
        step_of(**{**RATEL, "update": "step", "activations": "dram"}, state_buffers=n) for n in (1, 3)
    )
    assert serial.time > 1.05 * pipelined.time


def test_an_activation_in_flight_is_used_where_it_is() -> None:
    """SSDTrain, section 3: what is still being stored is not read back."""
    slow = {"node": "server-1x4090", "changes": {"components": {"nvme": {"count": 1}}}}
    strategy = {"activations": "nvme", "direct_storage": True, "kept_sublayers": 0}
    forwarding, reading = (step_of(slow, batch=4, **strategy, forwarding=f) for f in (True, False))
    assert forwarding.time < reading.time
    assert carried(forwarding, "nvme", "gpu") < carried(reading, "nvme", "gpu")
    assert carried(reading, "nvme", "gpu") == pytest.approx(carried(reading, "gpu", "nvme"))


def test_only_what_hides_in_the_forward_pass_leaves() -> None:
    slow = {"node": "server-1x4090", "changes": {"components": {"nvme": {"count": 1}}}}
    strategy = {"activations": "nvme", "direct_storage": True, "kept_sublayers": 0}
    some = step_of(slow, batch=4, **strategy, activation_amount="hidden")
    every = step_of(slow, batch=4, **strategy)
    forward = sum(unit.forward.time(0) for unit in some.plan.units)
    rate = some.plan.tiers.channels["gpu", "nvme"].rate
    assert some.lowered.stored == pytest.approx(forward * rate, rel=0.01)
    assert some.time < every.time


def test_balanced_activations_are_no_slower_than_either_extreme() -> None:
    strategy = {**RATEL, "micro_batch": 8}
    balanced = step_of(batch=16, **strategy)
    for other in (
        {"activations": "dram"},
        {"activations": "nvme"},
        {"activations": "gpu", "recompute": "full"},
    ):
        assert balanced.time <= 1.02 * step_of(batch=16, **{**strategy, **other}).time
    assert min(use.free for use in balanced.memory) > 0


def test_drives_last_as_long_as_their_endurance() -> None:
    """7 PB at 1 GB every 10 s; twice as long where half as much is programmed."""
    assert lifetime(7e15, 10.0, 1e9) == 7e7
    assert lifetime(7e15, 10.0, 1e9, 0.5) == 14e7


# --- laws ------------------------------------------------------------------------------------------------------------

TWO = {"node": "server-4x4090", "changes": {"components": {"gpu": {"count": 2}}}}
PLACES = st.sampled_from(
    [
        {},
        ZERO_OFFLOAD,
        {**ZERO_OFFLOAD, "parameters": "dram", "activations": "dram"},
        {**ZERO_OFFLOAD, "parameters": "nvme", "states": "nvme", "gradients": "nvme"},
        {**ZERO_OFFLOAD, "states": {"dram": 0.6, "nvme": 0.4}, "update": "layer"},
        {"states": {"dram": 0.5}, "recompute": "selective"},
        {**RATEL, "activations": "nvme", "direct_storage": True},
        RATEL,
    ]
)


@settings(max_examples=16, deadline=None, derandomize=True)
@given(PLACES, st.sampled_from([2, 4]), st.sampled_from(["batch", "layer"]), st.integers(0, 2))
def test_no_link_carries_more_than_its_bandwidth_and_nothing_is_lost(
    places: dict[str, Any], micro_batch: int, accumulation: str, prefetch: int
) -> None:
    strategy = {**places, "micro_batch": micro_batch, "accumulation": accumulation, "prefetch": prefetch}
    step = step_of(TWO, "opt-125m", batch=8, **{**strategy, "head_tiles": 2})
    emit, plan = step.lowered.emit, step.plan
    compute = sum(unit.forward.time(0) + unit.backward.time(0) for unit in plan.units)
    assert step.time >= plan.micro_batches * compute
    links = link_table(emit, step.time)
    assert max(links["share_of_bandwidth"], default=0.0) <= 1.0 + 1e-9
    moving = set(leaving(plan))
    assert all(index in moving or not kept.away for index, kept in enumerate(step.kept))
    assert all(sum(kept.shares.values()) == pytest.approx(1.0) for kept in step.kept)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.sampled_from([RATEL, {**ZERO_OFFLOAD, "states": "nvme", "parameters": "nvme"}]), st.integers(1, 6))
def test_more_drives_are_never_slower(places: dict[str, Any], drives: int) -> None:
    few, many = (
        step_of({"node": "server-1x4090", "changes": {"components": {"nvme": {"count": n}}}}, **places)
        for n in (drives, drives + 3)
    )
    assert many.time <= few.time * 1.001


# --- memory ----------------------------------------------------------------------------------------------------------


def test_what_stays_is_in_the_ledger_of_its_tier() -> None:
    step = step_of(**ZERO_OFFLOAD)
    hbm, dram, *_ = step.memory
    assert hbm.by_category["parameters"] == pytest.approx(2 * step.plan.elements)
    assert dram.by_category["optimizer states"] == pytest.approx(12 * step.plan.elements)
    assert dram.by_category["gradients"] <= 2 * step.plan.elements


def test_what_does_not_fit_says_by_how_much_and_a_change_helps() -> None:
    case = setup(model="gpt3-6.7b", batch=4)
    outcome = answer(case).outcome
    short = outcome.metrics["free_memory"].value
    assert not outcome.fits
    assert short == min(use.free for use in outcome.memory) < -80e9
    changes = list(remedies(case))
    assert {"strategy.states": "dram"} in [change.overrides for change in changes]


def test_the_largest_model_of_a_v100_is_bound_by_its_parameters() -> None:
    """Ren et al. 2021: 13 billion parameters; with all of 32 GiB in use 16-bit parameters alone allow 16."""
    case = setup("server-1xv100-32gb", "gpt-10b-4096", 1, **ZERO_OFFLOAD, fused_attention=False)
    further = answer(case).outcome.further
    assert further is not None
    assert 13e9 < further()["largest_model"].value < 16.4e9


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ({"activations": "balanced", "recompute": "full"}, "choose themselves"),
        ({"activation_amount": "hidden"}, "says how much leaves"),
        ({"update": "layer"}, "move states off the GPU"),
        ({"direct_storage": True}, "nothing moves between GPU and flash"),
        ({"host_allocation": "interleaved"}, "nothing is"),
        ({"gradients": "dram"}, "move all states off it"),
        ({"states": {"dram": 0.7, "nvme": 0.7}}, "exceed 1"),
        ({"states": "tape"}, "states"),
    ],
)
def test_options_that_decide_nothing_are_refused(strategy: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        setup(**strategy)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"states": "cxl", "gradients": "dram"}, "has no cxl; it has gpu, dram, nvme"),
        ({"micro_batch": 3}, "3 does not divide the 8 sequences"),
        ({"tensor_parallel": 3}, "3 does not divide the 1 GPUs"),
        ({"states": "dram", "host_allocation": "interleaved"}, "needs DRAM and CXL memory"),
    ],
)
def test_what_the_machine_cannot_do_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(MemroofError, match=words):
        plan_of(**changed)


def test_replicas_that_meet_in_host_memory_send_their_gradients_there() -> None:
    with pytest.raises(MemroofError, match="place them on dram"):
        plan_of("server-4x4090", states="dram", exchange="host")
