"""Laws of liveness and of the caching allocator."""

from functools import lru_cache

from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.graph import Block, Shape, build
from simulator.specs import Catalog
from simulator.training.allocator import CachingAllocator, rounded
from simulator.training.liveness import liveness


@lru_cache(maxsize=1)
def _blocks() -> tuple[Block, ...]:
    catalog = Catalog(environment={})
    names = ("llama3-8b", "opt-1.3b", "deepseek-v2-lite")
    return tuple(
        block
        for name in names
        for fused in (True, False)
        if fused or name != "deepseek-v2-lite"
        for joined in (True, False)
        for block in build(
            catalog.model(name), Shape(1, 128), fused_attention=fused, joined_projections=joined
        ).blocks
    )


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_all_that_is_saved_is_let_go(data: st.DataObject) -> None:
    block = data.draw(st.sampled_from(_blocks()))
    names = [op.name for op in block.operators]
    again = frozenset(data.draw(st.sets(st.sampled_from(names))))
    found = liveness(block, again)
    total = float(found.saved)
    assert abs(sum(float(size) for size in found.freed.values()) - total) <= 1e-9 * max(total, 1.0)
    assert total == float(block.saved_bytes(again))
    assert float(found.forward_peak) >= 0.0
    assert float(found.backward_peak) >= 0.0
    # whatever an operator's backward pass needs is there when it runs
    needed = {name for op in block.operators if op.backward for name in op.saves}
    held = set().union(*found.backward_moments)
    assert needed <= held


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 80 * 2**20), st.integers(0, 5)), max_size=60),
)
def test_the_allocator_holds_what_it_gave(requests: list[tuple[int, int]]) -> None:
    allocator = CachingAllocator()
    taken: list[tuple[int, int]] = []
    most = now = 0
    for size, frees in requests:
        taken.append((allocator.allocate(size), int(rounded(size))))
        now += taken[-1][1]
        most = max(most, now)
        for _ in range(min(frees, len(taken))):
            block, freed = taken.pop(0)
            allocator.release(block)
            now -= freed
    used = allocator.used
    assert used.reserved >= used.allocated >= most
    for block, _ in taken:
        allocator.release(block)
    # all free again: the same requests, one at a time, need nothing more
    for size, _ in requests:
        allocator.release(allocator.allocate(size))
    assert allocator.used.reserved == used.reserved
