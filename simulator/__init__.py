"""memroof: an analytical memory and throughput simulator for AI systems.

The command line's verbs as functions; each is imported when it is first used:

>>> import simulator
>>> result = simulator.run("training/gpt3-175b-64xa100")  # doctest: +SKIP
>>> result.headline.text(), result.bottleneck  # doctest: +SKIP

==================  =================================================================================
``load``            read and check a scenario with everything that it names
``run``             answer a scenario: a :class:`~simulator.analysis.Result`
``fit``             does a model fit some hardware, and how much of it
``whatif``          answer a scenario for every combination of varied keys
``search``          find the best training strategies for a scenario
``largest_rate``    find the largest load that holds a serving scenario's objective and limits
``load_curve``      latency, goodput and cost of a serving scenario against its load
``fleet``           how many replicas a load needs, with headroom and spares
``pareto``          tokens per second of a user against those of an accelerator
``tiers``           what each memory of a result held and each link carried, when, and beside what
``upgrades``        what one more SSD, more DRAM, faster PCIe or a CXL card would give a scenario
``largest``         the largest batch, context and model that fit a scenario
``render_report``   a result's sizing report as HTML, Markdown or CSV
``Catalog``         hardware, models and scenarios by name, from the user's folders and the shipped ones
``Result``          the answer, with frames and figures on demand
``MemroofError``    base of every error that an input can cause
==================  =================================================================================
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulator.analysis.capacity import LargestLoad, largest_rate
    from simulator.analysis.curve import LoadCurve, load_curve
    from simulator.analysis.fit import FitReport, fit
    from simulator.analysis.fleet import Fleet, fleet
    from simulator.analysis.largest import Largest, largest
    from simulator.analysis.pareto import Pareto, pareto
    from simulator.analysis.result import Result
    from simulator.analysis.run import load, run
    from simulator.analysis.search import Search, search
    from simulator.analysis.tiers import Tiers, tiers
    from simulator.analysis.upgrades import Upgrade, upgrades
    from simulator.analysis.whatif import Sweep, whatif
    from simulator.report import render_report
    from simulator.specs import Catalog, MemroofError

    __version__: str

__all__ = [
    "Catalog", "FitReport", "Fleet", "Largest", "LargestLoad", "LoadCurve", "MemroofError", "Pareto", "Result", "Search",
    "Sweep", "Tiers", "Upgrade", "__version__", "fit", "fleet", "largest", "largest_rate", "load", "load_curve", "pareto",
    "render_report", "run", "search", "tiers", "upgrades", "whatif",
]  # fmt: skip

_HOMES = {
    "Catalog": "simulator.specs",
    "FitReport": "simulator.analysis",
    "Fleet": "simulator.analysis.fleet",
    "Largest": "simulator.analysis.largest",
    "LargestLoad": "simulator.analysis.capacity",
    "LoadCurve": "simulator.analysis.curve",
    "MemroofError": "simulator.specs",
    "Pareto": "simulator.analysis.pareto",
    "Result": "simulator.analysis",
    "Search": "simulator.analysis.search",
    "Sweep": "simulator.analysis",
    "Tiers": "simulator.analysis.tiers",
    "Upgrade": "simulator.analysis.upgrades",
    "fit": "simulator.analysis",
    "fleet": "simulator.analysis.fleet",
    "largest": "simulator.analysis.largest",
    "largest_rate": "simulator.analysis.capacity",
    "load": "simulator.analysis",
    "load_curve": "simulator.analysis.curve",
    "pareto": "simulator.analysis.pareto",
    "render_report": "simulator.report",
    "run": "simulator.analysis",
    "search": "simulator.analysis.search",
    "tiers": "simulator.analysis.tiers",
    "upgrades": "simulator.analysis.upgrades",
    "whatif": "simulator.analysis",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("memroof")
    if name not in _HOMES:
        raise AttributeError(f"module 'simulator' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
