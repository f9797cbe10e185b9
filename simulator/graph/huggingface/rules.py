"""Rules of families: fields of a model that several keys of a configuration decide together.

Each rule reads keys and returns fields; what a model cannot express it refuses with the key's name. How keys
act is taken from the modelling code of ``transformers`` 4.57.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.graph.huggingface.reader import ConfigReader, Fields, Rule

_LAYER_TYPES = ("full_attention", "sliding_attention", "chunked_attention")


def biases(key: str, *, output: bool = True, mlp: str = "") -> Rule:
    """Make a rule: one key for the biases of attention, another for those of the MLP."""

    def rule(r: ConfigReader) -> Fields:
        bias = r.flag(key)
        fields = {"attention_bias": bias, "attention_output_bias": bias and output}
        return {**fields, "mlp_bias": r.flag(mlp)} if mlp else fields

    return rule


def all_biases(key: str) -> Rule:
    """Make a rule: one key for the biases of all linear layers."""
    return biases(key, mlp=key)


# Windows


def windows(r: ConfigReader) -> Fields:
    """Read sliding layers and the global ones between them, from ``layer_types`` or the family's period."""
    types = r.listed("layer_types")
    period = r.optional("_sliding_window_pattern", "sliding_window_pattern")
    window = r.optional("sliding_window")
    if types:
        period = _global_period(r, types)
    if not window or period == 1:
        return {}
    return {"sliding_window": window, **({"sliding_window_pattern": period} if period else {})}


def qwen_windows(r: ConfigReader) -> Fields:
    """Read Qwen's window: layers from ``max_window_layers`` up slide if ``use_sliding_window`` is set."""
    used, first, types = (
        r.flag("use_sliding_window"),
        r.optional("max_window_layers") or 0,
        r.listed("layer_types"),
    )
    window = r.optional("sliding_window")
    if not used or not window:
        return {}
    if types:
        return windows(r)
    if 0 < first < r.whole("num_hidden_layers"):
        raise r.fault(
            "max_window_layers", f"found {first}; windows from layer {first} upwards cannot be expressed"
        )
    return {} if first else {"sliding_window": window}


def llama4_attention(r: ConfigReader) -> Fields:
    """Read chunked attention with global layers in between, and norms without weights on queries and keys."""
    chunk, rotary, types = (
        r.optional("attention_chunk_size"),
        r.listed("no_rope_layers"),
        r.listed("layer_types"),
    )
    period: int | None = r.whole("no_rope_layer_interval")
    if types:
        period = _global_period(r, types)
    elif rotary:
        period = _period(r, "no_rope_layers", [not flag for flag in rotary])
    fields: Fields = {"qk_norm": "head", "qk_norm_weight": False} if r.flag("use_qk_norm") else {}
    if chunk and period != 1:
        fields["attention_chunk_size"] = chunk
        if period:
            fields["sliding_window_pattern"] = period
    return fields


def _global_period(r: ConfigReader, types: list[Any]) -> int | None:
    unknown = next((kind for kind in types if kind not in _LAYER_TYPES), None)
    if unknown is not None:
        raise r.fault("layer_types", f"found {unknown!r}, expected {' or '.join(map(repr, _LAYER_TYPES))}")
    return _period(r, "layer_types", [kind == "full_attention" for kind in types])


def _period(r: ConfigReader, key: str, chosen: list[bool]) -> int | None:
    """Return k if exactly every k-th layer is chosen (1 if all are), None if none is."""
    if not any(chosen):
        return None
    k = chosen.index(True) + 1
    if chosen != [(layer + 1) % k == 0 for layer in range(len(chosen))]:
        raise r.fault(key, "found an order of layers that is not periodic, which cannot be expressed")
    return k


# Experts


def mixtral_experts(r: ConfigReader) -> Fields:
    """Read experts of all layers, as wide as ``intermediate_size``."""
    return {"moe": {
        "num_experts": r.whole("num_local_experts", "num_experts"),
        "num_experts_per_tok": r.whole("num_experts_per_tok", "experts_per_token"),
        "moe_intermediate_size": r.whole("intermediate_size"),
    }}  # fmt: skip


def gpt_oss_experts(r: ConfigReader) -> Fields:
    """Read experts and a router that carry biases."""
    return {"moe": {**mixtral_experts(r)["moe"], "router_bias": True, "expert_bias": True}}


