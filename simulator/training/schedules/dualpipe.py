"""DualPipe: micro-batches enter from both ends, and each forward pass overlaps a backward pass of the other direction."""

from __future__ import annotations

from collections import deque

from simulator.training.schedules.table import Order, Part, Pipeline, Schedule, passes


def dualpipe(stages: int, micro_batches: int, chunks: int, pair: bool) -> Pipeline:
    """DualPipe over an even number of stages, each with a chunk of two copies of the model.

    DeepSeek-AI 2024, arXiv:2412.19437, section 3.2.1 and figure 5. Half of the micro-batches go from the first stage to the
    last through chunk 0 (the place of the stage), half from the last to the first through chunk 1 (its mirror image). What a
    stage does depends on its distance from the nearer end alone.
    """
    half = micro_batches // 2
    first = [_Direction(0, range(half)), _Direction(1, range(half, micro_batches))]
    orders = []
    for stage in range(stages):
        near, far = first if stage < stages // 2 else reversed(first)
        orders.append(_rows(min(stage, stages - 1 - stage), stages // 2, half, near, far))
    routes = (
        tuple((stage, 0) for stage in range(stages)),
        tuple((stage, 1) for stage in reversed(range(stages))),
    )
    return Pipeline("dualpipe", tuple(orders), routes, (0,) * half + (1,) * half)


class _Direction:
    """The rows of one direction, shared by all stages."""

    def __init__(self, chunk: int, micro_batches: range) -> None:
        end = micro_batches.stop

        def rows(part: Part, *, paired: bool = False) -> list[Order]:
            return passes(part, chunk, end, paired=paired)[micro_batches.start :]

        self.forward, self.together = rows("forward"), rows("forward", paired=True)
        self.backward, self.input, self.weight = (
            rows("backward"),
            rows("input-gradient"),
            rows("weight-gradient"),
        )


class _Table:
    """A stage's table as it grows; ``near`` (0) entered at the nearer end, ``far`` (1) at the other."""

    def __init__(self, near: _Direction, far: _Direction) -> None:
        self.directions = (near, far)
        self.rows: list[Order] = []
        self.forwards, self.backwards = [0, 0], [0, 0]
        self.deferred: deque[Order] = deque()

    def forward(self, direction: int, *, paired: bool = False) -> None:
        source = self.directions[direction]
        self.rows.append((source.together if paired else source.forward)[self.forwards[direction]])
        self.forwards[direction] += 1

    def backward(self, direction: int, *, split: bool = False) -> None:
        source, index = self.directions[direction], self.backwards[direction]
        self.rows.append((source.input if split else source.backward)[index])
        if split:
            self.deferred.append(source.weight[index])
        self.backwards[direction] += 1

    def both(self, forward: int, backward: int) -> None:
        self.forward(forward, paired=True)
        self.backward(backward)

    def weight(self) -> None:
        self.rows.append(self.deferred.popleft())


def _rows(depth: int, half_stages: int, half: int, near: _Direction, far: _Direction) -> Schedule:
    """Return the table of the stage at a distance from the nearer end, in the eight phases of the published figure."""
    table, to_middle = _Table(near, far), half_stages - depth - 1
    for _ in range(2 * to_middle):
        table.forward(0)
    for _ in range(depth + 1):
        table.forward(0)
        table.forward(1)
    for _ in range(to_middle):
        table.backward(1, split=True)
        table.weight()
        table.forward(1)
    for index in range(half - 2 * half_stages + depth + 1):
        if (
            index == 0 and to_middle == 0
        ):  # the middle stages don't overlap their first pair, which starts the others sooner
            table.forward(0)
            table.backward(1)
        else:
            table.both(0, 1)
        table.both(1, 0)
    for _ in range(to_middle):
        table.backward(1)
        table.both(1, 0)
    for index in range(2 * (depth + 1)):  # the second half of the last backward passes is split
        table.backward((index + 1) % 2, split=index > depth)
    for _ in range(to_middle):
        table.weight()
        table.backward(0, split=True)
    for _ in range(depth + 1):
        table.weight()
    return tuple(table.rows)
