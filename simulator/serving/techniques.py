"""From a strategy's techniques to what a replica has for them: formats, prices, memory, and how its cache is laid out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from simulator.cost import peak_flops
from simulator.graph import ModelGraph, Numerics
from simulator.serving.adapters import ExpertVariants, expert_variants, low_rank
from simulator.serving.encoders import EncoderPass, beside, compressed
from simulator.serving.extras import ExtendedPricer, Extra
from simulator.serving.joined_cache import Joins
from simulator.serving.kv_cache import layer_groups
from simulator.serving.kv_compression import CacheChange, cache_numerics, change_of
from simulator.serving.kv_work import RematerializedKeys, RetrievedBlocks
from simulator.serving.layout import Layout, heads_allow
from simulator.serving.quantisation import SCHEMES, Scheme, quantised
from simulator.serving.speculative import Drafter, SpeculativePricer, joined_graph, level_nodes
from simulator.serving.step_time import StepPricer
from simulator.serving.tiers import Tier, find_tier
from simulator.serving.whole_logits import WholeLogits
from simulator.serving.workload import Requests
from simulator.specs import Hardware, MemroofError, Model, ServingStrategy
from simulator.specs.serving_techniques import BlockRetrieval, SmallModel
from simulator.strategy import Setup


@dataclass(frozen=True)
class Techniques:
    """What a replica has beside the model.

    Attributes
    ----------
    pricer : StepPricer, ExtendedPricer or SpeculativePricer
        Of iterations with all techniques.
    resident : mapping of str to float
        Further bytes in accelerator memory, by category [B].
    change : CacheChange or None
        Of the model's cache.
    draft : ModelGraph or None
        Whose keys and values are cached too.
    """

    pricer: StepPricer | ExtendedPricer | SpeculativePricer
    resident: Mapping[str, float] = field(default_factory=dict)
    change: CacheChange | None = None
    draft: ModelGraph | None = None

    def cache_graph(self, graph: ModelGraph) -> ModelGraph:
        """Return the graph that the cache is laid out by."""
        if self.change is not None:
            graph = self.change.cache_graph(graph)
        return graph if self.draft is None else joined_graph(graph, self.draft)

    def slots(self, graph: ModelGraph, sequences: int) -> dict[str, float]:
        """Bytes of candidates that are not verified yet, where there are any."""
        if not isinstance(self.pricer, SpeculativePricer):
            return {}
        token = sum(group.token_bytes for group in layer_groups(self.cache_graph(graph)))
        return {"drafted tokens": self.pricer.slot_bytes(sequences, token)}


def check_techniques(strategy: ServingStrategy, model: Model, hardware: Hardware) -> None:
    """Refuse techniques that a model or a device does not allow.

    Raises
    ------
    MemroofError
        For a format that the device lacks, chunks of prompts of an encoder, heads that ranks cannot share, or a token budget
        that does not hold what a batch drafts.
    """
    if strategy.quantization:
        compute = SCHEMES[strategy.quantization].compute
        if compute:
            peak_flops(hardware.device, compute)
    if model.family == "encoder" and strategy.chunked_prefill:
        raise MemroofError(
            f"{model.name} is an encoder, which sees whole texts: it needs chunked_prefill false"
        )
    speculation = strategy.speculation
    if speculation is None:
        return
    if isinstance(speculation.draft, SmallModel):
        draft = beside(model, speculation.draft, "decoder")
        if not heads_allow(draft, strategy.tensor_parallel):
            raise MemroofError(
                f"speculation: tensor_parallel {strategy.tensor_parallel} does not divide the heads of the draft"
            )
    queries = 1 + sum(level_nodes(speculation.tokens, speculation.branches))
    if strategy.max_batched_tokens < strategy.max_batch * queries:
        raise MemroofError(
            f"max_batched_tokens ({strategy.max_batched_tokens}) is below max_batch ({strategy.max_batch}) times the {queries} "
            "tokens that speculation verifies of each sequence"
        )


def adapted_requests(requests: Requests, strategy: ServingStrategy) -> Requests:
    """Return requests as the decoder sees them: compressed, and without outputs where an endpoint has none."""
    if strategy.context_compression:
        requests = compressed(requests, strategy.context_compression.ratio)
    if strategy.endpoint != "generate":
        requests = replace(requests, output=np.ones_like(requests.output))
    return requests


def technique_numerics(numerics: Numerics, strategy: ServingStrategy, model: Model) -> Numerics:
    """Return formats with those of a scheme and of the cache."""
    scheme = scheme_of(strategy)
    if scheme is not None:
        numerics = quantised(numerics, scheme, model, kv=strategy.kv_precision is None)
    return cache_numerics(numerics, strategy)


def scheme_of(strategy: ServingStrategy) -> Scheme | None:
    """Return the scheme that a strategy names."""
    return None if strategy.quantization is None else SCHEMES[strategy.quantization]


def cache_change(strategy: ServingStrategy, setup: Setup, numerics: Numerics) -> CacheChange | None:
    """Return what becomes of the model's cache; None where it stays."""
    change = change_of(strategy, setup.model, setup.cost, numerics.compute)
    return change if change.changes else None


