"""Serving techniques as written: speculation, adapters, and caches that hold less than all keys and values."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.base import Spec
from simulator.specs.model import Natural, Positive
from simulator.specs.scenario_base import Share

Quantization = Literal["w8a8", "w4a16", "afpq", "atom", "fp8", "mxfp4", "mxfp4-a16", "nvfp4"]
"""Schemes of quantised weights and activations; their bytes and kernels are in :mod:`simulator.serving.quantisation`."""


class SmallModel(Spec):
    """A model beside the one that is served: its own dimensions; what is not given is that of the model served."""

    num_hidden_layers: Positive
    hidden_size: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive | None = None
    intermediate_size: Positive


class Speculation(Spec):
    """Several tokens are drafted and verified in one pass (Leviathan et al. 2023); output is as without it."""

    draft: Literal["layer", "lookup"] | SmallModel
    """Who drafts: a model of its own; ``layer``, one more layer of the model served (MTP of DeepSeek-V3, EAGLE); ``lookup``,
    the text so far, which costs nothing (prompt lookup, n-grams)."""
    tokens: Positive = 4
    """Drafted one after the other."""
    branches: tuple[Positive, ...] = ()
    """Of a token tree: candidates that follow each node, by depth; 1 where not given (SpecInfer, EAGLE)."""
    acceptance: Annotated[float, Field(ge=0.0, le=1.0)] | tuple[Share, ...]
    """Probability that the target takes a candidate whose predecessors it took, where candidates are independent of each other;
    or, by depth, that it takes one of them, as measured for a tree."""

    @model_validator(mode="after")
    def _depths(self) -> Speculation:
        if len(self.branches) > self.tokens:
            raise PydanticCustomError("scenario", "'branches' has more depths than 'tokens'")
        if isinstance(self.acceptance, tuple) and len(self.acceptance) != self.tokens:
            raise PydanticCustomError(
                "scenario", "'acceptance' by depth needs one share for each of 'tokens'"
            )
        return self


class LowRankAdapters(Spec):
    """Many low-rank adapters on one base model, those of a batch applied together (Punica, S-LoRA)."""

    count: Positive
    """Adapters that requests ask for."""
    rank: Positive
    zipf: Annotated[float, Field(ge=0.0, le=4.0)] = 0.0
    """Exponent of their popularity; 0: all alike."""
    resident: Positive | None = None
    """Adapters that accelerator memory holds; the others are in DRAM and are fetched when a request comes. All if absent."""
    prefetch: bool = True
    """Fetched while the iteration before runs; false: the iteration waits."""

    @model_validator(mode="after")
    def _held(self) -> LowRankAdapters:
        if self.resident is not None and self.resident > self.count:
            raise PydanticCustomError("scenario", "'resident' exceeds 'count': there are no more adapters")
        if "prefetch" in self.model_fields_set and self.resident in (None, self.count):
            raise PydanticCustomError("scenario", "'prefetch' has no meaning where all adapters are resident")
        return self


class ExpertAdapters(Spec):
    """Fine-tuned copies of a few experts of each layer, beside the base model's (ESFT; ExpertWeave)."""

    experts: tuple[Annotated[float, Field(gt=0.0)], ...]
    """Experts of a layer that each adapter replaces, mean over layers: one figure an adapter."""
    largest: Positive
    """Most experts of any layer of an adapter: the slots that padding gives each."""
    layout: Literal["virtual", "padded", "merged"] = "virtual"
    """virtual: pages behind one range of addresses for experts that exist; padded: ``largest`` slots for each adapter and
    layer; merged: a model for each adapter."""


class Rematerialization(Spec):
    """The input of a layer is cached in place of keys and values, which are computed from it (XQuant)."""

    bits: Annotated[float, Field(gt=0.0, le=16.0)] = 16.0
    """Of a cached element, without scales."""
    cross_layer: bool = False
    """Differences between layers are cached, and summed in an accumulator of 4 bits (XQuant-CL)."""


class CacheBudget(Spec):
    """Positions that layers keep at most, whatever the length of the sequence."""

    tokens: Positive | tuple[Positive, ...]
    """Of every layer, or of each (ScaleKV)."""
    sinks: Natural = 0
    """First positions that are kept beside them (StreamingLLM)."""
    eviction: Literal["window", "after-prefill"] = "window"
    """window: prompts see no more than decodes do; after-prefill: whole prompts are attended to, then all but the budget is
    dropped (H2O, SnapKV, ScaleKV)."""


class ContextCompression(Spec):
    """Prompts are encoded, and the decoder keeps one position for ``ratio`` tokens (RCC)."""

    ratio: Positive = 32
    segment: Positive = 2048
    """Tokens that the encoder sees at once."""
    encoder: SmallModel | None = None
    """The encoder's dimensions; those of the model served if absent."""


