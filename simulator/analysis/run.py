"""Load a scenario and answer it: load, price, lower, execute, analyse."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulator.analysis.result import Result
from simulator.analysis.strategies import strategy
from simulator.cost import CostModel
from simulator.specs import (
    Calibration,
    Catalog,
    Hardware,
    MeasuredTable,
    MemroofError,
    Scenario,
    read_measured,
)
from simulator.strategy import Setup


def load(
    scenario: str | Path | Mapping[str, Any] | Scenario,
    *,
    catalog: Catalog | None = None,
    overrides: Mapping[str, str] | None = None,
) -> Setup:
    """Read and check a scenario with everything that it names.

    Parameters
    ----------
    scenario : str, Path, mapping or Scenario
        A name of the catalog, a path, the content of a scenario file, or a checked scenario.
    catalog : Catalog, optional
        Where names are looked up; the shipped catalog if absent.
    overrides : mapping of str to str, optional
        ``--set`` assignments, for a catalog that is made here.

    Raises
    ------
    MemroofError
        One line for each problem.
    """
    if catalog is not None and overrides:
        raise MemroofError("overrides belong to the catalog that is given: Catalog(overrides=...)")
    catalog = catalog or Catalog(overrides=overrides)
    if isinstance(scenario, (str, Path)):
        checked: Scenario = catalog.scenario(str(scenario))
    elif isinstance(scenario, Mapping):
        checked = catalog.scenario_from(scenario)
    else:
        checked = scenario
    model = catalog.model(checked.model) if checked.model else None
    hardware = catalog.hardware(checked.hardware)
    training = checked.kind == "training"
    costs: dict[str, CostModel] = {}
    for name, alone in by_device(hardware).items():
        measured = read_measured(Path(checked.measured), name) if checked.measured else None
        costs[name] = cost_model(alone, catalog.calibration(alone.device), measured, training=training)
    first, *others = costs.items()
    named = {entry.key: entry for entry in checked.entries}
    return Setup(
        checked, model, hardware, first[1], dict(others), _pools(checked, catalog),
        host=_host(hardware, catalog) if checked.kind == "offload" else None,
        models={e.name: catalog.model(e.name) for key, e in named.items() if e.kind == "model" and key != ("model",)},
        layers=next((catalog.layers(entry.name) for entry in named.values() if entry.kind == "layers"), None),
        graph=next((catalog.graph(entry.name) for entry in named.values() if entry.kind == "graph"), None),
    )  # fmt: skip


def _host(hardware: Hardware, catalog: Catalog) -> CostModel | None:
    """Return the cost model of a node's CPUs, with the DRAM that the first of them is wired to."""
    machine = hardware.machine
    engine = next((engine for engine in machine.hosts if engine.memory), None)
    if engine is None or engine.memory is None:
        return None
    bandwidth = machine.store(engine.memory).read.bandwidth
    return CostModel(engine.device, catalog.calibration(engine.device), bandwidth, sustained=True)


def _pools(scenario: Scenario, catalog: Catalog) -> tuple[tuple[Hardware, CostModel] | None, ...]:
    """Return hardware and cost model of each pool of a fleet that has its own."""
    found: list[tuple[Hardware, CostModel] | None] = []
    for choice in scenario.pool_hardware:
        if choice is None:
            found.append(None)
            continue
        hardware = catalog.hardware(choice)
        found.append((hardware, cost_model(hardware, catalog.calibration(hardware.device))))
    return tuple(found) if any(found) else ()


def by_device(hardware: Hardware) -> dict[str, Hardware]:
    """Return a node for each kind of accelerator, in rank order."""
    found: dict[str, Hardware] = {}
    for part in hardware.parts:
        found.setdefault(part.machine.ranks[0].device.name, Hardware(part.machine.name, part.machine, 1, ()))
    return found


def cost_model(
    hardware: Hardware,
    calibration: Calibration,
    measured: MeasuredTable | None = None,
    *,
    training: bool = False,
) -> CostModel:
    """Return the cost model of the accelerators, at the clock that they hold under load, or through hours of training."""
    bandwidth = hardware.memory.read.bandwidth
    return CostModel(
        hardware.device, calibration, bandwidth, sustained=True, training=training, measured=measured
    )


def run(
    scenario: str | Path | Mapping[str, Any] | Scenario,
    *,
    catalog: Catalog | None = None,
    overrides: Mapping[str, str] | None = None,
    detail: bool = False,
) -> Result:
    """Answer a scenario: does it fit, how fast is it, what binds it, how sure are we.

    ``detail`` asks for a timeline operator by operator. See :func:`load` for the other parameters and errors.
    """
    return answer(load(scenario, catalog=catalog, overrides=overrides), detail=detail)


def answer(setup: Setup, *, detail: bool = False) -> Result:
    """Answer a loaded setup."""
    result = Result(setup, strategy(setup.scenario.kind).simulate(setup, detail=detail))
    _ = (
        result.expectations,
        result.limits,
    )  # a metric that does not exist is an error of the scenario: say so now
    return result
