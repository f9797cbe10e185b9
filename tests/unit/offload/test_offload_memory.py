"""Footprints by tier, what does not fit, refusals and remedies."""

from __future__ import annotations

from dataclasses import replace

import pytest
from offload_toy import catalog, toy, toy_with

from simulator.cost import CostModel
from simulator.offload import remedies, simulate
from simulator.offload.tiers import find_tiers
from simulator.offload.zigzag.plan import make_plan
from simulator.specs import Catalog, MemroofError, ServingScenario
from simulator.specs.catalog import scenario_with
from simulator.specs.scenario_base import HardwareChoice
from simulator.strategy import Setup


def use(outcome, tier):
    return next(row for row in outcome.memory if row.tier == tier)


def test_weights_lie_where_their_shares_say():
    setup = toy_with(weights="{dram: 0.5, nvme: 0.25}")
    plan, outcome = make_plan(setup), simulate(setup)
    stored = plan.stored_bytes()
    assert use(outcome, "hbm").by_category["weights"] == pytest.approx(0.25 * stored)
    assert use(outcome, "dram").by_category["weights"] == pytest.approx(0.5 * stored)
    assert use(outcome, "nvme").by_category == {"weights": pytest.approx(0.25 * stored)}
    assert outcome.fits


@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_prefetch_plus_one_layers_are_buffered(prefetch):
    # equal layers: embedding and head are made small beside them
    setup = toy({"strategy.prefetch": str(prefetch), "model.toy-model.vocab_size": "8", "workload.output": "2",
                "model.toy-model.max_position_embeddings": "66", "link.toy-pcie.bandwidth": "100 GB/s"})  # fmt: skip
    plan, outcome = make_plan(setup), simulate(setup)
    layer = plan.units[1].weights
    _, resident = outcome.timeline.ledger.resident("gpu.hbm")
    assert resident["buffers"].max() == pytest.approx((prefetch + 1) * layer, rel=1e-9)


def test_weights_from_flash_pass_through_as_many_buffers_in_dram():
    setup = toy({"strategy.weights": "nvme", "model.toy-model.vocab_size": "8", "model.toy-model.max_position_embeddings": "68",
                "link.toy-pcie.bandwidth": "0.5 GB/s"})  # fmt: skip
    plan, outcome = make_plan(setup), simulate(setup)
    _, resident = outcome.timeline.ledger.resident("dram")
    assert resident["buffers"].max() == pytest.approx(2 * plan.units[1].weights, rel=1e-9)


@pytest.mark.parametrize("tier", ["gpu", "dram", "nvme"])
def test_the_cache_grows_by_a_token_a_step(tier):
    setup = toy_with(kv=tier)
    outcome = simulate(setup)
    name = {"gpu": "gpu.hbm", "dram": "dram", "nvme": "nvme"}[tier]
    _, resident = outcome.timeline.ledger.resident(name)
    levels = resident["KV cache"].tolist()
    token = 4 * 2 * 256 * 2.0  # sequences x keys and values x hidden x bytes, of one layer
    assert levels == sorted(levels)
    assert levels[-1] == pytest.approx(token * 4 * (64 + 3))
    assert outcome.metrics["kv_cache_bytes"].value == pytest.approx(token * 4 * 67)


def test_a_window_caps_the_cache():
    setup = toy({"model.toy-model.sliding_window": "32"})
    assert make_plan(setup).cache_bytes() == 4 * 4 * 32 * 2 * 256 * 2.0


def test_activations_are_hidden_states_and_one_layers_tensors():
    setup = toy_with()
    plan, outcome = make_plan(setup), simulate(setup)
    hidden = 4 * 64 * 256 * 2.0
    assert use(outcome, "hbm").by_category["activations"] == pytest.approx(
        hidden + max(u.workspace[0] for u in plan.units)
    )
    # the widest pair in a layer: MLP before and after its activation, beside the stream
    tokens = 2 * 64
    assert plan.units[1].workspace[0] == pytest.approx(tokens * (1024 + 1024 + 256) * 2.0)


def test_scores_in_memory_need_more():
    fused, separate = (make_plan(toy_with(prompt="256", fused_attention=f)) for f in ("true", "false"))
    assert separate.units[1].workspace[0] > fused.units[1].workspace[0]
    assert separate.units[1].prefill.time(0) > fused.units[1].prefill.time(0)


def test_what_the_driver_keeps_and_what_may_not_be_used_is_no_capacity():
    setup = toy_with(pinned="0.5")
    kept = replace(
        setup,
        cost=replace(
            setup.cost,
            calibration=setup.cost.calibration.model_copy(
                update={"host": setup.cost.calibration.host.model_copy(update={"context_bytes": 1e8})}
            ),
        ),
    )
    outcome = simulate(kept)
    assert use(outcome, "hbm").capacity == pytest.approx(0.5e9 - 1e8)
    assert use(outcome, "dram").capacity == pytest.approx(2e9)


def test_a_hopeless_scenario_is_not_run_and_reports_the_missing_bytes():
    setup = toy({"device.toy-gpu.memory.hbm.capacity": "4 MB", "strategy.weights": "gpu"})
    outcome = simulate(setup)
    plan = make_plan(setup)
    assert not outcome.fits
    assert outcome.timeline is None
    assert outcome.metrics["generation_throughput"].value == 0.0
    gpu = use(outcome, "hbm")
    assert gpu.peak == pytest.approx(plan.stored_bytes() + plan.cache_bytes())
    assert -gpu.free == pytest.approx(plan.stored_bytes() + plan.cache_bytes() - 4e6)
    assert gpu.largest[0].name == "weights"


