"""Hugging Face configurations into models: every family against the zoo, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.graph.huggingface import FAMILIES
from simulator.graph.importer import import_config, model_fields, model_from_config, to_yaml
from simulator.specs import Catalog, MemroofError, UnknownNameError, validate
from simulator.specs.model import Model
from simulator.specs.source import parse_document

CONFIGS = {path.stem: path for path in sorted((Path(__file__).parent / "configs").glob("*.json"))}
CITED = {"source", "note", "parameters"}


def read(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(CONFIGS[name].read_text(encoding="utf-8"))
    return config


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog(environment={})


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_becomes_the_zoos_model(catalog: Catalog, name: str) -> None:
    model = model_from_config(read(name), name, file=f"{name}.json")
    assert model.model_dump(exclude=CITED) == catalog.model(name).model_dump(exclude=CITED)


def test_every_family_has_an_example() -> None:
    parts = [read(name) for name in CONFIGS]
    parts += [part["text_config"] for part in parts if "text_config" in part]
    seen = {part["model_type"] for part in parts}
    assert seen | {"RefinedWebModel"} == set(FAMILIES)


def test_the_written_file_loads_through_the_catalog(tmp_path: Path) -> None:
    fields = import_config(read("deepseek-v3"), "imported", source='a "quoted": source, 1e9 # not a comment')
    (tmp_path / "models_zoo").mkdir()
    (tmp_path / "models_zoo" / "imported.yaml").write_text(to_yaml(fields), encoding="utf-8")
    model = Catalog([tmp_path], environment={}).model("imported")
    assert model == model_from_config(read("deepseek-v3"), "imported", source=model.source)
    assert model.source == 'a "quoted": source, 1e9 # not a comment'


@pytest.mark.parametrize("name", ["deepseek-v3", "llama4-scout", "t5-11b", "opt-350m", "megatron-1t"])
def test_the_zoos_files_are_in_the_layout_that_import_writes(catalog: Catalog, name: str) -> None:
    text = catalog.file("model", name).read_text(encoding="utf-8")
    written = to_yaml(model_fields(catalog.model(name)))
    assert sorted(text.splitlines()) == sorted(written.splitlines())


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40))
def test_any_source_text_survives_the_file(source: str) -> None:
    fields = {**import_config(read("gpt2-xl"), "some-model"), "source": source, "name": source}
    model = validate(parse_document(to_yaml(fields)), Model)
    assert model.source == model.name == source


def test_the_configuration_is_cited_unless_a_source_is_given() -> None:
    assert (
        import_config(read("gpt2-xl"), "x", file="a/config.json")["source"]
        == "Hugging Face gpt2, a/config.json"
    )
    named = {**read("gpt2-xl"), "_name_or_path": "openai-community/gpt2-xl"}
    assert import_config(named, "x")["source"] == "Hugging Face openai-community/gpt2-xl, config.json"


# Defaults of keys that a configuration leaves out, and explicit nulls


def changed(name: str, **changes: Any) -> dict[str, Any]:
    """Return a configuration with keys set, or taken out where the value is ``...``."""
    config = read(name)
    part = config.get("text_config", config)
    for key, value in changes.items():
        if value is ...:
            del part[key]
        else:
            part[key] = value
    return config


@pytest.mark.parametrize(
    ("name", "changes", "field", "expected"),
    [
        ("llama2-7b", {"num_key_value_heads": None}, "num_key_value_heads", None),
        ("mistral-7b-v0.1", {}, "num_key_value_heads", 8),
        ("mistral-7b-v0.1", {"num_key_value_heads": None}, "num_key_value_heads", None),
        ("mistral-7b-v0.1", {}, "sliding_window", 4096),
        ("mistral-7b-v0.1", {"sliding_window": None}, "sliding_window", None),
        ("llama2-7b", {"max_position_embeddings": ...}, "max_position_embeddings", 2048),
        ("llama2-7b", {"attention_bias": True}, "attention_output_bias", True),
        ("qwen3-0.6b", {"head_dim": ...}, "head_dim", 128),
        ("qwen2.5-7b", {"num_key_value_heads": ..., "num_attention_heads": 32, "hidden_size": 4096},
         "kv_heads", 32),
        ("qwen2.5-7b", {"use_sliding_window": True}, "sliding_window", None),
        ("qwen2.5-7b", {"use_sliding_window": True, "max_window_layers": 0}, "sliding_window", 131072),
        ("qwen2.5-7b", {"use_sliding_window": True, "sliding_window": None}, "sliding_window", None),
        ("gemma2-9b", {"layer_types": ["full_attention"] * 42}, "sliding_window", None),
        ("gemma2-9b", {"layer_types": ["sliding_attention"] * 42}, "sliding_window_pattern", None),
        ("gemma2-9b", {"layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
         "sliding_window_pattern", 3),
        ("qwen3-0.6b", {"use_sliding_window": True, "sliding_window": 512,
                        "layer_types": ["sliding_attention", "full_attention"] * 14},
                        "sliding_window_pattern", 2),
        ("llama4-scout", {"no_rope_layers": [1, 0] * 24}, "sliding_window_pattern", 2),
        ("llama4-scout", {"no_rope_layers": [1] * 48}, "sliding_window_pattern", None),
        ("llama4-scout", {"layer_types": ["full_attention"] * 48}, "attention_chunk_size", None),
        ("llama4-scout", {"attention_chunk_size": None}, "sliding_window_pattern", None),
        ("t5-large", {"num_decoder_layers": 12}, "num_hidden_layers", 12),
        ("t5-large", {"feed_forward_proj": "gated-silu"}, "activation", "silu"),
        ("falcon-7b", {"alibi": True}, "position", "alibi"),
        ("falcon-7b", {"parallel_attn": False}, "parallel_block", False),
        ("falcon-7b", {"multi_query": False}, "kv_heads", 71),
        ("falcon-40b", {"num_ln_in_parallel_attn": 1}, "parallel_block_norms", 1),
        ("gpt-neox-20b", {"use_parallel_residual": False}, "parallel_block", False),
        ("opt-30b", {"_remove_final_layer_norm": True}, "final_norm", False),
        ("opt-30b", {"enable_bias": False}, "mlp_bias", False),
        ("opt-30b", {"dropout": 0.0}, "dropout", False),
        ("gpt2-xl", {"n_inner": 1000}, "intermediate_size", 1000),
    ],
)  # fmt: skip
def test_keys_act_as_in_the_configuration_classes(
    name: str, changes: dict[str, Any], field: str, expected: object
) -> None:
    assert getattr(model_from_config(changed(name, **changes), "x"), field) == expected


@pytest.mark.parametrize(
    ("name", "changes", "key", "expected"),
    [
        ("qwen3-30b-a3b", {"mlp_only_layers": [0, 1]}, "first_dense_layers", 2),
        ("qwen3-30b-a3b", {"decoder_sparse_step": 2}, "moe_layer_offset", 1),
        ("qwen1.5-moe-a2.7b", {"shared_expert_intermediate_size": None}, "shared_expert_gate", False),
        ("deepseek-v2-lite", {"n_shared_experts": None}, "num_shared_experts", 0),
        ("deepseek-v3", {"topk_method": ...}, "router_bias", True),
        ("llama4-maverick", {"moe_layers": list(range(48))}, "moe_layer_frequency", 1),
        ("switch-base-8", {"num_sparse_encoder_layers": ..., "num_sparse_decoder_layers": ...},
         "moe_layer_frequency", 4),
        ("switch-base-8", {"num_sparse_encoder_layers": 12, "num_sparse_decoder_layers": 12},
         "moe_layer_offset", 0),
    ],
)  # fmt: skip
def test_keys_of_experts_act_as_in_the_configuration_classes(
    name: str, changes: dict[str, Any], key: str, expected: object
) -> None:
    assert getattr(model_from_config(changed(name, **changes), "x").moe, key) == expected


def test_latent_queries_are_full_rank_only_where_the_rank_is_null() -> None:
    assert model_from_config(changed("deepseek-v2-lite"), "x").mla.q_lora_rank is None  # type: ignore[union-attr]
    left_out = model_from_config(changed("deepseek-v2-lite", q_lora_rank=...), "x")
    assert left_out.mla is not None and left_out.mla.q_lora_rank == 1536


def test_a_dense_deepseek_has_no_experts() -> None:
    assert model_from_config(changed("deepseek-v2-lite", n_routed_experts=None), "x").moe is None


# Refusals: each names the file and the key


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama2-7b", {"hidden_size": ...}, "missing key 'hidden_size', which model_type 'llama' needs"),
        ("llama2-7b", {"hidden_size": None}, "missing key 'hidden_size'"),
        ("deepseek-v2-lite", {"num_experts_per_tok": ...}, "missing key 'num_experts_per_tok'"),
        ("llama2-7b", {"hidden_size": "4096"}, "hidden_size: found '4096', expected a whole number"),
        ("llama2-7b", {"hidden_size": True}, "hidden_size: found True, expected a whole number"),
        ("llama2-7b", {"num_hidden_layers": 32.5}, "num_hidden_layers: found 32.5, expected a whole number"),
        ("llama2-7b", {"num_attention_heads": 0}, "num_attention_heads: found 0"),
        ("llama2-7b", {"num_attention_heads": 7, "num_key_value_heads": 7},
         "hidden_size (4096) must be a multiple"),
        ("falcon-40b", {"n_head": "many"}, "n_head: found 'many'"),
        ("llama2-7b", {"tie_word_embeddings": "no"}, "tie_word_embeddings: found 'no', expected true"),
        ("llama2-7b", {"hidden_act": "xielu"}, "hidden_act: found 'xielu', expected one of gelu"),
        ("opt-30b", {"dropout": "some"}, "dropout: found 'some', expected a number"),
        ("llama2-7b", {"use_mla": True}, "use_mla: found True, which may change the structure"),
        ("llama2-7b", {"num_local_experts": 8}, "num_local_experts: found 8, which may change the structure"),
        ("mixtral-8x7b", {"mlp_bias": True}, "mlp_bias: found True"),
        ("phi-2", {"qk_layernorm": True}, "qk_layernorm: found True"),
        ("gemma2-9b", {"layer_types": ["recurrent"] * 42},
         "layer_types: found 'recurrent', expected 'full_attention'"),
        ("gemma2-9b", {"layer_types": ["full_attention", "sliding_attention"]},
         "layer_types: found an order"),
        ("gemma2-9b", {"layer_types": "all"}, "layer_types: found 'all', expected a list"),
        ("qwen2.5-7b", {"use_sliding_window": True, "max_window_layers": 14}, "max_window_layers: found 14"),
        ("qwen-72b", {"no_bias": False}, "no_bias: found False, expected True"),
        ("qwen3-30b-a3b", {"mlp_only_layers": [3]}, "mlp_only_layers: found [3]"),
        ("qwen3-30b-a3b", {"mlp_only_layers": [0], "decoder_sparse_step": 2},
         "mlp_only_layers: found [0] with step 2"),
        ("deepseek-v3", {"moe_layer_freq": 2}, "moe_layer_freq: found 2, expected 1"),
        ("deepseek-v3", {"topk_method": "sinkhorn"}, "topk_method: found 'sinkhorn'"),
        ("deepseek-v3", {"attention_bias": True}, "attention_bias: found True, expected False"),
        ("t5-large", {"feed_forward_proj": "double-gelu"}, "feed_forward_proj: found 'double-gelu'"),
        ("t5-large", {"feed_forward_proj": "gated-swoosh"}, "feed_forward_proj: found 'swoosh'"),
        ("switch-base-8", {"num_sparse_decoder_layers": 3}, "num_sparse_decoder_layers: found another step"),
        ("nllb-moe-54b", {"decoder_ffn_dim": 4096}, "decoder_ffn_dim: found 4096, expected 8192"),
        ("nllb-moe-54b", {"decoder_sparse_step": 2}, "decoder_sparse_step: found 2, expected 4"),
        ("opt-30b", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine: found False"),
        ("mpt-7b", {"attn_config": {"alibi": False}}, "attn_config.alibi: found False, expected True"),
        ("mpt-7b", {"attn_config": "flash"}, "attn_config: found 'flash', expected keys and values"),
        ("bert-large", {"position_embedding_type": "relative_key"},
         "position_embedding_type: found 'relative_key'"),
    ],
)  # fmt: skip
def test_a_refusal_names_file_and_key(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MemroofError) as caught:
        model_from_config(changed(name, **changes), "x", file="some/config.json")
    assert str(caught.value).startswith("some/config.json")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_family_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown model_type 'qwen3moe'; did you mean 'qwen3_moe'"):
        import_config({**read("qwen3-30b-a3b"), "model_type": "qwen3moe"}, "x")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": 4096}, "c.json: missing key 'model_type'"),
        ({"model_type": 3}, "c.json: missing key 'model_type'"),
        ([1, 2], "c.json: found a list, expected keys and values"),
        (
            {"model_type": "gemma3", "text_config": 3},
            "c.json: text_config: found a int, expected keys and values",
        ),
        ({"model_type": "gemma3_text"}, "c.json: missing key 'hidden_size'"),
    ],
)
def test_what_is_no_configuration_is_refused(config: Any, message: str) -> None:
    with pytest.raises(MemroofError, match=message):
        import_config(config, "x", file="c.json")


def test_keys_that_say_nothing_about_the_structure_are_ignored() -> None:
    extra = {"my_comment": "hello", "num_beams": 4, "use_cache": False, "use_mla": False, "num_experts": None}
    assert import_config({**read("llama2-7b"), **extra}, "x") == import_config(read("llama2-7b"), "x")
