"""Training: one optimizer step under tensor, sequence, pipeline, data and expert parallelism."""

from simulator.training.memory import ModelStates, bytes_per_parameter, model_states
from simulator.training.plan import Plan, make_plan, split_layers
from simulator.training.remedies import remedies
from simulator.training.schedule import SCHEDULES, Order, bubble_fraction, in_flight
from simulator.training.step import simulate

__all__ = [
    "SCHEDULES", "ModelStates", "Order", "Plan", "bubble_fraction", "bytes_per_parameter", "in_flight", "make_plan",
    "model_states", "remedies", "simulate", "split_layers",
]  # fmt: skip