def llama4_experts(r: ConfigReader) -> Fields:
    """Read a shared expert beside routed ones in every k-th layer; the other layers are dense and wider."""
    step, layers = r.whole("interleave_moe_layer_step"), r.listed("moe_layers")
    if layers:
        chosen = [layer in layers for layer in range(r.whole("num_hidden_layers"))]
        step = _period(r, "moe_layers", chosen) or step
    moe = {**mixtral_experts(r)["moe"], "num_shared_experts": 1, **_every(step)}
    return {"intermediate_size": r.whole("intermediate_size_mlp"), "moe": moe}


def qwen_experts(r: ConfigReader) -> Fields:
    """Read Qwen's experts, its gated shared expert and the dense layers at the bottom."""
    dense, step = sorted(r.listed("mlp_only_layers")), r.whole("decoder_sparse_step")
    if dense != list(range(len(dense))) or (dense and step != 1):
        raise r.fault(
            "mlp_only_layers", f"found {dense} with step {step}; only the lowest layers may be dense"
        )
    moe: Fields = {
        "num_experts": r.whole("num_experts", "num_local_experts"),
        "num_experts_per_tok": r.whole("num_experts_per_tok"),
        "moe_intermediate_size": r.whole("moe_intermediate_size"),
        "first_dense_layers": len(dense),
        **_every(step),
    }
    shared = r.optional("shared_expert_intermediate_size")
    if shared:
        moe |= {"num_shared_experts": 1, "shared_intermediate_size": shared, "shared_expert_gate": True}
    return {"moe": moe}


def deepseek_experts(r: ConfigReader) -> Fields:
    """Read shared and routed experts above the first dense layers; V3's routing has a correction bias."""
    r.one_of("moe_layer_freq", 1)
    method = r.one_of("topk_method", "greedy", "group_limited_greedy", "noaux_tc")
    moe: Fields = {
        "num_experts": r.optional("n_routed_experts"), "num_experts_per_tok": r.get("num_experts_per_tok"),
        "moe_intermediate_size": r.whole("moe_intermediate_size"),
        "num_shared_experts": r.optional("n_shared_experts") or 0,
        "first_dense_layers": r.whole("first_k_dense_replace"), "router_bias": method == "noaux_tc",
    }  # fmt: skip
    if moe["num_experts"] is None:
        return {}
    return {"moe": {**moe, "num_experts_per_tok": r.whole("num_experts_per_tok")}}


