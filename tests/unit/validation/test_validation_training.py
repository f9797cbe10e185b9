"""Data sets of training steps: rows as scenarios, units, what is left out and why, groups."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulator.cost import CostModel
from simulator.specs import Catalog
from simulator.training import simulate
from simulator.validation.dataset import Loaded, constants_for
from simulator.validation.datasets import activations, claims, frameworks, published, vtrain
from simulator.validation.datasets.steps import ZERO_3, gpt
from simulator.validation.run import SHIPPED
from simulator.validation.score import score_loaded

CATALOG = Catalog()
MODULES = (vtrain, published, activations, frameworks, claims)


def load(name: str, text: str, tmp_path: Path) -> Loaded:
    file = tmp_path / "table.csv"
    file.write_text(text)
    return {dataset.name: dataset for module in MODULES for dataset in module.DATASETS}[name].load(
        file, CATALOG
    )


def cost(device: str) -> CostModel:
    return constants_for(CATALOG, device)


VTRAIN = """n_gpus,global_batch,micro_batch,hidden,heads,layers,seq_len,tp,dp,pp,iteration_ms
8,32,4,1024,16,24,1024,2,2,2,220
8,32,4,1024,16,24,1024,2,2,2,230
8,32,4,1024,16,24,1024,2,1,4,200
8,30,4,1024,16,24,1024,2,2,2,220
"""


def test_a_row_becomes_a_step(tmp_path: Path) -> None:
    loaded = load("vtrain/single_node_iteration_ms.csv", VTRAIN, tmp_path)
    (part,) = loaded.parts
    assert part.device == "a100-80gb-sxm"
    assert part.measured.tolist() == [0.22, 0.23, 0.2]
    assert part.rows.tolist() == [2, 3, 4]
    assert part.groups[0] == part.groups[1] != part.groups[2]
    assert sum(loaded.skipped.values()) == 1
    assert "no multiple of data_parallel 2 x micro_batch 4" in next(iter(loaded.skipped))
    predicted = part.predict(cost(part.device))
    assert predicted[0] == predicted[1] != predicted[2]
    assert 0.1 < predicted[0] < 0.4


def test_predictions_follow_the_constants_and_keep_none(tmp_path: Path) -> None:
    (part,) = load("vtrain/single_node_iteration_ms.csv", VTRAIN, tmp_path).parts
    model = cost(part.device)
    training = model.calibration.training.model_copy(update={"eager_operator": 1e-3})
    slow = CostModel(model.device, model.calibration.model_copy(update={"training": training}))
    before = part.predict(model)
    assert np.all(part.predict(slow) > 3 * before)
    assert np.all(part.relative_errors(slow) > part.relative_errors(model))
    assert part.predict(model).tolist() == before.tolist()


def test_a_case_with_other_network_cards() -> None:
    case = vtrain._case(
        _row(
            n_gpus=16,
            global_batch=32,
            micro_batch=4,
            hidden=1024,
            heads=16,
            layers=24,
            seq_len=1024,
            tp=2,
            dp=4,
            pp=2,
        )
    )
    setup = case.setup(CATALOG)
    assert (setup.hardware.nodes, setup.hardware.network[0][0].links_per_node) == (2, 4)
    assert replace(case, rails=None).setup(CATALOG).hardware.network[0][0].links_per_node == 8
    # four HDR cards of eight GPUs: 12.5 GB/s each
    assert setup.hardware.span(2, 8).tiers[-1].bandwidth == pytest.approx(12.5e9)
    assert case.tokens == 32 * 1024


def _row(**fields: object) -> object:
    return type("Row", (), fields)()


SC21 = """params_b,heads,hidden,layers,tp,pp,gpus,dp,batch_seqs,seq_len,vocab,tflops_per_gpu,verified
145.6,96,12288,80,8,8,1536,24,2304,2048,51200,148,yes
1.7,24,2304,24,1,1,32,32,512,2048,51200,137,no
"""


def test_flop_of_equation_3(tmp_path: Path) -> None:
    # 96·B·s·l·h²·(1 + s/(6h) + V/(16lh)): 145.6B in 2,304 sequences
    loaded = load("training_published/megatron_sc21_table1.csv", SC21, tmp_path)
    (part,) = loaded.parts
    assert loaded.skipped == {"not verified by the source": 1}
    assert part.measured.tolist() == [148e12]
    flop = 96 * 2304 * 2048 * 80 * 12288**2 * (1 + 2048 / (6 * 12288) + 51200 / (16 * 80 * 12288))
    row = next(part.frame.itertuples(index=False))
    step = simulate(published._sc21_case(row).setup(CATALOG)).metrics["step_time"].value
    assert part.predict(cost(part.device))[0] == pytest.approx(flop / 1536 / step, rel=1e-9)
    assert part.frame["params_b"].tolist() == [145.6]


@pytest.mark.parametrize(
    ("layers", "stages", "micro_batches", "expected"),
    [
        (24, 1, 16, {"schedule": "1f1b"}),
        (96, 12, 384, {"schedule": "1f1b-interleaved", "virtual_stages": 4}),
        (105, 35, 280, {"schedule": "1f1b"}),
        (80, 8, 12, {"schedule": "1f1b"}),
        (60, 4, 28, {"schedule": "1f1b-interleaved", "virtual_stages": 5}),
    ],
)
def test_interleaving_where_it_is_not_stated(
    layers: int, stages: int, micro_batches: int, expected: dict
) -> None:
    assert published.interleaving(layers, stages, micro_batches) == expected


@pytest.mark.parametrize(
    ("size", "hidden", "stages", "layers"),
    [(187e9, 13_824, 10, 80), (176e9, 14_336, 10, 70), (181e9, 14_336, 12, 72)],
)
def test_depth_of_a_stated_size(size: float, hidden: int, stages: int, layers: int) -> None:
    assert published.bloom_depth(size, hidden, stages) == layers


BLOOM = """gpus,size,layers,hidden,zero_stage,dp,tp,pp,mbs,gbs,seq_len,sec_per_iter,notes
384,181B,,,1,4,8,12,4,2048,2048,123.7,02-21
384,200B,,,1,6,8,8,1,2046,2048,185.8,02-20
320,187B,,13824,1,4,4,20,2,2048,2048,151,02-20
8,20B,,,,1,8,1,1,,2048,,02-17
8,18B,6,,1,1,8,1,2,2048,2048,130,02-21
"""


def test_bloom_rows(tmp_path: Path) -> None:
    loaded = load("training_published/bloom_176b_tuning_a100.csv", BLOOM, tmp_path)
    (part,) = loaded.parts
    assert part.measured.tolist() == [123.7, 151.0]
    assert loaded.skipped["width is not in the table, and was being changed"] == 1
    assert loaded.skipped["layout or time is not in the table"] == 1
    assert sum(loaded.skipped.values()) == 3
    case = published._bloom_case(next(part.frame.itertuples(index=False)))
    assert case.setup(CATALOG).hardware.network[0][1].name == "infiniband-edr"
    # 72 layers of 14,336 with 250,880 words are 181.2B: the time goes with the 181B that are stated
    stack = 12 * 72 * 14336**2 + 250880 * 14336
    step = simulate(case.setup(CATALOG)).metrics["step_time"].value
    assert part.predict(cost(part.device))[0] == pytest.approx(step * 181e9 / stack)


SIMUMAX = """case,model,layers,tp,pp,dp,ep,cp,seq_len,micro_batches,micro_batch_size,measured_step_ms,measured_peak_alloc_gib
a,llama3-70b,12,8,1,1,1,1,4096,4,1,280,28.29
b,deepseekv3,4,1,1,8,8,1,4096,4,1,603,104.3
c,llama3-70b,12,1,1,1,1,8,65536,4,1,280,28.29
d,other,12,1,1,1,1,1,4096,4,1,280,28.29
"""


def test_steps_and_bytes_of_one_table(tmp_path: Path) -> None:
    time = load("simumax/b200_step_time_memory.csv#time", SIMUMAX, tmp_path)
    memory = load("simumax/b200_step_time_memory.csv#memory", SIMUMAX, tmp_path)
    assert time.skipped == memory.skipped == {"model is not in the catalog": 1}
    assert time.parts[0].measured.tolist() == [0.28, 0.603, 0.28]
    assert memory.parts[0].measured[:2].tolist() == [28.29 * 2**30, 104.3 * 2**30]
    predicted = memory.parts[0].predict(cost("b200"))
    assert np.abs(predicted / memory.parts[0].measured - 1.0)[:2].max() < 0.02
    assert memory.parts[0].relative_errors(cost("b200")).tolist() == [0.0, 0.0, 0.0]


CLAIMS = """seed_title,system,model,hardware,workload,strategy,metric,unit,value
x,Megatron-LM PTD-P,GPT 175B,96x A100,GBS60,TP8 PP12 interleaved (2 layers/virtual stage),achieved throughput per GPU,TFLOP/s,147
x,Megatron-LM PTD-P,GPT 175B,96x A100,GBS60,TP8 PP12 non-interleaved,achieved throughput per GPU,TFLOP/s,136
x,Megatron-LM PTD-P,GPT 145B (L80 h12288),128x A100,GBS8,TP8 PP16 no recompute,throughput,seq/s,3.9
x,Megatron-LM PTD-P,GPT h20480 3 layers/stage,64x A100,GBS128,TP8 PP8,achieved throughput per GPU,TFLOP/s,160
x,Megatron-LM PTD-P,GPT-3 174.6B,384x A100-80GB,GBS1536,ZeRO-3,achieved throughput per GPU,TFLOP/s,144
x,Megatron-LM PTD-P,GPT 7B,64x A100,GBS128,TP8 PP8,achieved throughput per GPU,TFLOP/s,100
x,Megatron-LM PTD-P,GPT-3 174.6B,384x A100-80GB,GBS1536,PTD-P,achieved throughput per GPU,TFLOP/s,153
x,Other,GPT 175B,96x A100,GBS60,TP8 PP12,achieved throughput per GPU,TFLOP/s,147
"""


def test_claims_of_steps(tmp_path: Path) -> None:
    loaded = load("seed_claims/models.csv", CLAIMS, tmp_path)
    (part,) = loaded.parts
    assert loaded.skipped == {
        ZERO_3: 1, "no figure of a training step's speed": 1, "claim without a model by its dimensions": 1,
        "claim without layout or batch": 1,
    }  # fmt: skip
    cases = [claims._case(row) for row in part.frame.itertuples(index=False)]
    assert [case.strategy.virtual_stages for case in cases] == [4, 1, 1, 1]
    assert [case.strategy.recompute for case in cases] == ["full", "full", "none", "full"]
    assert cases[3].model.num_hidden_layers == 24
    predicted = part.predict(cost(part.device))
    assert predicted[0] > predicted[1]  # interleaving shortens the bubble
    assert predicted[2] == pytest.approx(8 / simulate(cases[2].setup(CATALOG)).metrics["step_time"].value)


def test_activation_shares_of_table_2() -> None:
    # Korthikanti et al. 2022, table 2: of sbh(10 + 24/t + 5as/(ht)), full recomputation keeps 2sbh
    layer = 10 + 24 / 8 + 5 * 96 * 2048 / (12288 * 8)
    share = activations._layer(activations._step(CATALOG, "175B", "full")) / activations._layer(
        activations._step(CATALOG, "175B", "none")
    )
    assert share == pytest.approx(2 / layer, rel=1e-3)


def test_activations_and_states(tmp_path: Path) -> None:
    text = """model,figure,quantity,technique,value
