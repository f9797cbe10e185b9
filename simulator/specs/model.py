"""A model as written: a family with its dimensions, named as Hugging Face names them; no derived quantity."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.base import Spec

Positive = Annotated[int, Field(ge=1, le=10**9)]
Natural = Annotated[int, Field(ge=0, le=10**9)]
Depth = Annotated[int, Field(ge=1, le=10_000)]


class MixtureOfExperts(Spec):
    """Routed and shared experts of a layer."""

    num_experts: Positive
    num_experts_per_tok: Positive
    moe_intermediate_size: Positive
    num_shared_experts: Natural = 0
    shared_intermediate_size: Positive | None = None
    """Of all shared experts together; num_shared_experts x moe_intermediate_size if absent."""
    shared_expert_gate: bool = False
    """A sigmoid gate of one output on the shared expert (Qwen-MoE)."""
    first_dense_layers: Natural = 0
    """Layers from the bottom that keep a dense MLP."""
    moe_layer_frequency: Positive = 1
    """Every k-th layer is MoE; 2 with an offset of 1 gives layers 1, 3, 5, ..."""
    moe_layer_offset: Natural = 0
    router_bias: bool = False
    """One correction bias an expert (DeepSeek-V3, gpt-oss)."""
    expert_bias: bool = False


class LatentAttention(Spec):
    """Multi-head latent attention (DeepSeek-V2)."""

    kv_lora_rank: Positive
    q_lora_rank: Positive | None = None
    qk_nope_head_dim: Positive
    qk_rope_head_dim: Positive
    v_head_dim: Positive


class Parameters(Spec):
    """The published exact count of parameters."""

    value: Annotated[int, Field(ge=1, le=10**15)]
    source: str


class Model(Spec):
    """A transformer by its dimensions."""

    kind: Literal["model"]
    name: str
    family: Literal["decoder", "encoder", "encoder-decoder"]
    source: str
    note: str = ""
    parameters: Parameters | None = None

    vocab_size: Positive
    hidden_size: Positive
    num_hidden_layers: Depth
    """Decoder layers (of an encoder: its layers)."""
    num_encoder_layers: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Encoder layers of an encoder-decoder."""
    num_attention_heads: Positive
    num_key_value_heads: Positive | None = None
    """Key and value heads; all heads if absent."""
    head_dim: Positive | None = None
    """hidden_size / num_attention_heads if absent."""
    intermediate_size: Positive
    max_position_embeddings: Positive
    position: Literal["rope", "learned", "alibi", "relative", "sinusoidal", "none"]
    position_offset: Natural = 0
    """Extra rows of a learned position table (OPT: 2)."""
    relative_buckets: Positive = 32
    """Buckets of a relative position bias (T5)."""
    type_vocab_size: Natural = 0
    """Rows of a token-type table (BERT: 2)."""
    normalization: Literal["layernorm", "rmsnorm"]
    norm_bias: bool | None = None
    """Layer norms carry a bias unless this says no."""
    norm_placement: Literal["pre", "post", "sandwich"] = "pre"
    """pre; post (BERT, OPT-350M); sandwich: before and after each sublayer (Gemma 2 and 3)."""
    final_norm: bool = True
    embedding_norm: bool = False
    """A norm after the embedding (BLOOM, BERT)."""
    qk_norm: Literal["none", "head", "full"] = "none"
    """A norm on queries and keys: over one head_dim (Qwen 3, Gemma 3) or over all heads."""
    qk_norm_weight: bool = True
    """Whether that norm has learned weights; Llama 4's has none."""
    activation: Literal["gelu", "relu", "silu"]
    gated_mlp: bool = False
    attention_bias: bool = False
    """Biases of the query, key and value projections."""
    attention_output_bias: bool = False
    mlp_bias: bool = False
    attention_sinks: bool = False
    """One learned sink logit a head (gpt-oss)."""
    dropout: bool = False
    """Whether training keeps dropout masks (GPT-2 and GPT-3 time)."""
    parallel_block: bool = False
    """Attention and MLP read the same normed input (Falcon, GPT-J)."""
    parallel_block_norms: Positive = 1
    """Norms of a parallel block: one shared, or two (Falcon-40B)."""
    tie_word_embeddings: bool = False
    lm_head_bias: bool = False
    embedding_size: Positive | None = None
    """Width of the word table where it differs from hidden_size (OPT-350M), joined by a projection."""
    pooler: bool = False
    """BERT's pooler: a dense layer of hidden_size."""
    lm_head_transform: bool = False
    """BERT's masked-LM head: dense, activation, norm and a bias for each word."""
    sliding_window: Positive | None = None
    sliding_window_pattern: Positive | None = None
    """Every k-th layer attends globally, the others in the window; absent: all layers in the window."""
    attention_chunk_size: Positive | None = None
    """Local attention in fixed chunks (Llama 4), with sliding_window_pattern for the global layers."""
    moe: MixtureOfExperts | None = None
    mla: LatentAttention | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Model:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if kv_heads is not None and heads % kv_heads:
            raise _fault(
                f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads})"
            )
        if self.head_dim is None and self.mla is None and self.hidden_size % heads:
            raise _fault(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads ({heads}), or give head_dim"
            )
        if (self.family == "encoder-decoder") != (self.num_encoder_layers > 0):
            raise _fault("num_encoder_layers belongs to family encoder-decoder, and only there")
        moe = self.moe
        if moe and moe.num_experts_per_tok > moe.num_experts:
            raise _fault(
                f"moe.num_experts_per_tok ({moe.num_experts_per_tok}) exceeds moe.num_experts ({moe.num_experts})"
            )
        return self

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def attention_head_dim(self) -> int:
        """Width of one query and key head."""
        if self.mla:
            return self.mla.qk_nope_head_dim + self.mla.qk_rope_head_dim
        return self.head_dim or self.hidden_size // self.num_attention_heads


def _fault(message: str) -> PydanticCustomError:
    return PydanticCustomError("model", "{message}", {"message": message})
