"""Tokens per second of one sequence alone: reading a prompt, generating, or both after each other."""

from __future__ import annotations

import numpy as np

from simulator.cost import relative_error
from simulator.serving.plan import make_plan
from simulator.specs import MemroofError, ServingScenario
from simulator.strategy import Setup


def phase_rate(setup: Setup, prompt: int, output: int, depth: int) -> tuple[float, float]:
    """Return the predicted tokens per second of one sequence and their relative standard error.

    Parameters
    ----------
    setup : Setup
        A serving scenario; its workload does not count.
    prompt, output, depth : int
        Tokens that are read, that are generated, and that are cached before either.

    Notes
    -----
    The prompt is read in pieces of the scenario's token budget, then each of ``output`` iterations adds a token, as
    llama-bench counts.

    Raises
    ------
    MemroofError
        If the scenario is of another kind, or the model does not fit.
    """
    if not isinstance(setup.scenario, ServingScenario):
        raise MemroofError(
            f"llama-bench output is compared with a serving scenario; {setup.scenario.name!r} is of kind "
            f"{setup.scenario.kind!r}"
        )
    plan = make_plan(setup)
    needed = sum(plan.resident.values()) + float(plan.cache.size(depth + prompt + output))
    if needed > plan.usable:
        raise MemroofError(
            f"{setup.scenario.name}: needs {needed:,.0f} bytes of a GPU and may use {plan.usable:,.0f}"
        )
    pricer, none = plan.pricer, np.zeros(0, np.int64)
    parts = []
    for done in range(0, prompt, plan.policy.max_tokens):
        new = min(plan.policy.max_tokens, prompt - done)
        parts.append(pricer.mixed(np.array([new]), np.array([depth + done]), none, 1).total(1))
    if output:
        parts.append(pricer.decode(np.array([depth + prompt]), output).total(output))
    account = pricer.account(np.sum(parts, axis=0))
    error = float(relative_error(account.by_class, setup.cost.calibration.error))
    return (prompt + output) / account.seconds, error