22B,fig1,params+optimizer GiB per GPU,-,45.5625
22B,fig1,activations GiB per GPU,none (TP only),59.25
22B,fig7,activation memory % of TP-only baseline,TP only,100
22B,fig7,activation memory % of TP-only baseline,both,16.18
9B,fig1,activations GiB per GPU,none (TP only),1
"""
    name = activations.MEMORY
    sizes, shares = load(f"{name}#gib", text, tmp_path), load(f"{name}#share", text, tmp_path)
    assert sizes.parts[0].measured.tolist() == [45.5625, 59.25]
    assert shares.parts[0].measured.tolist() == [16.18]
    assert sum(sizes.skipped.values()) == 3
    assert sum(shares.skipped.values()) == 4
    for part in (*sizes.parts, *shares.parts):
        assert part.predict(cost(part.device)) == pytest.approx(part.measured, rel=0.03)


def test_a_gpt_is_what_its_table_says() -> None:
    model = gpt(12_288, 96, 96, sequence=2048)
    assert (model.vocab_size, model.intermediate_size, model.tie_word_embeddings) == (51_200, 49_152, True)


def test_contexts_of_a_measured_row_are_a_ring() -> None:
    case = frameworks._simumax_case(
        CATALOG, _row(model="llama3-70b", layers=12, tp=1, pp=1, dp=1, ep=1, cp=8, seq_len=65536, micro_batches=4, micro_batch_size=1)
    )  # fmt: skip
    assert (case.strategy.context_parallel, case.strategy.context_exchange) == (8, "ring")


def test_the_first_405b_has_16_key_value_heads() -> None:
    # as published in July 2024; the count of parameters of the row's four layers follows
    model = frameworks._truncated(CATALOG.model("llama3.1-405b"), 4)
    assert (model.num_key_value_heads, model.num_hidden_layers) == (16, 4)


@pytest.mark.parametrize(
    "name",
    [
        "training_published/reducing_activation_recomputation_table5.csv",
        "training_published/megatron_sc21_table2_zero3_vs_ptdp.csv",
        "training_published/megascale_175b.csv",
    ],
)
def test_shipped_papers_hold_their_bounds(name: str) -> None:
    dataset = {d.name: d for d in published.DATASETS}[name]
    assert score_loaded(name, dataset.load(SHIPPED / name, CATALOG), CATALOG).faults == ()


@pytest.mark.parametrize(
    ("name", "rows", "skipped"),
    [
        ("training_published/llama3_405b_table4.csv", 3, {}),
        ("training_published/megatron_core_h100_weak_scaling.csv", 7, {}),
        (
            "training_published/single_point_runs.csv", 2,
            {
                "not verified by the source": 1, "layouts of TPU slices: no strategy yet": 4,
                "parallel layout is not in the table": 2, "hours of a whole run, its long contexts and restarts included": 1,
            },
        ),
        ("megatron-paper-2205.05198/activation_memory_pct.csv", 16, {"is 100 % by definition": 4}),
    ],
)  # fmt: skip
def test_shipped_tables_load_whole(name: str, rows: int, skipped: dict[str, int]) -> None:
    dataset = {d.name: d for module in MODULES for d in module.DATASETS}[name]
    loaded = dataset.load(SHIPPED / name, CATALOG)
    assert loaded.skipped == skipped
    assert sum(len(part.measured) for part in loaded.parts) == rows
    for part in loaded.parts:
        assert part.predict(cost(part.device)) == pytest.approx(part.measured, rel=0.45)


def test_llama3_rows_are_flop_a_second() -> None:
    part = {d.name: d for d in published.DATASETS}["training_published/llama3_405b_table4.csv"].load(
        SHIPPED / "training_published/llama3_405b_table4.csv", CATALOG
    ).parts[0]  # fmt: skip
    assert part.measured.tolist() == [430e12, 400e12, 380e12]
    assert part.device == "h100-sxm"
