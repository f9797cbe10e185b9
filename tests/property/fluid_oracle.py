"""A second, slow and simple executor, written without looking at the first: the oracle of the engine's tests.

At every moment it asks each task whether it may start, fills all links progressively by small steps of logic
over plain dictionaries, and jumps to the next moment at which anything ends.
"""

from dataclasses import dataclass, field
from math import inf


@dataclass
class OracleTask:
    after: list[int]
    stream: str | None = None
    duration: float = 0.0  # of a compute, or latency of a transfer
    path: tuple[str, ...] = ()
    size: float = 0.0
    max_rate: float = inf
    claims: dict[str, float] = field(default_factory=dict)
    frees: dict[str, float] = field(default_factory=dict)  # when this task ends


def fair_rates(flows: dict[int, OracleTask], bandwidths: dict[str, float]) -> dict[int, float]:
    """Raise all rates together; whoever meets a limit or a full link stops."""
    rates = dict.fromkeys(flows, 0.0)
    rising = set(flows)
    while rising:
        steps = [flows[task].max_rate - rates[task] for task in rising]
        for link, bandwidth in bandwidths.items():
            on_link = [task for task in flows if link in flows[task].path]
            growing = [task for task in on_link if task in rising]
            if growing:
                steps.append((bandwidth - sum(rates[task] for task in on_link)) / len(growing))
        step = max(min(steps), 0.0)
        for task in rising:
            rates[task] += step
        full = {
            link
            for link, bandwidth in bandwidths.items()
            if sum(rates[task] for task in flows if link in flows[task].path) >= bandwidth * (1 - 1e-12)
        }
        rising = {
            task
            for task in rising
            if rates[task] < flows[task].max_rate * (1 - 1e-12) and not full.intersection(flows[task].path)
        }
    return rates


def run_oracle(
    tasks: list[OracleTask], bandwidths: dict[str, float], capacities: dict[str, float]
) -> list[tuple[float, float]]:
    """Return (start, end) of every task."""
    n_tasks = len(tasks)
    start, end = [inf] * n_tasks, [inf] * n_tasks
    seconds_left = [task.duration for task in tasks]
    bytes_left = [task.size for task in tasks]
    used = dict.fromkeys(capacities, 0.0)
    queue: list[int] = []  # arrival order of those whose turn has come but whose memory has not
    now = 0.0
    while any(value == inf for value in end):
        changed = True
        while changed:
            changed = False
            for task in range(n_tasks):
                spec = tasks[task]
                if start[task] < inf or task in queue:
                    continue
                before = [
                    other for other in range(task) if spec.stream and tasks[other].stream == spec.stream
                ]
                if all(end[other] <= now for other in (*spec.after, *before)):
                    queue.append(task)
            blocked: set[str] = set()
            for task in list(queue):
                claims = tasks[task].claims
                fits = all(used[name] + size <= capacities[name] for name, size in claims.items())
                if fits and not blocked.intersection(claims):
                    queue.remove(task)
                    start[task] = now
                    for name, size in claims.items():
                        used[name] += size
                    changed = True
                else:
                    blocked |= set(claims)
            for task in range(n_tasks):
                idle = seconds_left[task] <= 0.0 and (
                    bytes_left[task] <= 1e-9 * tasks[task].size
                    or (not tasks[task].path and tasks[task].max_rate == inf)
                )
                if start[task] < inf and end[task] == inf and idle:
                    end[task] = now
                    for name, size in tasks[task].frees.items():
                        used[name] -= size
                    changed = True
        running = [task for task in range(n_tasks) if start[task] < inf and end[task] == inf]
        if not running:
            break
        flows = {task: tasks[task] for task in running if seconds_left[task] <= 0.0}
        rates = fair_rates(flows, bandwidths)
        step = min(
            seconds_left[task] if seconds_left[task] > 0.0 else bytes_left[task] / rates[task]
            for task in running
        )
        for task in running:
            if seconds_left[task] > 0.0:
                # What the shortest step takes away must be gone, or a rest of rounding would run on.
                seconds_left[task] = (
                    0.0 if seconds_left[task] <= step * (1 + 1e-12) else seconds_left[task] - step
                )
            else:
                bytes_left[task] -= rates[task] * step
        now += step
    return list(zip(start, end, strict=True))
