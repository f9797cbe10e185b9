"""Schedules whose backward pass is split in two, since no other stage waits for the gradient of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

from simulator.training.schedules.table import Order, Pipeline, Schedule, around, one_way, passes

_Parts = tuple[list[Order], list[Order], list[Order]]
"""The forward, input-gradient and weight-gradient rows of a chunk, by micro-batch."""


def two_stage_backward(stages: int, micro_batches: int, chunks: int, pair: bool) -> Pipeline:
    """2BP on top of 1F1B: gradients of weights fill the gaps of the cool-down, and the rest follows at the end.

    Rae et al. 2024, arXiv:2405.18047, figure 1 (1F1B-1 and 1F1B-2).
    """
    forward, backward, weight = _parts(micro_batches)

    def rows(stage: int) -> Schedule:
        warm_up = min(stages - stage - 1, micro_batches)
        table = forward[:warm_up]
        for ahead, behind in zip(forward[warm_up:], backward, strict=False):
            table += (ahead, behind)
        filled = 0
        for index in range(micro_batches - warm_up, micro_batches):
            if filled < index:
                table.append(weight[filled])
                filled += 1
            table.append(backward[index])
        return (*table, *weight[filled:])

    return one_way("2bp", tuple(map(rows, range(stages))), around(stages), micro_batches)


def zero_bubble_h1(stages: int, micro_batches: int, chunks: int, pair: bool) -> Pipeline:
    """ZB-H1: 1F1B whose weight gradients lag by ``stage`` micro-batches, so that all stages hold the same number.

    Qi et al. 2023, arXiv:2401.10241, section 2.1 and figure 3, top.
    """
    rows = _lagging(micro_batches, [(stages - stage, stage) for stage in range(stages)])
    return one_way("zb-h1", rows, around(stages), micro_batches)


def zero_bubble_h2(stages: int, micro_batches: int, chunks: int, pair: bool) -> Pipeline:
    """ZB-H2: forwards fill the wait for the first backward pass, weight gradients the wait for the last.

    Qi et al. 2023, arXiv:2401.10241, section 2.2 and figure 3, bottom. Stages start and end one after another: there is no
    bubble between a stage's first and last pass, so the next step can follow if the optimizer does not synchronise stages.
    """
    rows = _lagging(micro_batches, [(2 * (stages - stage) - 1, 2 * stage) for stage in range(stages)])
    return one_way("zb-h2", rows, around(stages), micro_batches)


def zero_bubble_v(stages: int, micro_batches: int, chunks: int, pair: bool) -> Pipeline:
    """ZB-V: two chunks a stage along a V, so that the first stage also holds the last chunk of the model.

    Qi et al. 2023, arXiv:2401.10241, section 6; Qi et al. 2024, arXiv:2405.15362 (V-ZB). The loss is found where
    a micro-batch came in, so every stage holds as much as the first stage of 1F1B. With less than ``2 stages - 1``
    micro-batches it is the table of so many without the rows of those that do not exist.
    """
    count = max(micro_batches, 2 * stages - 1)
    down, up = _parts(count, 0), _parts(count, 1)
    rows = tuple(_v_rows(stage, stages, down, up) for stage in range(stages))
    if count > micro_batches:
        rows = tuple(tuple(order for order in table if order.micro_batch < micro_batches) for table in rows)
    route = (*((stage, 0) for stage in range(stages)), *((stage, 1) for stage in reversed(range(stages))))
    return one_way("zb-v", rows, route, micro_batches)


def _parts(micro_batches: int, chunk: int = 0) -> _Parts:
    return (
        passes("forward", chunk, micro_batches),
        passes("input-gradient", chunk, micro_batches),
        passes("weight-gradient", chunk, micro_batches),
    )


def _lagging(micro_batches: int, stages: list[tuple[int, int]]) -> tuple[Schedule, ...]:
    """Return tables with (forwards before the first backward, micro-batches that weight gradients lag) by stage."""
    forward, backward, weight = _parts(micro_batches)

    def rows(ahead: int, lag: int) -> Schedule:
        table = forward[: ahead - 1]
        for index in range(micro_batches):
            table += forward[index + ahead - 1 : index + ahead]
            table.append(backward[index])
            if index >= lag:
                table.append(weight[index - lag])
        return (*table, *weight[max(0, micro_batches - lag) :])

    return tuple(rows(ahead, lag) for ahead, lag in stages)


def _v_rows(stage: int, stages: int, down: _Parts, up: _Parts) -> Schedule:
    forward, backward, weight = map(iter, down)
    forward_up, backward_up, weight_up = map(iter, up)
    table: list[Order] = []

    def repeat(times: int, *parts: Iterator[Order]) -> None:
        table.extend(chain.from_iterable(islice(zip(*parts, strict=False), times)))

    left, warm_up = stages - stage, 2 * stages - stage - 1
    repeat(warm_up - stage, forward)
    repeat(stage, forward_up, forward)
    repeat(left, forward_up, backward_up, weight_up)
    repeat(len(down[0]) - warm_up, forward, backward, weight, forward_up, backward_up, weight_up)
    repeat(left - 1, backward, weight, forward_up, backward_up, weight_up)
    repeat(stage, backward, backward_up)
    repeat(left, backward, weight)
    return (*table, *weight_up, *weight)
