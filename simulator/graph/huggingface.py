"""The Hugging Face families: for each ``model_type``, which keys give which fields of a model.

Defaults are those of the configuration classes of ``transformers`` 4.57. A family is a row of :data:`FAMILIES`: how its
keys are called, what its architecture fixes, and rules for the fields that several keys decide together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from simulator.specs.errors import MemroofError

_ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu", "gelu_fast": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_python": "gelu",
    "relu": "relu", "silu": "silu", "swish": "silu",
}  # fmt: skip


class ConfigReader:
    """Reads keys of a configuration with a family's defaults, and remembers which keys were read."""

    def __init__(self, config: Mapping[str, Any], defaults: Mapping[str, Any], model_type: str, file: str) -> None:
        self.config, self.defaults, self.model_type, self.file = config, defaults, model_type, file
        self.read: set[str] = set()

    def get(self, *keys: str) -> Any:
        """Return the first key that is present, else the family's default; null counts as absent."""
        self.read.update(keys)
        found = next((self.config[key] for key in keys if self.config.get(key) is not None), None)
        return self.defaults.get(keys[0]) if found is None else found

    def whole(self, *keys: str) -> int:
        """Return a whole number; raises :class:`MemroofError` if it is missing or something else."""
        value = self._number(keys, self.get(*keys))
        if value is None:
            raise MemroofError(f"{self.file}: missing key {keys[0]!r}, which model_type {self.model_type!r} needs")
        return value

    def optional(self, *keys: str) -> int | None:
        """Return a whole number, or None where the file says null or neither it nor the family says anything."""
        value = self.get(*keys)
        stated = [self.config[key] for key in keys if key in self.config]
        return None if stated and not any(v is not None for v in stated) else self._number(keys, value)

    def flag(self, *keys: str) -> bool:
        """Return true or false; false where neither the file nor the family says."""
        value = self.get(*keys)
        if not isinstance(value, (bool, int, type(None))):
            raise self.fault(self._present(keys), f"found {value!r}, expected true or false")
        return bool(value)

    def one_of(self, key: str, *accepted: Any) -> Any:
        """Return a value that must be among the accepted ones; None is always accepted."""
        value = self.get(key)
        if value is not None and value not in accepted:
            wanted = ", ".join(map(repr, accepted))
            raise self.fault(key, f"found {value!r}, which is not understood; expected {wanted}")
        return value

    def _number(self, keys: tuple[str, ...], value: Any) -> int | None:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise self.fault(self._present(keys), f"found {value!r}, expected a whole number")
        return value

    def fault(self, key: str, message: str) -> MemroofError:
        """Return the error of a key."""
        return MemroofError(f"{self.file}: {key}: {message} (model_type {self.model_type!r})")

    def _present(self, keys: tuple[str, ...]) -> str:
        return next((key for key in keys if key in self.config), keys[0])


Fields = dict[str, Any]
Rule = Callable[[ConfigReader], Fields]


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture of ``transformers``."""

    names: Mapping[str, tuple[str, ...]]
    """Field of the model, and the keys that give it: the first that is present counts."""
    fixed: Fields = field(default_factory=dict)
    """What the architecture fixes."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What the configuration class assumes where a key is left out."""
    rules: tuple[Rule, ...] = ()
    """Fields that several keys decide together."""
    activation: str = "hidden_act"
    dropouts: tuple[str, ...] = ()
    """Keys of dropout rates."""
    part: str = ""
    """Key of the text part of a multimodal configuration."""
    ignored: frozenset[str] = frozenset()
    """Keys that look structural and are not."""

    def fields(self, reader: ConfigReader) -> Fields:
        """Return the fields that a configuration gives; raises :class:`MemroofError` for a key it cannot use."""
        fields: Fields = dict(self.fixed)
        for name, keys in self.names.items():
            value = reader.optional(*keys) if name in _OPTIONAL else reader.whole(*keys)
            if value is not None:
                fields[name] = value
        fields["tie_word_embeddings"] = reader.flag("tie_word_embeddings")
        if self.activation:
            fields["activation"] = _activation(reader, self.activation, reader.get(self.activation))
        fields["dropout"] = any([(reader.get(key) or 0) > 0 for key in self.dropouts])
        for rule in self.rules:
            fields.update(rule(reader))
        return fields


