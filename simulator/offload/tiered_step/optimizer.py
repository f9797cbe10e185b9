"""The optimizer: bytes of its states, bytes that an update moves, and how fast CPUs do it from each memory."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.graph import FORMAT_BYTES, Elementwise
from simulator.offload.tiers import CXL, DRAM, Channel, Host, Pool, striped_links
from simulator.specs import Calibration, Edge, Hardware, MemroofError
from simulator.specs.tiered_step_scenario import TieredStepStrategy

WIDE = 4.0
"""Bytes of an fp32 value."""
NARROW = 2.0
"""Bytes of a 16-bit parameter."""
MOMENTS = {"adam": 2, "sgd": 0}
FLOPS = {"adam": 16.0, "sgd": 2.0}
"""Vector operations on an element: two moving averages, bias correction, root, quotient, decay, step, conversion; or a step."""
CORE_LINES = 3.4
"""Cache lines that a core of a tuned CPU optimizer has under way. Ren et al. 2021 (ZeRO-Offload, arXiv:2101.06840), table 4:
CPU-Adam updates 10 billion parameters in 2.57 s on a DGX-2 (from memory, unverified), at 30 bytes each 117 GB/s over 48 cores,
whose DRAM answers after 90 ns (Little's law). That is under half of the bandwidth of its DRAM: cores wait."""
LINE = 64.0
"""Bytes of a cache line."""


@dataclass(frozen=True, slots=True)
class Widths:
    """Bytes an element, by tensor class."""

    state: float
    gradient: float
    parameter: float = NARROW

    @staticmethod
    def of(strategy: TieredStepStrategy) -> Widths:
        """Derive them from the optimizer and the formats.

        Adam in mixed precision has 12 bytes of states: master copy and two moments in fp32 (Rajbhandari et al. 2020, *ZeRO*,
        section 3.1).
        """
        state = WIDE * (MOMENTS[strategy.optimizer] + strategy.master_weights)
        return Widths(state, FORMAT_BYTES[strategy.gradient_format])

    @property
    def read(self) -> float:
        """Bytes that an update reads: states and gradient, and the parameter where there is no master copy."""
        return self.state + self.gradient + (0.0 if self.state else self.parameter)

    @property
    def written(self) -> float:
        """Bytes that an update writes: states and the 16-bit copy."""
        return self.state + self.parameter


def gpu_update(elements: float, widths: Widths, optimizer: str) -> Elementwise:
    """Return the update of some elements as a kernel of the GPU."""
    return Elementwise(elements * widths.read, elements * widths.written, elements * FLOPS[optimizer])


def cpu_peak(host: Host) -> float:
    """Return the fp32 vector peak of all CPUs [FLOP/s]."""
    return host.count * host.device.compute.vector["fp32"]


def update_rates(
    hardware: Hardware, host: Host | None, pools: dict[str, Pool], calibration: Calibration, widths: Widths
) -> dict[str, tuple[Channel, float]]:
    """Return how CPUs reach each memory that they can update in: the channel, and the optimizer's own rate over it [B/s].

    Cores wait for the lines that they have under way, longer where the memory is farther (Little's law), and no channel carries
    more than it sustains. In CXL memory reads and writes share the memory behind the controller, while each has a direction of
    the wire to itself.
    """
    if host is None:
        return {}
    found = {DRAM: host.channel}
    if CXL in pools:
        found[CXL] = _from_cxl(hardware, pools[CXL], calibration, widths)
    under_way = host.count * host.device.compute.units * CORE_LINES * LINE
    rates = {}
    for tier, channel in found.items():
        latency = pools[tier].stores[0].read.latency
        rates[tier] = (channel, min(channel.rate, under_way / latency) if latency else channel.rate)
    return rates


def _from_cxl(hardware: Hardware, pool: Pool, calibration: Calibration, widths: Widths) -> Channel:
    machine = hardware.machine
    read_share = widths.read / (widths.read + widths.written)
    routes: list[tuple[Edge, ...]] = []
    for store in pool.stores:
        wires = [
            edge
            for a, b, edge in machine.links
            if a == store.owner and any(b == e.name for e in machine.hosts)
        ]
        if not wires:
            raise MemroofError(f"{machine.name}: no CPU is wired to {store.name}")
        routes.append((store.read, wires[0]))
    ports = striped_links([route[:1] for route in routes])
    bus = min(bandwidth for _, bandwidth in ports)
    wire = min(bandwidth for _, bandwidth in striped_links([route[1:] for route in routes]))
    # the bytes count both directions, so that only the memory's own port carries all of them
    rate = min(bus, wire / read_share) * (calibration.transfer.efficiency or 1.0)
    return Channel("cxl to cpu", ports, 0.0, rate)
