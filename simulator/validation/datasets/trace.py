"""DeepSeek's published training trace by kernel category: one forward and one backward pass through four MoE layers.

What ran is known from the trace's README (H800, expert parallel 64, sequences of 4,096 tokens, balanced routing) and from
DeepSeek-AI 2024 (DeepSeek-V3, arXiv:2412.19437): products in FP8 with a scale for 128 elements, accumulated in fp32 (section
3.3); norms and up-projections of MLA computed again in the backward pass (3.2.3); 20 of 132 SMs set aside for communication
(3.2.2); a token goes to four nodes at most (2.1.2). Every product of FP8 needs its operands quantised along its own k, so
that each linear layer casts its input and its gradient twice: by rows for the products, by columns for the weight gradient.
Nothing is fitted on these rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from simulator.cost import Breakdown, CostModel, class_errors, relative_error
from simulator.graph.work import Attention, Collective, Elementwise, Matmul, Work
from simulator.specs import Catalog, Hardware, MemroofError, Model, Span
from simulator.specs.scenario_base import HardwareChoice
from simulator.validation.dataset import FloatArray, Part, TableDataSet, keep, labels
from simulator.validation.datasets.elementwise import norm, rotary

if TYPE_CHECKING:
    import pandas as pd

DEVICE, CLUSTER, MODEL = "h800-sxm", "deepseek-v3-2048-h800", "deepseek-v3"
LAYERS, TOKENS, EXPERT_PARALLEL = 4, 4096, 64
COMMUNICATION_UNITS = 20
NODES_PER_TOKEN = 4
BOTH_SCALED = 2.0
"""Steps of promoting a partial sum where both operands are scaled by row."""
WAITS = "waits for other ranks: imbalance is not modelled"
SMALL = "small kernels whose sizes the trace's README does not state"
UNKNOWN = "category is not known"
_SMALL = ("elementwise", "moe_router", "memset", "other")


@dataclass(frozen=True, slots=True)
class _Layer:
    """Sizes of one MoE layer on one GPU."""

    hidden: float
    heads: float
    qk: float
    value: float
    rope: float
    query_rank: float
    kv_rank: float
    width: float
    """Of an expert."""
    experts: float
    """On this GPU."""
    all_experts: float
    copies: float
    """Rows that this GPU's experts get: balanced, as many as its own tokens make."""
    received: float
    """Tokens that they come from: several experts of a GPU share one."""

    @property
    def attention(self) -> tuple[tuple[float, float], ...]:
        """Inputs and outputs of the linear layers of MLA: down and up of queries, down and up of the latent, output."""
        return (
            (self.hidden, self.query_rank), (self.query_rank, self.heads * self.qk),
            (self.hidden, self.kv_rank + self.rope), (self.kv_rank, self.heads * (self.qk - self.rope + self.value)),
            (self.heads * self.value, self.hidden),
        )  # fmt: skip

    @property
    def expert(self) -> tuple[tuple[float, float], ...]:
        """Inputs and outputs of an expert: gate and up together, down."""
        return (self.hidden, 2.0 * self.width), (self.width, self.hidden)

    @property
    def dense(self) -> tuple[tuple[float, float], ...]:
        """Linear layers that every token passes: those of attention and the shared expert."""
        return (*self.attention, *self.expert)


