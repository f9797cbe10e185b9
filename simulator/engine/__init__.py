"""The discrete-event engine: programs of tasks over streams, links and memories, run to a timeline.

The engine knows neither models nor strategies, only tasks, resources, seconds and bytes. `Program` describes
work, `execute` runs it, `Simulation` runs it beside processes that decide as they go; both give a `Timeline`
with its `MemoryLedger`.
"""

from simulator.engine.caches import POLICIES, Policy, SlotCache
from simulator.engine.errors import DeadlockError, EngineError, MemoryFullError, ProgramError
from simulator.engine.executor import execute
from simulator.engine.hit_rates import hit_rate, inclusion, window_occupancy, zipf_trace, zipf_weights
from simulator.engine.ledger import MemoryLedger, Peak, Shortfall
from simulator.engine.program import Link, Memory, Program, Route, Stream
from simulator.engine.sharing import max_min_rates
from simulator.engine.simulation import Handle, Simulation
from simulator.engine.timeline import BARRIER, COMPUTE, KINDS, TRANSFER, CriticalPath, Rates, Timeline

__all__ = [
    "BARRIER",
    "COMPUTE",
    "KINDS",
    "POLICIES",
    "TRANSFER",
    "CriticalPath",
    "DeadlockError",
    "EngineError",
    "Handle",
    "Link",
    "Memory",
    "MemoryFullError",
    "MemoryLedger",
    "Peak",
    "Policy",
    "Program",
    "ProgramError",
    "Rates",
    "Route",
    "Shortfall",
    "Simulation",
    "SlotCache",
    "Stream",
    "Timeline",
    "execute",
    "hit_rate",
    "inclusion",
    "max_min_rates",
    "window_occupancy",
    "zipf_trace",
    "zipf_weights",
]
