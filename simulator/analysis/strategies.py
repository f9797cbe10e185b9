"""The one table of strategies: a scenario's kind to the package that lowers it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import cast

from simulator.strategy import Strategy

STRATEGIES: Mapping[str, str] = {
    "training": "simulator.training",
    "serving": "simulator.serving",
    "offload": "simulator.offload",
}


def strategy(kind: str) -> Strategy:
    """Return the strategy package of a kind; imported when it is first needed."""
    return cast(Strategy, importlib.import_module(STRATEGIES[kind]))