def make_techniques(
    setup: Setup, strategy: ServingStrategy, layout: Layout, numerics: Numerics, pricer: StepPricer
) -> Techniques:
    """Put what a strategy asks for beside a model.

    Raises
    ------
    MemroofError
        If adapters or distant blocks exceed DRAM, or the model has not what a technique needs.
    """
    resident: dict[str, float] = {}
    extras: list[Extra] = []
    model, cost, graph = setup.model, setup.cost, pricer.graph()

    def dram() -> Tier:
        return find_tier(setup.hardware, cost.calibration, "dram", None, layout.gpus)

    if strategy.lora is not None:
        held = strategy.lora.resident
        lora = low_rank(strategy.lora, cost, graph, None if held in (None, strategy.lora.count) else dram())
        extras.append(lora)
        resident["adapters"] = lora.resident_bytes
    if strategy.expert_adapters is not None:
        stored = numerics.weight_bytes
        variants: ExpertVariants = expert_variants(strategy.expert_adapters, model, cost, graph, stored)
        extras.append(variants)
        resident["adapters"] = variants.resident_bytes + variants.copies * pricer.weight_bytes
    encoder = _encoder(strategy, setup, layout)
    if encoder is not None:
        extras.append(encoder)
        resident["encoder"] = encoder.resident_bytes
    remat = strategy.kv_rematerialization
    if remat is not None:
        extras.append(RematerializedKeys(remat, model, layout.tensor, numerics, cost, strategy.kv_group))
    if strategy.block_retrieval is not None:
        extras.append(_retrieval(strategy.block_retrieval, setup, layout, graph, dram()))
    if strategy.kv_layout == "joined":
        extras.append(Joins(layer_groups(graph, 1 if model.mla is not None else 2), cost))
    if strategy.logits == "all":
        whole_logits = WholeLogits(model, layout.tensor, numerics, cost)
        extras.append(whole_logits)
        resident["logits"] = whole_logits.resident_bytes(strategy.max_batched_tokens)
    priced = ExtendedPricer(pricer, extras) if extras else pricer
    if strategy.speculation is None:
        return Techniques(priced, resident, pricer.change)
    drafter = _drafter(strategy, setup, layout, numerics, pricer)
    if drafter.pricer is not None:
        resident["draft"] = drafter.weight_bytes
    draft = None if drafter.pricer is None else drafter.pricer.graph()
    whole = SpeculativePricer(priced, drafter, strategy.speculation)
    return Techniques(whole, resident, pricer.change, draft)


def _encoder(strategy: ServingStrategy, setup: Setup, layout: Layout) -> EncoderPass | None:
    wide = Numerics.of(strategy.precision if strategy.precision in ("fp32", "fp16") else "bf16")
    if strategy.context_compression is not None:
        asked = strategy.context_compression
        model = beside(setup.model, asked.encoder, "encoder")
        return EncoderPass(model, wide, setup.cost, float(asked.ratio), asked.segment, layout.tensor)
    if strategy.multimodal is not None:
        seen = strategy.multimodal
        model = beside(setup.model, seen.encoder, "encoder")
        return EncoderPass(model, wide, setup.cost, seen.share * seen.ratio, seen.segment, layout.tensor)
    return None


def _retrieval(
    retrieval: BlockRetrieval, setup: Setup, layout: Layout, graph: ModelGraph, dram: Tier
) -> RetrievedBlocks:
    model, width = setup.model, float(graph.blocks[0].kv_width)
    return RetrievedBlocks(
        retrieval, setup.cost, model.num_hidden_layers, model.num_attention_heads / layout.tensor, width,
        graph.numerics.kv_bytes, graph.numerics.activation_bytes, dram,
    )  # fmt: skip


def _drafter(
    strategy: ServingStrategy, setup: Setup, layout: Layout, numerics: Numerics, target: StepPricer
) -> Drafter:
    speculation = strategy.speculation
    if speculation is None or speculation.draft == "lookup":
        return Drafter(None)
    model, layers, joined = setup.model, None, 0
    if isinstance(speculation.draft, SmallModel):
        model = beside(model, speculation.draft, "decoder")
    else:
        layers = range(model.num_hidden_layers - 1, model.num_hidden_layers)
        joined = model.hidden_size
    pricer = StepPricer(
        model, numerics, layout.tensor, layout.tensor_span, setup.cost, 0.0, all_reduce=strategy.all_reduce,
        wide_ends=target.wide_ends, layers=layers, scheme=target.scheme,
    )  # fmt: skip
    return Drafter(pricer, joined)


def technique_lines(strategy: ServingStrategy, expected: float | None) -> list[str]:
    """Say what an answer takes for granted about a strategy's techniques.

    Parameters
    ----------
    strategy : ServingStrategy
    expected : float or None
        Tokens that an iteration of speculative decoding brings.
    """
    lines = []
    if strategy.quantization:
        lines.append(
            f"{strategy.quantization}: embedding and logits stay in 16 bits, and norms or activations before a product quantise "
            "its input"
        )
    if expected is not None:
        lines.append(
            f"every iteration of speculative decoding brings each sequence {expected:.3g} tokens, the mean of its acceptance; a "
            "prompt beside decodes adds what it takes beyond the verification"
        )
    if strategy.lora:
        lines.append(
            "each request asks for an adapter on its own account; each adapter has all linear layers outside experts"
        )
    if strategy.kv_budget:
        lines.append("choosing what a budget keeps costs nothing, and changes no answer's length")
    if strategy.block_retrieval:
        lines.append(
            "blocks that are not on the accelerator are waited for; DRAM holds the rest of every cache"
        )
    if strategy.context_compression or strategy.multimodal:
        lines.append("the encoder runs before the prompt on the same accelerators, its weights on each")
    if strategy.endpoint != "generate":
        lines.append(
            f"{strategy.endpoint}: a request ends with its prompt; its one output is a pooled state or score"
        )
    return lines
