"""The program under construction: streams for processors and copy directions, links for what copies share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from simulator.engine import Program
from simulator.offload.columns import COLUMNS, Price, Rows
from simulator.offload.tiers import GPU, NVME, Channel, Host, Pool, Tiers
from simulator.strategy import Bottleneck


class Emitter:
    """Adds computations, copies and buffers by tier, and remembers of each task its pass and what its time counts as.

    Parameters
    ----------
    name : str
        Of the program.
    ranks : Tiers or sequence of Tiers
        Memories and channels of each accelerator; what they share is one memory, and one link.
    channels : iterable of Channel, optional
        Those that copies may take; all of them if absent. Of their links only those that can hold a copy up are simulated.
    serial : bool
        Whether each task waits for the one before it, so that nothing overlaps.
    """

    def __init__(
        self,
        name: str,
        ranks: Tiers | Sequence[Tiers],
        *,
        channels: Iterable[Channel] | None = None,
        serial: bool = False,
    ) -> None:
        self.program = Program(name)
        self.ranks = (ranks,) if isinstance(ranks, Tiers) else tuple(ranks)
        self.serial = serial
        self.shares: list[Rows] = []
        """Division of a second of each task over :data:`~simulator.offload.columns.COLUMNS`."""
        self.pass_of: list[int] = []
        """Number of the pass that each task belongs to."""
        self.number = 0
        """Number of the pass that tasks are added for."""
        several = len(self.ranks) > 1
        names = [f"gpu{tiers.rank}" if several else "gpu" for tiers in self.ranks]
        self.gpus = tuple(self.program.stream(name) for name in names)
        self.pools: dict[str, Pool] = {}
        """Memories by name, those of accelerators first."""
        for tiers in self.ranks:
            if GPU in tiers.pools:
                self.pools.setdefault(tiers.pools[GPU].name, tiers.pools[GPU])
        for tiers in self.ranks:
            self.pools.update({pool.name: pool for pool in tiers.pools.values() if pool.tier != GPU})
        self._memory = {
            pool.name: self.program.memory(pool.name, pool.capacity) for pool in self.pools.values()
        }
        self.carried: dict[str, dict[int, float]] = {}
        """Bytes that each channel carries, by number of the pass."""
        self.moved: dict[Channel, float] = {}
        """Bytes over each channel; those of several accelerators bear one name, but are each one's own."""
        self.channels = tuple(all_channels(self.ranks) if channels is None else channels)
        self._binding = binding_links(self.channels)
        self._streams: dict[str, int] = dict(zip(names, self.gpus, strict=True))
        self._links: dict[tuple[str, float], int] = {}
        self._paths: dict[tuple[tuple[str, float], ...], tuple[int, ...]] = {}
        self._priced: dict[tuple[int, int], tuple[float, Rows]] = {}
        self._gate: tuple[int, ...] = ()
        self._gated = 0

    @property
    def gpu(self) -> int:
        """Stream of the first accelerator."""
        return self.gpus[0]

    def compute(
        self, price: Price, step: int, after: Sequence[int], tag: str, name: str, *, rank: int = 0
    ) -> int:
        """Add work on an accelerator."""
        key = (id(price), step)
        if key not in self._priced:
            self._priced[key] = price.time(step), price.shares(step)
        time, shares = self._priced[key]
        return self.work(self.gpus[rank], time, shares, after, tag, name)

    def work(self, stream: int, time: float, shares: Rows, after: Sequence[int], tag: str, name: str) -> int:
        """Add seconds of work on a stream, divided over the columns by ``shares``."""
        return self._note(
            self.program.compute(stream, time, after=self._after(after), tag=tag, name=name), shares
        )

    def copy(
        self,
        source: str,
        target: str,
        size: float,
        after: Sequence[int],
        tag: str,
        name: str,
        *,
        queue: str = "",
        rank: int = 0,
        efficiency: float = 1.0,
    ) -> int:
        """Add a copy between two tiers, in the order of its direction's queue or of one by another name.

        ``efficiency`` is the share of the channel's rate that this copy can reach (small requests, pageable memory).
        """
        tiers = self.ranks[rank]
        channel = tiers.channels[source, target]
        kind: Bottleneck = "storage" if NVME in (source, target) else "host link"
        queue = queue or channel.name
        if len(self.ranks) > 1:
            queue = f"{queue} of gpu{tiers.rank}"
        return self.transfer(channel, size, channel.rate * efficiency, queue, after, tag, name, kind)

    def attend(
        self, host: Host, price: Price, size: float, step: int, after: Sequence[int], name: str
    ) -> int:
        """Add attention on the CPU: traffic on the DRAM that its copies share, no faster than its roofline."""
        return self.host_work(host, size, price.time(step), after, "attention", name)

    def host_work(
        self, host: Host, size: float, time: float, after: Sequence[int], tag: str, name: str
    ) -> int:
        """Add work on the CPUs of ``size`` bytes of DRAM traffic that takes ``time`` where nothing else uses the DRAM."""
        rate = size / time if size and time else host.channel.rate
        return self.transfer(host.channel, size, rate, "cpu", after, tag, name, "host")

    def stream_work(
        self,
        channel: Channel,
        size: float,
        rate: float,
        shares: Rows,
        queue: str,
        after: Sequence[int],
        tag: str,
        name: str,
    ) -> int:
        """Add work of a processor that streams ``size`` bytes over its channel at ``rate`` at most [B/s].

        What else uses the memory's port slows it down; ``shares`` divides its seconds over the columns.
        """
        return self._note(self._carry(channel, size, rate, queue, after, tag, name), shares)

    def keep(
        self,
        tier: str,
        size: float,
        category: str,
        name: str,
        *,
        at: int | None = None,
        until: Sequence[int] = (),
        rank: int = 0,
    ) -> None:
        """Hold bytes in a tier from the start of a task to the end of others."""
        if size:
            memory = self._memory[self.ranks[rank].pools[tier].name]
            self.program.allocate(memory, size, category, at=at, until=until, name=name)

    def transfer(
        self,
        channel: Channel,
        size: float,
        rate: float,
        queue: str,
        after: Sequence[int],
        tag: str,
        name: str,
        kind: Bottleneck,
    ) -> int:
        """Add a copy over a channel at ``rate`` [B/s] at most, in a queue or in none; its seconds count as bound by ``kind``."""
        return self._note(self._carry(channel, size, rate, queue, after, tag, name), COPYING[kind])

    def _carry(
        self,
        channel: Channel,
        size: float,
        rate: float,
        queue: str,
        after: Sequence[int],
        tag: str,
        name: str,
    ) -> int:
        self.carry(channel, size)
        return self.program.transfer(
            self.path(channel), size, after=self._after(after), latency=channel.latency, max_rate=rate,
            stream=self.stream(queue) if queue else None, tag=tag, name=name,
        )  # fmt: skip

    def carry(self, channel: Channel, size: float) -> None:
        """Note bytes that a channel carries."""
        by_pass = self.carried.setdefault(channel.name, {})
        by_pass[self.number] = by_pass.get(self.number, 0.0) + size
        self.moved[channel] = self.moved.get(channel, 0.0) + size

    def barrier(self) -> None:
        """Have all tasks from here on wait for all tasks so far."""
        if self.program.n_tasks > self._gated:
            since = range(self._gated, self.program.n_tasks)
            task = self.program.compute(
                self.stream("barrier"), 0.0, after=(*self._gate, *since), name="barrier"
            )
            self._gate, self._gated = (self._note(task, np.zeros(len(COLUMNS))),), self.program.n_tasks

    def stream(self, name: str) -> int:
        """Return the stream of that name, a new one where there is none yet."""
        if name not in self._streams:
            self._streams[name] = self.program.stream(name)
        return self._streams[name]

    def _after(self, after: Sequence[int]) -> Sequence[int]:
        after = (*after, *self._gate) if self._gate else after
        last = self.program.n_tasks - 1
        return (*after, last) if self.serial and last >= 0 and last not in after else after

    def _note(self, task: int, shares: Rows) -> int:
        self.shares.append(shares)
        self.pass_of.append(self.number)
        return task

    def path(self, channel: Channel) -> tuple[int, ...]:
        """Return the links of a channel that are simulated."""
        if channel.links not in self._paths:
            self._paths[channel.links] = tuple(
                self._link(*link) for link in channel.links if link in self._binding
            )
        return self._paths[channel.links]

    def _link(self, name: str, bandwidth: float) -> int:
        key = (name, bandwidth)
        if key not in self._links:
            # a memory's port may bear the memory's own name, and pools of different width share names
            label = f"{name} port" if name in self.pools else name
            twins = sum(other == name for other, _ in self._links)
            self._links[key] = self.program.link(f"{label} ({twins + 1})" if twins else label, bandwidth)
        return self._links[key]