def _layer(model: Model) -> _Layer:
    mla, moe = model.mla, model.moe
    if mla is None or moe is None or mla.q_lora_rank is None:
        raise MemroofError(f"{model.name}: the trace is of a model with MLA and experts")
    experts = moe.num_experts / EXPERT_PARALLEL
    reached = moe.num_experts * NODES_PER_TOKEN / (EXPERT_PARALLEL // 8)
    top_k = moe.num_experts_per_tok
    # of the experts in reach of a token, top_k are drawn without putting back: what share of GPUs has none of them
    missed = np.prod([(reached - experts - i) / (reached - i) for i in range(top_k)])
    copies = float(TOKENS * top_k)
    return _Layer(
        model.hidden_size, model.num_attention_heads, mla.qk_nope_head_dim + mla.qk_rope_head_dim, mla.v_head_dim,
        mla.qk_rope_head_dim, mla.q_lora_rank, mla.kv_lora_rank, moe.moe_intermediate_size, experts,
        moe.num_experts, copies, float(TOKENS * reached / experts * (1.0 - missed)),
    )  # fmt: skip


def works_by_category(model: Model) -> Mapping[str, tuple[Work, ...]]:
    """Return the kernels of one layer, forward and backward, by the category that the trace has them under."""
    layer = _layer(model)
    return {
        "fp8_dense_gemm": tuple(_products(layer)),
        "fp8_grouped_gemm": tuple(_grouped(layer)),
        "fp8_grouped_gemm_wgrad": tuple(_weight_gradients(layer)),
        "bf16_gemm": tuple(_router(layer)),
        "flash_attn_fwd": (_attention(layer, backward=False),),
        "flash_attn_bwd": (_attention(layer, backward=True),),
        "flash_attn_bwd_prepost": tuple(_around_attention(layer)),
        "fp8_cast_quantize": tuple(_casts(layer)),
        "transpose": tuple(_transposes(layer)),
        "copy": (_moved(TOKENS * layer.heads * layer.value, 4.0),) * 4,
        "norm": tuple(_norms(layer)),
        "rope": tuple(_rotations(layer)),
        "swiglu": tuple(_activations(layer)),
        "moe_permute": tuple(_permutations(layer)),
    }


def exchange(category: str, model: Model) -> tuple[Collective, ...]:
    """Return the dispatches (FP8) or combines (BF16) of one layer, forward and backward.

    A token crosses to a node once, whatever the number of its experts there, and is passed on inside.
    """
    width = 1.0 if "dispatch" in category else 2.0
    size = TOKENS * NODES_PER_TOKEN * model.hidden_size * width
    return (Collective("all-to-all", "expert", size),) * 2


def beside_communication(cost: CostModel) -> CostModel:
    """Return the cost model of what communication leaves: SMs and matrix peak, at the clock held under load."""
    compute = cost.device.compute
    units = compute.units - COMMUNICATION_UNITS
    matrix = {form: peak * units / compute.units for form, peak in compute.matrix.items()}
    device = cost.device.model_copy(
        update={"compute": compute.model_copy(update={"units": units, "matrix": matrix})}
    )
    return CostModel(device, cost.calibration, cost.memory_bandwidth, sustained=True)


def _products(layer: _Layer) -> Iterable[Work]:
    """Forward, input gradient, and the up-projections of MLA once more."""
    _, query_up, _, latent_up, _ = layer.attention
    for inputs, outputs in (*layer.dense, query_up, latent_up):
        yield _fp8(TOKENS, outputs, inputs)
    for inputs, outputs in layer.dense:
        yield _fp8(TOKENS, inputs, outputs)


def _grouped(layer: _Layer) -> Iterable[Work]:
    """Equal groups of rows that were sorted before, so that one kernel runs as if they were all of one product."""
    rows = layer.copies / layer.experts
    for inputs, outputs in layer.expert:
        yield _fp8(rows, outputs, inputs, layer.experts)
        yield _fp8(rows, inputs, outputs, layer.experts)


def _weight_gradients(layer: _Layer) -> Iterable[Work]:
    """One kernel for each linear layer, and one for each expert's."""
    for inputs, outputs in layer.dense:
        yield _gradient(inputs, outputs, TOKENS)
    for inputs, outputs in layer.expert:
        yield from (_gradient(inputs, outputs, layer.copies / layer.experts),) * int(layer.experts)


def _fp8(m: float, n: float, k: float, count: float = 1.0) -> Matmul:
    return Matmul(m, n, k, count, "fp8", 1.0, 1.0, 2.0, scaled=1.0)


def _gradient(m: float, n: float, k: float) -> Matmul:
    """A sum in fp32, read and written; both operands have a scale for each row and 128 of k.

    A partial sum is then multiplied by two scales where the blocks of a weight (128 x 128) leave one for a tile.
    """
    return Matmul(m, n, k, 1.0, "fp8", 1.0, 1.0, 8.0, scaled=BOTH_SCALED)


def _router(layer: _Layer) -> Iterable[Work]:
    m, n, k = TOKENS, layer.all_experts, layer.hidden
    return (
        Matmul(m, n, k, out_bytes=4.0),
        Matmul(m, k, n),
        Matmul(k, n, m, out_bytes=8.0),
    )


def _attention(layer: _Layer, *, backward: bool) -> Attention:
    width = layer.heads * (layer.qk + layer.value)
    return Attention(
        1, layer.heads, layer.heads, TOKENS, TOKENS, layer.qk, layer.value, width, backward=backward
    )


def _around_attention(layer: _Layer) -> Iterable[Work]:
    """Sums over output times gradient with the cleared fp32 sum of query gradients, and its conversion at the end."""
    queries, outputs = TOKENS * layer.heads * layer.qk, TOKENS * layer.heads * layer.value
    yield Elementwise(4.0 * outputs, 4.0 * queries)
    yield Elementwise(4.0 * queries, 2.0 * queries)


def _casts(layer: _Layer) -> Iterable[Work]:
    """Quantisation: read in 16 bits and written in 8, or in 8 and 8 where the operand is kept in FP8 already."""
    context = TOKENS * layer.heads * layer.value
    (up_in, up_out), (down_in, _) = layer.expert
    _, query_up, _, latent_up, _ = layer.attention
    for inputs, outputs in layer.attention:  # by rows for both products, by columns for the weight gradient
        yield from (_moved(TOKENS * size, 3.0) for size in (inputs, outputs) * 2)
    yield from (_moved(TOKENS * size, 3.0) for size in (query_up[0], latent_up[0]))  # computed again
    yield _moved(context, 3.5)  # the output of attention is kept in 12 bits, and taken back
    yield _moved(context, 3.5)
    # shared expert: input (twice) and its gradient, activation with its cast, kept input of the activation
    yield from (_moved(TOKENS * size, 3.0) for size in (up_in, up_in, up_out, up_out, up_out, up_out, up_in))
    yield from (_moved(TOKENS * down_in, 5.0),) * 2
    yield _moved(TOKENS * up_in, 2.0)
    yield from (_moved(TOKENS * up_in, 3.0),) * 2  # tokens and gradients that are sent to the experts
    # experts: rows that come in FP8 are cast again by columns
    yield from (_moved(layer.copies * up_in, 2.0),) * 2
    yield from (_moved(layer.copies * up_out, 3.0),) * 4
    yield _moved(layer.copies * down_in, 5.0)
    yield _moved(layer.copies * down_in, 3.0)


def _transposes(layer: _Layer) -> Iterable[Work]:
    """Every weight is turned for the input gradient, the scales of rows for every product."""
    for inputs, outputs in layer.dense:
        yield _moved(inputs * outputs, 2.0)
    for inputs, outputs in layer.expert:
        yield _moved(layer.experts * inputs * outputs, 2.0)
    yield from (_moved(TOKENS * layer.hidden / 128.0, 8.0),) * 16


def _norms(layer: _Layer) -> Iterable[Work]:
    """Forward, again, and backward: two of the hidden size, one of each latent; sums of the weight gradients at the end."""
    for size in (layer.hidden, layer.hidden, layer.query_rank, layer.kv_rank):
        yield from (norm(TOKENS * size, float(TOKENS)),) * 3
        yield _moved(size, 4.0)


def _rotations(layer: _Layer) -> Iterable[Work]:
    """Queries of all heads and the key that they share: forward, again, backward."""
    for heads in (layer.heads, 1.0):
        yield from (rotary(TOKENS * heads * layer.rope, float(TOKENS)),) * 3


def _activations(layer: _Layer) -> Iterable[Work]:
    """Backward: gate, up and the gradient in, their gradients and the activation out; the gradient of the routing weights."""
    for rows, extra in ((layer.copies, 1.0), (float(TOKENS), 0.0)):
        elements = rows * layer.width
        yield Elementwise(6.0 * elements, (4.0 + 2.0 * extra) * elements, scalar=(5.0 + extra) * elements)
    yield _moved(layer.copies * layer.width, 4.0)


def _permutations(layer: _Layer) -> Iterable[Work]:
    """Tokens to rows of experts in FP8 and sums of rows in BF16, forward and backward."""
    expand = Elementwise(layer.received * layer.hidden, layer.copies * layer.hidden)
    reduce = Elementwise(2.0 * layer.copies * layer.hidden, 2.0 * layer.received * layer.hidden)
    return expand, reduce, expand, reduce


def _moved(elements: float, width: float) -> Elementwise:
    """A kernel that moves ``width`` bytes an element in all."""
    return Elementwise(0.5 * elements * width, 0.5 * elements * width)


def _split(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    model = catalog.model(MODEL)
    works = works_by_category(model)
    names = frame["category"].astype(str)
    frame = keep(frame, ~names.str.contains("wait|notify|barrier"), WAITS, skipped)
    frame = keep(frame, ~frame["category"].isin(_SMALL), SMALL, skipped)
    exchanged = frame["category"].astype(str).str.contains("dispatch|combine")
    frame = keep(frame, exchanged | frame["category"].isin(list(works)), UNKNOWN, skipped)
    if not len(frame):
        return []
    hardware: Hardware = catalog.hardware(HardwareChoice(cluster=CLUSTER))
    span = hardware.span(EXPERT_PARALLEL)
    each = [works.get(name) or exchange(name, model) for name in frame["category"].tolist()]

    def predict(cost: CostModel) -> FloatArray:
        return np.array([float(total.time) for total in _totals(each, cost, span)])

    def errors(cost: CostModel) -> FloatArray:
        found = [(total, class_errors(total, cost.calibration)) for total in _totals(each, cost, span)]
        return np.array([float(relative_error(total.by_class, error)) for total, error in found])

    return [
        Part(
            DEVICE, frame["total_us"].to_numpy(float) * 1e-6, predict, labels(frame, ["category"]),
            frame["line"].to_numpy(np.int64), frame, None, errors, fitted=False,
        )
    ]  # fmt: skip


def _totals(each: Sequence[Sequence[Work]], cost: CostModel, span: Span) -> list[Breakdown]:
    beside = beside_communication(cost)
    return [beside.total(works, {"expert": span}) * LAYERS for works in each]


DATASETS = (TableDataSet("deepseek-h800-trace/train_by_category.csv", _split),)
