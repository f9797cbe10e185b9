"""The model zoo: every file is checked, and counts come with their sources."""

from __future__ import annotations

import pytest

from simulator.specs import Catalog

CATALOG = Catalog(environment={})
NAMES = CATALOG.names("model")
FAMILIES = {
    "gpt2-xl", "gpt3-175b", "megatron-22b", "megatron-1t", "opt-30b", "bloom-176b", "mpt-7b", "llama-65b",
    "llama2-70b", "llama3-8b", "llama3.1-405b", "llama4-maverick", "mistral-7b-v0.3", "mixtral-8x7b",
    "mixtral-8x22b", "qwen-72b", "qwen1.5-72b", "qwen2-72b", "qwen2.5-7b", "qwen3-32b", "qwen3-235b-a22b",
    "deepseek-v2-lite", "deepseek-v2", "deepseek-v3", "gemma2-9b", "gemma3-27b", "phi3-mini", "falcon-40b",
    "gpt-oss-120b", "kimi-k2", "t5-11b", "switch-base-128", "nllb-moe-54b", "bert-large",
}  # fmt: skip
AUTHORS = (
    "Hugging Face",
    "Brown et al.",
    "Narayanan et al.",
    "Korthikanti et al.",
    "Zhang et al.",
    "MosaicML",
    "Huang et al.",
    "Dosovitskiy et al.",
    "Qi et al.",
    "Zhao et al.",
    "Jiang et al.",
    "Chen and Li",
    "DeepSpeed",
    "Liao et al.",
    "Liaw and Chen",
    "Rajbhandari et al.",
    "Wu et al.",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_valid_and_cites_its_source(name):
    model = CATALOG.model(name)
    assert model.name == name == name.lower()
    assert model.source.startswith(AUTHORS)


def test_the_families_are_there():
    assert set(NAMES) >= FAMILIES


def test_at_least_25_counts_are_published_and_each_says_where():
    counts = {name: CATALOG.model(name).parameters for name in NAMES}
    assert all(len(count.source) > 20 for count in counts.values() if count)
    published = [count for count in counts.values() if count and "transformers 4" not in count.source]
    assert len(published) >= 25
