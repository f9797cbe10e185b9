"""A server of toy GPUs behind one uplink and layers with round figures, for examples that can be checked by hand."""

from __future__ import annotations

from functools import cache

from offload_toy import catalog

from simulator.analysis import load
from simulator.cost import CostModel
from simulator.offload.task_packs.layers import Layers, measured_layers
from simulator.offload.task_packs.server import Server, find_server
from simulator.specs import MeasuredLayers, TaskPacksStrategy
from simulator.specs.cluster import Hardware
from simulator.specs.hardware import Node
from simulator.specs.machine import build_machine
from simulator.strategy import Setup


def profile(
    count: int = 4,
    weights: float = 100e6,
    last: float | None = None,
    *,
    states: int = 2,
    forward_working: float = 10e6,
    backward_working: float = 20e6,
) -> MeasuredLayers:
    """Return layers of 100 MB, inputs of 10 MB a sample, 1 s a sample forward and 3 s backward with its forward pass.

    A layer's memory is its weights, as much again for gradients backward, its input, and working memory for each sample.
    """
    sizes = [1, 2, 4, 8]

    def layer(name: str, size: float, times: int) -> dict[str, object]:
        forward, backward = 10e6 + forward_working, 10e6 + backward_working
        return {
            "name": name, "count": times, "weights": f"{size} B", "state": f"{states * size} B", "input": "10e6 B",
            "update": "0.5 s",
            "forward": {"time": [f"{u} s" for u in sizes], "memory": [f"{size + forward * u} B" for u in sizes]},
            "backward": {"time": [f"{3 * u} s" for u in sizes], "memory": [f"{2 * size + backward * u} B" for u in sizes]},
        }  # fmt: skip

    layers = [layer("layer", weights, count - 1)] if count > 1 else []
    layers.append(layer("loss", weights if last is None else last, 1))
    return MeasuredLayers.model_validate(
        {
            "kind": "layers", "name": "toy", "source": "made up", "device": "toy-gpu",
            "micro_batches": {"forward": sizes, "backward": sizes}, "layers": layers,
        }
    )  # fmt: skip


@cache
def hardware(gpus: int) -> Hardware:
    """Return toy GPUs on one switch with one uplink of 10 GB/s."""
    found = catalog()
    node = Node.model_validate(
        {
            "kind": "node",
            "name": "toy-server",
            "source": "made up",
            "components": {
                "gpu": {"device": "toy-gpu", "count": gpus},
                "pcie_switch": {"switch": True},
                "cpu": {"device": "toy-cpu"},
                "dram": {"device": "toy-dram", "capacity": "100 GB", "bandwidth": "1000 GB/s"},
            },
            "wires": [
                {"between": ["gpu", "pcie_switch"], "link": "toy-pcie"},
                {"between": ["pcie_switch", "cpu"], "link": "toy-pcie"},
                {"between": ["dram", "cpu"], "link": "toy-bus", "lanes": 50},
            ],
        }
    )
    return Hardware(node.name, build_machine(node, found.device, found.link), 1, ())


def server(gpus: int, **strategy: object) -> Server:
    """Return the toy server as tasks see it."""
    found = hardware(gpus)
    chosen = TaskPacksStrategy.model_validate({"method": "task-packs", **strategy})
    return find_server(found, catalog().calibration(found.device), chosen)


def layers(count: int = 4, weights: float = 100e6, last: float | None = None) -> Layers:
    """Return the profile as what is lowered."""
    return measured_layers(profile(count, weights, last))


def setup(gpus: int = 2, minibatch: int = 8, count: int = 4, **strategy: object) -> Setup:
    """Return a scenario of the toy server and layers."""
    content = {
        "kind": "offload",
        "hardware": "server-2x1080ti",
        "layers": "harmony-bert-large",
        "workload": {"minibatch": minibatch},
        "strategy": {"method": "task-packs", **strategy},
    }
    loaded = load(content)
    found = hardware(gpus)
    cost = CostModel(found.device, catalog().calibration(found.device))
    return Setup(loaded.scenario, None, found, cost, layers=profile(count))
