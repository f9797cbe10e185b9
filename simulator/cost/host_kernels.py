"""Products on CPUs that stream weights from DRAM: a roofline over what a family of kernels reaches, and what a socket adds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.cost.numeric import Parts, larger, smaller
from simulator.cost.peaks import peak_flops
from simulator.graph.work import Numeric
from simulator.specs.calibration import HostKernelConstants
from simulator.specs.hardware import Processor


@dataclass(frozen=True, slots=True)
class Sockets:
    """CPUs that work together on what lies in their DRAM.

    Attributes
    ----------
    device : Processor
        One of them; they are alike.
    count : int
        How many.
    bandwidth : float
        Of their DRAM together, all of its channels [B/s].
    sustained : float
        Share of it that streaming reads reach.
    cross : float
        What one of them reads from another's DRAM [B/s]; infinite where there is no other.
    """

    device: Processor
    count: int
    bandwidth: float
    sustained: float
    cross: float = np.inf

    def stream_rate(self, *, remote: float) -> float:
        """Return what all cores read together where a share ``remote`` of each core's reads crosses sockets [B/s].

        A core has so many loads in flight, whichever memory they wait for: it reads its local part at its share of the
        local rate and then the rest at its share of the rate across, one after the other, 1/((1-r)/local + r/cross) a
        socket. (Chen et al. 2025, KTransformers, section 3.3, measure 220 GB/s inside a socket, 125 across and 440 for two
        that read their own.)
        """
        local = self.bandwidth * self.sustained / self.count
        return self.count / ((1.0 - remote) / local + remote / self.cross)


def host_product_time(
    flops: Numeric,
    size: Numeric,
    rows: Numeric,
    kernels: HostKernelConstants,
    sockets: Sockets,
    *,
    rate: float,
    operators: Numeric = 1,
) -> Parts:
    """Return the time of products whose weights stream from DRAM.

    Parameters
    ----------
    flops, size : number or array
        Of all products; bytes of weights, inputs and outputs [B].
    rows : number or array
        Tokens that a weight matrix is multiplied with: few of them leave the matrix units (AMX) empty, and run on the
        vector units.
    kernels : HostKernelConstants
        What they reach.
    sockets : Sockets
        Where they run.
    rate : float
        Bytes a second that the sockets stream, see :meth:`Sockets.stream_rate`.
    operators : number or array
        Parallel regions: each forks and joins all threads.

    Returns
    -------
    Parts
        Seconds. Of stream and arithmetic the longer, ``exposed`` of the shorter, and the latency of each region. The
        arithmetic of 16-bit and narrower weights is counted against the fp32 peak of the vector units, and against the
        bf16 peak of the matrix units.
    """
    memory = size / (rate * kernels.memory_efficiency)
    vector = flops / (_peak(sockets, kernels, matrix=False) * kernels.vector_efficiency)
    compute: Numeric = vector
    if kernels.matrix_efficiency is not None and "bf16" in sockets.device.compute.matrix:
        matrix = flops / (_peak(sockets, kernels, matrix=True) * kernels.matrix_efficiency)
        compute = np.where(np.asarray(rows) > kernels.vector_rows, matrix, vector)[()]
    latency = operators * kernels.operator_latency
    time = larger(memory, compute) + kernels.exposed * smaller(memory, compute) + latency
    return Parts(time, compute, memory, 0.0, latency)


def _peak(sockets: Sockets, kernels: HostKernelConstants, *, matrix: bool) -> float:
    effective = 1.0 + (sockets.count - 1) * kernels.socket_scaling
    return effective * peak_flops(sockets.device, "bf16" if matrix else "fp32", matrix=matrix)
