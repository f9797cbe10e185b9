"""The server as tasks see it: each GPU's ways to DRAM and to its peers at rates that are sustained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import permutations

from simulator.offload.tiers import DRAM, GPU, Channel, Host, Tiers, find_tiers, peer_channel
from simulator.specs import Calibration, Hardware, MemroofError, TaskPacksStrategy


@dataclass(frozen=True)
class Server:
    """GPUs of one node, those that are simulated, and what they share."""

    ranks: tuple[Tiers, ...]
    """Simulated GPUs."""
    gpus: int
    """All GPUs."""
    peers: Mapping[tuple[int, int], Channel]
    """From one simulated GPU to another."""
    messages: Channel
    """Of the DRAM, for tensors that processes pass on: each byte crosses it twice."""
    peer_rate: float
    """From one GPU to another, in either direction [B/s]."""

    @property
    def twins(self) -> int:
        """How many GPUs each simulated one stands for."""
        return self.gpus // len(self.ranks)

    @property
    def channels(self) -> tuple[Channel, ...]:
        """Every channel that copies may take."""
        swaps = [
            channel
            for tiers in self.ranks
            for channel in (tiers.channels[DRAM, GPU], tiers.channels[GPU, DRAM])
        ]
        hosts = [tiers.host.channel for tiers in self.ranks if tiers.host]
        return tuple(dict.fromkeys((*swaps, *self.peers.values(), self.messages, *hosts)))


def find_server(hardware: Hardware, calibration: Calibration, strategy: TaskPacksStrategy) -> Server:
    """Return the GPUs of a node with ways at sustained rates.

    Links carry what copies sustain of them: the share that the calibration gives, or the measured rate of a swap over
    the narrowest link of its way. So GPUs behind one uplink share its sustained rate.

    Raises
    ------
    MemroofError
        If there is no DRAM beside the GPUs.
    """
    rates, context = strategy.rates, strategy.context_memory
    gpus = len(hardware.machine.ranks)
    found = [find_tiers(hardware, calibration, 1.0, rank) for rank in range(gpus)]
    if DRAM not in found[0].pools:
        raise MemroofError(
            f"task swapping needs DRAM beside the GPUs; {hardware.name} has none: choose a node that has"
        )
    swap = found[0].channels[DRAM, GPU]
    narrowest = min(bandwidth for _, bandwidth in swap.links)
    factor = (rates.swap or swap.rate) / narrowest
    measured = rates.swap is not None
    ranks = tuple(_sustained(tiers, factor, context, measured=measured) for tiers in found)
    peers: dict[tuple[int, int], Channel] = {}
    for pair in permutations(range(gpus), 2):
        way = scaled(peer_channel(hardware, *pair, calibration), factor)
        peers[pair] = replace(way, rate=rates.peer, latency=0.0) if rates.peer else way
    peer_rate = min((channel.rate for channel in peers.values()), default=0.0)
    if rates.message:
        messages = Channel(
            "messages between processes", (("host messages", rates.message),), 0.0, rates.message
        )
    else:
        host = ranks[0].host
        way = host.channel if host else ranks[0].channels[GPU, DRAM]
        messages = replace(way, name="messages between processes")
    return Server(ranks, gpus, peers, messages, peer_rate)


def alone(server: Server) -> Server:
    """Return one GPU with its share of what all of them use alike at the same time.

    Where every GPU does the same at once, max-min fair sharing gives each an equal part of every link that several
    cross, so that one of them tells of all.
    """
    first = server.ranks[0]
    channels = {}
    for way in ((DRAM, GPU), (GPU, DRAM)):
        users = Counter(name for tiers in server.ranks for name, _ in tiers.channels[way].links)
        channels[way] = _divided(first.channels[way], users)
    host = first.host
    if host is not None:
        users = Counter(name for tiers in server.ranks if tiers.host for name, _ in tiers.host.channel.links)
        host = Host(host.device, host.count, _divided(host.channel, users))
    return replace(server, ranks=(replace(first, channels=channels, host=host),), peers={})


def divided(server: Server) -> Server:
    """Return GPUs each with a fixed part of what several of them use, whether the others use theirs or not.

    So Harmony's event simulator has it: swaps at 1/N of the rate, copies between peers undisturbed by swaps.
    """
    ranks = []
    for tiers in server.ranks:
        channels = {}
        for way in ((DRAM, GPU), (GPU, DRAM)):
            users = Counter(name for other in server.ranks for name, _ in other.channels[way].links)
            channels[way] = _own(_divided(tiers.channels[way], users), f"of gpu{tiers.rank}")
        ranks.append(replace(tiers, channels=channels))
    peers = {
        pair: _own(channel, f"from gpu{pair[0]} to gpu{pair[1]}") for pair, channel in server.peers.items()
    }
    messages = _divided(server.messages, {name: server.gpus for name, _ in server.messages.links})
    return replace(server, ranks=tuple(ranks), peers=peers, messages=_own(messages, "for messages"))


def scaled(channel: Channel, factor: float) -> Channel:
    """Return a channel whose links have ``factor`` times their bandwidth, and whose copies reach the narrowest."""
    links = tuple((name, bandwidth * factor) for name, bandwidth in channel.links)
    return replace(channel, links=links, rate=min(bandwidth for _, bandwidth in links))


def _sustained(tiers: Tiers, factor: float, context: float | None, *, measured: bool) -> Tiers:
    channels = {}
    for way in ((DRAM, GPU), (GPU, DRAM)):
        channel = scaled(tiers.channels[way], factor)
        channels[way] = replace(channel, latency=0.0) if measured else channel
    host = tiers.host
    if host is not None:
        host = Host(host.device, host.count, scaled(host.channel, factor))
    # copies never leave DRAM and the GPUs, and the ledger has nothing to say of other tiers
    pools = {tier: tiers.pools[tier] for tier in (GPU, DRAM)}
    if context is not None:
        own = pools[GPU]
        pools[GPU] = replace(own, capacity=max(0.0, own.stores[0].capacity - context))
    return replace(tiers, pools=pools, channels=channels, host=host)


def _own(channel: Channel, label: str) -> Channel:
    """Return a channel over links that no other has."""
    return replace(channel, links=tuple((f"{name} {label}", bandwidth) for name, bandwidth in channel.links))


def _divided(channel: Channel, users: Mapping[str, int]) -> Channel:
    links = tuple((name, bandwidth / users[name]) for name, bandwidth in channel.links)
    return replace(channel, links=links, rate=min(bandwidth for _, bandwidth in links))
