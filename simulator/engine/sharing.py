"""Links as fluids: every transfer gets its max-min fair rate, constant between events.

Transfers in flight over the same links with the same limit always have the same rate, so they are kept as one
*bundle*: its level is the bytes that each member has received, and a heap holds the levels at which members
are complete. However many share a bundle, a transfer costs O(log n), and only the next one has an event.

When a transfer starts or ends, the bundles connected with it through shared links get new rates by
progressive filling; a bundle alone on its links gets its rate at once. Changes are collected (`dirty`) and
applied once an instant, by `settle`, before time advances.

A link may lose bandwidth while another is in use (`Program.slow`); then, and only then, its bandwidth is no
constant, and is set anew when the other falls idle or is taken up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from math import inf, prod

from simulator.engine.events import BUNDLE_DONE, Event, encode
from simulator.engine.program import Slowdown


def max_min_rates(
    paths: Sequence[Sequence[int]],
    max_rates: Sequence[float],
    bandwidths: Sequence[float] | Mapping[int, float],
    counts: Sequence[int] | None = None,
) -> list[float]:
    """Return the max-min fair rates of flows over links, by progressive filling.

    All rates rise together; a flow stops at its own limit or when a link on its path is full.

    Parameters
    ----------
    paths : sequence of sequences of int
        Links that each flow crosses, each once.
    max_rates : sequence of float
        Limit of each flow [B/s]; may be infinite.
    bandwidths : sequence or mapping
        Bandwidth by link [B/s].
    counts : sequence of int, optional
        How many equal flows each entry stands for; one each by default.

    Returns
    -------
    list of float
        Rate of each flow [B/s]; of one of them where an entry stands for several.

    References
    ----------
    Bertsekas and Gallager, Data Networks, 2nd ed., 1992, section 6.5.2.

    Examples
    --------
    >>> max_min_rates([(0,), (0, 1), (1,)], [inf, inf, inf], [10.0, 4.0])
    [8.0, 2.0, 2.0]
    """
    counts = [1] * len(paths) if counts is None else counts
    members: dict[int, list[int]] = {}
    load: dict[int, int] = {}
    for flow, path in enumerate(paths):
        for link in path:
            members.setdefault(link, []).append(flow)
            load[link] = load.get(link, 0) + counts[flow]
    room = {link: bandwidths[link] for link in members}
    fullest = [(room[link] / load[link], link) for link in members]
    heapify(fullest)
    by_limit = sorted(
        (flow for flow, limit in enumerate(max_rates) if limit < inf), key=max_rates.__getitem__
    )
    rates = [0.0] * len(paths)
    limited, share = 0, 0.0
    while fullest:
        level, link = fullest[0]
        if not load[link]:
            heappop(fullest)
            continue
        if room[link] / load[link] > level:
            heapreplace(fullest, (room[link] / load[link], link))
            continue
        # Rounding must not let the common rate fall: while filling, fair shares never shrink.
        share = max(share, level)
        frozen = []
        while limited < len(by_limit) and max_rates[by_limit[limited]] <= share:
            flow = by_limit[limited]
            limited += 1
            if not rates[flow]:
                rates[flow] = max_rates[flow]
                frozen.append(flow)
        if not frozen:
            frozen = [flow for flow in members[link] if not rates[flow]]
            for flow in frozen:
                rates[flow] = share
        for flow in frozen:
            for crossed in paths[flow]:
                room[crossed] -= rates[flow] * counts[flow]
                load[crossed] -= counts[flow]
    return rates


class Bundle:
    """The transfers in flight with one path and one limit; all have the same rate."""

    __slots__ = (
        "changed",
        "level",
        "max_rate",
        "members",
        "narrowest",
        "number",
        "path",
        "pending",
        "rate",
        "since",
    )

    def __init__(self, number: int, path: tuple[int, ...], max_rate: float, narrowest: float) -> None:
        self.number = number
        self.path = path
        self.max_rate = max_rate
        self.narrowest = narrowest  # the least bandwidth on its path
        self.members: list[Event] = []  # heap of (level when complete, priority, sequence, task)
        self.level = 0.0  # bytes that a member has received at time `since`
        self.since = 0.0
        self.rate = 0.0
        self.pending = -1  # sequence number of the event of its next completion; all others are stale
        self.changed = False  # members came or went at this instant

    def raise_level(self, now: float) -> float:
        """Bring the level up to now and return it."""
        if now > self.since:
            self.level += self.rate * (now - self.since)
            self.since = now
        return self.level


class LinkSharing:
    """The transfers in flight and their rates.

    Parameters
    ----------
    bandwidths : sequence of float
        By link handle [B/s].
    events : list
        The event heap, to which completions are pushed.
    sequence : iterator of int
        Source of sequence numbers.
    trace : list of (time, task, rate), optional
        Receives every rate that was in force.
    slowdowns : sequence of Slowdown
        Links that slow others.
    """

    def __init__(
        self,
        bandwidths: Sequence[float],
        events: list[Event],
        sequence: Iterator[int],
        trace: list[tuple[float, int, float]] | None = None,
        slowdowns: Sequence[Slowdown] = (),
    ) -> None:
        self.dirty: list[int] = []  # links on which something changed at this instant
        self._bandwidths = list(bandwidths)
        self._unslowed = bandwidths
        self._slows: dict[int, list[int]] = {}  # by link, those that it slows
        self._slowed: dict[int, list[Slowdown]] = {}  # by link, what it is slowed by
        for slowdown in slowdowns:
            self._slows.setdefault(slowdown.by, []).append(slowdown.victim)
            self._slowed.setdefault(slowdown.victim, []).append(slowdown)
        self._events = events
        self._sequence = sequence
        self._trace = trace
        self._bundles: list[Bundle] = []
        self._bundle_of: dict[tuple[tuple[int, ...], float], Bundle] = {}
        self._crossing: list[dict[int, Bundle]] = [{} for _ in bandwidths]  # by link, those with members

    def bundle(self, path: tuple[int, ...], max_rate: float) -> Bundle:
        """Return the bundle of that path (of at least one link) and limit."""
        bundle = self._bundle_of.get((path, max_rate))
        if bundle is None:
            narrowest = min(self._bandwidths[link] for link in path)
            bundle = self._bundle_of[path, max_rate] = Bundle(len(self._bundles), path, max_rate, narrowest)
            self._bundles.append(bundle)
        return bundle

    def join(self, bundle: Bundle, task: int, size: float, priority: int, now: float) -> None:
        """Let `size` > 0 bytes of a transfer start to flow."""
        members = bundle.members
        bundle.changed = True
        sequence = next(self._sequence)
        if members:
            # Rounding of a high level costs no more than rounding of the time it took to get there.
            heappush(members, (bundle.raise_level(now) + size, priority, sequence, task))
            self.dirty.append(bundle.path[0])
            return
        bundle.level = bundle.rate = 0.0
        bundle.since = now
        members.append((size, priority, sequence, task))
        alone = True
        for link in bundle.path:
            crossing = self._crossing[link]
            alone = alone and not crossing
            crossing[bundle.number] = bundle
        if self._slows:
            for link in bundle.path:
                if link in self._slows and len(self._crossing[link]) == 1:
                    self._slow(link)
        if alone:
            self._set_rate(bundle, min(bundle.max_rate, bundle.narrowest), now)
        else:
            self.dirty.append(bundle.path[0])

    def complete(self, number: int, sequence: int, now: float) -> list[int]:
        """Return the tasks that complete with this event of a bundle; none if it is stale."""
        bundle = self._bundles[number]
        if bundle.pending != sequence:
            return []
        members = bundle.members
        level = bundle.level = members[0][0]
        bundle.since = now
        done = [heappop(members)[3]]
        while members and members[0][0] <= level:
            done.append(heappop(members)[3])
        self._shrunk(bundle)
        return done

    def leave(self, task: int, bundle: Bundle, now: float) -> float | None:
        """Take a transfer off its links; return the bytes it still had to go, None if it was not flowing."""
        left = self.remaining(task, bundle, now)
        if left is not None:
            bundle.raise_level(now)
            bundle.members = [entry for entry in bundle.members if entry[3] != task]
            heapify(bundle.members)
            self._shrunk(bundle)
        return left

    def remaining(self, task: int, bundle: Bundle, now: float) -> float | None:
        """Return the bytes that a transfer still has to go, None if it is not flowing."""
        level = bundle.level + bundle.rate * (now - bundle.since)
        return next(
            (max(finish - level, 0.0) for finish, *_, member in bundle.members if member == task), None
        )

    def settle(self, now: float) -> None:
        """Give new rates to all transfers touched by what started or ended at this instant."""
        crossing = self._crossing
        done: set[int] = set()
        for link in self.dirty:
            if link in done or not crossing[link]:
                continue
            if len(crossing[link]) == 1:
                (bundle,) = crossing[link].values()
                if len(bundle.path) == 1 or all(len(crossing[crossed]) == 1 for crossed in bundle.path):
                    rate = min(bundle.max_rate, bundle.narrowest / len(bundle.members))
                    if bundle.changed or rate != bundle.rate:
                        self._set_rate(bundle, rate, now)
                    continue
            self._share(link, now, done)
        self.dirty.clear()

    def _shrunk(self, bundle: Bundle) -> None:
        """Note that members have left."""
        bundle.pending = -1
        if bundle.members:
            bundle.changed = True
            self.dirty.append(bundle.path[0])
            return
        for link in bundle.path:
            crossing = self._crossing[link]
            del crossing[bundle.number]
            if crossing:
                self.dirty.append(link)
            elif link in self._slows:
                self._slow(link)

    def _slow(self, by: int) -> None:
        """Set the bandwidths of the links that `by` slows, which was taken up or has fallen idle."""
        for victim in self._slows[by]:
            factor = prod(slowdown.factor for slowdown in self._slowed[victim] if self._crossing[slowdown.by])
            self._bandwidths[victim] = self._unslowed[victim] / factor
            for bundle in self._bundles:
                if victim in bundle.path:
                    bundle.narrowest = min(self._bandwidths[link] for link in bundle.path)
            self.dirty.append(victim)

    def _share(self, link: int, now: float, done: set[int]) -> None:
        """Fill the links and bundles connected with `link` progressively; add those links to `done`."""
        done.add(link)
        frontier = [link]
        bundles: dict[int, Bundle] = {}
        for reached in frontier:
            for number, bundle in self._crossing[reached].items():
                if number not in bundles:
                    bundles[number] = bundle
                    for crossed in bundle.path:
                        if crossed not in done:
                            done.add(crossed)
                            frontier.append(crossed)
        connected = list(bundles.values())
        rates = max_min_rates(
            [bundle.path for bundle in connected],
            [bundle.max_rate for bundle in connected],
            self._bandwidths,
            [len(bundle.members) for bundle in connected],
        )
        for bundle, rate in zip(connected, rates, strict=True):
            if bundle.changed or rate != bundle.rate:
                self._set_rate(bundle, rate, now)

    def _set_rate(self, bundle: Bundle, rate: float, now: float) -> None:
        first, priority = bundle.members[0][:2]
        left = first - bundle.raise_level(now)
        bundle.rate = rate
        bundle.changed = False
        sequence = bundle.pending = next(self._sequence)
        finish = now + left / rate if left > 0.0 else now
        heappush(self._events, (finish, priority, sequence, encode(BUNDLE_DONE, bundle.number)))
        if self._trace is not None:
            self._trace.extend((now, member[3], rate) for member in bundle.members)
