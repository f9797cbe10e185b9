"""The tiers and CPUs of a node whose CPUs compute: some of its sockets, DRAM at the rate that reads sustain."""

from __future__ import annotations

from dataclasses import dataclass, replace

from simulator.cost import CostModel, Sockets
from simulator.offload.tiers import DRAM, Channel, Host, Pool, Tiers, find_tiers, host_of
from simulator.specs import Calibration, Hardware, Machine, MemroofError


@dataclass(frozen=True, slots=True)
class Place:
    """Where a scenario runs.

    Attributes
    ----------
    ranks : tuple of Tiers
        Of each accelerator; of a node without any, one that has DRAM alone.
    accelerators : int
        How many there are.
    sockets : Sockets
        The CPUs that compute.
    host : Host
        The same, as the emitter knows them.
    """

    ranks: tuple[Tiers, ...]
    accelerators: int
    sockets: Sockets
    host: Host


def find_place(
    hardware: Hardware, calibration: Calibration, host: CostModel | None, usable: float, count: int | None
) -> Place:
    """Return the tiers and CPUs of a node.

    Parameters
    ----------
    hardware : Hardware
        One node.
    calibration : Calibration
        Of the accelerators: constants of copies.
    host : CostModel, optional
        Of the CPUs: what share of their DRAM's bandwidth reads sustain.
    usable : float
        Share of each capacity that may be used.
    count : int, optional
        Sockets to use; all if absent.

    Raises
    ------
    MemroofError
        If there is more than one node, no CPU with DRAM, or fewer sockets than asked for.
    """
    if host is None:
        raise MemroofError(f"{hardware.name} has no CPU with DRAM; name a node that has")
    own = hardware.with_machines(lambda machine: _of_sockets(machine, count))
    machine = own.machine
    used = [engine for engine in machine.hosts if engine.memory]
    dram = {engine.memory for engine in used}
    bandwidth = sum(machine.store(name).read.bandwidth for name in dram if name)
    sustained = float(host.calibration.elementwise.memory_efficiency or 1.0)
    efficiency = calibration.transfer.efficiency or 1.0
    between = [
        edge.bandwidth for a, b, edge in machine.links if {a, b} <= {engine.name for engine in used} and a < b
    ]
    sockets = Sockets(used[0].device, len(used), bandwidth, sustained, **_across(between, efficiency))
    if machine.ranks[0].device.kind == "cpu":
        tiers: tuple[Tiers, ...] = (_without_accelerator(own, calibration, usable),)
    else:
        tiers = tuple(find_tiers(own, calibration, usable, rank) for rank in range(own.size))
    ranks = tuple(_sustained(each, sustained) for each in tiers)
    found = ranks[0].host
    if found is None:
        raise MemroofError(f"{hardware.name} has no CPU with DRAM; name a node that has")
    return Place(ranks, 0 if machine.ranks[0].device.kind == "cpu" else own.size, sockets, found)


def _across(between: list[float], efficiency: float) -> dict[str, float]:
    return {"cross": min(between) * efficiency} if between else {}


def _of_sockets(machine: Machine, count: int | None) -> Machine:
    """Leave out the DRAM of further sockets; what is wired to them stays reachable."""
    holders = [engine for engine in machine.hosts if engine.memory]
    if count is None:
        return machine
    if count > len(holders):
        raise MemroofError(
            f"strategy.sockets: {machine.name} has {len(holders)} CPU{'s' * (len(holders) != 1)} with DRAM, not {count}"
        )
    kept = {engine.memory for engine in holders[:count]}
    left = {engine.memory for engine in holders} - kept
    stores = tuple(store for store in machine.stores if store.name not in left)
    engines = tuple(replace(e, memory=None) if e.memory in left else e for e in machine.engines)
    return replace(machine, stores=stores, engines=engines)


def _without_accelerator(hardware: Hardware, calibration: Calibration, usable: float) -> Tiers:
    """Return the tiers of a node of CPUs: DRAM, with the CPUs."""
    if hardware.nodes != 1:
        raise MemroofError(
            f"offload runs on one node so far; {hardware.name} has {hardware.nodes}: choose one"
        )
    machine = hardware.machine
    stores = machine.tier("dram")
    pool = Pool(DRAM, stores, sum(store.capacity for store in stores) * usable)
    return Tiers({DRAM: pool}, {}, host_of(machine, stores, calibration))


def _sustained(tiers: Tiers, share: float) -> Tiers:
    """Let the ports of the DRAM have what reads sustain, which CPUs and copies share."""
    host = tiers.host
    if host is None:
        return tiers
    ports = {name for name, _ in host.channel.links}

    def narrowed(channel: Channel) -> Channel:
        links = tuple((name, width * share if name in ports else width) for name, width in channel.links)
        return replace(channel, links=links, rate=min(channel.rate, *(width for _, width in links)))

    channels = {key: narrowed(channel) for key, channel in tiers.channels.items()}
    return replace(tiers, channels=channels, host=replace(host, channel=narrowed(host.channel)))
