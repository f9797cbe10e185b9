"""How a replica is cut over its GPUs, and what each cut talks over.

Attention is cut over ``tensor`` ranks; ``data`` such groups attend to requests of their own (DeepSeek-AI 2024,
arXiv:2412.19437, section 3.4); all of them, a *stage*, share the experts of its layers: dealt out to ``expert`` places,
each expert cut over the ranks of a place. ``pipeline`` stages hold the layers one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from simulator.graph.routing import REACH_SHARE, busiest_share, load_nodes
from simulator.specs import Hardware, MemroofError, Model, ServingStrategy, Span

ExchangeKernel = Literal["collective", "normal", "low-latency", "auto"]
NOTHING = Span(())


@dataclass(frozen=True, slots=True)
class Layout:
    """Degrees of a replica, what its groups span, and how tokens get to experts."""

    tensor: int = 1
    data: int = 1
    pipeline: int = 1
    expert: int = 1
    exchange: ExchangeKernel = "collective"
    """Between ranks with tokens of their own: gathered and reduced by the library, or kernels made for it; ``auto``: low-latency
    where nothing but decodes runs."""
    overlap: bool = False
    """Two half batches: one computes while the other's tokens are exchanged."""
    skew: float = 0.0
    """Exponent of the power law of experts' loads; 0 for uniform routing."""
    redundant: int = 0
    """Copies of the busiest experts of a layer, over all its places."""
    balanced: bool = False
    """Whether experts are placed by load instead of at random."""
    locality: float | None = None
    """Share of the token copies that stay on their rank; as chance has it if absent."""
    nodes: int | None = None
    """Nodes that the experts of one token lie in at most."""
    tensor_span: Span = NOTHING
    data_span: Span = NOTHING
    stage_span: Span = NOTHING
    hop_span: Span = NOTHING
    """From a stage to the next."""
    ranks: int = field(init=False)
    """GPUs of a stage."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranks", self.tensor * self.data)

    @property
    def gpus(self) -> int:
        """GPUs of a replica."""
        return self.ranks * self.pipeline

    @property
    def expert_tensor(self) -> int:
        """Ranks that each expert is cut over."""
        return self.ranks // self.expert

    @property
    def apart(self) -> bool:
        """Whether experts are cut otherwise than attention."""
        return self.data > 1 or self.expert > 1

    @property
    def sent_share(self) -> float:
        """Copies that leave their rank, over those that would by chance."""
        if self.locality is None:
            return 1.0
        chance = 1.0 - 1.0 / max(self.expert, 2)
        return min(1.0, (1.0 - self.locality) / chance)

    def assumptions(self, *, moe: bool) -> list[str]:
        """Say what an answer takes for granted."""
        lines = []
        if self.pipeline > 1:
            lines.append(
                f"{self.pipeline} micro-batches go round the stages in step: a request enters at the next round of all of them"
            )
        if self.data > 1:
            lines.append(
                "groups that attend together have equal batches at all times: none waits for another's prompts at the experts"
            )
        if moe and not self.skew:
            lines.append("tokens are routed to experts uniformly")
        if moe and self.skew:
            placed = "by load" if self.balanced else "at random"
            lines.append(
                f"experts' loads follow a power law of exponent {self.skew:g}; they are placed {placed}"
            )
        return lines


def make_layout(strategy: ServingStrategy, model: Model, hardware: Hardware) -> Layout:
    """Return the layout of a strategy's replicas.

    Raises
    ------
    MemroofError
        If degrees do not divide one another, exceed the hardware, layers or experts, or an option of experts is asked of a
        model without, or of ranks that exchange nothing.
    """
    tensor, data, pipeline, expert = (
        strategy.tensor_parallel, strategy.attention_data_parallel, strategy.pipeline_parallel, strategy.expert_parallel,
    )  # fmt: skip
    ranks = tensor * data
    _check(strategy, model, hardware)
    return Layout(
        tensor, data, pipeline, expert, strategy.expert_exchange, strategy.dual_batch_overlap, strategy.routing_skew,
        strategy.redundant_experts, strategy.expert_placement == "balanced", strategy.expert_locality, strategy.expert_nodes,
        hardware.span(tensor),
        hardware.span(data, tensor) if data > 1 else NOTHING,
        hardware.span(ranks) if ranks > 1 else NOTHING,
        hardware.pair(0, ranks) if pipeline > 1 else NOTHING,
    )  # fmt: skip


def _check(strategy: ServingStrategy, model: Model, hardware: Hardware) -> None:
    tensor, data, pipeline, expert = (
        strategy.tensor_parallel, strategy.attention_data_parallel, strategy.pipeline_parallel, strategy.expert_parallel,
    )  # fmt: skip
    ranks, moe = tensor * data, model.moe
    degrees = [
        f"{name} {degree}"
        for name, degree in (
            ("tensor_parallel", tensor), ("attention_data_parallel", data), ("pipeline_parallel", pipeline),
        )
        if degree > 1
    ]  # fmt: skip
    if ranks * pipeline > hardware.size:
        needs = f"needs {ranks * pipeline} GPUs" if len(degrees) > 1 else "needs as many GPUs"
        raise MemroofError(f"{' x '.join(degrees)} {needs}; {hardware.name} has {hardware.size}")
    if pipeline > model.num_hidden_layers:
        raise MemroofError(
            f"pipeline_parallel {pipeline} exceeds the {model.num_hidden_layers} layers of {model.name}"
        )
    if moe is None:
        asked = {
            "expert_parallel": expert > 1, "attention_data_parallel": data > 1, "routing_skew": strategy.routing_skew > 0.0,
            "redundant_experts": strategy.redundant_experts > 0, "dual_batch_overlap": strategy.dual_batch_overlap,
        }  # fmt: skip
        for name, given in asked.items():
            if given:
                raise MemroofError(f"{name} has no meaning for {model.name}, which has no experts")
        return
    if ranks % expert:
        raise MemroofError(
            f"expert_parallel {expert} does not divide the {ranks} GPUs of a stage (tensor_parallel {tensor} x "
            f"attention_data_parallel {data})"
        )
    places = moe.num_experts + strategy.redundant_experts
    if places % expert:
        raise MemroofError(
            f"expert_parallel {expert} does not divide {places} experts ({moe.num_experts} of {model.name} and "
            f"{strategy.redundant_experts} redundant)"
        )
    if moe.moe_intermediate_size % (ranks // expert):
        raise MemroofError(
            f"each expert would be cut over {ranks // expert} GPUs, which does not divide its width of "
            f"{moe.moe_intermediate_size}; raise expert_parallel"
        )
    if strategy.expert_exchange != "collective" and not (data > 1 and expert == ranks):
        raise MemroofError(
            f"expert_exchange {strategy.expert_exchange!r} sends tokens to whole experts: it needs attention_data_parallel above "
            f"1 and expert_parallel {ranks}, all GPUs of a stage"
        )


def heads_allow(model: Model, tensor: int) -> bool:
    """Whether every rank of a tensor-parallel group gets whole heads; a KV head may be copied to several ranks."""
    whole = model.num_attention_heads % tensor == 0
    return whole and (model.mla is not None or model.kv_heads % tensor == 0 or tensor % model.kv_heads == 0)


def stages(layers: int, pipeline: int) -> tuple[range, ...]:
    """Return the layers of each stage: as equal as can be, the last one (with the head) among the smaller."""
    least, more = divmod(layers, pipeline)
    # a stage more from the one before the last towards the first, as vLLM cuts
    counts = [least + (pipeline - 1 - more <= stage < pipeline - 1) for stage in range(pipeline)]
    ends = np.cumsum(counts).tolist()
    return tuple(range(end - count, end) for end, count in zip(ends, counts, strict=True))


def busiest_place(experts: int, places: int, redundant: int, skew: float, tokens: float) -> float:
    """Return the load of the busiest place over the mean, where experts are placed by their loads.

    Parameters
    ----------
    experts, places, redundant : int
        Experts of a layer, places that they are dealt out to, copies of the busiest.
    skew : float
        Exponent of the power law of loads.
    tokens : float
        Tokens of all ranks: what the largest load is bounded by.

    Notes
    -----
    Loads are the quantiles of the law. Each copy goes to the expert with the most load a copy; then the heaviest first to
    the place with the least load that has room (greedy packing, as DeepSeek's expert-parallel load balancer does).
    """
    if not skew:
        return 1.0
    reach = max(REACH_SHARE * tokens, 1.0)
    loads = np.sort(np.asarray(load_nodes(skew, reach, experts), float))[::-1]
    copies = np.ones(experts)
    for _ in range(redundant):
        copies[np.argmax(loads / copies)] += 1
    pieces = np.sort(np.repeat(loads / copies, copies.astype(int)))[::-1]
    room = np.full(places, len(pieces) // places)
    filled = np.zeros(places)
    for piece in pieces.tolist():
        place = int(np.argmin(np.where(room > 0, filled, np.inf)))
        filled[place] += piece
        room[place] -= 1
    packed = float(filled.max() / filled.mean())
    # the law's quantiles overstate the largest of few draws: never worse than at random
    return min(packed, float(busiest_share(experts, places, skew, reach)))
