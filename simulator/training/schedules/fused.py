"""Schedules whose backward pass is one piece: naive, GPipe, 1F1B, interleaved 1F1B, wrap-around."""

from __future__ import annotations

from simulator.training.schedules.table import Order, Pipeline, Schedule, around, one_way, passes


def naive(stages: int, micro_batches: int, chunks: int, pair: bool) -> Pipeline:
    """One micro-batch at a time goes through all stages and back (Huang et al. 2019, arXiv:1811.06965, figure 2b)."""
    forward, backward = passes("forward", 0, micro_batches), passes("backward", 0, micro_batches)
    rows = _alternate(forward, backward)
    return one_way("naive", (rows,) * stages, around(stages), micro_batches)


def gpipe(stages: int, micro_batches: int, chunks: int, pair: bool) -> Pipeline:
    """All forward passes, then all backward passes in reverse (Huang et al. 2019, arXiv:1811.06965, figure 2c)."""
    forward, backward = passes("forward", 0, micro_batches), passes("backward", 0, micro_batches)
    rows = (*forward, *reversed(backward))
    return one_way("gpipe", (rows,) * stages, around(stages), micro_batches)


def one_forward_one_backward(stages: int, micro_batches: int, chunks: int, pair: bool) -> Pipeline:
    """1F1B: ``stages - stage - 1`` forwards to warm up, then one forward and one backward in turn, then what is left.

    Narayanan et al. 2021, arXiv:2104.04473, section 2.2.1. In pairs, a forward pass runs together with a backward pass
    of another micro-batch, so that a result waits for the pair to end: stages warm up with ``2 (stages - stage) - 1``
    forwards, the order of Eager-1F1B (Zhuang et al. 2022, arXiv:2211.05322), lest every second slot be idle. A
    step with free transfers then takes p (F + B) + (m - 1) F&B.
    """
    forward, backward = passes("forward", 0, micro_batches), passes("backward", 0, micro_batches)
    together = passes("forward", 0, micro_batches, paired=True) if pair else forward

    def rows(stage: int) -> Schedule:
        behind = stages - stage - 1
        return _steady(forward, together, backward, 2 * behind + 1 if pair else behind)

    return one_way("1f1b", tuple(map(rows, range(stages))), around(stages), micro_batches)


def interleaved(stages: int, micro_batches: int, chunks: int, pair: bool) -> Pipeline:
    """Interleaved 1F1B over ``chunks`` model chunks a stage (Narayanan et al. 2021, arXiv:2104.04473, section 2.2.2).

    Micro-batches go through a chunk in groups of ``stages``; a single group warms up with all its forwards, as in
    Megatron-LM. In pairs, a stage warms up with one forward more, and a single group is treated as any other.
    """
    total, group = micro_batches * chunks, stages * chunks
    forwards = [passes("forward", chunk, micro_batches) for chunk in range(chunks)]
    pairs = (
        [passes("forward", chunk, micro_batches, paired=True) for chunk in range(chunks)]
        if pair
        else forwards
    )
    backwards = [passes("backward", chunk, micro_batches) for chunk in reversed(range(chunks))]
    order = [((k % group) // stages, (k // group) * stages + k % stages) for k in range(total)]
    forward, together, backward = (
        [table[chunk][index] for chunk, index in order] for table in (forwards, pairs, backwards)
    )

    def rows(stage: int) -> Schedule:
        if micro_batches == stages and not pair:
            return _steady(forward, together, backward, total)
        return _steady(forward, together, backward, (stages - stage - 1) * 2 + (chunks - 1) * stages + pair)

    return one_way("1f1b-interleaved", tuple(map(rows, range(stages))), around(stages, chunks), micro_batches)


def wrap_around(stages: int, micro_batches: int, chunks: int, pair: bool) -> Pipeline:
    """Harmony's wrap-around pipeline: all micro-batches pass a chunk before the next chunk of the same stage.

    Li et al. 2022, arXiv:2202.01306: the model is cut into more packs than there are GPUs, pack after pack is
    placed round-robin, and micro-batches are grouped at each pack, so that a pack's weights are brought in once a pass. It
    is the breadth-first order of Lamy-Poirier 2022, arXiv:2211.05953.
    """
    rows = (
        *(order for chunk in range(chunks) for order in passes("forward", chunk, micro_batches)),
        *(order for chunk in reversed(range(chunks)) for order in passes("backward", chunk, micro_batches)),
    )
    return one_way("wrap-around", (rows,) * stages, around(stages, chunks), micro_batches)


def _steady(forward: list[Order], together: list[Order], backward: list[Order], warm_up: int) -> Schedule:
    warm_up = min(warm_up, len(forward))
    return (
        *forward[:warm_up],
        *_alternate(together[warm_up:], backward),
        *backward[len(forward) - warm_up :],
    )


def _alternate(first: list[Order], second: list[Order]) -> Schedule:
    return tuple(order for both in zip(first, second, strict=False) for order in both)
