"""Memories below an accelerator's own that KV blocks move to and from, and how long that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.specs import Calibration, Hardware, MemroofError
from simulator.specs.machine import Store
from simulator.specs.routing import concurrent_rate

NAMES = {"dram": ("dram",), "nvme": ("nvme", "ufs")}


@dataclass(frozen=True, slots=True)
class Channel:
    """One direction between accelerator memory and a tier: rate of one accelerator when all copy [B/s], time to start [s]."""

    rate: float
    latency: float

    def time(self, size: float) -> float:
        """Time of a copy of ``size`` bytes: latency + size / rate (Hockney 1994); nothing takes none [s]."""
        return self.latency + size / self.rate if size > 0.0 else 0.0


@dataclass(frozen=True, slots=True)
class Tier:
    """A memory below the accelerator's: the bytes of it that one accelerator may use, and the ways up and down."""

    name: str
    capacity: float
    up: Channel
    down: Channel


def find_tier(
    hardware: Hardware, calibration: Calibration, name: str, size: float | None, copies: int
) -> Tier:
    """Return what one accelerator gets of a tier of its node.

    Parameters
    ----------
    hardware : Hardware
        One kind of node.
    calibration : Calibration
        Constants of copies.
    name : str
        ``dram`` or ``nvme``.
    size : float or None
        Bytes of the node that may be used; all of them if None [B].
    copies : int
        Accelerators of a node that copy at once.

    Raises
    ------
    MemroofError
        If the node has no such tier, or less of it than is asked for.
    """
    machine = hardware.machine
    own = {engine.memory for engine in machine.ranks}
    stores = [store for tier in NAMES[name] for store in machine.tier(tier) if store.name not in own]
    if not stores:
        raise MemroofError(
            f"{hardware.name} has no {name} for KV blocks; choose a node that has it, such as dgx-h100"
        )
    whole = sum(store.capacity for store in stores)
    if size is not None and size > whole:
        raise MemroofError(
            f"{size / 2**30:.0f} GiB of {name} exceed the {whole / 2**30:.0f} GiB of {hardware.name}"
        )
    ranks = machine.ranks
    used = [stores[index * len(stores) // len(ranks)] for index in range(len(ranks))]
    share = (whole if size is None else size) / len(ranks)
    homes = [engine.memory or stores[0].name for engine in ranks[: min(copies, len(ranks))]]
    up = _channel(hardware, calibration, [(s.name, h) for s, h in zip(used, homes, strict=False)], used)
    down = _channel(hardware, calibration, [(h, s.name) for s, h in zip(used, homes, strict=False)], used)
    return Tier(name, share, up, down)


def _channel(
    hardware: Hardware, calibration: Calibration, pairs: Sequence[tuple[str, str]], stores: Sequence[Store]
) -> Channel:
    routes = [hardware.machine.path(source, target) for source, target in pairs]
    transfer = calibration.transfer
    flash = any(store.tier != "dram" for store in stores)
    efficiency = (transfer.storage_efficiency if flash else transfer.efficiency) or 1.0
    rate = concurrent_rate([route.edges for route in routes]) * efficiency
    # the half-performance length adds the time of that many bytes to each copy (Hockney 1994)
    latency = max(route.latency for route in routes) + float(transfer.half_bytes or 0.0) / rate
    return Channel(rate, latency)