def all_channels(ranks: Sequence[Tiers]) -> tuple[Channel, ...]:
    """Return every channel between tiers of some accelerators, and those of the CPUs, each once."""
    found = [channel for tiers in ranks for channel in tiers.channels.values()]
    found += [tiers.host.channel for tiers in ranks if tiers.host is not None]
    return tuple(dict.fromkeys(found))


def binding_links(channels: Sequence[Channel]) -> frozenset[tuple[str, float]]:
    """Return the links that can hold a copy up; the others need not be simulated.

    A link never binds where another one, no wider, is crossed by every channel that crosses it, or where what its
    channels can bring, each bounded by its narrowest other link, does not exceed its bandwidth. Leaving out constraints
    that the others imply changes no max-min fair rate.
    """
    crossing: dict[tuple[str, float], set[Channel]] = {}
    for channel in channels:
        for link in channel.links:
            crossing.setdefault(link, set()).add(channel)
    kept = dict.fromkeys(sorted(crossing, key=lambda link: (-link[1], link[0])))
    for link in tuple(kept):
        others = [other for other in kept if other != link]
        in_series = any(other[1] <= link[1] and crossing[other] >= crossing[link] for other in others)
        arriving = sum(
            min((other[1] for other in others if channel in crossing[other]), default=math.inf)
            for channel in crossing[link]
        )
        if in_series or arriving <= link[1]:
            del kept[link]
    return frozenset(kept)


def _only(kind: str) -> Rows:
    """A copy's seconds: all bound by one thing, all of class transfer; work on the CPU is of class host."""
    row = np.zeros(len(COLUMNS))
    row[COLUMNS.index(kind)] = 1.0
    last = len(COLUMNS) - 1 - COLUMNS[::-1].index("host" if kind == "host" else "transfer")
    row[last] = 1.0
    return row


COPYING: Mapping[Bottleneck, Rows] = {
    kind: _only(kind) for kind in ("host link", "storage", "host", "network")
}
"""Division of a second of each kind of copy, and of work on the CPU."""