class MultimodalEncoder(Spec):
    """Part of a prompt comes out of an encoder, which runs before it (images, audio)."""

    encoder: SmallModel
    share: Annotated[float, Field(gt=0.0, le=1.0)]
    """Of a prompt's tokens."""
    ratio: Annotated[float, Field(gt=0.0)] = 1.0
    """Positions of the encoder for each token that it gives: 4 where neighbours are merged 2 x 2."""
    segment: Positive
    """Positions that it sees at once: the patches of an image."""


class BlockRetrieval(Spec):
    """Blocks of distant keys and values lie in DRAM; each step takes the most relevant (InfLLM)."""

    sinks: Natural = 128
    window: Positive = 4096
    block: Positive = 128
    blocks: Positive = 16
    """Blocks that are attended to."""
    representatives: Positive = 4
    """Keys of each block that stay on the accelerator to be compared with."""
    cached: Positive = 32
    """Blocks of a sequence that each layer holds on the accelerator."""
    hit_rate: Share
    """Share of the chosen blocks that are among those."""
    query_block: Positive = 512
    """Tokens of a prompt that choose blocks together."""
    fused: bool = True
    """Whether attention of prompts keeps its scores on the chip; false: they go through memory, as with plain tensor
    operations (``fattn: false`` of InfLLM's own Llama-3 configuration)."""

    @property
    def positions(self) -> int:
        """Positions that a query tells apart: the window, and one behind it for all that is further."""
        return self.window + self.query_block

    @model_validator(mode="after")
    def _holds(self) -> BlockRetrieval:
        if self.cached < self.blocks:
            raise PydanticCustomError("scenario", "'cached' must hold the 'blocks' that are attended to")
        return self


def technique_problems(strategy: Any) -> list[str]:
    """Name what a strategy's techniques leave without a meaning, or cannot be combined.

    Parameters
    ----------
    strategy : ServingStrategy
        As written.
    """
    given, found = strategy.model_fields_set, []
    if strategy.quantization:
        for name in ("weight_precision", "weight_bits"):
            if getattr(strategy, name) is not None:
                found.append(
                    f"'{name}' has no meaning with 'quantization', which says how weights are stored"
                )
        if strategy.precision not in ("fp16", "bf16"):
            found.append("'quantization' needs precision 'fp16' or 'bf16': that of what it leaves as it is")
    caches = [n for n in ("kv_rematerialization", "kv_budget", "block_retrieval") if getattr(strategy, n)]
    if len(caches) > 1:
        found.append(f"'{caches[0]}' and '{caches[1]}' each say what the KV cache keeps: choose one")
    if strategy.kv_group is not None and not (strategy.kv_precision or strategy.kv_rematerialization):
        found.append(
            "'kv_group' are elements that share scales: it needs 'kv_precision' or 'kv_rematerialization'"
        )
    if strategy.kv_rematerialization and strategy.kv_precision is not None:
        found.append("'kv_precision' has no meaning with 'kv_rematerialization', which has its own 'bits'")
    single = (
        "speculation", "lora", "context_compression", "multimodal", "kv_rematerialization", "block_retrieval", "kv_budget",
        "expert_adapters",
    )  # fmt: skip
    used = [name for name in single if getattr(strategy, name)]
    for name, plain in (("pipeline_parallel", 1), ("attention_data_parallel", 1), ("expert_parallel", 1)):
        if used and getattr(strategy, name) != plain:
            found.append(f"'{used[0]}' is not priced with '{name}' above 1")
    if strategy.context_compression and (strategy.prefix_cache or strategy.multimodal):
        found.append("'context_compression' has no text that a prefix cache or an image could be found in")
    if strategy.kv_budget and strategy.kv_budget.eviction == "after-prefill" and strategy.chunked_prefill:
        found.append(
            "'kv_budget' with eviction 'after-prefill' attends to whole prompts: it needs chunked_prefill false"
        )
    if strategy.speculation and strategy.batching == "static":
        found.append("'speculation' is not priced with batching 'static'")
    if strategy.endpoint != "generate":
        for name in ("speculation", "kv_budget", "block_retrieval", "kv_rematerialization"):
            if getattr(strategy, name):
                found.append(
                    f"'{name}' has no meaning with endpoint '{strategy.endpoint}', which decodes nothing"
                )
        if "iteration" in given and strategy.iteration is not None:
            found.append(
                f"'iteration' has no meaning with endpoint '{strategy.endpoint}', which decodes nothing"
            )
    return found
