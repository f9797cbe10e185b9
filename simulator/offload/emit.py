"""The program under construction: one stream for each processor and copy direction, one link for each shared edge."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from simulator.engine import Program
from simulator.offload.columns import COLUMNS, Price, Rows
from simulator.offload.tiers import NVME, Channel, Host, Tiers
from simulator.strategy import Bottleneck


class Emitter:
    """Adds computations, copies and buffers by tier, and remembers of each task its pass and what its time counts as.

    Parameters
    ----------
    name : str
        Of the program.
    tiers : Tiers
        Memories and channels.
    host : bool
        Whether CPUs compute.
    serial : bool
        Whether each task waits for the one before it, so that nothing overlaps.
    """

    def __init__(self, name: str, tiers: Tiers, *, host: bool, serial: bool) -> None:
        self.program = Program(name)
        self.tiers, self.serial = tiers, serial
        self.shares: list[Rows] = []
        """Division of a second of each task over :data:`~simulator.offload.columns.COLUMNS`."""
        self.pass_of: list[int] = []
        """Number of the pass that each task belongs to."""
        self.number = 0
        """Number of the pass that tasks are added for."""
        self.gpu = self.program.stream("gpu")
        self._memory = {
            tier: self.program.memory(pool.name, pool.capacity) for tier, pool in tiers.pools.items()
        }
        self._pools = {pool.name for pool in tiers.pools.values()}
        self.carried: dict[str, dict[int, float]] = {}
        """Bytes that each channel carries, by number of the pass."""
        self._channels = used_channels(tiers, host=host)
        self._binding = binding_links(self._channels)
        self._streams: dict[str, int] = {}
        self._links: dict[tuple[str, float], int] = {}
        self._paths: dict[str, tuple[int, ...]] = {}
        self._copying = {name: _only(name) for name in ("host link", "storage", "host")}
        self._priced: dict[tuple[int, int], tuple[float, Rows]] = {}

    def compute(self, price: Price, step: int, after: Sequence[int], tag: str, name: str) -> int:
        """Add work on the accelerator."""
        key = (id(price), step)
        if key not in self._priced:
            self._priced[key] = price.time(step), price.shares(step)
        time, shares = self._priced[key]
        return self._note(
            self.program.compute(self.gpu, time, after=self._after(after), tag=tag, name=name), shares
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
    ) -> int:
        """Add a copy between neighbouring tiers, in the order of its direction's queue or of one by another name."""
        channel = self.tiers.channels[source, target]
        kind: Bottleneck = "storage" if NVME in (source, target) else "host link"
        return self._transfer(channel, size, channel.rate, queue or channel.name, after, tag, name, kind)

    def attend(
        self, host: Host, price: Price, size: float, step: int, after: Sequence[int], name: str
    ) -> int:
        """Add attention on the CPU: traffic on the DRAM that its copies share, no faster than its roofline."""
        rate = size / price.time(step) if size else host.channel.rate
        return self._transfer(host.channel, size, rate, "cpu", after, "attention", name, "host")

    def keep(
        self,
        tier: str,
        size: float,
        category: str,
        name: str,
        *,
        at: int | None = None,
        until: Sequence[int] = (),
    ) -> None:
        """Hold bytes in a tier from the start of a task to the end of others."""
        if size:
            self.program.allocate(self._memory[tier], size, category, at=at, until=until, name=name)

    def _transfer(
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
        by_pass = self.carried.setdefault(channel.name, {})
        by_pass[self.number] = by_pass.get(self.number, 0.0) + size
        task = self.program.transfer(
            self._path(channel), size, after=self._after(after), latency=channel.latency, max_rate=rate,
            stream=self._stream(queue), tag=tag, name=name,
        )  # fmt: skip
        return self._note(task, self._copying[kind])

    def _after(self, after: Sequence[int]) -> Sequence[int]:
        last = self.program.n_tasks - 1
        return (*after, last) if self.serial and last >= 0 and last not in after else after

    def _note(self, task: int, shares: Rows) -> int:
        self.shares.append(shares)
        self.pass_of.append(self.number)
        return task

    def _stream(self, name: str) -> int:
        if name not in self._streams:
            self._streams[name] = self.program.stream(name)
        return self._streams[name]

    def _path(self, channel: Channel) -> tuple[int, ...]:
        if channel.name not in self._paths:
            self._paths[channel.name] = tuple(
                self._link(*link) for link in channel.links if link in self._binding
            )
        return self._paths[channel.name]

    def _link(self, name: str, bandwidth: float) -> int:
        key = (name, bandwidth)
        if key not in self._links:
            # a memory's port may bear the memory's own name, and pools of different width share names
            label = f"{name} port" if name in self._pools else name
            twins = sum(other == name for other, _ in self._links)
            self._links[key] = self.program.link(f"{label} ({twins + 1})" if twins else label, bandwidth)
        return self._links[key]


def used_channels(tiers: Tiers, *, host: bool) -> tuple[Channel, ...]:
    """Return the channels that copies may take, and the one to the CPUs if they compute."""
    extra = (tiers.host.channel,) if host and tiers.host is not None else ()
    return (*tiers.channels.values(), *extra)


def binding_links(channels: Sequence[Channel]) -> frozenset[tuple[str, float]]:
    """Return the links that can hold a copy up; the others need not be simulated.

    A link never binds where another one, no wider, is crossed by every channel that crosses it, or where what its
    channels can bring, each bounded by its narrowest other link, does not exceed its bandwidth. Leaving out constraints
    that the others imply changes no max-min fair rate.
    """
    crossing: dict[tuple[str, float], set[str]] = {}
    for channel in channels:
        for link in channel.links:
            crossing.setdefault(link, set()).add(channel.name)
    kept = dict.fromkeys(sorted(crossing, key=lambda link: (-link[1], link[0])))
    for link in tuple(kept):
        others = [other for other in kept if other != link]
        in_series = any(other[1] <= link[1] and crossing[other] >= crossing[link] for other in others)
        arriving = sum(
            min((other[1] for other in others if name in crossing[other]), default=math.inf)
            for name in crossing[link]
        )
        if in_series or arriving <= link[1]:
            del kept[link]
    return frozenset(kept)


def _only(kind: str) -> Rows:
    """A copy's seconds: all bound by one thing, all of class transfer; attention on the CPU is of class host."""
    row = np.zeros(len(COLUMNS))
    row[COLUMNS.index(kind)] = 1.0
    last = len(COLUMNS) - 1 - COLUMNS[::-1].index("host" if kind == "host" else "transfer")
    row[last] = 1.0
    return row
