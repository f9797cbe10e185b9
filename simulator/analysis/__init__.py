"""Analysis: scenarios in, answers out."""

from simulator.analysis.change import RemedyTried, Sensitivity
from simulator.analysis.fit import FitReport, fit
from simulator.analysis.result import LEVEL, Check, Result, Value, format_value
from simulator.analysis.run import answer, load, run
from simulator.analysis.whatif import Sweep, whatif

__all__ = [
    "LEVEL", "Check", "FitReport", "RemedyTried", "Result", "Sensitivity", "Sweep", "Value",
    "answer", "fit", "format_value", "load", "run", "whatif",
]  # fmt: skip
