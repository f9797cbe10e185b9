"""Pipeline schedules: tables of small cases, their published closed forms by the engine, rules and messages."""

import numpy as np
import pytest

from simulator.engine import Program, execute
from simulator.specs import MemroofError
from simulator.training.schedules import (
    SCHEDULES,
    Order,
    Pipeline,
    bubble_fraction,
    bubble_time,
    faults,
    in_flight,
    peak_in_flight,
    pipeline,
)

LETTERS = {"forward": "F", "backward": "D", "input-gradient": "B", "weight-gradient": "W"}


def chunks(name: str, free: int = 3) -> int:
    return SCHEDULES[name].chunks or free


def text(table: Pipeline, stage: int) -> str:
    """A table as the papers draw it: F0 F1 B0 W0, D for a whole backward pass, ' for the second chunk, & for pairs."""
    return " ".join(
        f"{LETTERS[row.part]}{row.micro_batch}" + "'" * row.chunk + "&" * row.paired
        for row in table.orders[stage]
    )


def engine(table: Pipeline, forward: float = 1.0, backward: float = 1.0, weight: float = 1.0):
    """Run the tables with free transfers, a pair as one task."""
    lasts = {
        "forward": forward,
        "backward": backward + weight,
        "input-gradient": backward,
        "weight-gradient": weight,
    }
    program = Program(table.name)
    streams = [program.stream(f"stage {stage}") for stage in range(len(table.orders))]
    memories = [program.memory(f"stage {stage} HBM", 1e9) for stage in range(len(table.orders))]
    known, forwards, position = {}, {}, [0] * len(table.orders)
    while any(position[stage] < len(rows) for stage, rows in enumerate(table.orders)):
        before = list(position)
        for stage, rows in enumerate(table.orders):
            while position[stage] < len(rows):
                group = rows[position[stage] :][: 1 + rows[position[stage]].paired]
                needed = [key for row in group for key in needs(table, stage, row)]
                if not all(key in known for key in needed):
                    break
                task = program.compute(
                    streams[stage],
                    sum(lasts[row.part] for row in group),
                    after=sorted({known[key] for key in needed}),
                )
                position[stage] += len(group)
                for row in group:
                    place, key = table.place(stage, row.chunk), (stage, row.chunk, row.micro_batch)
                    if row.part == "forward":
                        forwards[key] = task
                        known["F", place, row.micro_batch] = task
                    elif row.part != "weight-gradient":
                        known["B", place, row.micro_batch] = task
                    if row.part in ("backward", "weight-gradient"):
                        program.allocate(
                            memories[stage], 1.0, "activations", at=forwards.pop(key), until=[task]
                        )
        assert position != before, f"{table.name} waits for itself"
    return execute(program), memories


def needs(table: Pipeline, stage: int, row: Order) -> list[tuple[str, int, int]]:
    place, micro_batch = table.place(stage, row.chunk), row.micro_batch
    if row.part == "forward":
        return [("F", place - 1, micro_batch)] if place else []
    if row.part == "weight-gradient":
        return [("B", place, micro_batch)]
    return [("F", place, micro_batch)] + [("B", place + 1, micro_batch)] * (place < table.places - 1)