_OPTIONAL = {"num_key_value_heads", "head_dim", "sliding_window"}


def _activation(reader: ConfigReader, key: str, value: Any) -> str:
    if value not in _ACTIVATIONS:
        raise reader.fault(key, f"found {value!r}, expected one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[value]


# Rules of attention


def _biases(*keys: str, output: bool = True, mlp: tuple[str, ...] = ()) -> Rule:
    def rule(r: ConfigReader) -> Fields:
        bias = r.flag(*keys)
        return {"attention_bias": bias, "attention_output_bias": bias and output, "mlp_bias": r.flag(*mlp) if mlp else False}

    return rule


def _windows(r: ConfigReader) -> Fields:
    """Sliding or chunked layers between global ones: from ``layer_types``, else from the family's period."""
    types = r.get("layer_types")
    period = r.optional("_sliding_window_pattern", "sliding_window_pattern")
    window = r.optional("sliding_window")
    if types:
        period = _period(r, types)
    if not window or period == 1:
        return {}
    return {"sliding_window": window, **({"sliding_window_pattern": period} if period else {})}


def _qwen_windows(r: ConfigReader) -> Fields:
    """Layers above ``max_window_layers`` slide, if ``use_sliding_window`` says so."""
    used, first = r.flag("use_sliding_window"), r.optional("max_window_layers") or 0
    if not used:
        r.get("sliding_window"), r.get("layer_types")
        return {}
    if r.get("layer_types"):
        return _windows(r)
    if 0 < first < r.whole("num_hidden_layers"):
        raise r.fault("max_window_layers", f"found {first}; a sliding window from layer {first} upwards is not understood")
    return {} if first else _windows(r)


def _period(r: ConfigReader, types: Any) -> int | None:
    """Return k if every k-th layer attends globally and the others locally; 1 if all do, None if none does."""
    unknown = sorted({str(t) for t in types} - {"full_attention", "sliding_attention", "chunked_attention"})
    if unknown:
        raise r.fault("layer_types", f"found {unknown[0]!r}, which is not understood")
    return _regular(r, "layer_types", [t == "full_attention" for t in types])


def _regular(r: ConfigReader, key: str, chosen: list[bool]) -> int | None:
    if not any(chosen):
        return None
    k = chosen.index(True) + 1
    if chosen != [(i + 1) % k == 0 for i in range(len(chosen))]:
        raise r.fault(key, "found an order of layers that no period describes, which is not understood")
    return k


def _llama4_attention(r: ConfigReader) -> Fields:
    """Chunked attention with global layers without rotary embedding, and norms without weights on queries and keys."""
    chunk, rotary, types = r.optional("attention_chunk_size"), r.get("no_rope_layers"), r.get("layer_types")
    every = r.whole("no_rope_layer_interval")
    if types:
        every = _period(r, types) or 0
    elif rotary:
        every = _regular(r, "no_rope_layers", [not flag for flag in rotary]) or 0
    fields: Fields = {"qk_norm": "head", "qk_norm_weight": False} if r.flag("use_qk_norm") else {}
    if chunk and every != 1:
        fields |= {"attention_chunk_size": chunk, **({"sliding_window_pattern": every} if every else {})}
    return fields


def _mla(r: ConfigReader) -> Fields:
    keys = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    mla: Fields = {key: r.whole(key) for key in keys}
    rank = r.optional("q_lora_rank")
    if rank:
        mla["q_lora_rank"] = rank
    return {"mla": mla, "attention_bias": r.flag("attention_bias")}


# Rules of experts


def _mixtral_experts(r: ConfigReader) -> Fields:
    return {"moe": {
        "num_experts": r.whole("num_local_experts"), "num_experts_per_tok": r.whole("num_experts_per_tok"),
        "moe_intermediate_size": r.whole("intermediate_size"),
    }}  # fmt: skip


def _gpt_oss_experts(r: ConfigReader) -> Fields:
    moe = _mixtral_experts(r)["moe"]
    moe["num_experts_per_tok"] = r.whole("experts_per_token", "num_experts_per_tok")
    return {"moe": {**moe, "router_bias": True, "expert_bias": True}}


def _llama4_experts(r: ConfigReader) -> Fields:
    """Every k-th layer routes to one expert beside a shared one of the same width; the others are wider and dense."""
    step, layers = r.whole("interleave_moe_layer_step"), r.get("moe_layers")
    if layers:
        step = _regular(r, "moe_layers", [i in layers for i in range(r.whole("num_hidden_layers"))]) or 1
    moe = {**_mixtral_experts(r)["moe"], "num_shared_experts": 1, **_every(step)}
    return {"intermediate_size": r.whole("intermediate_size_mlp"), "moe": moe}


def _qwen_experts(r: ConfigReader) -> Fields:
    dense = sorted(r.get("mlp_only_layers") or [])
    if dense != list(range(len(dense))):
        raise r.fault("mlp_only_layers", f"found {dense}; dense layers that are not the lowest are not understood")
    step = r.whole("decoder_sparse_step")
    if dense and step != 1:
        raise r.fault("mlp_only_layers", f"found {dense} with decoder_sparse_step {step}, which is not understood")
    moe: Fields = {
        "num_experts": r.whole("num_experts", "num_local_experts"), "num_experts_per_tok": r.whole("num_experts_per_tok"),
        "moe_intermediate_size": r.whole("moe_intermediate_size"), "first_dense_layers": len(dense), **_every(step),
    }  # fmt: skip
    shared = r.optional("shared_expert_intermediate_size")
    if shared:
        moe |= {"num_shared_experts": 1, "shared_intermediate_size": shared, "shared_expert_gate": True}
    return {"moe": moe}


def _deepseek_experts(r: ConfigReader) -> Fields:
    if not r.optional("n_routed_experts"):
        return {}
    r.one_of("moe_layer_freq", 1)
    method = r.one_of("topk_method", "greedy", "group_limited_greedy", "noaux_tc")
    moe = {
        "num_experts": r.whole("n_routed_experts"), "num_experts_per_tok": r.whole("num_experts_per_tok"),
        "moe_intermediate_size": r.whole("moe_intermediate_size"), "num_shared_experts": r.optional("n_shared_experts") or 0,
        "first_dense_layers": r.whole("first_k_dense_replace"), "router_bias": method == "noaux_tc",
    }  # fmt: skip
    return {"moe": moe}


def _every(step: int) -> Fields:
    """Layers step - 1, 2 step - 1, ... are mixtures."""
    return {"moe_layer_frequency": step, "moe_layer_offset": step - 1}


# Rules of single families


def _t5_feed_forward(r: ConfigReader) -> Fields:
    text = str(r.get("feed_forward_proj"))
    gated, _, activation = text.rpartition("-")
    if gated not in ("", "gated"):
        raise r.fault("feed_forward_proj", f"found {text!r}, which is not understood")
    return {"gated_mlp": bool(gated), "activation": _activation(r, "feed_forward_proj", activation)}


def _decoder_layers(r: ConfigReader) -> Fields:
    encoder = r.whole("num_layers")
    return {"num_encoder_layers": encoder, "num_hidden_layers": r.optional("num_decoder_layers") or encoder}


def _switch_experts(r: ConfigReader) -> Fields:
    """The step follows from the counts of sparse layers; layer i is sparse if i mod step is 1 (or the step is 1)."""
    stacks = _decoder_layers(r)
    layers = {"encoder": stacks["num_encoder_layers"], "decoder": stacks["num_hidden_layers"]}
    steps = {
        layers[side] // count if (count := r.optional(f"num_sparse_{side}_layers")) else layers[side] for side in layers
    }
    r.get("encoder_sparse_step"), r.get("decoder_sparse_step")
    if len(steps) > 1:
        raise r.fault("num_sparse_decoder_layers", "another step than the encoder's is not understood")
    step = steps.pop()
    moe = {"moe_layer_frequency": step, "moe_layer_offset": 1 % step, "router_bias": r.flag("router_bias")}
    return {"moe": {"num_experts": r.whole("num_experts"), "num_experts_per_tok": 1,
                    "moe_intermediate_size": r.whole("d_ff"), **moe}}  # fmt: skip


def _nllb(r: ConfigReader) -> Fields:
    if r.whole("encoder_ffn_dim") != r.whole("decoder_ffn_dim") or r.whole("encoder_attention_heads") != r.whole("decoder_attention_heads"):
        raise r.fault("decoder_ffn_dim", "stacks of different widths are not understood")
    step = r.whole("encoder_sparse_step")
    r.one_of("decoder_sparse_step", step)
    return {"moe": {
        "num_experts": r.whole("num_experts"), "num_experts_per_tok": 2, "moe_intermediate_size": r.whole("encoder_ffn_dim"),
        "router_bias": r.flag("router_bias"), "expert_bias": True, **_every(step),
    }}  # fmt: skip


def _opt(r: ConfigReader) -> Fields:
    """OPT-350M norms after its sublayers and embeds words in a narrower table than the rest is wide."""
    r.one_of("layer_norm_elementwise_affine", True)
    before, width, bias = r.flag("do_layer_norm_before"), r.optional("word_embed_proj_dim"), r.flag("enable_bias")
    fields: Fields = {} if before else {"norm_placement": "post"}
    if width and width != r.whole("hidden_size"):
        fields["embedding_size"] = width
    fields["final_norm"] = before and not r.flag("_remove_final_layer_norm")
    return {**fields, "attention_bias": bias, "attention_output_bias": bias, "mlp_bias": bias}


def _gpt2(r: ConfigReader) -> Fields:
    return {"intermediate_size": r.optional("n_inner") or 4 * r.whole("n_embd", "hidden_size")}


def _bloom(r: ConfigReader) -> Fields:
    return {"intermediate_size": 4 * r.whole("hidden_size", "n_embed")}


def _mpt(r: ConfigReader) -> Fields:
    attention = r.get("attn_config") or {}
    if not isinstance(attention, Mapping):
        raise r.fault("attn_config", f"found {type(attention).__name__}, expected keys and values")
    for key, accepted in (("alibi", True), ("qk_ln", False), ("attn_type", "multihead_attention"), ("prefix_lm", False)):
        if attention.get(key, accepted) != accepted:
            raise r.fault(f"attn_config.{key}", f"found {attention[key]!r}, expected {accepted!r}")
    r.one_of("no_bias", True)
    return {"intermediate_size": r.whole("expansion_ratio") * r.whole("d_model")}


def _falcon(r: ConfigReader) -> Fields:
    """Falcon-7B shares one KV head and one norm; the new architecture (40B, 180B) groups heads and has two norms."""
    new, parallel, bias = r.flag("new_decoder_architecture"), r.flag("parallel_attn"), r.flag("bias")
    many, one = r.optional("num_kv_heads", "n_head_kv"), r.flag("multi_query")
    norms = r.optional("num_ln_in_parallel_attn") or (2 if new else 1)
    fields: Fields = {"parallel_block": True, "parallel_block_norms": norms} if parallel or new else {}
    if new and many:
        fields["num_key_value_heads"] = many
    elif not new and one:
        fields["num_key_value_heads"] = 1
    hidden = r.whole("hidden_size", "n_embed")
    return {
        **fields, "position": "alibi" if r.flag("alibi") else "rope",
        "intermediate_size": r.optional("ffn_hidden_size") or 4 * hidden,
        "attention_bias": bias, "attention_output_bias": bias, "mlp_bias": bias,
    }  # fmt: skip


def _gpt_neox(r: ConfigReader) -> Fields:
    return {"parallel_block": True, "parallel_block_norms": 2} if r.flag("use_parallel_residual") else {}


def _qwen1(r: ConfigReader) -> Fields:
    """The first Qwen's intermediate size is that of gate and up projection together."""
    r.one_of("no_bias", True)
    return {"intermediate_size": r.whole("intermediate_size") // 2, "head_dim": r.optional("kv_channels")}


def _bert(r: ConfigReader) -> Fields:
    r.one_of("position_embedding_type", "absolute")
    return {}


# The table


def _same(*names: str) -> dict[str, tuple[str, ...]]:
    return {name: (name,) for name in names}


_SIZES = _same(
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings",
)  # fmt: skip
_GROUPED = {**_SIZES, **_same("num_key_value_heads", "head_dim")}
_MLA = {key: value for key, value in _SIZES.items()}
_GATED: Fields = {"family": "decoder", "position": "rope", "normalization": "rmsnorm", "gated_mlp": True}
_BIASED: Fields = {
    "family": "decoder", "normalization": "layernorm", "attention_bias": True, "attention_output_bias": True, "mlp_bias": True,
}  # fmt: skip
_T5_NAMES = {
    "vocab_size": ("vocab_size",), "hidden_size": ("d_model",), "num_attention_heads": ("num_heads",), "head_dim": ("d_kv",),
    "intermediate_size": ("d_ff",), "max_position_embeddings": ("n_positions",),
    "relative_buckets": ("relative_attention_num_buckets",),
}  # fmt: skip
_T5_DEFAULTS: Fields = {
    "vocab_size": 32128, "d_kv": 64, "n_positions": 512, "relative_attention_num_buckets": 32, "dropout_rate": 0.1,
    "tie_word_embeddings": True, "feed_forward_proj": "relu",
}  # fmt: skip
_T5_FIXED: Fields = {"family": "encoder-decoder", "position": "relative", "normalization": "rmsnorm"}
_SILU: Fields = {"hidden_act": "silu"}
_GEMMA_DEFAULTS: Fields = {
    "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, "head_dim": 256, "num_attention_heads": 8,
    "num_key_value_heads": 4, "sliding_window": 4096,
}  # fmt: skip

_LLAMA = Family(
    _GROUPED, _GATED, {**_SILU, "vocab_size": 32000, "max_position_embeddings": 2048},
    (_biases("attention_bias", mlp=("mlp_bias",)),),
)  # fmt: skip
_INTERNLM = Family(_SIZES, _GATED, {**_SILU, "max_position_embeddings": 2048, "bias": True}, (_biases("bias"),))
_MISTRAL = Family(
    _GROUPED, _GATED,
    {**_SILU, "vocab_size": 32000, "num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    (_windows,),
)  # fmt: skip
_MIXTRAL = Family(
    _GROUPED, _GATED,
    {**_SILU, "vocab_size": 32000, "num_key_value_heads": 8, "max_position_embeddings": 131072,
     "num_local_experts": 8, "num_experts_per_tok": 2},
    (_windows, _mixtral_experts),
)  # fmt: skip
_QWEN = Family(
    {**_SIZES, "max_position_embeddings": ("seq_length", "max_position_embeddings")}, {**_GATED, "attention_bias": True},
    {**_SILU, "vocab_size": 151936, "seq_length": 8192, "no_bias": True}, (_qwen1,), activation="hidden_act",
    dropouts=("attn_dropout_prob", "emb_dropout_prob"),
)  # fmt: skip
_QWEN2 = Family(
    _GROUPED, {**_GATED, "attention_bias": True},
    {**_SILU, "vocab_size": 151936, "max_position_embeddings": 32768, "max_window_layers": 28}, (_qwen_windows,),
)  # fmt: skip
_QWEN2_MOE = Family(
    _GROUPED, _GATED,
    {**_SILU, "vocab_size": 151936, "max_position_embeddings": 32768, "max_window_layers": 28, "decoder_sparse_step": 1,
     "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "num_experts_per_tok": 4, "num_experts": 60,
     "qkv_bias": True},
    (_biases("qkv_bias", output=False), _qwen_windows, _qwen_experts),
)  # fmt: skip
_QWEN3 = Family(
    _GROUPED, {**_GATED, "qk_norm": "head"},
    {**_SILU, "vocab_size": 151936, "head_dim": 128, "max_position_embeddings": 32768, "max_window_layers": 28},
    (_biases("attention_bias"), _qwen_windows),
)  # fmt: skip
_QWEN3_MOE = Family(
    _GROUPED, {**_GATED, "qk_norm": "head"},
    {**_SILU, "vocab_size": 151936, "num_key_value_heads": 4, "max_position_embeddings": 32768, "decoder_sparse_step": 1,
     "moe_intermediate_size": 768, "num_experts_per_tok": 8, "num_experts": 128},
    (_biases("attention_bias"), _qwen_windows, _qwen_experts),
)  # fmt: skip
_DEEPSEEK_V2 = Family(
    _MLA, _GATED,
    {**_SILU, "vocab_size": 32000, "max_position_embeddings": 2048, "first_k_dense_replace": 0, "kv_lora_rank": 512,
     "q_lora_rank": 1536, "n_routed_experts": 64, "n_shared_experts": 2, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
     "v_head_dim": 128, "moe_intermediate_size": 1407},
    (_mla, _deepseek_experts), ignored=frozenset({"num_key_value_heads", "head_dim", "qk_head_dim"}),
)  # fmt: skip
_DEEPSEEK_V3 = Family(
    _MLA, _GATED,
    {**_SILU, "vocab_size": 129280, "max_position_embeddings": 4096, "first_k_dense_replace": 3, "kv_lora_rank": 512,
     "q_lora_rank": 1536, "n_routed_experts": 256, "n_shared_experts": 1, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
     "v_head_dim": 128, "moe_intermediate_size": 2048, "num_experts_per_tok": 8, "topk_method": "noaux_tc"},
    (_mla, _deepseek_experts), ignored=frozenset({"num_key_value_heads", "head_dim", "qk_head_dim"}),
)  # fmt: skip
_GEMMA2 = Family(
    _GROUPED, {**_GATED, "norm_placement": "sandwich"},
    {**_GEMMA_DEFAULTS, "vocab_size": 256000, "max_position_embeddings": 8192, "_sliding_window_pattern": 2},
    (_biases("attention_bias"), _windows), activation="hidden_activation", ignored=frozenset({"hidden_act"}),
)  # fmt: skip
_GEMMA3 = Family(
    _GROUPED, {**_GATED, "norm_placement": "sandwich", "qk_norm": "head"},
    {**_GEMMA_DEFAULTS, "vocab_size": 262208, "max_position_embeddings": 131072, "_sliding_window_pattern": 6},
    (_biases("attention_bias"), _windows), activation="hidden_activation", part="text_config",
)  # fmt: skip
_PHI = Family(
    _same(*_SIZES, "num_key_value_heads"),
    {**_BIASED, "position": "rope", "parallel_block": True, "parallel_block_norms": 1, "lm_head_bias": True},
    {"hidden_act": "gelu_new", "vocab_size": 51200, "max_position_embeddings": 2048},
    dropouts=("resid_pdrop", "embd_pdrop", "attention_dropout"),
)  # fmt: skip
_PHI3 = Family(
    _same(*_SIZES, "num_key_value_heads"), _GATED,
    {**_SILU, "vocab_size": 32064, "max_position_embeddings": 4096}, (_windows,),
    dropouts=("resid_pdrop", "embd_pdrop", "attention_dropout"),
)  # fmt: skip
_FALCON_NAMES = {
    "vocab_size": ("vocab_size",), "hidden_size": ("hidden_size", "n_embed"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer"), "num_attention_heads": ("num_attention_heads", "n_head"),
    "max_position_embeddings": ("max_position_embeddings",),
}  # fmt: skip
_FALCON_DEFAULTS: Fields = {
    "activation": "gelu", "vocab_size": 65024, "max_position_embeddings": 2048, "multi_query": True, "parallel_attn": True,
    "tie_word_embeddings": True,
}  # fmt: skip


def _falcon_family(*, new: bool) -> Family:
    return Family(
        _FALCON_NAMES, {"family": "decoder", "normalization": "layernorm"},
        {**_FALCON_DEFAULTS, "new_decoder_architecture": new}, (_falcon,), activation="activation",
        dropouts=("hidden_dropout", "attention_dropout"),
    )  # fmt: skip


_GPT_OSS = Family(
    _GROUPED, {**_GATED, "attention_sinks": True},
    {**_SILU, "vocab_size": 201088, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072,
     "sliding_window": 128, "_sliding_window_pattern": 2, "num_local_experts": 128, "num_experts_per_tok": 4,
     "attention_bias": True},
    (_biases("attention_bias"), _windows, _gpt_oss_experts),
)  # fmt: skip
_T5 = Family(
    _T5_NAMES, _T5_FIXED, _T5_DEFAULTS, (_t5_feed_forward, _decoder_layers), activation="", dropouts=("dropout_rate",),
    ignored=frozenset({"is_gated_act"}),
)  # fmt: skip
_SWITCH = Family(
    _T5_NAMES, {**_T5_FIXED, "gated_mlp": False},
    {**_T5_DEFAULTS, "dense_act_fn": "relu", "num_experts": 8, "num_sparse_encoder_layers": 3, "num_sparse_decoder_layers": 3},
    (_decoder_layers, _switch_experts), activation="dense_act_fn", dropouts=("dropout_rate",),
    ignored=frozenset({"expert_capacity", "feed_forward_proj"}),
)  # fmt: skip
_NLLB_MOE = Family(
    {"vocab_size": ("vocab_size",), "hidden_size": ("d_model",), "num_hidden_layers": ("decoder_layers",),
     "num_encoder_layers": ("encoder_layers",), "num_attention_heads": ("encoder_attention_heads",),
     "intermediate_size": ("encoder_ffn_dim",), "max_position_embeddings": ("max_position_embeddings",)},
    {**_BIASED, "family": "encoder-decoder", "position": "sinusoidal"},
    {"activation_function": "relu", "max_position_embeddings": 1024, "tie_word_embeddings": True, "num_experts": 128,
     "encoder_sparse_step": 4, "decoder_sparse_step": 4, "dropout": 0.1},
    (_nllb,), activation="activation_function", dropouts=("dropout", "attention_dropout", "activation_dropout"),
    ignored=frozenset({"expert_capacity", "num_hidden_layers", "second_expert_policy"}),
)  # fmt: skip
_BERT = Family(
    {**_SIZES, **_same("type_vocab_size")},
    {**_BIASED, "family": "encoder", "position": "learned", "norm_placement": "post", "embedding_norm": True,
     "final_norm": False, "pooler": True},
    {"hidden_act": "gelu", "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2,
     "tie_word_embeddings": True, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    (_bert,), dropouts=("hidden_dropout_prob", "attention_probs_dropout_prob"),
    ignored=frozenset({"pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"}),
)  # fmt: skip
_GPT2 = Family(
    {"vocab_size": ("vocab_size",), "hidden_size": ("n_embd", "hidden_size"),
     "num_hidden_layers": ("n_layer", "num_hidden_layers"), "num_attention_heads": ("n_head", "num_attention_heads"),
     "max_position_embeddings": ("n_positions", "max_position_embeddings")},
    {**_BIASED, "position": "learned"},
    {"activation_function": "gelu_new", "vocab_size": 50257, "n_positions": 1024, "tie_word_embeddings": True,
     "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
    (_gpt2,), activation="activation_function", dropouts=("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    ignored=frozenset({"summary_use_proj"}),
)  # fmt: skip
_GPT_NEOX = Family(
    _SIZES, {**_BIASED, "position": "rope"},
    {"hidden_act": "gelu", "vocab_size": 50432, "max_position_embeddings": 2048, "use_parallel_residual": True,
     "attention_bias": True},
    (_biases("attention_bias"), lambda r: {"mlp_bias": True}, _gpt_neox), dropouts=("hidden_dropout", "attention_dropout"),
)  # fmt: skip
_OPT = Family(
    {**_SIZES, "intermediate_size": ("ffn_dim",)},
    {"family": "decoder", "position": "learned", "position_offset": 2, "normalization": "layernorm"},
    {"activation_function": "relu", "vocab_size": 50272, "max_position_embeddings": 2048, "do_layer_norm_before": True,
     "enable_bias": True, "tie_word_embeddings": True, "dropout": 0.1},
    (_opt,), activation="activation_function", dropouts=("dropout", "attention_dropout", "activation_dropout"),
)  # fmt: skip
_BLOOM = Family(
    {"vocab_size": ("vocab_size",), "hidden_size": ("hidden_size", "n_embed"),
     "num_hidden_layers": ("n_layer", "num_hidden_layers"), "num_attention_heads": ("n_head", "num_attention_heads"),
     "max_position_embeddings": ("seq_length",)},
    {**_BIASED, "position": "alibi", "embedding_norm": True, "activation": "gelu"},
    {"vocab_size": 250880, "seq_length": 2048, "tie_word_embeddings": True}, (_bloom,), activation="",
    dropouts=("hidden_dropout", "attention_dropout"),
)  # fmt: skip
_MPT = Family(
    {"vocab_size": ("vocab_size",), "hidden_size": ("d_model",), "num_hidden_layers": ("n_layers",),
     "num_attention_heads": ("n_heads",), "max_position_embeddings": ("max_seq_len",)},
    {"family": "decoder", "position": "alibi", "normalization": "layernorm", "norm_bias": False, "activation": "gelu"},
    {"vocab_size": 50368, "max_seq_len": 2048, "expansion_ratio": 4, "tie_word_embeddings": True}, (_mpt,), activation="",
    dropouts=("resid_pdrop", "emb_pdrop"), ignored=frozenset({"norm_type"}),
)  # fmt: skip
_LLAMA4 = Family(
    {**_GROUPED, "intermediate_size": ("intermediate_size_mlp",)}, _GATED,
    {**_SILU, "vocab_size": 202048, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131072,
     "intermediate_size_mlp": 16384, "num_local_experts": 16, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1,
     "attention_chunk_size": 8192, "no_rope_layer_interval": 4, "use_qk_norm": True},
    (_biases("attention_bias"), _llama4_attention, _llama4_experts), part="text_config",
)  # fmt: skip

FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA, "internlm": _INTERNLM, "mistral": _MISTRAL, "mixtral": _MIXTRAL,
    "qwen": _QWEN, "qwen2": _QWEN2, "qwen2_moe": _QWEN2_MOE, "qwen3": _QWEN3, "qwen3_moe": _QWEN3_MOE,
    "deepseek_v2": _DEEPSEEK_V2, "deepseek_v3": _DEEPSEEK_V3,
    "gemma2": _GEMMA2, "gemma3": _GEMMA3, "gemma3_text": _GEMMA3, "phi": _PHI, "phi3": _PHI3,
    "falcon": _falcon_family(new=False), "RefinedWebModel": _falcon_family(new=False), "RefinedWeb": _falcon_family(new=True),
    "gpt_oss": _GPT_OSS, "t5": _T5, "switch_transformers": _SWITCH, "nllb-moe": _NLLB_MOE, "bert": _BERT,
    "gpt2": _GPT2, "gpt_neox": _GPT_NEOX, "opt": _OPT, "bloom": _BLOOM, "mpt": _MPT,
    "llama4": _LLAMA4, "llama4_text": _LLAMA4,
}  # fmt: skip
"""Every supported ``model_type``."""
