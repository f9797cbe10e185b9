"""Encoders that run before a prompt: images or audio that become tokens of it, or a text that is compressed.

The encoder sees segments of a fixed length that do not attend to each other (patches of an image: Dosovitskiy et al. 2021,
arXiv:2010.11929; segments of a text: Huang et al. 2024, arXiv:2406.06110, RCC). Its weights are copied to every rank of a
tensor-parallel group, which share the segments (vLLM's data-parallel multimodal encoder).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from simulator.cost import CostModel
from simulator.graph import Collective, Numerics, Partition, Shape, Work, build
from simulator.serving.accounts import SIZE
from simulator.serving.extras import charge
from simulator.serving.workload import Floats, Integers, Requests
from simulator.specs import Model
from simulator.specs.serving_techniques import SmallModel


@dataclass(frozen=True)
class EncoderPass:
    """An encoder beside the model served; an :class:`~simulator.serving.extras.Extra`."""

    model: Model
    numerics: Numerics
    cost: CostModel
    positions: float
    """Positions of the encoder for each token of a prompt."""
    segment: int
    """Positions that it sees at once."""
    ranks: int = 1
    """That share its segments."""
    _kept: dict[int, Floats] = field(default_factory=dict, repr=False)

    @property
    def resident_bytes(self) -> float:
        """Weights of its layers [B]."""
        graph = build(self.model, Shape(1, 1), Partition(), self.numerics)
        layers = sum(float(b.parameters) * n for b, n in zip(graph.blocks, graph.counts, strict=True))
        return layers * self.numerics.weight_bytes

    def decode(self, contexts: Integers, steps: int, queries: int) -> tuple[tuple[int, Floats], ...]:
        """Nothing is encoded."""
        return ()

    def mixed(self, new: Integers, cached: Integers, contexts: Integers, seconds: float) -> Floats:
        """The positions that the pieces of prompts come from."""
        return self.of_tokens(int(new.sum()))

    def of_tokens(self, tokens: int) -> Floats:
        """Account of the pass that gives so many tokens of prompts."""
        if tokens not in self._kept:
            works: list[tuple[Work, float]] = []
            segments = tokens * self.positions / self.segment / self.ranks
            if segments:
                graph = build(self.model, Shape(segments, self.segment), Partition(), self.numerics)
                for block, count in zip(graph.blocks, graph.counts, strict=True):
                    works += [(w, float(count)) for w in block.works() if not isinstance(w, Collective)]
            self._kept[tokens] = charge(self.cost, works)
        return self._kept[tokens] if tokens else np.zeros(SIZE)


def beside(model: Model, dimensions: SmallModel | None, family: str) -> Model:
    """Return the model of other dimensions that stands beside one that is served, with its vocabulary and positions."""
    given = model.model_dump(exclude_unset=True)
    for name in ("parameters", "num_key_value_heads", "head_dim", "embedding_size"):
        if dimensions is not None:
            given.pop(name, None)
    for name in ("moe", "mla", "sliding_window", "sliding_window_pattern", "attention_chunk_size"):
        if dimensions is not None or family == "encoder":
            given.pop(name, None)
    given |= {"family": family, "name": f"{model.name}: {'draft' if family == 'decoder' else 'encoder'}"}
    if dimensions is not None:
        given |= {n: v for n, v in dimensions.model_dump().items() if v is not None}
    return Model.model_validate(given)


def compressed(requests: Requests, ratio: int) -> Requests:
    """Return requests whose prompts are as long as the decoder sees them: a position for ``ratio`` tokens, rounded up."""
    return replace(requests, prompt=-(-requests.prompt // ratio))
