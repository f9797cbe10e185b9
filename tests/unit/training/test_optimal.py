"""The optimal choice against trying everything."""

from itertools import chain, combinations

import pytest

from simulator.graph import Block, Numerics, Shape, build
from simulator.graph.graph import Recompute
from simulator.specs import Catalog
from simulator.training.liveness import liveness
from simulator.training.optimal import choose, choose_operators, options

MIB = 2.0**20


def _block(name: str, *, fused: bool = True) -> Block:
    model = Catalog(environment={}).model(name)
    return build(model, Shape(1, 512), fused_attention=fused).blocks[0]


def _seconds(block: Block) -> dict[str, float]:
    return {
        op.name: sum(float(work.flops) / 5e14 + float(work.bytes) / 3e12 for work in op.forward)
        for op in block.operators
    }


@pytest.fixture(scope="module", params=["llama3-8b", "opt-1.3b"])
def every(request: pytest.FixtureRequest) -> tuple[Block, dict[str, float], list[tuple[float, float]]]:
    """A block and (bytes, seconds) of all sets of its operators."""
    block = _block(request.param, fused=request.param != "opt-1.3b")
    names, seconds = [op.name for op in block.operators], _seconds(block)
    if len(names) > 12:  # the last operators' sets are those of the others
        names = names[:12]
    subsets = chain.from_iterable(combinations(names, size) for size in range(len(names) + 1))
    found = [
        (
            float(block.saved_bytes(frozenset(some))) if some else float(block.saved_bytes()),
            sum(seconds[n] for n in some),
        )
        for some in subsets
    ]
    return block, seconds, found


@pytest.mark.parametrize("share", [1.0, 0.85, 0.6, 0.4, 0.25, 0.15])
def test_no_set_within_the_budget_is_faster(
    every: tuple[Block, dict[str, float], list[tuple[float, float]]], share: float
) -> None:
    block, seconds, sets = every
    budget = share * float(block.saved_bytes())
    solved = choose_operators(block, seconds, budget)
    within = [time for kept, time in sets if kept <= budget]
    if solved is None:
        assert not within
        return
    again, away, exposed = solved
    assert (away, exposed) == (frozenset(), 0.0)
    assert float(block.saved_bytes(again)) <= budget * (1 + 1e-9)
    assert sum(seconds[name] for name in again) <= min(within, default=1.0) * (1 + 1e-6) + 1e-15


def test_nothing_fits() -> None:
    block = _block("llama3-8b")
    assert choose_operators(block, _seconds(block), 0.0) is None
    found = choose([(block, 4)], [_seconds(block)], 1.0)
    assert not found.fits
    assert found.bytes > 1.0


@pytest.mark.parametrize("budget", [110.0, 200.0, 300.0, 450.0, 1000.0])
def test_never_worse_than_a_strategy_that_fits(budget: float) -> None:
    layers, held = 8, 2.0
    block = _block("llama3-8b")
    seconds = _seconds(block)
    found = choose([(block, layers)], [seconds], budget * MIB, held=held)
    hows: tuple[Recompute, ...] = ("none", "selective", "full")
    for how in hows:
        again = frozenset(op.name for op in block.recomputed(how))
        lives = liveness(block, again)
        used = held * layers * float(lives.saved) + float(lives.backward_peak)
        if used <= budget * MIB:
            assert found.fits
            assert found.seconds <= layers * sum(seconds[name] for name in again) * (1 + 1e-9)
    assert sum(count for _, count in found.options[0]) == layers
    if found.fits:
        assert found.bytes <= budget * MIB * (1 + 1e-9)


def test_more_room_never_slows() -> None:
    block = _block("llama3-8b")
    seconds = _seconds(block)
    times = [choose([(block, 6)], [seconds], budget * MIB).seconds for budget in (150, 200, 250, 300, 400)]
    assert times == sorted(times, reverse=True)
    assert times[0] > times[-1]


def test_layers_of_two_kinds_share_a_budget() -> None:
    kinds = [_block("llama3-8b"), _block("opt-1.3b")]
    seconds = [_seconds(block) for block in kinds]
    whole = sum(float(block.saved_bytes()) for block in kinds) * 3
    found = choose([(block, 3) for block in kinds], seconds, 0.7 * whole)
    assert [sum(count for _, count in kind) for kind in found.options] == [3, 3]
    assert found.fits
    assert found.seconds > 0.0


def test_a_link_to_the_host_takes_what_hides() -> None:
    block = _block("llama3-8b")
    seconds = _seconds(block)
    budget = 0.6 * float(block.saved_bytes())
    alone = choose_operators(block, seconds, budget)
    slow = choose_operators(block, seconds, budget, link=1e6)
    fast = choose_operators(block, seconds, budget, link=1e15)
    assert alone is not None
    assert slow is not None
    assert fast is not None
    assert slow[0] == alone[0]
    assert not slow[1]
    assert fast[0] == frozenset()
    assert fast[2] == 0.0
    sent = sum(float(block.saved()[name]) for name in fast[1])
    assert float(block.saved_bytes()) - sent <= budget


def test_offloaded_bytes_are_not_kept() -> None:
    block = _block("llama3-8b")
    found = options(block, _seconds(block), link=1e15)
    assert min(option.saved for option in found) < 1.0
    assert any(option.offloaded for option in found)


def test_a_reversible_block_has_no_choice() -> None:
    from dataclasses import replace

    block = replace(_block("llama3-8b"), reversible=True)
    assert len(options(block, _seconds(block), numerics=Numerics())) == 1
