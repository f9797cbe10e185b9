"""The campaign as data: which kernels, copies, collectives and steps are measured, in which order."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from simulator.graph import FORMAT_BYTES
from simulator.measure.works import OPERATORS, STREAMS, work
from simulator.specs import Catalog, MemroofError, Model
from simulator.specs.errors import unknown

GROUPS: Mapping[str, float] = {
    "gemm": 0.42,
    "attention": 0.26,
    "elementwise": 0.08,
    "copy": 0.06,
    "collective": 0.10,
    "training": 0.05,
    "decode": 0.03,
}
"""Groups of cases in the order in which they run, with their shares of the time."""
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")
DIRECTIONS = ("host-to-device", "device-to-host")
STEP_LAYERS = 4
ADAM_STATES = 4.0
"""Copies of the weights that a training step holds in the weights' format: weights, gradients, two moments of Adam."""
Value = int | str


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure.

    Attributes
    ----------
    group, operator, format : str
        Group of the campaign, operator (a key of :data:`simulator.measure.works.OPERATORS`, ``transfer``,
        ``training-step`` or ``decode-loop``) and number format.
    shape : tuple of (str, int or str)
        Dimensions by name, in a fixed order.
    flops, bytes : float
        Arithmetic [FLOP] and traffic of the main memory, of the link or the message [B]; 0 where nothing is counted.
    footprint : float
        Memory that it needs on the device [B].
    """

    group: str
    operator: str
    format: str
    shape: tuple[tuple[str, Value], ...]
    flops: float
    bytes: float
    footprint: float

    @property
    def sizes(self) -> dict[str, Any]:
        """The shape as a mapping."""
        return dict(self.shape)

    @property
    def label(self) -> str:
        """One line that names the case."""
        return f"{self.operator} {self.format} " + " ".join(f"{k}={v}" for k, v in self.shape)


@dataclass(frozen=True, slots=True)
class Grid:
    """Sizes to measure on a kind of device; every combination of the axes of an operator is a case."""

    rows: Sequence[int]
    """m of a product: tokens."""
    weights: Sequence[tuple[int, int]]
    """(n, k) of a product: the weight's shape."""
    heads: Sequence[tuple[int, int, int]]
    """Query heads, KV heads and head dimension."""
    prefill: Sequence[tuple[int, int]]
    """Sequences and their length, causal."""
    decode: Sequence[tuple[int, int]]
    """Sequences and positions in their cache."""
    attention_formats: Sequence[str]
    streams: Sequence[tuple[int, int]]
    """Rows and columns of element-wise kernels."""
    stream_formats: Sequence[str]
    copies: Sequence[int]
    """Bytes of copies between host and device [B]."""
    messages: Sequence[int]
    """Bytes of collectives, as :class:`simulator.graph.Collective` counts them [B]."""
    models: Sequence[str]
    """Models whose width the steps have, largest first: the first whose step fits the memory is taken."""
    step_format: str
    vocabulary: int | None = None
    """Words of the steps' models; the model's own if absent."""
    training: Sequence[tuple[int, int]] = ()
    """Sequences and their length in a training step."""
    loops: Sequence[tuple[int, int]] = ()
    """Sequences and positions in their cache before a decode loop begins."""
    tokens: int = 16
    """Tokens that a decode loop generates."""


