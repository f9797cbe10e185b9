"""Training: one optimizer step under every parallelism, schedule and memory technique, and the run that it is part of."""

from simulator.training.plan import Plan, make_plan, split_layers
from simulator.training.remedies import remedies
from simulator.training.states import Elements, ModelStates, model_states
from simulator.training.step import simulate

__all__ = [
    "Elements", "ModelStates", "Plan", "make_plan", "model_states", "remedies", "simulate", "split_layers",
]  # fmt: skip
