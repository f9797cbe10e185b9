"""Bytes, busy seconds and overlaps by hand, on a program of four tasks; residency against the ledger."""

from dataclasses import replace

import numpy as np
import pytest

from simulator.analysis import Result, run
from simulator.analysis.tiers import tiers
from simulator.engine import Program, execute
from simulator.specs import MemroofError


@pytest.fixture(scope="module")
def result() -> Result:
    return run("offload/opt-30b-t4")


def by_hand(result: Result) -> Result:
    """A copy of 2 s, then 3 s of work beside a second copy of 1 s on the same link: 5 s in all."""
    program = Program("by hand")
    gpu, dma = program.stream("gpu"), program.stream("dma")
    link, memory = program.link("pcie", 10.0), program.memory("hbm", 100.0)
    first = program.transfer([link], 20.0, stream=dma)
    work = program.compute(gpu, 3.0, after=[first])
    program.transfer([link], 10.0, stream=dma)
    program.allocate(memory, 40.0, "weights")
    program.allocate(memory, 50.0, "buffers", at=first, until=[work])
    return Result(result.setup, replace(result.outcome, timeline=execute(program)))


def test_flows_and_overlap_by_hand(result: Result) -> None:
    found = tiers(by_hand(result))
    assert found.makespan == 5.0
    flows = {flow.name: flow for flow in found.flows}
    assert (flows["gpu"].busy, flows["gpu"].critical, flows["gpu"].bytes) == (0.6, 0.6, 0.0)
    assert (flows["dma"].busy, flows["dma"].critical, flows["dma"].bytes) == (0.6, 0.4, 30.0)
    assert flows["dma"].achieved == flows["pcie"].achieved == 10.0
    assert (flows["pcie"].busy, flows["pcie"].critical, flows["pcie"].bandwidth) == (0.6, 0.4, 10.0)
    both = dict(zip(found.streams, found.overlap, strict=True))
    assert both["gpu"][found.streams.index("dma")] == pytest.approx(0.2)
    assert np.allclose(found.overlap, found.overlap.T)
    assert np.allclose(np.diag(found.overlap), 0.6)


def test_residency_by_hand(result: Result) -> None:
    (memory,) = tiers(by_hand(result)).memories
    assert (memory.peak, memory.peak_time, memory.capacity) == (90.0, 0.0, 100.0)
    assert memory.mean == pytest.approx(90.0)
    frame = tiers(by_hand(result)).to_frame()
    assert set(frame["category"]) == {"weights", "buffers"}


def test_a_shipped_scenario_agrees_with_its_own_answer(result: Result) -> None:
    found = tiers(result)
    for row in found.memories:
        use = next(use for use in result.memory if use.memory == row.memory)
        assert row.peak == pytest.approx(use.peak)
        assert 0.0 <= row.mean <= row.peak <= row.capacity
    assert sum(flow.critical for flow in found.flows if flow.kind == "stream") == pytest.approx(1.0)
    for flow in found.flows:
        assert 0.0 <= flow.busy <= 1.0 + 1e-9
        assert not flow.bandwidth or flow.achieved <= flow.bandwidth * (1.0 + 1e-9)
    assert found.to_dict()["overlap"]["streams"] == list(found.streams)


def test_without_a_timeline_nothing_is_known(result: Result) -> None:
    bare = Result(result.setup, replace(result.outcome, timeline=None))
    with pytest.raises(MemroofError, match="nothing was run event by event"):
        tiers(bare)
