"""Checked values: sourced figures, and all errors of a file at once with place and nearest name."""

import copy
import pickle

import pytest
from pydantic import ValidationError

from simulator.specs import Figure, LinkType, Model, Node, Processor, SpecError, TrainingScenario, validate
from simulator.specs.source import parse_document

LINK = """kind: link
name: wire
technology: test
source: made up
bandwidth: 1 GB/s
latency: 1 us
"""


def problems(text: str, schema: type) -> list[str]:
    with pytest.raises(SpecError) as caught:
        validate(parse_document(text, "f.yaml"), schema)
    return [str(problem) for problem in caught.value.problems]


def test_a_figure_remembers_where_it_comes_from() -> None:
    text = LINK.replace(
        "1 GB/s", "{value: 2 GB/s, source: data sheet, date: 2024-05-01, range: [1 GB/s, 3 GB/s]}"
    )
    link = validate(parse_document(text), LinkType)
    assert link.bandwidth == 2e9
    assert isinstance(link.bandwidth, Figure)
    assert (link.bandwidth.source, link.bandwidth.date, link.bandwidth.range) == (
        "data sheet",
        "2024-05-01",
        (1e9, 3e9),
    )
    assert type(link.bandwidth * 2) is float


def test_figures_survive_copies() -> None:
    figure = Figure(1.5, "here", "2024", (1.0, 2.0))
    for twin in (copy.deepcopy(figure), pickle.loads(pickle.dumps(figure))):
        assert twin == figure
        assert (twin.source, twin.range) == ("here", (1.0, 2.0))


def test_values_are_frozen() -> None:
    link = validate(parse_document(LINK), LinkType)
    with pytest.raises(ValidationError, match="frozen"):
        link.bandwidth = 1.0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("bandwidth: 1 GB/s", "bandwith: 1 GB/s", "f.yaml:5:1: bandwith: unknown key; did you mean 'bandwidth'?"),
        ("bandwidth: 1 GB/s", "bandwidth: 1", "f.yaml:5:1: bandwidth: '1' has no unit; write it like '3.35 TB/s'"),
        ("bandwidth: 1 GB/s", "bandwidth: 1 GB", "f.yaml:5:1: bandwidth: '1 GB' is in bytes, not in bytes/s; did you mean '1 GB/s'?"),
        ("bandwidth: 1 GB/s", "bandwidth: -1 GB/s", "f.yaml:5:1: bandwidth: '-1 GB/s' must be above 0"),
        ("bandwidth: 1 GB/s", "bandwidth: [1]", "f.yaml:5:1: bandwidth: found a list, expected a quantity like '3.35 TB/s'"),
        ("bandwidth: 1 GB/s", "bandwidth:", "f.yaml:5:1: bandwidth: found nothing, expected a quantity like '3.35 TB/s'"),
        ("bandwidth: 1 GB/s", "bandwidth: .nan", "f.yaml:5:1: bandwidth: '.nan' is not a quantity; write it like '3.35 TB/s'"),
        ("bandwidth: 1 GB/s", "bandwidth: {value: 1 GB/s, sauce: x}", "unknown key 'sauce'; did you mean 'source'"),
        ("bandwidth: 1 GB/s", "bandwidth: {source: x}", "a sourced figure needs 'value'"),
        ("bandwidth: 1 GB/s", "bandwidth: {value: 1 GB/s, range: [2 GB/s, 3 GB/s]}", "'value' lies outside its 'range'"),
        ("bandwidth: 1 GB/s", "bandwidth: {value: 1 GB/s, range: 3 GB/s}", "'range' must be two quantities"),
        ("kind: link", "kind: lynk", "f.yaml:1:1: kind: found 'lynk', expected one of link"),
        ("technology: test\n", "", "technology: missing; this key is required"),
        ("technology: test", "technology: [a]", "f.yaml:3:1: technology: found a list, expected a text"),
        ("latency: 1 us", "latency: 1 us\nmaximum_peers: many", "maximum_peers: found 'many', expected a whole number"),
        ("latency: 1 us", "latency: 1 us\nmaximum_peers: 0", "maximum_peers: found '0', input should be greater than or equal to 1"),
        ("latency: 1 us", "latency: 1 us\nin_network_reduction: perhaps", "found 'perhaps', expected true or false"),
    ],
)  # fmt: skip
def test_one_clear_line(old: str, new: str, message: str) -> None:
    found = problems(LINK.replace(old, new), LinkType)
    assert any(message in line for line in found), found


