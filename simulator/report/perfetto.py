"""Timelines as Chrome trace JSON, which ui.perfetto.dev and chrome://tracing open.

Processes are devices, threads are streams and links, counter tracks are the bytes resident in a memory by category.
Format: "Trace Event Format", Google, 2016 (events ``X``, ``C``, ``M``; microseconds).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from simulator.engine import Timeline

_MEMORY_THREAD = 0


def write_trace(timeline: Timeline, stream: IO[str], name: str = "") -> int:
    """Write a timeline as one JSON object, event by event, so that a long run needs no memory.

    Parameters
    ----------
    timeline : Timeline
        What ran [s].
    stream : text file
        Where the JSON goes.
    name : str
        Shown by the viewer beside the format's data.

    Returns
    -------
    int
        Events written.
    """
    header = json.dumps({"name": name, "writer": "memroof"}, ensure_ascii=False)
    stream.write(f'{{"displayTimeUnit": "ms", "otherData": {header}, "traceEvents": [\n')
    count = 0
    for event in events(timeline):
        stream.write((",\n" if count else "") + json.dumps(event, ensure_ascii=False, separators=(",", ":")))
        count += 1
    stream.write("\n]}\n")
    return count


def events(timeline: Timeline) -> Iterator[dict[str, Any]]:
    """Yield the trace's events: tasks, then resident bytes, then the names of processes and threads."""
    tracks = _Tracks()
    yield from _tasks(timeline, tracks)
    yield from _counters(timeline, tracks)
    yield from tracks.names()


class _Tracks:
    """Numbers of processes (devices) and threads (streams, lanes of a link), given as they come."""

    def __init__(self) -> None:
        self.processes: dict[str, int] = {}
        self.threads: dict[tuple[int, str], int] = {}

    def process(self, resource: str) -> int:
        return self.processes.setdefault(device_of(resource), len(self.processes) + 1)

    def thread(self, resource: str, lane: int = 0) -> tuple[int, int]:
        process = self.process(resource)
        name = resource if lane == 0 else f"{resource} ({lane + 1})"
        return process, self.threads.setdefault((process, name), len(self.threads) + 1)

    def names(self) -> Iterator[dict[str, Any]]:
        for name, pid in self.processes.items():
            yield _metadata("process_name", pid, _MEMORY_THREAD, {"name": name})
            yield _metadata("process_sort_index", pid, _MEMORY_THREAD, {"sort_index": pid})
        for (pid, name), tid in self.threads.items():
            yield _metadata("thread_name", pid, tid, {"name": name})
            yield _metadata("thread_sort_index", pid, tid, {"sort_index": tid})


def device_of(resource: str) -> str:
    """Return the device that a resource belongs to: its name up to the first number, else its first word.

    Examples
    --------
    >>> device_of("gpu0.compute"), device_of("stage 3 to 4"), device_of("replica")
    ('gpu0', 'stage 3', 'replica')
    """
    match = re.match(r"[^\W\d]+[ _-]?\d+|[^\s.]+", resource)
    return match.group() if match else resource


def _metadata(name: str, pid: int, tid: int, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": pid, "tid": tid, "args": arguments}


def _tasks(timeline: Timeline, tracks: _Tracks) -> Iterator[dict[str, Any]]:
    program = timeline.program
    names = [resource.name for resource in program.resources]
    # boundaries are rounded to whole nanoseconds, durations follow, so that neighbours never overlap
    start, end = np.rint(timeline.start * 1e9), np.rint(timeline.end * 1e9)
    lanes: dict[str, list[float]] = {}
    done = np.flatnonzero(~np.isnan(end) & ((timeline.stream >= 0) | (timeline.route >= 0)))
    for task in done[np.argsort(start[done], kind="stable")].tolist():
        stream, route = int(timeline.stream[task]), int(timeline.route[task])
        first, last = float(start[task]), float(end[task])
        if stream >= 0:
            pid, tid = tracks.thread(names[stream])
        else:
            path = program.routes[route].path
            link = names[path[0]] if path else "links"
            pid, tid = tracks.thread(link, _lane(lanes.setdefault(link, []), first, last))
        tag = program.tags[program.tag[task]]
        event = {
            "ph": "X", "name": program.names[task] or tag or "task", "cat": tag or "task",
            "ts": first / 1e3, "dur": (last - first) / 1e3, "pid": pid, "tid": tid,
        }  # fmt: skip
        if route >= 0:
            path_names = [names[link] for link in program.routes[route].path]
            event["args"] = {"bytes": float(timeline.bytes[task]), "path": " > ".join(path_names)}
        yield event


def _lane(busy_until: list[float], start: float, end: float) -> int:
    """Return the first lane that is free at a start, and occupy it: transfers that share a link overlap."""
    for lane, until in enumerate(busy_until):
        if until <= start:
            busy_until[lane] = end
            return lane
    busy_until.append(end)
    return len(busy_until) - 1


def _counters(timeline: Timeline, tracks: _Tracks) -> Iterator[dict[str, Any]]:
    for memory in timeline.ledger.memories.values():
        times, by_category = timeline.ledger.resident(memory.name)
        pid = tracks.process(memory.name)
        for position, time in enumerate(np.rint(times * 1e9).tolist()):
            held = {category: float(level[position]) for category, level in by_category.items()}
            if held:
                yield {
                    "ph": "C", "name": f"{memory.name} [B]", "pid": pid, "tid": _MEMORY_THREAD,
                    "ts": time / 1e3, "args": held,
                }  # fmt: skip