def switch_experts(r: ConfigReader) -> Fields:
    """Read Switch's experts: every k-th layer of a stack is sparse; k follows from the count of such layers.

    Layer i is sparse if i mod k is 1, and all are if k is 1; without sparse layers k is the count of layers.
    """
    stacks = t5_layers(r)
    layers = {"encoder": stacks["num_encoder_layers"], "decoder": stacks["num_hidden_layers"]}
    sparse = {side: r.optional(f"num_sparse_{side}_layers") for side in layers}
    steps = {side: layers[side] // (sparse[side] or 1) for side in layers}
    r.read.update(("encoder_sparse_step", "decoder_sparse_step"))  # what the counts say supersedes them
    step = steps["encoder"]
    if steps["decoder"] != step:
        raise r.fault(
            "num_sparse_decoder_layers", "found another step than the encoder's, which cannot be expressed"
        )
    return {"moe": {
        "num_experts": r.whole("num_experts"), "num_experts_per_tok": 1,
        "moe_intermediate_size": r.whole("d_ff"),
        "moe_layer_frequency": step, "moe_layer_offset": 1 % step, "router_bias": r.flag("router_bias"),
    }}  # fmt: skip


def nllb_experts(r: ConfigReader) -> Fields:
    """Read NLLB's experts with biases in every k-th layer of both stacks, two a token."""
    for ours, theirs in (
        ("decoder_ffn_dim", "encoder_ffn_dim"),
        ("decoder_attention_heads", "encoder_attention_heads"),
    ):
        r.one_of(ours, r.whole(theirs))
    step = r.whole("encoder_sparse_step")
    r.one_of("decoder_sparse_step", step)
    return {"moe": {
        "num_experts": r.whole("num_experts"), "num_experts_per_tok": 2,
        "moe_intermediate_size": r.whole("encoder_ffn_dim"),
        "router_bias": r.flag("router_bias"), "expert_bias": True, **_every(step),
    }}  # fmt: skip


def _every(step: int) -> Fields:
    """Layers step - 1, 2 step - 1, ... are mixtures."""
    return {"moe_layer_frequency": step, "moe_layer_offset": step - 1}


# Single families


def latent_attention(r: ConfigReader) -> Fields:
    """Read DeepSeek's latent attention; a null rank of queries means a full projection (V2-Lite)."""
    keys = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    mla: Fields = {key: r.whole(key) for key in keys}
    rank = r.optional("q_lora_rank")
    if rank:
        mla["q_lora_rank"] = rank
    r.one_of("attention_bias", False)
    return {"mla": mla}


def t5_layers(r: ConfigReader) -> Fields:
    """Read the layers of both stacks; the decoder has the encoder's count unless told otherwise."""
    encoder = r.whole("num_layers")
    return {"num_encoder_layers": encoder, "num_hidden_layers": r.optional("num_decoder_layers") or encoder}


def t5_feed_forward(r: ConfigReader) -> Fields:
    """Read ``relu`` or ``gated-gelu``."""
    text = str(r.get("feed_forward_proj"))
    gate, _, activation = text.rpartition("-")
    if gate not in ("", "gated"):
        raise r.fault(
            "feed_forward_proj", f"found {text!r}, expected an activation or gated- and an activation"
        )
    return {"gated_mlp": bool(gate), "activation": r.activation("feed_forward_proj", activation)}


def opt(r: ConfigReader) -> Fields:
    """Read OPT's switches: the 350M norms after its sublayers and has a narrower word table."""
    r.one_of("layer_norm_elementwise_affine", True)
    before, width = r.flag("do_layer_norm_before"), r.optional("word_embed_proj_dim")
    fields: Fields = {
        "norm_placement": "pre" if before else "post",
        "final_norm": before and not r.flag("_remove_final_layer_norm"),
    }
    return {**fields, "embedding_size": width} if width and width != r.whole("hidden_size") else fields


def gpt2(r: ConfigReader) -> Fields:
    """Read the MLP's width, four times the model's if absent."""
    return {"intermediate_size": r.optional("n_inner") or 4 * r.whole("n_embd", "hidden_size")}


def bloom(r: ConfigReader) -> Fields:
    """Set the MLP four times as wide as the model."""
    return {"intermediate_size": 4 * r.whole("hidden_size", "n_embed")}


def mpt(r: ConfigReader) -> Fields:
    """Read the MLP's width, and check that attention is of the kind that MPT-7B and 30B have."""
    attention = r.get("attn_config") or {}
    if not isinstance(attention, Mapping):
        raise r.fault("attn_config", f"found {attention!r}, expected keys and values")
    expected = {"alibi": True, "qk_ln": False, "attn_type": "multihead_attention", "prefix_lm": False}
    for key, value in expected.items():
        if attention.get(key, value) != value:
            raise r.fault(f"attn_config.{key}", f"found {attention[key]!r}, expected {value!r}")
    r.one_of("no_bias", True)
    return {"intermediate_size": r.whole("expansion_ratio") * r.whole("d_model")}


def falcon(r: ConfigReader) -> Fields:
    """Read Falcon's switches: one KV head and one norm (7B), or groups and two norms (40B, 180B)."""
    new, one = r.flag("new_decoder_architecture"), r.flag("multi_query")
    groups = r.optional("num_kv_heads", "n_head_kv")
    norms = r.optional("num_ln_in_parallel_attn") or (2 if new else 1)
    fields: Fields = {
        "position": "alibi" if r.flag("alibi") else "rope",
        "intermediate_size": r.optional("ffn_hidden_size") or 4 * r.whole("hidden_size", "n_embed"),
    }
    if r.flag("parallel_attn") or new:
        fields |= {"parallel_block": True, "parallel_block_norms": norms}
    if new and groups:
        fields["num_key_value_heads"] = groups
    elif one and not new:
        fields["num_key_value_heads"] = 1
    return fields


def gpt_neox(r: ConfigReader) -> Fields:
    """Read whether attention and MLP run beside each other, each with its norm."""
    return {"parallel_block": True, "parallel_block_norms": 2} if r.flag("use_parallel_residual") else {}


def qwen1(r: ConfigReader) -> Fields:
    """Read the first Qwen: its intermediate size is that of gate and up projection together."""
    r.one_of("no_bias", True)
    return {"intermediate_size": r.whole("intermediate_size") // 2, "head_dim": r.optional("kv_channels")}


def bert(r: ConfigReader) -> Fields:
    """Check that positions are a learned table."""
    r.one_of("position_embedding_type", "absolute")
    return {}