def test_all_problems_at_once_in_their_order() -> None:
    text = (
        LINK.replace("technology: test", "tecnology: test")
        .replace("1 us", "1 GB")
        .replace("kind: link", "kind: node")
    )
    assert [line.split(": ")[1] for line in problems(text, LinkType)] == [
        "kind",
        "technology",
        "tecnology",
        "latency",
    ]


def test_a_list_is_no_file() -> None:
    assert problems("- a\n- b\n", LinkType) == ["f.yaml:1:1: expected keys and values, found a list"]


def test_nested_keys_name_their_path() -> None:
    text = """kind: node
name: n
source: s
components:
  gpu: {device: a, count: 2}
  box: {}
  x: {device: a, swich: true}
wires:
  - {between: [gpu], link: pcie}
  - between: [gpu, box]
"""
    found = problems(text, Node)
    assert "f.yaml:6:3: components.box: needs 'device: NAME' or 'switch: true', and not both" in found
    assert "f.yaml:7:18: components.x.swich: unknown key; did you mean 'switch'?" in found
    assert any(line.startswith("f.yaml:9:") and "wires[0].between" in line for line in found)
    assert any("wires[1].link: missing; this key is required" in line for line in found)


def test_number_formats_are_named() -> None:
    text = """kind: gpu
name: g
vendor: v
architecture: a
source: s
compute: {matrix: {bf17: 1 TFLOP/s}, vector: {fp32: 1 TFLOP/s}, units: 4, clock: 1 GHz}
memory: {hbm: {technology: HBM, capacity: 1 GB, bandwidth: 1 TB/s}}
power: {limit: 100 W}
"""
    found = problems(text, Processor)
    assert len(found) == 1
    assert "compute.matrix.bf17" in found[0]
    assert "did you mean 'bf16'" in found[0]


def test_hardware_short_form_and_its_faults() -> None:
    base = "kind: training\nmodel: m\nworkload: {global_batch: 8, sequence: 128}\nhardware: "
    good = validate(parse_document(base + "dgx\n"), TrainingScenario)
    assert good.hardware.node == "dgx"
    assert (
        "needs one of 'device', 'node' or 'cluster'" in problems(base + "{nodes: 3}\n", TrainingScenario)[0]
    )
    assert "'count' belongs to 'device'" in problems(base + "{node: dgx, count: 3}\n", TrainingScenario)[0]
    found = "".join(problems(base + "dgx\nstrategy: {schedule: f1b}\n", TrainingScenario))
    assert "strategy.schedule: found 'f1b', expected one of naive, gpipe, 1f1b, 1f1b-interleaved" in found
    assert "did you mean '1f1b'" in found


def test_models_check_their_own_arithmetic() -> None:
    base = """kind: model
name: m
family: decoder
source: s
vocab_size: 10
hidden_size: 30
num_hidden_layers: 2
num_attention_heads: 8
intermediate_size: 64
max_position_embeddings: 64
position: rope
normalization: rmsnorm
activation: silu
"""
    assert (
        "hidden_size (30) must be a multiple of num_attention_heads (8), or give head_dim"
        in problems(base, Model)[0]
    )
    grouped = base.replace("30", "32") + "num_key_value_heads: 3\n"
    assert "must be a multiple of num_key_value_heads (3)" in problems(grouped, Model)[0]
    assert (
        "belongs to family encoder-decoder"
        in problems(base.replace("30", "32") + "num_encoder_layers: 2\n", Model)[0]
    )
