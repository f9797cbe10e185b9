"""Operators of one pass as loads and products: two streams, two buffers between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.engine import Program
from simulator.graph import FORMAT_BYTES, Attention, Matmul, ModelGraph, Numerics, Shape, Work, build
from simulator.specs import Model
from simulator.specs.stream_decode_scenario import StreamDecodeStrategy

ROUND_TRIP = 1e-6
"""Of a write to memory and the read after it, at an FPGA's clock [s] (from memory, unverified: some 100 cycles each way)."""
BUFFERS = 2


@dataclass(frozen=True, slots=True)
class Piece:
    """One operator of a pass: bytes from memory, and multiply-adds."""

    name: str
    bytes: float
    macs: float


def stored_bytes(strategy: StreamDecodeStrategy) -> float:
    """Return the bytes that a weight of the model takes, those that are not stored counted too [B]."""
    return strategy.density * (strategy.weight_bits + (strategy.index_bits or 0.0)) / 8.0


def graph_of(model: Model, strategy: StreamDecodeStrategy, tokens: int, cached: int) -> ModelGraph:
    """Return the graph of a pass of ``tokens`` positions over ``cached`` ones."""
    numerics = Numerics.of("bf16", None, strategy.kv_precision)
    shape = Shape(1, tokens, cached, "decode") if cached else Shape(1, tokens, 0, "prefill")
    return build(model, shape, numerics=numerics)


def pieces(graph: ModelGraph, strategy: StreamDecodeStrategy) -> tuple[Piece, ...]:
    """Return the operators of a pass that read weights or the cache, in order; what lies between them is hidden on the chip."""
    width = stored_bytes(strategy)
    blocks = (graph.embedding, *(graph.blocks[index] for index in graph.layers), graph.head)
    found = []
    for block in blocks:
        for operator in block.operators:
            moved = [
                _moved(work, width) for work in operator.forward if isinstance(work, (Matmul, Attention))
            ]
            if moved:
                share = strategy.density if any(isinstance(w, Matmul) for w in operator.forward) else 1.0
                macs = sum(each[1] for each in moved) * share
                found.append(Piece(f"{block.name} {operator.name}", sum(each[0] for each in moved), macs))
    return tuple(found)


def lower(items: tuple[Piece, ...], strategy: StreamDecodeStrategy, bandwidth: float, rate: float) -> Program:
    """Build the program of one pass.

    Parameters
    ----------
    items : tuple of Piece
    strategy : StreamDecodeStrategy
        Where activations are.
    bandwidth : float
        That streams reach [B/s].
    rate : float
        Multiply-adds a second.

    Returns
    -------
    Program
        An operator takes the longer of its bytes and its multiply-adds, since the next one's load runs beside it (Zeng et al.
        2024, FlightLLM, section 4). Activations off the chip add a round trip after each, during which nothing is loaded: a
        buffer holds parts of an operand, too little to go on with.
    """
    program = Program("stream decode")
    array, memory = program.stream("array"), program.stream("memory")
    latency = float(strategy.memory_latency or ROUND_TRIP) if strategy.activations == "off-chip" else 0.0
    done: list[int] = []
    for item in items:
        ahead = 1 if latency else BUFFERS
        free = [done[-ahead]] if len(done) >= ahead else []
        load = program.compute(memory, item.bytes / bandwidth, after=free, tag="memory", name=item.name)
        # parts of an operand are multiplied as they come: the product ends when both its work and its load are done
        start = [done[-1]] if done else []
        product = program.compute(array, item.macs / rate, after=start, tag="array", name=item.name)
        end = program.barrier(after=[load, product], name=item.name)
        if latency:
            end = program.compute(array, latency, after=[end], tag="round trip", name=item.name)
        done.append(end)
    return program


def _moved(work: Work, width: float) -> tuple[float, float]:
    """Bytes from memory, and multiply-adds, of a product with weights or with the cache."""
    if isinstance(work, Matmul):
        count = float(np.asarray(work.count))
        return float(work.k * work.n) * count * width, float(work.m * work.n * work.k) * count
    assert isinstance(work, Attention)
    return float(work.cache_bytes) + float(work.stored_bytes), float(work.flops) / 2.0


def cache_bytes(model: Model, strategy: StreamDecodeStrategy, tokens: int) -> float:
    """Return the cache of a sequence of ``tokens`` [B]."""
    graph = graph_of(model, strategy, 1, 1)
    width = sum(
        float(block.kv_width) * count for block, count in zip(graph.blocks, graph.counts, strict=True)
    )
    return width * FORMAT_BYTES[strategy.kv_precision] * tokens