GRIDS: Mapping[str, Grid] = {
    "cuda": Grid(
        rows=(1, 2, 4, 8, 16, 32, 64, 128, 256, 384, 512, 1024, 2048, 4096, 8192, 16384),
        weights=(
            (1024, 1024), (2048, 2048), (2560, 2560), (4096, 1024), (1024, 4096), (3072, 3072), (4096, 4096),
            (6144, 4096), (28672, 4096), (4096, 14336), (5120, 5120), (13824, 5120), (7168, 2048), (8192, 8192),
            (1280, 8192), (8192, 1024), (10240, 8192), (8192, 28672), (3584, 18944), (32000, 4096),
        ),
        heads=((32, 32, 128), (32, 8, 128), (64, 8, 128), (16, 16, 64), (8, 1, 128), (40, 40, 128)),
        prefill=(
            (1, 128), (1, 512), (1, 1024), (1, 2048), (1, 4096), (1, 8192), (1, 16384), (4, 256), (4, 1024), (4, 4096),
            (16, 128), (16, 512), (16, 2048), (64, 128), (64, 512),
        ),
        decode=tuple(product((1, 2, 4, 16, 32, 64, 128), (128, 512, 1024, 4096, 16384, 65536))),
        attention_formats=("bf16", "fp16"),
        streams=(*((2**r, 4096) for r in range(0, 17, 2)), *((2**r, 1024) for r in range(1, 18, 4)), (16, 16384), (4096, 16384)),
        stream_formats=("bf16", "fp32"),
        copies=tuple(4**e for e in range(6, 16)),
        messages=tuple(4**e for e in range(5, 15)),
        models=("llama3.1-8b", "llama3.2-1b", "qwen2.5-0.5b"),
        step_format="bf16",
        training=((1, 2048), (4, 2048)),
        loops=((1, 1024), (16, 1024), (64, 1024)),
    ),
    "cpu": Grid(
        rows=(1, 4, 16, 64, 256, 1024),
        weights=(
            (256, 256), (512, 512), (768, 768), (1024, 1024), (3072, 768), (768, 3072), (1536, 1536), (2048, 2048),
            (4864, 896), (896, 4864), (4096, 1024), (2048, 5632), (4096, 4096), (11008, 4096),
        ),
        heads=((14, 2, 64), (8, 8, 64), (16, 4, 128), (32, 8, 64)),
        prefill=((1, 64), (1, 128), (1, 256), (1, 512), (1, 1024), (1, 2048), (4, 64), (4, 256), (4, 1024), (16, 128)),
        decode=tuple(product((1, 4, 16), (128, 512, 2048, 8192))),
        attention_formats=("fp32", "bf16"),
        streams=(*((4**r, 1024) for r in range(0, 8)), *((2 * 4**r, 4096) for r in range(0, 6))),
        stream_formats=("fp32", "bf16"),
        copies=(),
        messages=tuple(4**e for e in range(5, 13)),
        models=("qwen2.5-0.5b",),
        step_format="fp32",
        vocabulary=8192,
        training=((1, 64), (1, 256)),
        loops=((1, 256), (8, 256)),
    ),
}  # fmt: skip
"""The grids by kind of device; the widths are those of layers in the model zoo."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a plan needs to know of the device."""

    formats: tuple[str, ...]
    """Number formats of its products."""
    memory: float
    """Free memory [B]."""
    gpus: int = 0
    """GPUs that collectives can join; below 2 there are none."""


def plan(
    grid: Grid, target: Target, catalog: Catalog, *, only: Iterable[str] = (), seed: int = 0
) -> tuple[Case, ...]:
    """Return the cases of a campaign in the order in which they run.

    Parameters
    ----------
    grid : Grid
        Sizes to measure.
    target : Target
        What the device has.
    catalog : Catalog
        Where the widths of the steps' models come from.
    only : iterable of str
        Groups to measure; all if empty.
    seed : int
        Orders the cases of a group, so that whatever the time suffices for is spread over the whole grid.

    Raises
    ------
    MemroofError
        If a group is unknown.
    """
    chosen = tuple(only) or tuple(GROUPS)
    for name in chosen:
        if name not in GROUPS:
            raise MemroofError(unknown("group", name, GROUPS))
    cases: list[Case] = []
    for group in (name for name in GROUPS if name in chosen):
        found = list(_BUILDERS[group](grid, target, catalog))
        if group not in ("training", "decode"):
            random.Random(f"{seed}/{group}").shuffle(found)
        cases += found
    return tuple(cases)


def _kernel(group: str, operator: str, format: str, **shape: Value) -> Case:
    priced = work(operator, format, shape)
    traffic = float(priced.bytes)
    return Case(group, operator, format, _ordered(operator, shape), float(priced.flops), traffic, traffic)


