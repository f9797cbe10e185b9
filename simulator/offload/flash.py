"""Reads from flash into the memory that a model is computed from: rates by request, range and queue."""

from __future__ import annotations

from dataclasses import dataclass, replace

from simulator.cost import read_rate
from simulator.offload.tiers import GPU, NVME, Channel, Tiers
from simulator.specs import Machine, MemoryDevice, MemroofError


@dataclass(frozen=True, slots=True)
class Flash:
    """A node's drives, over which data is striped, and the way from them to the memory.

    Attributes
    ----------
    device : MemoryDevice
        One drive.
    count : int
        Drives.
    channel : Channel
        From the drives to the memory.
    latency : float
        Of one read, the drive's and the links' [s].
    """

    device: MemoryDevice
    count: int
    channel: Channel
    latency: float

    @property
    def first(self) -> Channel:
        """The way of reads that find the queue empty: they wait for the drive."""
        return replace(self.channel, latency=self.latency)

    @property
    def following(self) -> Channel:
        """The way of reads that are queued behind others, whose time hides the drive's latency."""
        return replace(self.channel, latency=0.0)

    @property
    def links(self) -> float:
        """Bandwidth of the narrowest link of the way [B/s]."""
        return min(bandwidth for _, bandwidth in self.channel.links)

    def sequential(self) -> float:
        """Return the rate of large requests in the order of addresses [B/s].

        A drive whose file has measured reads has a measured bandwidth too; that of a data sheet is reached in part.
        """
        if self.device.random_read:
            return min(self.links, self.count * self.device.read_bandwidth)
        return self.channel.rate

    def scattered(self, block: float, span: float, outstanding: int, clock: float | None = None) -> float:
        """Return the rate of requests of ``block`` bytes in a range of ``span`` bytes, so many in flight [B/s].

        ``clock`` is that of the core that issues them, where the device was measured at several [Hz].
        """
        each = max(1.0, outstanding / self.count)
        rate = self.count * float(
            read_rate(self.device, block, span=span / self.count, outstanding=each, clock=clock)
        )
        return min(self.sequential(), rate)

    def faulted(self, block: float, outstanding: int) -> float:
        """Return the rate of page faults that read ``block`` bytes each, in the order of addresses [B/s].

        A thread that faults waits for the drive's latency and for the bytes; ``outstanding`` threads do so at once.
        """
        one = self.device.read_latency + block / self.device.read_bandwidth
        return min(self.sequential(), outstanding * block / one)


def find_flash(tiers: Tiers, machine: Machine) -> Flash:
    """Return the flash of a node; raises :class:`MemroofError` if it has none."""
    pool = tiers.pools.get(NVME)
    device = pool.stores[0].device if pool else None
    if pool is None or device is None:
        raise MemroofError(f"{machine.name} has no flash to keep the model in; add an nvme or ufs device")
    route = machine.path(pool.stores[0].name, tiers.pools[GPU].stores[0].name)
    return Flash(device, len(pool.stores), tiers.channels[NVME, GPU], route.latency)
