"""The table of families: for each ``model_type`` its keys, what it fixes, its defaults and its rules.

Defaults are those of the configuration classes of ``transformers`` 4.57; sizes that every published
configuration states have none, so that their absence is an error and not a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.graph.huggingface import rules
from simulator.graph.huggingface.reader import Family


def _same(*names: str) -> dict[str, tuple[str, ...]]:
    return {name: (name,) for name in names}


_SIZES = _same(
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings",
)  # fmt: skip
_GROUPED = {**_SIZES, **_same("num_key_value_heads")}
_HEADED = {**_GROUPED, **_same("head_dim")}
_GPT_NAMES = {
    "vocab_size": ("vocab_size",), "hidden_size": ("n_embd", "hidden_size"),
    "num_hidden_layers": ("n_layer", "num_hidden_layers"), "num_attention_heads": ("n_head",
    "num_attention_heads"),
    "max_position_embeddings": ("n_positions", "max_position_embeddings"),
}  # fmt: skip

_LLAMA_LIKE = {"family": "decoder", "position": "rope", "normalization": "rmsnorm", "gated_mlp": True}
_LAYER_NORMED = {"family": "decoder", "normalization": "layernorm"}
_BIASED = {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True}
_SILU: dict[str, Any] = {"hidden_act": "silu"}
_QWEN_SIZES = {**_SILU, "vocab_size": 151936, "max_position_embeddings": 32768, "max_window_layers": 28}
_GPT_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
_PHI_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attention_dropout")

_LLAMA = Family(
    _HEADED, _LLAMA_LIKE, {**_SILU, "vocab_size": 32000, "max_position_embeddings": 2048},
    (rules.biases("attention_bias", mlp="mlp_bias"),),
)  # fmt: skip
_INTERNLM = Family(
    _SIZES, _LLAMA_LIKE, {**_SILU, "vocab_size": 103168, "max_position_embeddings": 2048, "bias": True},
    (rules.biases("bias"),),
)  # fmt: skip
_MISTRAL = Family(
    _HEADED, _LLAMA_LIKE,
    {**_SILU, "vocab_size": 32000, "num_key_value_heads": 8, "max_position_embeddings": 131072,
     "sliding_window": 4096},
    (rules.windows,),
)  # fmt: skip
_MIXTRAL = Family(
    _HEADED, _LLAMA_LIKE,
    {**_SILU, "vocab_size": 32000, "num_key_value_heads": 8, "max_position_embeddings": 131072,
     "num_local_experts": 8,
     "num_experts_per_tok": 2},
    (rules.windows, rules.mixtral_experts),
)  # fmt: skip
_LLAMA4 = Family(
    _HEADED | {"intermediate_size": ("intermediate_size_mlp",)}, _LLAMA_LIKE,
    {**_SILU, "vocab_size": 202048, "num_key_value_heads": 8, "head_dim": 128,
     "max_position_embeddings": 131072,
     "intermediate_size_mlp": 16384, "num_local_experts": 16, "num_experts_per_tok": 1,
     "interleave_moe_layer_step": 1,
     "attention_chunk_size": 8192, "no_rope_layer_interval": 4, "use_qk_norm": True},
    (rules.biases("attention_bias"), rules.llama4_attention, rules.llama4_experts), part="text_config",
)  # fmt: skip

_QWEN = Family(
    _SIZES | {"max_position_embeddings": ("seq_length", "max_position_embeddings")},
    {**_LLAMA_LIKE, "attention_bias": True}, {**_SILU, "vocab_size": 151936, "seq_length": 8192},
     (rules.qwen1,),
    dropouts=("attn_dropout_prob", "emb_dropout_prob"),
)  # fmt: skip
_QWEN2 = Family(
    _HEADED,
    {**_LLAMA_LIKE, "attention_bias": True},
    {**_QWEN_SIZES, "num_key_value_heads": 32},
    (rules.qwen_windows,),
)
_QWEN2_MOE = Family(
    _HEADED, _LLAMA_LIKE,
    {**_QWEN_SIZES, "num_key_value_heads": 16, "qkv_bias": True, "num_experts": 60, "num_experts_per_tok": 4,
     "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "decoder_sparse_step": 1},
    (rules.biases("qkv_bias", output=False), rules.qwen_windows, rules.qwen_experts),
)  # fmt: skip
_QWEN3 = Family(
    _HEADED, {**_LLAMA_LIKE, "qk_norm": "head"}, {**_QWEN_SIZES, "num_key_value_heads": 32, "head_dim": 128},
    (rules.biases("attention_bias"), rules.qwen_windows),
)  # fmt: skip
_QWEN3_MOE = Family(
    _HEADED, {**_LLAMA_LIKE, "qk_norm": "head"},
    {**_QWEN_SIZES, "max_window_layers": 0, "num_key_value_heads": 4, "num_experts": 128,
     "num_experts_per_tok": 8,
     "moe_intermediate_size": 768, "decoder_sparse_step": 1},
    (rules.biases("attention_bias"), rules.qwen_windows, rules.qwen_experts),
)  # fmt: skip

_DEEPSEEK_IGNORED = frozenset({"num_key_value_heads", "head_dim", "qk_head_dim"})
_MLA_RANKS = {
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}  # fmt: skip
_DEEPSEEK_V2 = Family(
    _SIZES, _LLAMA_LIKE,
    {**_SILU, **_MLA_RANKS, "vocab_size": 32000, "max_position_embeddings": 2048, "n_routed_experts": 64,
     "n_shared_experts": 2, "moe_intermediate_size": 1407, "first_k_dense_replace": 0},
    (rules.latent_attention, rules.deepseek_experts), ignored=_DEEPSEEK_IGNORED,
)  # fmt: skip
_DEEPSEEK_V3 = Family(
    _SIZES, _LLAMA_LIKE,
    {**_SILU, **_MLA_RANKS, "vocab_size": 129280, "max_position_embeddings": 4096, "n_routed_experts": 256,
     "num_experts_per_tok": 8, "n_shared_experts": 1, "moe_intermediate_size": 2048,
     "first_k_dense_replace": 3,
     "topk_method": "noaux_tc"},
    (rules.latent_attention, rules.deepseek_experts), ignored=_DEEPSEEK_IGNORED,
)  # fmt: skip

_GEMMA_SIZES = {
    "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096,
}  # fmt: skip
_GEMMA2 = Family(
    _HEADED, {**_LLAMA_LIKE, "norm_placement": "sandwich"},
    {**_GEMMA_SIZES, "vocab_size": 256000, "max_position_embeddings": 8192, "_sliding_window_pattern": 2},
    (rules.biases("attention_bias"), rules.windows), activation="hidden_activation",
    ignored=frozenset({"sliding_window_size"}),
)  # fmt: skip
_GEMMA3 = Family(
    _HEADED, {**_LLAMA_LIKE, "norm_placement": "sandwich", "qk_norm": "head"},
    {**_GEMMA_SIZES, "vocab_size": 262208, "max_position_embeddings": 131072, "_sliding_window_pattern": 6},
    (rules.biases("attention_bias"), rules.windows), activation="hidden_activation", part="text_config",
)  # fmt: skip

_PHI = Family(
    _GROUPED,
    {**_LAYER_NORMED, **_BIASED, "position": "rope", "parallel_block": True, "lm_head_bias": True},
    {"hidden_act": "gelu_new", "vocab_size": 51200, "max_position_embeddings": 2048}, dropouts=_PHI_DROPOUTS,
)  # fmt: skip
_PHI3 = Family(
    _GROUPED, _LLAMA_LIKE, {**_SILU, "vocab_size": 32064, "max_position_embeddings": 4096}, (rules.windows,),
    dropouts=_PHI_DROPOUTS,
)  # fmt: skip

_FALCON_NAMES = {
    "vocab_size": ("vocab_size",), "hidden_size": ("hidden_size", "n_embed"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer"), "num_attention_heads": ("num_attention_heads",
    "n_head"),
    "max_position_embeddings": ("max_position_embeddings",),
}  # fmt: skip
_FALCON_DEFAULTS = {
    "activation": "gelu", "vocab_size": 65024, "max_position_embeddings": 2048, "multi_query": True,
    "parallel_attn": True, "tie_word_embeddings": True,
}  # fmt: skip
_FALCON = Family(
    _FALCON_NAMES, _LAYER_NORMED, _FALCON_DEFAULTS, (rules.all_biases("bias"), rules.falcon),
    activation="activation",
    dropouts=("hidden_dropout", "attention_dropout"),
)  # fmt: skip
_REFINED_WEB = Family(
    _FALCON_NAMES, _LAYER_NORMED, {**_FALCON_DEFAULTS, "new_decoder_architecture": True},
    (rules.all_biases("bias"), rules.falcon), activation="activation", dropouts=("hidden_dropout",
    "attention_dropout"),
)  # fmt: skip

_GPT_OSS = Family(
    _HEADED, {**_LLAMA_LIKE, "attention_sinks": True},
    {**_SILU, "vocab_size": 201088, "num_key_value_heads": 8, "head_dim": 64,
     "max_position_embeddings": 131072,
     "sliding_window": 128, "_sliding_window_pattern": 2, "num_local_experts": 128, "num_experts_per_tok": 4,
     "attention_bias": True},
    (rules.biases("attention_bias"), rules.windows, rules.gpt_oss_experts),
)  # fmt: skip

_T5_NAMES = {
    "vocab_size": ("vocab_size",), "hidden_size": ("d_model",), "num_attention_heads": ("num_heads",),
    "head_dim": ("d_kv",), "intermediate_size": ("d_ff",), "max_position_embeddings": ("n_positions",),
    "relative_buckets": ("relative_attention_num_buckets",),
}  # fmt: skip
_T5_FIXED = {"family": "encoder-decoder", "position": "relative", "normalization": "rmsnorm"}
_T5_DEFAULTS = {
    "vocab_size": 32128, "d_kv": 64, "n_positions": 512, "relative_attention_num_buckets": 32,
    "dropout_rate": 0.1,
    "tie_word_embeddings": True,
}  # fmt: skip
_T5 = Family(
    _T5_NAMES, _T5_FIXED, {**_T5_DEFAULTS, "feed_forward_proj": "relu"}, (rules.t5_feed_forward,
    rules.t5_layers),
    activation="", dropouts=("dropout_rate",), ignored=frozenset({"is_gated_act"}),
)  # fmt: skip
_SWITCH = Family(
    _T5_NAMES, _T5_FIXED,
    {**_T5_DEFAULTS, "dense_act_fn": "relu", "num_experts": 8, "num_sparse_encoder_layers": 3,
     "num_sparse_decoder_layers": 3},
    (rules.t5_layers, rules.switch_experts), activation="dense_act_fn", dropouts=("dropout_rate",),
    ignored=frozenset({"expert_capacity"}),
)  # fmt: skip
_NLLB_MOE = Family(
    {"vocab_size": ("vocab_size",), "hidden_size": ("d_model",), "num_hidden_layers": ("decoder_layers",),
     "num_encoder_layers": ("encoder_layers",), "num_attention_heads": ("encoder_attention_heads",),
     "intermediate_size": ("encoder_ffn_dim",), "max_position_embeddings": ("max_position_embeddings",)},
    {**_LAYER_NORMED, **_BIASED, "family": "encoder-decoder", "position": "sinusoidal"},
    {"activation_function": "relu", "max_position_embeddings": 1024, "tie_word_embeddings": True,
     "num_experts": 128,
     "encoder_sparse_step": 4, "decoder_sparse_step": 4, "dropout": 0.1, "attention_dropout": 0.1},
    (rules.nllb_experts,), activation="activation_function",
    dropouts=("dropout", "attention_dropout", "activation_dropout"),
    ignored=frozenset({"expert_capacity", "num_hidden_layers", "second_expert_policy"}),
)  # fmt: skip

_BERT = Family(
    _SIZES | _same("type_vocab_size"),
    {**_LAYER_NORMED, **_BIASED, "family": "encoder", "position": "learned", "norm_placement": "post",
     "embedding_norm": True, "final_norm": False, "pooler": True},
    {"hidden_act": "gelu", "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2,
     "tie_word_embeddings": True, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    (rules.bert,), dropouts=("hidden_dropout_prob", "attention_probs_dropout_prob"),
    ignored=frozenset({"pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers",
    "pooler_type"}),
)  # fmt: skip
_GPT2 = Family(
    _GPT_NAMES, {**_LAYER_NORMED, **_BIASED, "position": "learned"},
    {"activation_function": "gelu_new", "vocab_size": 50257, "n_positions": 1024, "tie_word_embeddings": True,
     **dict.fromkeys(_GPT_DROPOUTS, 0.1)},
    (rules.gpt2,), activation="activation_function", dropouts=_GPT_DROPOUTS,
    ignored=frozenset({"summary_use_proj"}),
)  # fmt: skip
_GPT_NEOX = Family(
    _SIZES, {**_LAYER_NORMED, **_BIASED, "position": "rope"},
    {"hidden_act": "gelu", "vocab_size": 50432, "max_position_embeddings": 2048,
     "use_parallel_residual": True,
     "attention_bias": True},
    (rules.biases("attention_bias"), rules.gpt_neox), dropouts=("hidden_dropout", "attention_dropout"),
)  # fmt: skip
_OPT = Family(
    _SIZES | {"intermediate_size": ("ffn_dim",)}, {**_LAYER_NORMED, "position": "learned",
    "position_offset": 2},
    {"activation_function": "relu", "vocab_size": 50272, "max_position_embeddings": 2048,
     "do_layer_norm_before": True,
     "enable_bias": True, "tie_word_embeddings": True, "dropout": 0.1},
    (rules.all_biases("enable_bias"), rules.opt), activation="activation_function",
    dropouts=("dropout", "attention_dropout", "activation_dropout"),
)  # fmt: skip
_BLOOM = Family(
    _GPT_NAMES | {"hidden_size": ("hidden_size", "n_embed"), "max_position_embeddings": ("seq_length",)},
    {**_LAYER_NORMED, **_BIASED, "position": "alibi", "embedding_norm": True, "activation": "gelu"},
    {"vocab_size": 250880, "seq_length": 2048, "tie_word_embeddings": True}, (rules.bloom,), activation="",
    dropouts=("hidden_dropout", "attention_dropout"),
)  # fmt: skip
_MPT = Family(
    {"vocab_size": ("vocab_size",), "hidden_size": ("d_model",), "num_hidden_layers": ("n_layers",),
     "num_attention_heads": ("n_heads",), "max_position_embeddings": ("max_seq_len",)},
    {**_LAYER_NORMED, "position": "alibi", "norm_bias": False, "activation": "gelu"},
    {"vocab_size": 50368, "max_seq_len": 2048, "expansion_ratio": 4, "tie_word_embeddings": True},
     (rules.mpt,),
    activation="", dropouts=("resid_pdrop", "emb_pdrop"), ignored=frozenset({"norm_type"}),
)  # fmt: skip

FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA, "internlm": _INTERNLM, "mistral": _MISTRAL, "mixtral": _MIXTRAL, "llama4": _LLAMA4,
    "llama4_text": _LLAMA4, "qwen": _QWEN, "qwen2": _QWEN2, "qwen2_moe": _QWEN2_MOE, "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3_MOE, "deepseek_v2": _DEEPSEEK_V2, "deepseek_v3": _DEEPSEEK_V3, "gemma2": _GEMMA2,
    "gemma3": _GEMMA3, "gemma3_text": _GEMMA3, "phi": _PHI, "phi3": _PHI3, "falcon": _FALCON,
    "RefinedWebModel": _FALCON, "RefinedWeb": _REFINED_WEB, "gpt_oss": _GPT_OSS, "t5": _T5,
    "switch_transformers": _SWITCH, "nllb-moe": _NLLB_MOE, "bert": _BERT, "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
    "opt": _OPT, "bloom": _BLOOM, "mpt": _MPT,
}  # fmt: skip
"""Every supported ``model_type``."""
