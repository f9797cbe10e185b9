"""What is left of an operator's collectives beside its own products: as a whole, chunk by chunk, or all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from simulator.cost.breakdown import Breakdown, OperatorTime
from simulator.cost.numeric import larger
from simulator.graph.experts import SHARED_EXPERTS
from simulator.graph.graph import Block, Operator
from simulator.graph.work import Attention, Axis, Collective, Matmul, Numeric, Part, Work

Overlap = Literal["none", "backward", "chunked"]
"""What tensor-parallel collectives run beside: nothing, the other product of the backward pass, or also their own one."""

Price = Callable[[Work], Breakdown]


def operator_times(
    operator: Operator,
    price: Price,
    ranks: Callable[[Axis], int],
    occupancy: float,
    *,
    overlap: Overlap = "backward",
    apart: bool = False,
) -> OperatorTime:
    """Return the passes of an operator, collectives as far as nothing hides them.

    Parameters
    ----------
    operator : Operator
        Its works forward and backward.
    price : callable
        Cost of one work [s].
    ranks : callable
        Ranks of the group of an axis.
    occupancy : float
        Share of the units that a collective's kernels take from the product beside them (:meth:`Breakdown.beside`).
    overlap : str
        Of tensor-parallel collectives; those of other groups hide behind what their ``hidden_by`` says in any case.
    apart : bool
        Whether input and weight gradient run at different times (zero-bubble schedules), so that neither hides anything
        of the other.

    Returns
    -------
    OperatorTime
        What is exposed counts where the collective stands.

    Notes
    -----
    ``backward``: the reduction of the input gradient runs beside the weight gradient's product, and the repeated gather of
    the input beside the input gradient's (Megatron-LM's asynchronous linear layers).

    ``chunked``, and a ring of attention in any case: collective and product are cut in P pieces, of which the first is at
    hand or the last needs no sending, so that P - 1 steps of communication run beside P products. With the product's time
    T, the collective's C and occupancy o that takes max(T + o·C, C + T/P). The P products are a kernel each, with their own
    tiles; waves of one fill the gaps of another, since they run on several streams.
    """
    parts: dict[Part, tuple[Work, ...]] = {
        "forward": operator.forward,
        "input-gradient": operator.input_gradient,
        "weight-gradient": operator.weight_gradient,
    }
    placed = {
        part: _place(part, works, price, ranks, overlap=overlap, apart=apart) for part, works in parts.items()
    }
    times: dict[Part, Breakdown] = {}
    for part, own in placed.items():
        times[part] = own.exposed
        for collective, pieces in own.piecewise:
            times[part] = times[part] + collective.beside(own.products * (1.0 - 1.0 / pieces), occupancy)
        for hider, collective in own.beside.items():
            times[part] = times[part] + collective.beside(placed[hider].exposed.time, occupancy)
    return OperatorTime(times["forward"], times["input-gradient"], times["weight-gradient"])


def beside_shared_experts(
    block: Block, times: Mapping[str, OperatorTime], price: Price, occupancy: float
) -> dict[str, OperatorTime]:
    """Return the passes of a block's operators where shared experts run while routed tokens are exchanged.

    Parameters
    ----------
    block : Block
        A layer; one without shared experts or exchange stays as it is.
    times : mapping
        Passes of its operators, one after the other.
    price, occupancy
        As for :func:`operator_times`.

    Notes
    -----
    The first products of the shared experts run beside the exchange that takes tokens to their experts, the last beside the
    one that takes them back, and so in the backward pass (Megatron-Core's ``moe_shared_expert_overlap``): both exchanges
    together hide behind all shared experts, in each pass.
    """
    found = dict(times)
    shared = [times[op.name] for op in block.operators if op.name.startswith(SHARED_EXPERTS)]
    parts: dict[str, Breakdown] = {
        "forward": sum((t.forward for t in shared), start=Breakdown()),
        "input_gradient": sum((t.backward for t in shared), start=Breakdown()),
    }
    for part, hiders in parts.items():
        left: Any = hiders.time
        for op in block.operators:
            works: tuple[Work, ...] = getattr(op, part)
            exchanges = [w for w in works if _exchanges_experts(w)]
            if not exchanges:
                continue
            rest = [w for w in works if not _exchanges_experts(w)]
            exchange = sum((price(w) for w in exchanges), start=Breakdown())
            exposed = exchange.beside(left, occupancy)
            left = larger(left - exchange.time, 0.0)
            total = sum((price(w) for w in rest), start=Breakdown()) + exposed
            found[op.name] = replace(found[op.name], **{part: total})
    return found


@dataclass(frozen=True, slots=True)
class _Placed:
    """Where the works of a part run."""

    exposed: Breakdown
    """Kernels and collectives one after the other."""
    products: Numeric
    """Seconds of its products, which piecewise collectives run beside."""
    piecewise: tuple[tuple[Breakdown, int], ...]
    """Collectives beside the part's own products, and pieces of each."""
    beside: Mapping[Part, Breakdown]
    """Collectives beside another part, by part."""


def _place(
    part: Part,
    works: tuple[Work, ...],
    price: Price,
    ranks: Callable[[Axis], int],
    *,
    overlap: Overlap,
    apart: bool,
) -> _Placed:
    chunks = max(
        (ranks(w.axis) for w in works if isinstance(w, Collective) and _follows(w, overlap, apart)), default=1
    )
    exposed = Breakdown()
    products: Numeric = 0.0
    piecewise: list[tuple[Breakdown, int]] = []
    beside: dict[Part, Breakdown] = {}
    for work in works:
        if isinstance(work, Collective):
            cost, hider = price(work), _hider(work, part, overlap, apart)
            if hider == part:
                piecewise.append((cost, ranks(work.axis)))
            elif hider:
                beside[hider] = beside[hider] + cost if hider in beside else cost
            else:
                exposed = exposed + cost
            continue
        cost = price(_in_chunks(work, chunks) if isinstance(work, Matmul) else work)
        exposed = exposed + cost
        if isinstance(work, (Matmul, Attention)):
            products = products + cost.time
    return _Placed(exposed, products, tuple(piecewise), beside)


def _hider(work: Collective, part: Part, overlap: Overlap, apart: bool) -> Part | Literal[""]:
    """Return the part whose work runs beside a collective; nothing where it is exposed."""
    if _follows(work, overlap, apart):
        return part
    if work.hidden_by == part:
        return part
    return "" if apart or (work.axis == "tensor" and overlap == "none") else work.hidden_by


def _follows(work: Collective, overlap: Overlap, apart: bool) -> bool:
    """Whether a collective follows its own product chunk by chunk; it hides behind another one as a whole if it can."""
    return overlap == "chunked" and work.chunked and (apart or not work.hidden_by)


def _in_chunks(work: Matmul, chunks: int) -> Matmul:
    return replace(work, m=work.m / chunks, count=work.count * chunks) if chunks > 1 else work


def _exchanges_experts(work: Work) -> bool:
    return isinstance(work, Collective) and work.axis == "expert"
