"""How many replicas a load needs, with headroom and spares, and what they draw and cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.analysis.capacity import DRAWS, LargestLoad, largest_load
from simulator.analysis.curve import LoadPoint, load_point
from simulator.analysis.money import rent
from simulator.analysis.offered_load import at_load, serving
from simulator.analysis.run import answer, load
from simulator.serving.plan import make_plan
from simulator.specs import Catalog, MemroofError
from simulator.strategy import Setup

MONTH = 30 * 86400.0
_TRIES = 4


@dataclass(frozen=True)
class Fleet:
    """A fleet of equal replicas for a load.

    Attributes
    ----------
    load : float
        Asked for, of the scenario's kind: arrivals a second, clients, or speed of a trace.
    headroom : float
        By which the load may rise, relative, with every spare gone.
    largest : LargestLoad
        Of the scenario's own replicas.
    per_replica : float
        Largest load of one.
    replicas : int
        That hold the load with its headroom.
    spares : int
        Further replicas, so many of which may be down.
    devices, nodes : int
        Accelerators of all replicas, and the whole nodes that hold them.
    normal : LoadPoint
        The load shared by all replicas, spares among them.
    worst : LoadPoint
        The load and its headroom with every spare down, as it falls on the others.
    watts : float
        Accelerators in use, at the load [W].
    provisioned_watts : float
        What all nodes may draw: their own limit where published, else that of their accelerators [W].
    dollars_per_second : float
        Of all nodes; 0 where no price is known.
    priced_by : str
        Where dollars come from.
    """

    load: float
    headroom: float
    largest: LargestLoad
    per_replica: float
    replicas: int
    spares: int
    devices: int
    nodes: int
    normal: LoadPoint
    worst: LoadPoint
    watts: float
    provisioned_watts: float
    dollars_per_second: float
    priced_by: str

    @property
    def dollars_per_month(self) -> float:
        """Of thirty days [dollars]."""
        return self.dollars_per_second * MONTH

    @property
    def dollars_per_million_tokens(self) -> float | None:
        """Of generated tokens at the load; None where no price is known."""
        return self.dollars_per_second / self.normal.output_rate * 1e6 if self.dollars_per_second else None


def fleet(
    scenario: str | Path | Mapping[str, Any],
    load_asked: float,
    *,
    headroom: float = 0.2,
    spares: int = 1,
    requests: int | None = None,
    largest: LargestLoad | None = None,
    paths: Iterable[Path] = (),
    overrides: Mapping[str, str] | None = None,
) -> Fleet:
    """Size a fleet of a serving scenario's replica for a load.

    Parameters
    ----------
    scenario : str, Path or mapping
        Its objective and limits must hold; its hardware holds at least one replica, which is then copied.
    load_asked : float
        Requests a second (clients of a closed loop, speed of a trace).
    headroom : float
        By which the load may rise without a bound being missed, relative.
    spares : int
        Replicas that may be down meanwhile (N + k).
    requests : int, optional
        As for :func:`~simulator.analysis.capacity.largest_rate`.
    largest : LargestLoad, optional
        What that function found for this scenario, if it is known already.
    paths, overrides
        Of the catalog.

    Raises
    ------
    MemroofError
        If a number makes no sense, or not even one replica's smallest load holds.
    """
    if load_asked <= 0.0 or headroom < 0.0 or spares < 0:
        raise MemroofError("a fleet needs a load above 0, and a headroom and spares of at least 0")
    setup = load(scenario, catalog=Catalog(paths, overrides))
    largest = largest or largest_load(setup, requests=requests, draws=DRAWS)
    if not largest.value:
        what = (
            "does not fit"
            if not largest.result.fits
            else f"misses {largest.binding.replace('_', ' ')} at any load"
        )
        raise MemroofError(f"{largest.result.name} {what}: no number of replicas holds {largest.goal.text()}")
    own = _replicas(largest.result.setup)
    per_replica = largest.value / own
    count = math.ceil(load_asked * (1.0 + headroom) / per_replica * (1.0 - 1e-9))
    worst = _share(setup, load_asked * (1.0 + headroom), own, count, largest)
    for _ in range(_TRIES):
        if worst.holds:
            break
        count += 1
        worst = _share(setup, load_asked * (1.0 + headroom), own, count, largest)
    normal = _share(setup, load_asked, own, count + spares, largest)
    return _priced(setup, load_asked, headroom, spares, largest, own, count, normal, worst)


def _replicas(setup: Setup) -> int:
    """Return the equal replicas of a scenario; one where it says itself what its fleet is, which is then copied as it is."""
    return 1 if serving(setup).fleet else make_plan(setup).replicas


def _share(setup: Setup, total: float, own: int, replicas: int, largest: LargestLoad) -> LoadPoint:
    """Run what falls on each of ``replicas``, on the scenario's own; figures of all of them."""
    value = total * own / replicas
    result = answer(
        at_load(setup, max(1.0, value) if largest.knob == "concurrency" else value, requests=largest.requests)
    )
    point = load_point(value, result, largest.goal)
    scale = replicas / own
    return LoadPoint(
        total, point.rate * scale, point.holds, point.attainment, None if point.goodput is None else point.goodput * scale,
        point.latencies, point.output_rate * scale, point.busy, point.watts * scale, point.dollars_per_million_tokens,
        point.joules_per_token, point.bottleneck, point.misses,
    )  # fmt: skip


def _priced(
    setup: Setup, total: float, headroom: float, spares: int, largest: LargestLoad, own: int, count: int, normal: LoadPoint,
    worst: LoadPoint,
) -> Fleet:  # fmt: skip
    hardware, outcome = setup.hardware, largest.result.outcome
    each = outcome.devices // own
    on_node = hardware.ranks_per_node
    replicas = count + spares
    nodes = (
        math.ceil(replicas / (on_node // each)) if each <= on_node else replicas * math.ceil(each / on_node)
    )
    per_second, priced_by = rent(largest.result)
    whole = nodes * on_node / outcome.devices
    node = hardware.machine.node
    limit = hardware.device.power.limit * on_node
    if node is not None and node.power is not None:
        limit = node.power.limit
    return Fleet(
        total, headroom, largest, largest.value / own, count, spares, replicas * each, nodes, normal, worst, normal.watts,
        nodes * limit, per_second * whole, priced_by,
    )  # fmt: skip
