"""Processors of a machine that share the accelerator's memory: each a roofline of its own over one memory port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.cost import peak_flops
from simulator.offload.columns import COLUMNS, Rows
from simulator.offload.emit import Emitter
from simulator.offload.tiers import Channel
from simulator.specs import Engine, Hardware, MemroofError
from simulator.specs.errors import did_you_mean

NAMES = tuple(str(column) for column in COLUMNS)
STREAMED: Mapping[str, float] = {"gpu": 0.8, "tpu": 0.8, "npu": 0.8, "cpu": 0.75}
"""Share of the DRAM bandwidth that a stream of weights reaches, by kind of processor: memory_efficiency of products in
the constants of each class (hardware_specs/calibration)."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A processor on the memory that the model lies in."""

    name: str
    """Of its component; its stream in the program."""
    engine: Engine
    channel: Channel
    """From the memory to it; its rate is what a stream of weights reaches [B/s]."""
    peak: float
    """Of its arithmetic in the format of the products [FLOP/s]."""
    launch: float = 0.0
    """Time before each kernel [s]."""

    def seconds(self, size: float, flops: float = 0.0, efficiency: float | None = None) -> float:
        """Return the roofline's time for ``size`` bytes and some FLOPs where nothing else uses the memory [s].

        ``efficiency`` is the share of the port's bandwidth that is reached, where it is not the worker's own.
        """
        rate = self.channel.rate if efficiency is None else self.bandwidth * efficiency
        return max(size / rate, flops / self.peak)

    @property
    def bandwidth(self) -> float:
        """Of the narrowest link between the memory and it [B/s]."""
        return min(bandwidth for _, bandwidth in self.channel.links)

    def work(
        self,
        emit: Emitter,
        size: float,
        flops: float,
        after: Sequence[int],
        tag: str,
        name: str,
        *,
        efficiency: float | None = None,
        kernels: int = 1,
        operator: str = "matmul",
    ) -> int:
        """Add a computation that streams ``size`` bytes to a program, as so many kernels one after the other."""
        time = self.seconds(size, flops, efficiency)
        bound = "compute" if time and flops / self.peak >= time else "memory"
        latency = self.launch * kernels
        if not time:
            shares = shares_of({"latency": 1.0}, operator)
            return emit.work(emit.stream(self.name), latency, shares, after, tag, name)
        shares = shares_of({bound: time / (time + latency), "latency": latency / (time + latency)}, operator)
        rate = size / (time + latency)
        return emit.stream_work(self.channel, size, rate, shares, self.name, after, tag, name)


def find_worker(
    hardware: Hardware,
    component: str | None,
    format: str,
    *,
    efficiency: float | None = None,
    launch: float = 0.0,
) -> Worker:
    """Return a processor that reads the memory of the machine's accelerator.

    Parameters
    ----------
    hardware : Hardware
        One node.
    component : str, optional
        Name of the processor's component in the node; the accelerator itself if absent.
    format : str
        Number format of its products.
    efficiency : float, optional
        Share of the bandwidth that a stream of weights reaches; by the kind of processor if absent.
    launch : float
        Time before each kernel [s].

    Raises
    ------
    MemroofError
        If there is no such component, it stores only or uses another memory, or it cannot compute in the format.
    """
    machine = hardware.machine
    accelerator = machine.ranks[0]
    engines = {engine.component: engine for engine in machine.engines}
    name = component or accelerator.component
    engine = engines.get(name)
    if engine is None:
        raise MemroofError(
            f"{hardware.name} has no processor {name!r}{did_you_mean(name, engines)}; it has {', '.join(engines)}"
        )
    if engine.memory != accelerator.memory:
        raise MemroofError(
            f"{name} computes on {engine.memory or 'no memory'}, the model lies in {accelerator.memory}: choose a processor "
            "on the same memory"
        )
    store = machine.store(accelerator.memory or "")
    wires = [edge for a, b, edge in machine.links if (a, b) == (store.owner, engine.name)]
    edges = (store.read, *(wires[:1] if store.owner != engine.name else ()))
    links = tuple((edge.name, edge.bandwidth) for edge in edges)
    share = STREAMED[engine.device.kind] if efficiency is None else efficiency
    rate = min(bandwidth for _, bandwidth in links) * share
    channel = Channel(f"memory to {name}", links, 0.0, rate)
    matrix = engine.device.kind in ("gpu", "tpu", "npu") and bool(engine.device.compute.matrix)
    return Worker(name, engine, channel, peak_flops(engine.device, format, matrix=matrix), launch)


def shares_of(parts: Mapping[str, float], operator: str) -> Rows:
    """Return the division of a second over the columns: what binds it, and one class of operator."""
    row = np.zeros(len(NAMES))
    for name, share in parts.items():
        row[NAMES.index(name)] = share
    row[len(NAMES) - 1 - NAMES[::-1].index(operator)] = 1.0
    return row
