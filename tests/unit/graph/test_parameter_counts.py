"""Parameters and cache of every model in the zoo against what is published."""

from __future__ import annotations

import pytest

from simulator.graph import Shape, build
from simulator.specs import Catalog

CATALOG = Catalog(environment={})
MODELS = [CATALOG.model(name) for name in CATALOG.names("model")]
COUNTED = [model for model in MODELS if model.parameters]
SHAPE = Shape(batch=1, sequence=8, target=8)


@pytest.mark.parametrize("model", COUNTED, ids=lambda model: model.name)
def test_the_count_of_parameters_is_the_published_one(model):
    assert int(build(model, SHAPE).parameters) == model.parameters.value


SC21 = ["1.7b", "3.6b", "7.5b", "18.4b", "39.1b", "76.1b", "145.6b", "310.1b", "529.6b", "1008b"]


@pytest.mark.parametrize("name", [f"megatron-{size}" for size in SC21])
def test_the_megatron_family_has_the_sizes_of_its_table(name):
    # Narayanan et al. 2021, table 1, prints billions to one digit: the name of each model
    published = float(name.removeprefix("megatron-").removesuffix("b"))
    billions = float(build(CATALOG.model(name), SHAPE).parameters) / 1e9
    assert round(billions, 1) == published


@pytest.mark.parametrize("name", [m.name for m in MODELS if m.name.startswith(("megatron-", "gpt3-"))])
def test_the_gpt_family_follows_equation_2_of_narayanan(name):
    # P = 12 l h^2 (1 + 13 / 12h + (V + s) / 12 l h), which leaves out the final norm
    model = CATALOG.model(name)
    l, h = model.num_hidden_layers, model.hidden_size  # noqa: E741
    rows = model.vocab_size + model.max_position_embeddings
    assert int(build(model, SHAPE).parameters) == 12 * l * h**2 + 13 * l * h + rows * h + 2 * h


@pytest.mark.parametrize(
    ("name", "published"),
    [("deepseek-v3", 70_272), ("qwen2.5-72b", 327_680), ("llama3.1-405b", 516_096)],
)
def test_the_cache_of_a_token_is_the_published_one(name, published):
    # DeepSeek-AI 2025, Insights into DeepSeek-V3, table 1, in 16-bit
    assert float(build(CATALOG.model(name), SHAPE).kv_bytes(1)) == published
