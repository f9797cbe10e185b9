"""What each memory tier held and each way between them carried, when, and beside what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from simulator.analysis.result import Result
from simulator.engine import BARRIER, Link, Stream, Timeline
from simulator.specs import MemroofError

if TYPE_CHECKING:
    import pandas as pd

FloatArray = npt.NDArray[np.float64]
SHOWN = 12
"""Streams of which the overlap is worked out: those that are busy longest."""


@dataclass(frozen=True, slots=True)
class Residency:
    """A memory over time: capacity, peak and mean over the run [B]."""

    memory: str
    tier: str
    capacity: float
    peak: float
    peak_time: float
    mean: float


@dataclass(frozen=True, slots=True)
class Flow:
    """A stream or a link: what passed and how busy it was.

    Attributes
    ----------
    name, kind : str
        ``stream`` (a processor, or one direction of copies) or ``link`` (what copies share).
    bytes : float
        That transfers on it have moved; 0 for a processor [B].
    bandwidth : float
        Of a link [B/s]; 0 for a stream.
    achieved : float
        Bytes over the seconds in which something moved on it [B/s].
    busy : float
        Share of the run in which it was at work; of a link: in which something crossed it.
    critical : float
        Share of the run in which the critical path ran on it.
    """

    name: str
    kind: str
    bytes: float
    bandwidth: float
    achieved: float
    busy: float
    critical: float


@dataclass(frozen=True)
class Tiers:
    """Memories, streams and links of one run.

    Attributes
    ----------
    makespan : float
        Of what was simulated [s].
    memories : tuple of Residency
    flows : tuple of Flow
        Streams, then links, the busiest first.
    streams : tuple of str
        Of the overlap's rows and columns.
    overlap : array, shape (n, n)
        Share of the run in which the stream of the row and that of the column were both busy; the diagonal: the one alone
        or with others.
    """

    makespan: float
    memories: tuple[Residency, ...]
    flows: tuple[Flow, ...]
    streams: tuple[str, ...]
    overlap: FloatArray
    timeline: Timeline

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data in SI units."""
        from simulator.analysis.export import plain

        document: dict[str, Any] = plain(
            {
                "makespan": self.makespan,
                "memories": [{key: getattr(row, key) for key in row.__slots__} for row in self.memories],
                "flows": [{key: getattr(row, key) for key in row.__slots__} for row in self.flows],
                "overlap": {"streams": list(self.streams), "share": self.overlap.tolist()},
            }
        )
        return document

    def to_frame(self) -> pd.DataFrame:
        """Bytes resident over time: one row a memory, category and moment of change."""
        import pandas as pd

        frames = []
        for row in self.memories:
            times, by_category = self.timeline.ledger.resident(row.memory)
            for category, level in by_category.items():
                columns = {"memory": row.memory, "category": category, "time": times, "bytes": level}
                frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True)


def tiers(result: Result) -> Tiers:
    """Return what each tier held and each way carried in a result's timeline.

    Raises
    ------
    MemroofError
        If the strategy kept no timeline.
    """
    timeline = result.timeline
    if timeline is None or not timeline.n_tasks:
        raise MemroofError(f"{result.name}: nothing was run event by event, so nothing is known by tier")
    span = timeline.makespan or 1.0
    known = {use.memory: use.tier for use in result.memory}
    memories = tuple(_residency(timeline, name, known.get(name, "")) for name in _memories(timeline))
    streams = _streams(timeline, span)
    links = _links(timeline, span)
    order = sorted(streams, key=lambda flow: (-flow.busy, flow.name))
    names = tuple(flow.name for flow in order if flow.busy)[:SHOWN]
    flows = (*order, *sorted(links, key=lambda flow: (-flow.bytes / flow.bandwidth, flow.name)))
    return Tiers(timeline.makespan, memories, flows, names, _overlap(timeline, names) / span, timeline)


def _memories(timeline: Timeline) -> list[str]:
    return [memory.name for memory in timeline.ledger.memories.values()]