@pytest.mark.parametrize(
    ("name", "p", "m", "v", "stage", "rows"),
    [
        ("naive", 2, 2, 1, 0, "F0 D0 F1 D1"),
        ("gpipe", 2, 3, 1, 1, "F0 F1 F2 D2 D1 D0"),
        ("1f1b", 4, 6, 1, 1, "F0 F1 F2 D0 F3 D1 F4 D2 F5 D3 D4 D5"),
        ("1f1b-interleaved", 2, 4, 2, 1, "F0 F1 F0' D0' F1' D1' F2 D0 F3 D1 F2' D2' F3' D3' D2 D3"),
        ("1f1b-interleaved", 2, 2, 2, 1, "F0 F1 F0' F1' D0' D1' D0 D1"),
        ("2bp", 3, 4, 1, 0, "F0 F1 F2 B0 F3 B1 W0 B2 W1 B3 W2 W3"),
        ("2bp", 3, 4, 1, 2, "F0 B0 F1 B1 F2 B2 F3 B3 W0 W1 W2 W3"),
        ("zb-h1", 3, 4, 1, 0, "F0 F1 F2 B0 W0 F3 B1 W1 B2 W2 B3 W3"),
        ("zb-h1", 3, 4, 1, 2, "F0 B0 F1 B1 F2 B2 W0 F3 B3 W1 W2 W3"),
        ("zb-h2", 2, 4, 1, 0, "F0 F1 F2 B0 W0 F3 B1 W1 B2 W2 B3 W3"),
        ("zb-h2", 2, 4, 1, 1, "F0 B0 F1 B1 F2 B2 W0 F3 B3 W1 W2 W3"),
        ("zb-v", 2, 3, 2, 0, "F0 F1 F2 F0' B0' W0' F1' B1' W1' B0 W0 F2' B2' W2' B1 W1 B2 W2"),
        ("zb-v", 2, 1, 2, 1, "F0 F0' B0' W0' B0 W0"),
        ("dualpipe", 2, 4, 2, 0, "F0 F2' F1 D2' F3'& D0 D3' B1 W1"),
        ("wrap-around", 2, 2, 2, 0, "F0 F1 F0' F1' D0' D1' D0 D1"),
    ],
)  # fmt: skip
def test_small_tables_as_drawn(name: str, p: int, m: int, v: int, stage: int, rows: str) -> None:
    """Figures of the papers, redrawn for few stages; Megatron-LM's order for the interleaved one."""
    assert text(pipeline(name, p, m, v), stage) == rows


def test_pairs_as_drawn() -> None:
    assert text(pipeline("1f1b", 2, 4, pair=True), 1) == "F0 F1& D0 F2& D1 F3& D2 D3"
    assert text(pipeline("1f1b", 2, 4, pair=True), 0) == "F0 F1 F2 F3& D0 D1 D2 D3"
    rows = pipeline("1f1b-interleaved", 2, 4, 2, pair=True)
    assert text(rows, 1) == "F0 F1 F0' F1'& D0' F2& D1' F3& D0 F2'& D1 F3'& D2' D3' D2 D3"


@pytest.mark.parametrize(
    ("name", "idle"),
    [
        ("naive", lambda p, m: 3 * (p - 1) * m),
        ("gpipe", lambda p, m: 3 * (p - 1)),
        ("1f1b", lambda p, m: 3 * (p - 1)),
        ("1f1b-interleaved", lambda p, m: p - 1),
        ("2bp", lambda p, m: p - 1),
        ("zb-h1", lambda p, m: p - 1),
        ("dualpipe", lambda p, m: p - 2),
        ("wrap-around", lambda p, m: p - 1),
    ],
)
def test_idle_time_of_equal_parts_by_the_engine(name: str, idle) -> None:
    """F = B = W = 1 (three chunks where there is a choice), as the papers compare them."""
    for p, m in ((2, 4), (4, 8), (6, 18)):
        part = 1.0 / 3.0 if SCHEDULES[name].chunks is None else 1.0
        timeline, _ = engine(pipeline(name, p, m, chunks(name)), part, part, part)
        assert timeline.makespan - 3 * m == pytest.approx(idle(p, m))
        assert bubble_time(name, p, m, chunks(name)) == pytest.approx(idle(p, m))
        assert bubble_time(name, p, m, chunks(name), synchronous=True) == pytest.approx(idle(p, m))


@pytest.mark.parametrize(("name", "part", "late"), [("zb-h2", 1.0, 1.0), ("zb-v", 0.5, 0.5)])
def test_no_stage_idles_in_zero_bubble_schedules(name: str, part: float, late: float) -> None:
    """Qi et al. 2023, figure 3 and section 6: each stage works from its first pass on; the last stage only starts later."""
    for p, m in ((2, 3), (4, 8), (5, 20)):
        table = pipeline(name, p, m)
        timeline, _ = engine(table, part, part, part)
        starts = [timeline.start[timeline.resource == stage].min() for stage in range(p)]
        ends = [timeline.end[timeline.resource == stage].max() for stage in range(p)]
        assert np.subtract(ends, starts) == pytest.approx(3 * m)
        assert bubble_time(name, p, m) == 0.0
        assert timeline.makespan - 3 * m == pytest.approx(late * (p - 1))
        assert bubble_time(name, p, m, synchronous=True) == pytest.approx(late * (p - 1))


