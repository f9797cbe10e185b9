"""The largest batch, context and model that still fit a scenario's hardware with its strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.analysis.run import answer, load
from simulator.graph import Shape, build
from simulator.specs import Catalog, MemroofError, Model, OffloadScenario, Scenario, TrainingScenario
from simulator.strategy import Setup

MOST = 1 << 26
"""Where the search for a largest number ends."""
TRAINING: Mapping[str, str] = {"micro-batch": "strategy.micro_batch", "sequence": "workload.sequence"}


@dataclass(frozen=True, slots=True)
class Largest:
    """One thing that was made as large as fits.

    Attributes
    ----------
    what : str
        batch, context, model, ...
    value : str
        The largest that fits; empty where not even the scenario's own does.
    now : str
        The scenario's own.
    next : str
        The smallest found that does not fit or is refused.
    reason : str
        What the next one lacks, or which rule it breaks.
    """

    what: str
    value: str
    now: str
    next: str
    reason: str


def largest(
    scenario: str | Path, *, paths: Iterable[Path] = (), overrides: Mapping[str, str] | None = None
) -> tuple[Largest, ...]:
    """Find the largest of each quantity that a scenario can grow in, everything else as it is.

    Quantities are whole numbers that grow memory, so that a bisection finds the edge; a model is sought among those of the
    catalog that are built alike (dense or with experts), by parameters.

    Raises
    ------
    MemroofError
        If the scenario cannot be loaded, or nothing in it can grow.
    """
    folders, given = tuple(paths), dict(overrides or {})
    setup = load(scenario, catalog=Catalog(folders, given))
    keys = grows(setup.scenario)
    if not keys:
        raise MemroofError(
            f"{setup.scenario.name}: nothing to enlarge in this kind of scenario; try 'memroof fit' or 'memroof capacity'"
        )

    def attempt(changes: Mapping[str, str]) -> Attempt:
        """Answer a changed scenario."""
        try:
            result = answer(load(scenario, catalog=Catalog(folders, {**given, **changes})))
        except MemroofError as error:
            return Attempt(refused=str(error).splitlines()[0])
        return Attempt(lacks="; ".join(result.shortfalls))

    given_keys = {what: key for what, key in keys.items() if _own(setup.scenario, key) is not None}
    found = [_number(what, key, setup.scenario, attempt) for what, key in given_keys.items()]
    if setup.described is not None:
        found.append(_model(setup, Catalog(folders, given), attempt))
    return tuple(found)


def grows(scenario: Scenario) -> Mapping[str, str]:
    """Return the quantities that a kind of scenario can grow in, by the key that says how much."""
    if isinstance(scenario, TrainingScenario):
        return TRAINING
    return scenario.grows if isinstance(scenario, OffloadScenario) else {}


@dataclass(frozen=True, slots=True)
class Attempt:
    """Which rule a changed scenario breaks, or what it lacks; neither where it fits."""

    refused: str = ""
    lacks: str = ""

    @property
    def reason(self) -> str:
        """Why it is not to be had; empty where it is."""
        return self.refused or self.lacks


Attempting = Callable[[Mapping[str, str]], Attempt]


def _own(scenario: Scenario, key: str) -> Any:
    """Return what a scenario says under a dotted key."""
    here: Any = scenario
    for part in key.split("."):
        here = getattr(here, part)
    return here


def _number(what: str, key: str, scenario: Scenario, attempt: Attempting) -> Largest:
    own = int(_own(scenario, key))
    found = attempt({key: str(own)})
    if found.reason:
        return Largest(what, "", f"{own:,}", f"{own:,}", found.reason)
    fits = fails = own
    while fails < MOST and not found.reason:
        fits, fails = fails, fails * 2
        found = attempt({key: str(fails)})
    if not found.reason:
        return Largest(what, f"{fits:,}", f"{own:,}", "", "no limit found")
    stopped, reason = fails, found
    while fails - fits > max(1, fits // 200):
        middle = (fits + fails) // 2
        found = attempt({key: str(middle)})
        if not found.reason:
            fits = middle
            continue
        fails = middle
        # a number that breaks a rule says less than one that memory ends
        if found.lacks or reason.refused:
            stopped, reason = middle, found
    return Largest(what, f"{fits:,}", f"{own:,}", f"{stopped:,}", reason.reason)


def _model(setup: Setup, catalog: Catalog, attempt: Attempting) -> Largest:
    own = setup.model
    alike = sorted(
        (size, name)
        for name in catalog.names("model")
        for model in (catalog.model(name),)
        if (model.moe is None) == (own.moe is None)
        and bool(model.num_encoder_layers) == bool(own.num_encoder_layers)
        for size in (_parameters(model),)
    )
    low, high, reason = -1, len(alike), ""
    while high - low > 1:
        middle = (low + high) // 2
        found = attempt({"model": alike[middle][1]})
        if found.refused:  # no larger or smaller for it: another rule than memory
            del alike[middle]
            high -= 1
        elif found.lacks:
            high, reason = middle, found.lacks
        else:
            low = middle
    value = _named(*alike[low]) if low >= 0 else ""
    beyond = _named(*alike[high]) if high < len(alike) else ""
    return Largest(
        "model", value, _named(_parameters(own), own.name), beyond, reason or "no larger one in the catalog"
    )


def _parameters(model: Model) -> float:
    return float(build(model, Shape(1, 1)).parameters)


def _named(size: float, name: str) -> str:
    return f"{name} ({size / 1e9:,.1f} billion parameters)"
