"""The passes of a schedule table run by the event engine, for one configuration: what closed forms are held against."""

import numpy as np

from simulator.engine import Program, execute
from simulator.training.makespan import MessageSeconds, PassSeconds, StepEnds
from simulator.training.schedules import Order, pipeline


def engine_ends(
    name: str, stages: int, micro_batches: int, chunks: int, passes: PassSeconds, messages: MessageSeconds, *,
    at: int = 0, pair: bool = False,
) -> np.ndarray:  # fmt: skip
    """End of each stage's last row."""
    table = pipeline(name, stages, micro_batches, chunks, pair=pair)
    program = Program("oracle")
    streams = [program.stream(f"stage {stage}") for stage in range(stages)]
    links: dict[tuple[int, int], int] = {}
    arrived: dict[tuple[bool, int, int], int] = {}
    position, last = [0] * stages, [-1] * stages

    def seconds(stage: int, rows: tuple[Order, ...]) -> float:
        if len(rows) == 2:
            forward, backward = sorted(rows, key=lambda row: row.part != "forward")
            return float(passes.pair[stage, forward.chunk, backward.chunk, at])
        (row,) = rows
        part = {
            "forward": passes.forward, "backward": passes.backward, "input-gradient": passes.input_gradient,
            "weight-gradient": passes.weight_gradient,
        }[row.part]  # fmt: skip
        return float(part[stage, row.chunk, at])

    def source(stage: int, row: Order) -> tuple[bool, int, int] | None:
        place, backward = table.place(stage, row.chunk), row.part != "forward"
        if row.part == "weight-gradient" or place == (table.places - 1 if backward else 0):
            return None
        return backward, place, row.micro_batch

    def send(stage: int, row: Order, task: int) -> None:
        backward, place = row.part != "forward", table.place(stage, row.chunk)
        target = place - 1 if backward else place + 1
        if row.part == "weight-gradient" or not 0 <= target < table.places:
            return
        neighbour = table.routes[table.route_of[row.micro_batch]][target][0]
        if neighbour != stage:
            if (stage, neighbour) not in links:
                links[stage, neighbour] = program.link(f"{stage} to {neighbour}", 1.0)
            flow, latency = (
                (messages.backward_flow, messages.backward_latency)
                if backward
                else (messages.forward_flow, messages.forward_latency)
            )
            task = program.transfer(
                [links[stage, neighbour]],
                float(flow[place, at]),
                after=[task],
                latency=float(latency[place, at]),
            )
        arrived[backward, target, row.micro_batch] = task

    moved = True
    while moved:
        moved = False
        for stage, orders in enumerate(table.orders):
            while position[stage] < len(orders):
                first = orders[position[stage]]
                rows = orders[position[stage] :][: 2 if pair and first.paired else 1]
                sources = [source(stage, row) for row in rows]
                if not all(key is None or key in arrived for key in sources):
                    break
                after = [arrived[key] for key in sources if key is not None]
                task = program.compute(streams[stage], seconds(stage, rows), after=after)
                for row in rows:
                    send(stage, row, task)
                position[stage] += len(rows)
                last[stage], moved = task, True
    assert position == [len(orders) for orders in table.orders]
    return np.asarray(execute(program).end)[last]


def random_times(
    rng: np.random.Generator, stages: int, chunks: int, places: int, count: int, *, even: bool, message: float
) -> tuple[PassSeconds, MessageSeconds]:
    """Passes of about a second, equal inner stages or not, messages of up to ``message`` seconds."""
    shape = (1 if even else stages, 1 if even else chunks, count)

    def some(low: float, high: float) -> np.ndarray:
        inner = np.broadcast_to(rng.uniform(low, high, shape), (stages, chunks, count)).copy()
        inner[0, 0] += rng.uniform(0.0, 0.1, count)
        inner[-1, -1] += rng.uniform(0.0, 0.5, count)
        return inner

    forward, inputs, weights = some(0.5, 1.0), some(0.5, 1.2), some(0.4, 1.0)
    backward = inputs + weights
    pair = 0.9 * (forward[:, :, None] + backward[:, None])
    sent = (rng.uniform(0.0, message, (places, count)) for _ in range(4))
    return PassSeconds(forward, inputs, weights, backward, pair), MessageSeconds(*sent)


__all__ = ["StepEnds", "engine_ends", "random_times"]