def test_bubble_ratios_of_2bp() -> None:
    """Rae et al. 2024, figure 1: idle share of a step of equal parts, 1F1B-1 (m = p) and 1F1B-2 (m = 2p)."""
    p = np.array([2, 4, 8])
    for m, share in ((p, (p - 1) / (4 * p - 1)), (2 * p, (p - 1) / (7 * p - 1))):
        bubble = bubble_fraction("2bp", p, m)
        assert bubble / (1 + bubble) == pytest.approx(share)


def test_published_bubbles_of_zero_bubble() -> None:
    """Qi et al. 2023: of equal parts, (p - 1)/m for 1F1B, (p - 1)/3m for ZB-H1, none for ZB-H2 and ZB-V."""
    assert bubble_fraction("1f1b", 8, 32) == pytest.approx(7 / 32)
    assert bubble_fraction("zb-h1", 8, 32) == pytest.approx(7 / 96)
    assert bubble_fraction("zb-h2", 8, 32) == bubble_fraction("zb-v", 8, 32) == 0.0
    assert bubble_time("zb-h2", 8, 32, forward=1.2, weight_gradient=0.9) == pytest.approx(7 * (1.2 + 1 - 1.8))


def test_dualpipe_bubble_with_overlapped_pairs() -> None:
    """DeepSeek-V3, table 2: (p/2 - 1)(F&B + B - 3W), B a whole backward pass."""
    idle = bubble_time("dualpipe", 16, 64, forward=1.0, input_gradient=1.0, weight_gradient=0.8, paired=2.4)
    assert idle == pytest.approx(7 * (2.4 + 1.8 - 2.4))
    assert bubble_time("dualpipe", 2, 8) == 0.0


@pytest.mark.parametrize(
    ("name", "p", "m", "held"),
    [
        ("naive", 4, 8, [1, 1, 1, 1]),
        ("gpipe", 4, 8, [8, 8, 8, 8]),
        ("1f1b", 4, 8, [4, 3, 2, 1]),
        ("1f1b", 4, 2, [2, 2, 2, 1]),
        ("1f1b-interleaved", 4, 8, [5, 13 / 3, 11 / 3, 3]),
        ("1f1b-interleaved", 4, 4, [4, 4, 4, 4]),
        ("2bp", 4, 8, [8, 8, 8, 8]),
        ("zb-h1", 4, 8, [4, 4, 4, 4]),
        ("zb-h1", 4, 3, [3, 3, 3, 3]),
        ("zb-h2", 4, 8, [7, 7, 7, 7]),
        ("zb-v", 4, 8, [4, 4, 4, 4]),
        ("dualpipe", 4, 8, [5, 5, 5, 5]),
        ("wrap-around", 4, 8, [8, 8, 8, 8]),
    ],
)
def test_activations_in_flight(name: str, p: int, m: int, held: list[float]) -> None:
    """By the table, by the closed form and by the engine's ledger, in activations of a micro-batch on a stage."""
    table = pipeline(name, p, m, chunks(name))
    share = table.places / p  # chunks that make up a stage's part of the model
    assert [in_flight(rows) / share for rows in table.orders] == pytest.approx(held)
    assert peak_in_flight(name, p, m, chunks(name), np.arange(p)) * np.ones(p) == pytest.approx(held)
    timeline, memories = engine(table)
    assert [timeline.ledger.peak(memory).bytes / share for memory in memories] == pytest.approx(held)


def test_in_flight_of_one_chunk() -> None:
    rows = pipeline("1f1b-interleaved", 4, 8, 3).orders[0]
    assert [in_flight(rows, chunk) for chunk in range(3)] == [8, 7, 4]


def test_pairs_hold_more() -> None:
    """One forward pass more where it was known to be needed, twice as many in 1F1B (Zhuang et al. 2022)."""
    assert [in_flight(rows) for rows in pipeline("1f1b", 4, 16, pair=True).orders] == [8, 6, 4, 2]
    plain, pairs = (pipeline("1f1b-interleaved", 4, 16, 2, pair=pair) for pair in (False, True))
    assert [in_flight(rows) + 1 for rows in plain.orders] == [in_flight(rows) for rows in pairs.orders]


