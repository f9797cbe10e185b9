"""Rates at which scattered rows are gathered by CPU threads and read by a GPU over a link."""

from __future__ import annotations

import math

from simulator.cost.storage import LINE_BYTES, OUTSTANDING_READS, lines_touched, zero_copy_rate
from simulator.offload.tiers import Channel, Host
from simulator.specs import Processor

PACKET_BYTES = 256.0
"""Payload of the packets of a copy (PCI-SIG, Base Specification; most root complexes allow 256)."""
HEADER_BYTES = 24.0
"""Header, sequence number, checksum and framing of a packet (PCI-SIG, Base Specification, transaction and data link layers)."""
SECTOR_BYTES = 32.0
"""Least that a GPU asks for of a line (Min et al. 2020, *EMOGI*, section 3.3)."""
READ_LATENCY = 1.5e-6
"""Of a GPU's read of host memory, there and back: 1 to 1.6 us where nothing else uses the link (EMOGI; from memory,
unverified) [s]."""
WARPS = 48
"""Of a streaming multiprocessor at the least of recent GPUs (compute capability 8.6; 64 of 7.0 and 8.0), each with a read of one
line under way (NVIDIA, CUDA C++ Programming Guide, table of technical specifications)."""
LATER_READS = 768
"""Reads under way over links later than PCIe 4.0: no fewer than there."""
GATHER_TRAFFIC = 3.0
"""Bytes of DRAM traffic of one gathered byte: the row is read, the buffer's line is read to be owned, and written back."""
FILL_BUFFERS = 10
"""Lines that a core may have under way (Intel 64 and IA-32 Architectures Optimization Reference Manual, Skylake server)."""
DRAM_LATENCY = 90e-9
"""Of a line that no cache holds; typical of a socket [s] (from memory, unverified: 80 to 110 ns)."""
CPU_LINE_BYTES = 64.0


def gather_rate(host: Host, threads: int, latency: float = DRAM_LATENCY) -> float:
    """Return the bytes a second that CPU threads gather into a buffer [B/s].

    The lesser of DRAM bandwidth over its traffic, and of what the lines that all threads have under way bring (Little's law).
    """
    per_thread = FILL_BUFFERS * CPU_LINE_BYTES / latency
    return min(threads * per_thread, host.channel.rate / GATHER_TRAFFIC)


def read_rate(channel: Channel, device: Processor, row: float, *, shifted: bool, share: float) -> float:
    """Return the bytes of rows a second that a GPU reads from memory at the far end of a channel [B/s].

    Parameters
    ----------
    channel : Channel
        Whose sustained rate is that of a copy in packets of `PACKET_BYTES`; reads bring a line a packet.
    device : Processor
        The GPU: its link tells how many reads may be under way, its units how many warps can ask.
    row : float
        Bytes of a row; rows lie one after the other, and so begin at any multiple of what divides both row and line.
    shifted : bool
        Whether each warp asks for one whole line. If not, a warp's 128 bytes lie in two lines wherever rows begin inside one,
        and are two packets (Min et al. 2021, *PyTorch-Direct*, section 4).
    share : float
        Of the GPU's units that reads.
    """
    bandwidth = channel.rate * (PACKET_BYTES + HEADER_BYTES) / PACKET_BYTES
    outstanding = min(reads_under_way(device), max(1.0, share * device.compute.units * WARPS))
    offset = float(math.gcd(int(row), int(LINE_BYTES)))
    if offset == LINE_BYTES:
        return float(zero_copy_rate(bandwidth, READ_LATENCY, outstanding, row, header=HEADER_BYTES))
    if shifted:
        packets = float(lines_touched(row, granularity=offset))
    else:
        warps = math.ceil(row / LINE_BYTES)
        packets = float(warps * lines_touched(min(row, LINE_BYTES), granularity=offset))
    within = min(offset, SECTOR_BYTES)
    sectors = SECTOR_BYTES * float(lines_touched(row, line=SECTOR_BYTES, granularity=within))
    on_wire = bandwidth * row / (sectors + packets * HEADER_BYTES)
    return min(on_wire, outstanding * row / (packets * READ_LATENCY))


def reads_under_way(device: Processor) -> float:
    """Return how many reads of a line a GPU may have under way over its link to the host."""
    link = device.host_link or ""
    return next((count for name, count in OUTSTANDING_READS.items() if link.startswith(name)), LATER_READS)
