"""Search: every legal training strategy in closed form, the best few in the event engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from simulator.analysis.result import Result
from simulator.analysis.run import answer, load
from simulator.specs import Catalog, Hardware, MemroofError, Model, TrainingScenario, scenario_with

Objective = Literal["step_time", "cost"]
LONG = 16384
"""Tokens of a sequence from which on cutting it over context-parallel ranks is tried."""


@dataclass(frozen=True)
class Candidate:
    """One of the best strategies: what it sets, what the closed form said, what the engine says."""

    strategy: Mapping[str, Any]
    closed_form: float
    """Step time in closed form [s]."""
    result: Result

    @property
    def step_time(self) -> float:
        """Step time in the engine [s]."""
        return self.result.values["step_time"].value

    @property
    def gpu_seconds(self) -> float:
        """Time of all GPUs in use for a step [s]."""
        return self.step_time * self.result.outcome.devices


@dataclass(frozen=True)
class Search:
    """What a search found."""

    objective: Objective
    axes: Mapping[str, tuple[Any, ...]]
    """What was varied."""
    points: int
    legal: int
    fitting: int
    illegal: Mapping[str, int]
    """Combinations that break a rule, by what they break first."""
    candidates: tuple[Candidate, ...]
    """The best that fit, the best first; the least short of memory where none fits."""

    @property
    def fits(self) -> bool:
        """Whether any strategy fits."""
        return self.fitting > 0


def search(
    scenario: str | Path | Mapping[str, Any],
    *,
    top: int = 5,
    objective: Objective = "step_time",
    vary: Mapping[str, Sequence[str]] | None = None,
    paths: Iterable[Path] = (),
    overrides: Mapping[str, str] | None = None,
) -> Search:
    """Find the best training strategies for a scenario's model, hardware and batch.

    Parameters
    ----------
    scenario : str, Path or mapping
        A training scenario; what is not varied stays as it says.
    top : int
        How many strategies the event engine runs.
    objective : {"step_time", "cost"}
        What is least: seconds of a step, or seconds times GPUs, for which leaving GPUs idle is tried too.
    vary : mapping of str to sequence of str, optional
        Values of strategy fields instead of :func:`default_grid`'s: ``{"micro_batch": ["1", "2"]}``.
    paths, overrides
        Of the catalog.

    Raises
    ------
    MemroofError
        If the scenario is no training, a field or value is wrong, or no combination is legal.
    """
    from simulator.training.sweep import sweep

    setup = load(scenario, catalog=Catalog(paths, overrides))
    checked = setup.scenario
    if not isinstance(checked, TrainingScenario):
        raise MemroofError(
            f"search compares training strategies; {checked.name} is a {checked.kind} scenario"
        )
    grid = default_grid(checked, setup.model, setup.hardware, objective)
    grid |= {_field(name): _values(checked, _field(name), texts) for name, texts in (vary or {}).items()}
    found = sweep(setup, grid)
    if not len(found.point):
        reasons = ", ".join(f"{name} {count:,} times" for name, count in found.illegal.items())
        raise MemroofError(f"none of {found.size:,} combinations is legal; rules broken first: {reasons}")
    weight = found.ranks if objective == "cost" else np.ones(len(found.point))
    order = _order(found.step_time * weight, found.peak_memory, found.fits)
    candidates = []
    for row in order[:top].tolist():
        fields = found.strategy(row)
        strategy = checked.strategy.model_copy(update=fields)
        result = answer(replace(setup, scenario=checked.model_copy(update={"strategy": strategy})))
        candidates.append(Candidate(fields, float(found.step_time[row]), result))
    candidates.sort(
        key=lambda one: (not one.result.fits, one.gpu_seconds if objective == "cost" else one.step_time)
    )
    return Search(
        objective,
        found.axes,
        found.size,
        len(found.point),
        int(found.fits.sum()),
        found.illegal,
        tuple(candidates),
    )


def default_grid(
    scenario: TrainingScenario, model: Model, hardware: Hardware, objective: Objective = "step_time"
) -> dict[str, tuple[Any, ...]]:
    """Return what a search varies: how the work is cut, ordered and kept; formats and kernels stay as the scenario says."""
    batch = scenario.workload.global_batch
    layers = model.num_hidden_layers + model.num_encoder_layers
    grid: dict[str, tuple[Any, ...]] = {
        "tensor_parallel": _powers(min(hardware.ranks_per_node, model.num_attention_heads)),
        "pipeline_parallel": _divisors(hardware.size, min(hardware.size, layers)),
        "context_parallel": _powers(8) if scenario.workload.sequence >= LONG else (1,),
        "data_parallel": _powers(min(hardware.size, batch)) if objective == "cost" else (None,),
        "micro_batch": _powers(min(16, batch)),
        "schedule": ("1f1b", "1f1b-interleaved", "zb-h1"),
        "virtual_stages": (1, 2, 3, 4, 6),
        "sequence_parallel": (False, True),
        "recompute": ("none", "selective", "full"),
        "zero_stage": (0, 1, 2, 3),
        "overlap_gradient_reduction": (False, True),
        "overlap_parameter_gather": (False, True),
    }  # fmt: skip
    if model.moe is not None:
        grid["expert_parallel"] = _powers(min(model.moe.num_experts, hardware.size))
    return grid


def _powers(most: int) -> tuple[int, ...]:
    return tuple(2**exponent for exponent in range(most.bit_length()))


def _divisors(number: int, most: int) -> tuple[int, ...]:
    return tuple(divisor for divisor in range(1, most + 1) if number % divisor == 0)


def _field(name: str) -> str:
    return name.removeprefix("strategy.")


def _values(scenario: TrainingScenario, name: str, texts: Sequence[str]) -> tuple[Any, ...]:
    """Read values of a field as a scenario file would."""
    scenarios = (scenario_with(scenario, {f"strategy.{name}": text}) for text in texts)
    return tuple(
        getattr(changed.strategy, name) for changed in scenarios if isinstance(changed, TrainingScenario)
    )


def _order(value: Any, peak: Any, fits: Any) -> Any:
    """Return rows by value, those that fit first; of equal ones only the first, whose fields come first in the grid.

    Where nothing fits, the least peaks come first.
    """
    order = np.lexsort((np.arange(len(value)), value if fits.any() else peak, ~fits))
    keys = np.stack([value[order], peak[order]], axis=1)
    # rounding apart: flags that change nothing leave what they do not touch the same
    _, first = np.unique(np.round(keys / keys.max(axis=0), 9), axis=0, return_index=True)
    kept = order[np.sort(first)]
    return kept[fits[kept]] if fits.any() else kept
