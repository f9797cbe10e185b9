"""Pipeline schedules as data: which pass of which micro-batch each stage runs next.

A schedule is a table of :class:`Order` rows for each stage and the route of the micro-batches through the model chunks;
the lowering turns rows into tasks and the engine finds the times. A new schedule is one function and one row in
:data:`SCHEDULES`.
"""

from simulator.training.schedules.closed_forms import bubble_fraction, bubble_time, peak_in_flight
from simulator.training.schedules.kinds import SCHEDULES, ScheduleKind, faults, pipeline
from simulator.training.schedules.table import Order, Part, Pipeline, Route, Schedule, in_flight

__all__ = [
    "SCHEDULES",
    "Order",
    "Part",
    "Pipeline",
    "Route",
    "Schedule",
    "ScheduleKind",
    "bubble_fraction",
    "bubble_time",
    "faults",
    "in_flight",
    "peak_in_flight",
    "pipeline",
]