def _residency(timeline: Timeline, name: str, tier: str) -> Residency:
    times, by_category = timeline.ledger.resident(name)
    level = sum(by_category.values(), start=np.zeros(len(times)))
    lasts = np.diff(np.append(times, max(timeline.makespan, float(times[-1]))))
    peak = timeline.ledger.peak(name)
    mean = float(level @ lasts) / (float(lasts.sum()) or 1.0)
    capacity = next(memory.capacity for memory in timeline.ledger.memories.values() if memory.name == name)
    return Residency(name, tier, capacity, peak.bytes, peak.time, mean)


def _streams(timeline: Timeline, span: float) -> list[Flow]:
    path = timeline.critical_path().tasks
    count = len(timeline.program.resources)
    done = (timeline.stream >= 0) & ~np.isnan(timeline.end) & (timeline.kind != BARRIER)
    seconds = np.bincount(timeline.stream[done], timeline.duration[done], count)
    sizes = np.bincount(timeline.stream[done], timeline.bytes[done], count)
    on_path = path[timeline.stream[path] >= 0]
    critical = np.bincount(timeline.stream[on_path], timeline.duration[on_path], count)
    return [
        Flow(
            resource.name, "stream", float(sizes[handle]), 0.0, float(sizes[handle] / (seconds[handle] or 1.0)),
            float(seconds[handle] / span), float(critical[handle] / span),
        )
        for handle, resource in enumerate(timeline.program.resources)
        if isinstance(resource, Stream)
    ]  # fmt: skip


def _links(timeline: Timeline, span: float) -> list[Flow]:
    moved, flows = timeline.moved(), []
    path = timeline.critical_path().tasks
    crossing: dict[int, list[int]] = {}
    for number, route in enumerate(timeline.program.routes):
        for link in route.path:
            crossing.setdefault(link, []).append(number)
    for handle, resource in enumerate(timeline.program.resources):
        if not isinstance(resource, Link) or not moved[resource.name]:
            continue
        on_it = np.isin(timeline.route, crossing.get(handle, []))
        ran = np.flatnonzero(on_it & ~np.isnan(timeline.end))
        busy = _covered(timeline.start[ran], timeline.end[ran])
        critical = float(timeline.duration[path[on_it[path]]].sum())
        size = moved[resource.name]
        flows.append(
            Flow(
                resource.name,
                "link",
                size,
                resource.bandwidth,
                size / (busy or 1.0),
                busy / span,
                critical / span,
            )
        )
    return flows


def _covered(start: FloatArray, end: FloatArray) -> float:
    """Return the seconds that intervals cover together [s]."""
    order = np.argsort(start, kind="stable")
    start, reached = start[order], np.maximum.accumulate(end[order])
    before = np.concatenate([[-np.inf], reached[:-1]])
    return float((reached - np.maximum(start, before)).clip(min=0.0).sum())


def _overlap(timeline: Timeline, names: tuple[str, ...]) -> FloatArray:
    """Return the seconds in which two streams were both busy; streams are serial, so their tasks never overlap."""
    busy = []
    for name in names:
        tasks = np.flatnonzero(
            (timeline.stream == timeline.program.handle(name))
            & ~np.isnan(timeline.end)
            & (timeline.duration > 0.0)
        )
        order = np.argsort(timeline.start[tasks], kind="stable")
        busy.append((timeline.start[tasks][order], timeline.end[tasks][order]))
    found = np.zeros((len(names), len(names)))
    for column, (start, end) in enumerate(busy):
        moments = np.stack([start, end], axis=1).ravel()
        so_far = np.stack(
            [np.append(0.0, np.cumsum(end - start)[:-1]), np.cumsum(end - start)], axis=1
        ).ravel()
        for row, (first, last) in enumerate(busy):
            found[row, column] = (np.interp(last, moments, so_far) - np.interp(first, moments, so_far)).sum()
    return found