def test_routes() -> None:
    assert pipeline("1f1b-interleaved", 2, 2, 2).routes == (((0, 0), (1, 0), (0, 1), (1, 1)),)
    v = pipeline("zb-v", 3, 2)
    assert v.routes == (((0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (0, 1)),)
    assert (v.chunks, v.places, v.place(0, 1), v.route_of) == (2, 6, 5, (0, 0))
    dual = pipeline("dualpipe", 2, 4)
    assert dual.routes == (((0, 0), (1, 0)), ((1, 1), (0, 1)))
    assert (dual.chunks, dual.places, dual.place(0, 1), dual.route_of) == (2, 2, 1, (0, 0, 1, 1))


@pytest.mark.parametrize("name", SCHEDULES)
def test_places_are_known_without_a_table(name: str) -> None:
    kind = SCHEDULES[name]
    table = pipeline(name, 4, 8, kind.chunks or 3)
    assert kind.places(4, kind.chunks or 3) == table.places
    assert table.chunks * 4 == table.places * kind.copies
    assert kind.splits_backward == any(row.part == "weight-gradient" for rows in table.orders for row in rows)


def test_fixed_chunks_need_not_be_given() -> None:
    assert pipeline("zb-v", 4, 8) is pipeline("zb-v", 4, 8, 2)
    assert SCHEDULES["zb-v"].places(4) == 8


@pytest.mark.parametrize(
    ("name", "p", "m", "v", "pair", "message"),
    [
        ("1f1b", 4, 8, 2, False, "strategy.virtual_stages: 2 needs schedule 1f1b-interleaved or wrap-around, found 1f1b"),
        ("zb-v", 4, 8, 3, False, "3 needs schedule 1f1b-interleaved or wrap-around, found zb-v, which has 2"),
        ("1f1b-interleaved", 4, 8, 1, False, "strategy.schedule: 1f1b-interleaved needs virtual_stages of 2 or more"),
        ("1f1b-interleaved", 1, 8, 2, False, "strategy.schedule: 1f1b-interleaved needs pipeline_parallel of 2 or more"),
        (
            "1f1b-interleaved", 4, 6, 2, False,
            r"micro-batches \(6\) in multiples of pipeline_parallel \(4\); change global_batch or micro_batch, or use 1f1b",
        ),
        ("wrap-around", 4, 8, 1, False, "strategy.schedule: wrap-around needs virtual_stages of 2 or more"),
        ("dualpipe", 3, 8, 2, False, "strategy.schedule: dualpipe needs an even pipeline_parallel, found 3; use 4"),
        ("dualpipe", 4, 6, 2, False, "an even number of micro-batches, 8 or more with pipeline_parallel 4, found 6"),
        ("dualpipe", 4, 9, 2, False, "an even number of micro-batches, 8 or more with pipeline_parallel 4, found 9"),
        ("gpipe", 4, 8, 1, True, "strategy.schedule: gpipe runs no passes in pairs; use 1f1b, 1f1b-interleaved, dualpipe"),
        ("1f1b", 4, 1, 1, True, "strategy.schedule: 1f1b in pairs needs 2 micro-batches or more"),
        ("1f1b", 4, 0, 1, False, "needs a stage and a micro-batch at least, found 4 and 0"),
        ("1f1", 4, 8, 1, False, "strategy.schedule: unknown schedule '1f1'; did you mean '1f1b'"),
    ],
)  # fmt: skip
def test_rules_by_name(name: str, p: int, m: int, v: int, pair: bool, message: str) -> None:
    with pytest.raises(MemroofError, match=message):
        pipeline(name, p, m, v, pair=pair)


def test_all_rules_are_told_together() -> None:
    assert len(faults("dualpipe", 3, 5, 4)) == 3
    assert not faults("dualpipe", 4, 8)


def test_closed_forms_know_their_schedules() -> None:
    with pytest.raises(MemroofError, match="unknown schedule 'zb-h3'; did you mean"):
        bubble_time("zb-h3", 4, 8)
    with pytest.raises(MemroofError, match="unknown schedule 'zb-h3'; did you mean"):
        peak_in_flight("zb-h3", 4, 8)
    for name in SCHEDULES:
        assert bubble_fraction(name, 4, 16, 2) >= 0.0
        assert peak_in_flight(name, 4, 16, 2) > 0.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_stages_share_their_rows(name: str) -> None:
    table = pipeline(name, 128, 1024, chunks(name, 2))
    distinct = {id(row) for rows in table.orders for row in rows}
    assert len(distinct) <= 5 * 1024 * table.chunks
