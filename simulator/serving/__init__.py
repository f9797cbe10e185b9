"""Serving: requests on a replica with continuous batching and a paged KV cache."""

from simulator.serving.iteration import Pricer, Steps
from simulator.serving.kv_cache import LayerGroup, PagedCache
from simulator.serving.pipeline import PipelinePricer
from simulator.serving.plan import ReplicaPlan, make_plan
from simulator.serving.remedies import remedies
from simulator.serving.scheduler import Policy, Served, serve
from simulator.serving.simulate import simulate
from simulator.serving.step_time import StepPricer
from simulator.serving.workload import Requests, closed_loop, draw_requests

__all__ = [
    "LayerGroup", "PagedCache", "PipelinePricer", "Policy", "Pricer", "ReplicaPlan", "Requests", "Served", "StepPricer", "Steps",
    "closed_loop", "draw_requests", "make_plan", "remedies", "serve", "simulate",
]  # fmt: skip
