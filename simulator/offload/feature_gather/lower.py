"""A plan as a program: mini-batches one after the other on every accelerator, each sampled, fetched and trained on."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.offload.emit import COPYING, Emitter, all_channels
from simulator.offload.feature_gather.plan import Plan
from simulator.offload.tiers import DRAM, GPU

Fetch = tuple[tuple[int, ...], tuple[int, ...]]
ITERATIONS = 16
"""Simulated; the later half is measured, when the pipeline is full."""


SAMPLED_AHEAD = 2
"""Mini-batches that wait in a loader's queue (PyTorch, DataLoader, prefetch_factor)."""
EDGE_BYTES = 8.0
"""Of a neighbour's number in the graph that is sampled, and of a node's place among them."""


@dataclass(frozen=True)
class Lowered:
    """The program and its landmarks, by mini-batch and accelerator.

    Attributes
    ----------
    emit : Emitter
        Its pass number is that of the mini-batch.
    fetched : list of list of (first tasks, last tasks)
        What starts a fetch of features, and what ends it.
    trained : list of list of int
        Training of each mini-batch on each accelerator.
    """

    emit: Emitter
    fetched: list[list[Fetch]]
    trained: list[list[int]]


def lower(plan: Plan, name: str) -> Lowered:
    """Build the program of `ITERATIONS` mini-batches on every accelerator.

    Workers sample up to `SAMPLED_AHEAD` mini-batches that wait to be fetched, unless nothing overlaps. Features of a
    mini-batch wait for the buffer: until the one before is trained on, or with two buffers the one before that.
    """
    emit = Emitter(name, plan.ranks, channels=(*all_channels(plan.ranks), *plan.peers.values()))
    fetched: list[list[Fetch]] = []
    several = len(plan.ranks) > 1
    trained: list[list[int]] = []
    keep(emit, plan)
    for number in range(ITERATIONS):
        emit.number = number
        ends: list[int] = []
        ways: list[Fetch] = []
        for rank in range(len(plan.ranks)):
            done = [step[rank] for step in trained]
            label = f"mini-batch {number}" + (f" of gpu{rank}" if several else "")
            if plan.way.overlap == "none":
                ready = tuple(done[-1:])
            else:
                ready = fetched[number - SAMPLED_AHEAD][rank][1] if number >= SAMPLED_AHEAD else ()
            sampling = emit.stream(f"sampling {rank}")
            sampled = emit.work(sampling, plan.sampling, COPYING["host"], ready, "sampling", label)
            free = [done[-plan.buffers]] if len(done) >= plan.buffers else []
            first, last = _fetch(emit, plan, rank, (sampled, *free), label)
            ways.append((first, last))
            ends.append(emit.compute(plan.train, 0, last, "training", label, rank=rank))
        trained.append(ends)
        fetched.append(ways)
    return Lowered(emit, fetched, trained)


def keep(emit: Emitter, plan: Plan) -> None:
    """Hold what lies in the memories throughout: features and graph in host memory, hot ones and buffers on accelerators."""
    emit.keep(DRAM, plan.nodes * plan.row, "features", "features")
    emit.keep(DRAM, EDGE_BYTES * (plan.edges + plan.nodes), "graph", "neighbour lists")
    if plan.way.transfer == "gather":
        size = plan.cold * plan.buffers * len(plan.ranks)
        emit.keep(DRAM, size, "buffers", "gathered features")
    for rank in range(len(plan.ranks)):
        emit.keep(GPU, plan.held, "features", "hot features", rank=rank)
        emit.keep(GPU, plan.features * plan.buffers, "buffers", "features of mini-batches", rank=rank)
        emit.keep(GPU, plan.activations, "activations", "sums, outputs and gradients", rank=rank)


def _fetch(emit: Emitter, plan: Plan, rank: int, after: tuple[int, ...], label: str) -> Fetch:
    """Add the ways that a mini-batch's features take; return the tasks that begin and that end them."""
    tiers, first, last = plan.ranks[rank], [], []
    if plan.cold and plan.way.transfer == "gather":
        traffic = plan.host.channel.rate * plan.cold / plan.gather
        gathered = emit.host_work(plan.host, traffic, plan.cold / plan.gather, after, "gather", label)
        first.append(gathered)
        last.append(emit.copy(DRAM, GPU, plan.cold, (gathered,), "copy", label, rank=rank))
    elif plan.cold:
        channel = tiers.channels[DRAM, GPU]
        task = emit.transfer(
            channel, plan.cold, plan.reads, f"reads {rank}", after, "zero-copy", label, "host link"
        )
        first.append(task)
        last.append(task)
    for (source, target), channel in plan.peers.items():
        if target == rank and plan.remote:
            size, rate = plan.remote / (len(plan.ranks) - 1), plan.peer_rates[source, target]
            queue = f"reads {rank} of {source}"
            task = emit.transfer(channel, size, rate, queue, after, "peer read", label, "network")
            first.append(task)
            last.append(task)
    return (tuple(first), tuple(last)) if first else (after, after)
