"""The discrete-event engine: programs of tasks over streams, links and memories, run to a timeline.

The engine knows neither models nor strategies, only tasks, resources, seconds and bytes. `Program` describes
work, `execute` runs it, `Simulation` runs it beside processes that decide as they go; both give a `Timeline`
with its `MemoryLedger`. For processes there are queues (`ChunkQueue`, `Pool`, `StoreLoad`), slot caches with their
hit rates in closed form (`SlotCache`, `hit_rate`) and predictors (`Predictor`).
"""

from simulator.engine.caches import POLICIES, Policy, SlotCache
from simulator.engine.errors import DeadlockError, EngineError, MemoryFullError, ProgramError
from simulator.engine.executor import execute
from simulator.engine.hit_rates import hit_rate, inclusion, window_occupancy, zipf_trace, zipf_weights
from simulator.engine.ledger import MemoryLedger, Peak, Shortfall
from simulator.engine.predictors import (
    Prediction,
    Predictor,
    fetch_share,
    predict,
    useful_fraction,
    wasted_fraction,
)
from simulator.engine.program import Link, Memory, Program, Route, Slowdown, Stream
from simulator.engine.queues import ChunkQueue, Pool, Request, StoreLoad
from simulator.engine.sharing import max_min_rates
from simulator.engine.simulation import Handle, RoomRequest, Simulation
from simulator.engine.timeline import BARRIER, COMPUTE, KINDS, TRANSFER, CriticalPath, Rates, Timeline

__all__ = [
    "BARRIER",
    "COMPUTE",
    "KINDS",
    "POLICIES",
    "TRANSFER",
    "ChunkQueue",
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
    "Pool",
    "Prediction",
    "Predictor",
    "Program",
    "ProgramError",
    "Rates",
    "Request",
    "RoomRequest",
    "Route",
    "Shortfall",
    "Simulation",
    "SlotCache",
    "Slowdown",
    "StoreLoad",
    "Stream",
    "Timeline",
    "execute",
    "fetch_share",
    "hit_rate",
    "inclusion",
    "max_min_rates",
    "predict",
    "useful_fraction",
    "wasted_fraction",
    "window_occupancy",
    "zipf_trace",
    "zipf_weights",
]
