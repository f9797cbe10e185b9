"""Weights of a decode step by where they are used: layers without their FFN neurons, the neurons, embedding and head."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.graph import FORMAT_BYTES, Block, Numerics, Shape, build
from simulator.specs import MemroofError, Model

SCALE_BYTES = 2.0
"""Of one scale of a group of quantised weights: fp16 (Q4_0 and Q8_0 of llama.cpp, ggml-common.h)."""
NEURON_OPERATORS = ("mlp.up", "mlp.down", "moe.up", "moe.down")
"""Operators of a block whose weights are rows of FFN neurons."""


def weight_width(weight: str, group: int | None) -> float:
    """Return the bytes of one weight, its part of the group's scale included."""
    return FORMAT_BYTES[weight] + (SCALE_BYTES / group if group else 0.0)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer, for a step of one token.

    Attributes
    ----------
    name : str
        Of the kind of layer.
    fixed : float
        Elements that every token uses: attention, norms, router.
    neurons : int
        FFN neurons, of all experts together.
    rows : int
        Rows of a neuron: gate, up and down, or up and down.
    width : int
        Elements of a row: the hidden size.
    chosen : float
        Share of the neurons that lie in the experts which a token is routed to; 1 without experts.
    experts : int
        1 without experts.
    kv_width : float
        Elements of the KV cache that a token takes.
    """

    name: str
    fixed: float
    neurons: int
    rows: int
    width: int
    chosen: float
    experts: int
    kv_width: float

    @property
    def neuron_elements(self) -> float:
        """Of all neurons."""
        return float(self.neurons) * self.rows * self.width

    @property
    def used(self) -> float:
        """Elements that a token uses where no neuron is skipped."""
        return self.fixed + self.chosen * self.neuron_elements

    @property
    def elements(self) -> float:
        """Elements of the layer."""
        return self.fixed + self.neuron_elements


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """The whole model, layer by layer in order."""

    layers: tuple[LayerWeights, ...]
    embedding: float
    """Elements of tables that are looked up: words, positions."""
    head: float
    """Elements that a token's logits take: a table of its own, or the word table where that is shared."""
    own_head: float
    """Those of them that no embedding has."""

    @property
    def elements(self) -> float:
        """Elements that are stored."""
        return sum(layer.elements for layer in self.layers) + self.embedding + self.own_head

    @property
    def fixed(self) -> float:
        """Elements of layers that every token uses."""
        return sum(layer.fixed for layer in self.layers)

    @property
    def neuron_elements(self) -> float:
        """Elements of all neurons of all layers."""
        return sum(layer.neuron_elements for layer in self.layers)

    @property
    def used(self) -> float:
        """Elements that a token reads where no neuron is skipped; of a table that is looked up, next to none."""
        return sum(layer.used for layer in self.layers) + self.head


def check_positions(model: Model, tokens: int) -> None:
    """Refuse more tokens than a model has learned positions for; raises :class:`MemroofError`."""
    if model.position == "learned" and tokens > model.max_position_embeddings:
        raise MemroofError(
            f"workload: {model.name} has learned {model.max_position_embeddings} positions; prompt and output need {tokens}"
        )


def weights_of(model: Model, numerics: Numerics) -> ModelWeights:
    """Return the weights of a model's decoder as a decode step uses them; an encoder has done its work and is left out."""
    graph = build(model, Shape(1, 1, 1, "decode"), numerics=numerics)
    decoder = [block for block in graph.blocks if block.works("forward")]
    kinds = {id(block): _layer(block, model) for block in decoder}
    layers = tuple(
        kinds[id(graph.blocks[index])] for index in graph.layers if id(graph.blocks[index]) in kinds
    )
    table = model.vocab_size * (model.embedding_size or model.hidden_size) if model.tie_word_embeddings else 0
    own = float(graph.head.parameters)
    return ModelWeights(layers, float(graph.embedding.parameters), own + table, own)


def _layer(block: Block, model: Model) -> LayerWeights:
    moe = model.moe if any(operator.name.startswith("moe.") for operator in block.operators) else None
    experts = moe.num_experts if moe else 1
    neurons = experts * (moe.moe_intermediate_size if moe else model.intermediate_size)
    rows = 3 if model.gated_mlp else 2
    total = float(block.parameters)
    fixed = total - float(neurons) * rows * model.hidden_size
    return LayerWeights(
        block.name, fixed, neurons, rows, model.hidden_size,
        moe.num_experts_per_tok / experts if moe else 1.0, experts, float(block.kv_width),
    )  # fmt: skip
