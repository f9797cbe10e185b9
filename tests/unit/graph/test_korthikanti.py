"""Activation bytes of a layer against the closed forms of Korthikanti et al. 2022, table 2."""

import pytest

from simulator.graph import Partition, Shape, build
from simulator.specs import Catalog, Model

# name in the zoo, micro-batch: the four models of table 3
MODELS = [("megatron-22b", 4), ("gpt3-175b", 1), ("megatron-530b", 1), ("megatron-1t", 1)]
T = 8


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog(environment={})


def _layer(model: Model, batch: int, *, tensor: int, sequence_parallel: bool):
    shape = Shape(batch, 2048)
    graph = build(model, shape, Partition(tensor, 1, sequence_parallel), fused_attention=False)
    return graph.blocks[0]


@pytest.mark.parametrize(("name", "batch"), MODELS)
def test_table_2_exactly(catalog: Catalog, name: str, batch: int) -> None:
    model = catalog.model(name)
    s, b, h, a, t = 2048, batch, model.hidden_size, model.num_attention_heads, T
    sbh, scores = s * b * h, 5 * a * s / h
    whole_bytes = 34 * sbh + 5 * a * s * s * b  # sbh·(34 + 5as/h), in whole numbers
    whole = _layer(model, batch, tensor=1, sequence_parallel=False)
    tensor = _layer(model, batch, tensor=t, sequence_parallel=False)
    both = _layer(model, batch, tensor=t, sequence_parallel=True)
    assert whole.saved_bytes("none") == whole_bytes
    assert tensor.saved_bytes("none") == pytest.approx(sbh * (10 + 24 / t + scores / t), rel=1e-12)
    assert both.saved_bytes("none") == pytest.approx(sbh / t * (34 + scores), rel=1e-12)
    assert tensor.saved_bytes("selective") == pytest.approx(sbh * (10 + 24 / t), rel=1e-12)
    assert both.saved_bytes("selective") == pytest.approx(34 * sbh / t, rel=1e-12)
    assert tensor.saved_bytes("full") == 2 * sbh


@pytest.mark.parametrize(("name", "batch"), MODELS)
def test_layer_flops_are_theirs(catalog: Catalog, name: str, batch: int) -> None:
    """Forward products of a layer: 24·b·s·h²·(1 + s/(6h)) FLOP (Narayanan et al. 2021, section 5.1)."""
    model = catalog.model(name)
    s, h = 2048, model.hidden_size
    block = _layer(model, batch, tensor=1, sequence_parallel=False)
    products = sum(w.flops for w in block.works() if type(w).__name__ == "Matmul")
    assert products == pytest.approx(24 * batch * s * h**2 * (1 + s / (6 * h)), rel=1e-12)


def test_parameters_of_gpt3_follow_the_closed_form(catalog: Catalog) -> None:
    """P = 12·L·h²·(1 + 13/(12h) + (V + s)/(12·L·h)) (Narayanan et al. 2021, equation 2), and the final norm's 2h."""
    model = catalog.model("gpt3-175b")
    layers, h, v, s = (
        model.num_hidden_layers,
        model.hidden_size,
        model.vocab_size,
        model.max_position_embeddings,
    )
    closed = 12 * layers * h**2 * (1 + 13 / (12 * h) + (v + s) / (12 * layers * h)) + 2 * h
    assert build(model, Shape(1, 1)).parameters == pytest.approx(closed, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "kv_bytes"), [("deepseek-v3", 70_272), ("qwen2.5-72b", 327_680), ("llama3.1-405b", 516_096)]
)
def test_kv_bytes_of_a_token(catalog: Catalog, name: str, kv_bytes: int) -> None:
    """DeepSeek-AI 2025, "Insights into DeepSeek-V3", table 1: KV cache a token in bf16."""
    graph = build(catalog.model(name), Shape(1, 1, 1024, "decode"))
    assert graph.kv_bytes(1) == kv_bytes