def test_buffers_that_do_not_fit_are_reported_with_their_moment():
    setup = toy({"device.toy-gpu.memory.hbm.capacity": "4 MB", "strategy.kv": "dram"})
    outcome = simulate(setup)
    gpu = use(outcome, "hbm")
    assert not outcome.fits
    assert outcome.timeline is not None
    assert gpu.by_category["buffers"] > 0
    assert 0.0 <= gpu.peak_time < outcome.total_time
    assert any("as if" in line for line in outcome.assumptions)


REFUSALS = [
    ({"hardware": "{device: toy-gpu}"}, "strategy.weights.dram: toy-gpu has no dram"),
    (
        {"hardware": "toy-laptop", "strategy.weights": "nvme", "strategy.kv": "dram"},
        "strategy.kv.dram: toy-laptop has no",
    ),
    ({"strategy.attention": "cpu"}, "cannot attend to a KV cache on the GPU"),
    (
        {
            "hardware": "toy-laptop",
            "strategy.weights": "gpu",
            "strategy.kv": "nvme",
            "strategy.attention": "cpu",
        },
        "toy-laptop has no CPU",
    ),
    ({"hardware": "{device: toy-gpu, count: 2}"}, "1 stage uses one accelerator; toy-gpu has 2"),
    ({"hardware": "{node: toy-node, nodes: 2}"}, "1 stage uses one accelerator"),
    ({"model": "toy-encoder"}, "toy-encoder is an encoder"),
    ({"strategy.precision": "bf16"}, "toy-gpu has no bf16"),
    ({"strategy.weight_precision": "fp32"}, "fp32 is wider"),
    ({"workload.output": "500"}, "has learned 512 positions; prompt and output need 564"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSALS)
def test_refusals_name_what_is_wrong(overrides, message):
    with pytest.raises(MemroofError, match=message):
        simulate(toy(overrides))


def test_cpus_alone_are_refused():
    hardware = catalog().hardware(HardwareChoice(node="toy-cpus"))
    with pytest.raises(MemroofError, match="toy-cpus has CPUs alone"):
        find_tiers(hardware, toy().cost.calibration, 1.0)


def test_another_kind_of_scenario_is_refused():
    setup = toy()
    serving = {"kind": "serving", "hardware": {"node": "toy-node"}, "model": "toy-model",
               "workload": {"arrival": "offline", "prompt": 8, "output": 8}}  # fmt: skip
    with pytest.raises(MemroofError, match="an offload strategy cannot run a serving scenario"):
        simulate(replace(setup, scenario=ServingScenario.model_validate(serving)))


def tried(setup):
    rows = []
    for remedy in remedies(setup):
        changed = replace(setup, scenario=scenario_with(setup.scenario, remedy.overrides))
        rows.append((remedy, simulate(changed)))
    return rows


def test_remedies_are_legal_and_the_first_moves_just_enough_down():
    setup = toy({"device.toy-gpu.memory.hbm.capacity": "6 MB", "strategy.weights": "gpu"})
    assert not simulate(setup).fits
    rows = tried(setup)
    fitting = [remedy for remedy, outcome in rows if outcome.fits]
    assert fitting[0].overrides.keys() == {"strategy.weights"}
    assert "dram" in fitting[0].description
    order = [next(iter(remedy.overrides)) for remedy, _ in rows]
    assert (
        order.index("strategy.weights")
        < order.index("workload.batches")
        < order.index("strategy.weight_precision")
    )
    assert len({tuple(sorted(remedy.overrides.items())) for remedy, _ in rows}) == len(rows)


def test_remedies_of_a_full_dram_move_to_flash():
    setup = toy({"device.toy-dram.capacity": "8 MB", "strategy.prefetch": "2", "strategy.kv": "dram"})
    assert not simulate(setup).fits
    rows = tried(setup)
    assert rows[0][0].overrides == {"strategy.prefetch": "1"}
    assert any(outcome.fits and "nvme" in remedy.description for remedy, outcome in rows)
    assert not any("on gpu" in remedy.description for remedy, _ in rows)


def test_remedies_where_everything_fits_still_use_less():
    setup = toy_with(weights="gpu")
    assert any(remedy.overrides == {"strategy.weights": "{dram: 1, nvme: 0}"} for remedy in remedies(setup))


@pytest.mark.parametrize("name", ["offload/opt-30b-t4", "published/flexgen2023/opt-30b"])
def test_shipped_scenarios_fit(name):
    shipped = Catalog(environment={})
    scenario = shipped.scenario(name)
    hardware = shipped.hardware(scenario.hardware)
    setup = Setup(
        scenario,
        shipped.model(scenario.model),
        hardware,
        CostModel(hardware.device, shipped.calibration(hardware.device)),
    )
    outcome = simulate(setup)
    assert outcome.fits
    assert outcome.metrics["block_size"].value == 144
    assert outcome.metrics["generation_throughput"].value > 0
    # no schedule is faster than the weights that must cross the host link in every pass
    moved = dict(zip(outcome.tables["links"]["link"], outcome.tables["links"]["bytes"].tolist(), strict=True))
    assert outcome.total_time >= moved["cpu>gpu"] / 15.75e9
