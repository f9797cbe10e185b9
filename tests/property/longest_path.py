"""When the passes of a pipeline run if transfers are free: the longest path through its tables, row by row."""

from collections import deque
from dataclasses import dataclass


@dataclass
class Timing:
    starts: list[list[float]]  # by stage and row
    ends: list[list[float]]

    @property
    def makespan(self):
        return max(ends[-1] for ends in self.ends) - min(starts[0] for starts in self.starts)

    @property
    def window(self):
        """The longest time from a stage's first pass to its last: the period of steps that need no barrier between."""
        return max(ends[-1] - starts[0] for starts, ends in zip(self.starts, self.ends, strict=True))


def timing(table, forward=1.0, input_gradient=1.0, weight_gradient=1.0, paired=None):
    """Times of a chunk's passes are equal on all stages. Raises if a row waits for itself."""
    lasts = {"forward": forward, "input-gradient": input_gradient, "weight-gradient": weight_gradient,
             "backward": input_gradient + weight_gradient}  # fmt: skip
    stages = len(table.orders)
    done = {}
    starts, ends = [[] for _ in range(stages)], [[] for _ in range(stages)]
    ready, waiting = deque(range(stages)), {}
    while ready:
        stage = ready.popleft()
        rows = table.orders[stage]
        while len(ends[stage]) < len(rows):
            index = len(ends[stage])
            both = rows[index].paired
            group = rows[index : index + 2] if both else rows[index : index + 1]
            needed = [key for row in group for key in _needs(table, stage, row)]
            missing = next((key for key in needed if key not in done), None)
            if missing is not None:
                waiting.setdefault(missing, []).append(stage)
                break
            start = max([done[key] for key in needed] + [ends[stage][-1] if ends[stage] else 0.0])
            length = sum(lasts[row.part] for row in group) if not both or paired is None else paired
            for row in group:
                starts[stage].append(start)
                ends[stage].append(start + length)
                for key in _gives(table, stage, row):
                    done[key] = start + length
                    ready.extend(waiting.pop(key, ()))
    if any(len(ends[stage]) < len(table.orders[stage]) for stage in range(stages)):
        raise AssertionError("the tables wait for each other")
    return Timing(starts, ends)


def _needs(table, stage, row):
    route = table.route_of[row.micro_batch]
    place = table.place(stage, row.chunk)
    if row.part == "forward":
        return [("F", route, place - 1, row.micro_batch)] if place else []
    if row.part == "weight-gradient":
        return [("B", route, place, row.micro_batch)]
    own = [("F", route, place, row.micro_batch)]
    return own if place == table.places - 1 else [*own, ("B", route, place + 1, row.micro_batch)]


def _gives(table, stage, row):
    route, place = table.route_of[row.micro_batch], table.place(stage, row.chunk)
    if row.part == "weight-gradient":
        return []
    return [("F" if row.part == "forward" else "B", route, place, row.micro_batch)]