def _ordered(operator: str, shape: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    return tuple((name, shape[name]) for name in OPERATORS[operator])


def _gemm(grid: Grid, target: Target, catalog: Catalog) -> Iterator[Case]:
    for format, m, (n, k) in product(target.formats, grid.rows, grid.weights):
        if format == "int8" and m <= 16:
            continue  # torch._int_mm needs more than 16 rows
        yield _kernel("gemm", "matmul", format, m=m, n=n, k=k)


def _attention(grid: Grid, target: Target, catalog: Catalog) -> Iterator[Case]:
    formats = [name for name in grid.attention_formats if name in target.formats]
    for format, (heads, kv_heads, dim) in product(formats, grid.heads):
        common: dict[str, Value] = {"heads": heads, "kv_heads": kv_heads, "head_dim": dim}
        for batch, length in grid.prefill:
            yield _kernel(
                "attention", "attention", format, batch=batch, queries=length, keys=length, **common
            )
        for batch, length in grid.decode:
            yield _kernel(
                "attention", "decode-attention", format, batch=batch, queries=1, keys=length, **common
            )


def _elementwise(grid: Grid, target: Target, catalog: Catalog) -> Iterator[Case]:
    formats = [name for name in grid.stream_formats if name in target.formats]
    for format, kernel, (rows, columns) in product(formats, STREAMS, grid.streams):
        yield _kernel("elementwise", "elementwise", format, kernel=kernel, rows=rows, columns=columns)


def _copies(grid: Grid, target: Target, catalog: Catalog) -> Iterator[Case]:
    for direction, memory, size in product(DIRECTIONS, ("pinned", "pageable"), grid.copies):
        shape: tuple[tuple[str, Value], ...] = (("direction", direction), ("memory", memory), ("size", size))
        yield Case("copy", "transfer", "int8", shape, 0.0, float(size), float(size))


def _collectives(grid: Grid, target: Target, catalog: Catalog) -> Iterator[Case]:
    ranks = [count for count in (2, 4, 8) if count <= target.gpus]
    if target.gpus > 1 and target.gpus not in ranks:
        ranks.append(target.gpus)
    for count, kind, size in product(ranks, KINDS, grid.messages):
        case = _kernel(
            "collective", "collective", "bf16", kind=kind, ranks=count, gpus=target.gpus, size=size
        )
        yield Case(case.group, case.operator, case.format, case.shape, 0.0, case.bytes, 2.0 * case.bytes)


def _training(grid: Grid, target: Target, catalog: Catalog) -> Iterator[Case]:
    width = FORMAT_BYTES[grid.step_format]
    for batch, sequence in grid.training:
        for name in grid.models:
            model = _model(grid, catalog, name)
            tokens = float(batch * sequence)
            words = ("vocabulary", model.vocab_size)
            states = ADAM_STATES * width * _stored(model)
            # logits, their gradient and their softmax in fp32; some 40 tensors of the hidden size a layer
            activations = tokens * (12.0 * model.vocab_size + STEP_LAYERS * 40.0 * model.hidden_size * width)
            if states + activations <= 0.8 * target.memory or name == grid.models[-1]:
                flops = 3.0 * tokens * (2.0 * _multiplied(model) + _scores(model, 0.5 * sequence))
                shape = (
                    ("model", name),
                    ("layers", STEP_LAYERS),
                    words,
                    ("batch", batch),
                    ("sequence", sequence),
                )
                yield Case(
                    "training", "training-step", grid.step_format, shape, flops, 0.0, states + activations
                )
                break


def _decode(grid: Grid, target: Target, catalog: Catalog) -> Iterator[Case]:
    width = FORMAT_BYTES[grid.step_format]
    for batch, context in grid.loops:
        for name in grid.models:
            model = _model(grid, catalog, name)
            words = ("vocabulary", model.vocab_size)
            weights = width * _stored(model)
            reach = context + 0.5 * grid.tokens
            cache = 2.0 * width * STEP_LAYERS * batch * reach * _kv_width(model)
            if weights + 2.0 * cache <= 0.8 * target.memory or name == grid.models[-1]:
                flops = batch * (2.0 * _multiplied(model) + _scores(model, reach))
                shape = (
                    ("model", name), ("layers", STEP_LAYERS), words, ("batch", batch), ("context", context),
                    ("tokens", grid.tokens),
                )  # fmt: skip
                yield Case(
                    "decode",
                    "decode-loop",
                    grid.step_format,
                    shape,
                    flops,
                    weights + cache,
                    weights + 2.0 * cache,
                )
                break


def _model(grid: Grid, catalog: Catalog, name: str) -> Model:
    model = catalog.model(name)
    return model if grid.vocabulary is None else model.model_copy(update={"vocab_size": grid.vocabulary})


def _kv_width(model: Model) -> int:
    return (model.num_key_value_heads or model.num_attention_heads) * _head_dim(model)


def _head_dim(model: Model) -> int:
    return model.head_dim or model.hidden_size // model.num_attention_heads


def _multiplied(model: Model) -> float:
    """Weights that every token is multiplied with: the layers' matrices and the output layer."""
    hidden, attended = model.hidden_size, model.num_attention_heads * _head_dim(model)
    layer = 2.0 * hidden * attended + 2.0 * hidden * _kv_width(model) + 3.0 * hidden * model.intermediate_size
    return STEP_LAYERS * layer + hidden * model.vocab_size


def _stored(model: Model) -> float:
    """Weights in memory: the embedding too, where it is not the output layer's."""
    return _multiplied(model) + (0 if model.tie_word_embeddings else model.hidden_size * model.vocab_size)


def _scores(model: Model, keys: float) -> float:
    """FLOPs of attention of one token over a mean count of keys, all layers."""
    return STEP_LAYERS * 4.0 * model.num_attention_heads * _head_dim(model) * keys


_BUILDERS = {
    "gemm": _gemm,
    "attention": _attention,
    "elementwise": _elementwise,
    "copy": _copies,
    "collective": _collectives,
    "training": _training,
    "decode": _decode,
}
