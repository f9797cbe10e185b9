"""What the tests of serving share: models, setups and a pricer that can be followed by hand."""

from functools import cache
from typing import Any

import numpy as np

from simulator.cost import CostModel
from simulator.serving import Steps
from simulator.specs import Catalog, Model, ServingScenario
from simulator.strategy import Setup

LLAMA = {
    "kind": "model", "family": "decoder", "source": "Llama 3.1 model card", "vocab_size": 128256,
    "max_position_embeddings": 131072, "position": "rope", "normalization": "rmsnorm", "activation": "silu",
    "gated_mlp": True,
}  # fmt: skip
LLAMA_8B = Model.model_validate(
    LLAMA | {"name": "llama-8b", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336}
)  # fmt: skip
LLAMA_70B = Model.model_validate(
    LLAMA | {"name": "llama-70b", "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 8, "intermediate_size": 28672}
)  # fmt: skip
SMALL = {
    "name": "small",
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "intermediate_size": 4096,
}


def small(**fields: Any) -> Model:
    return Model.model_validate(LLAMA | SMALL | fields)


@cache
def _catalog() -> Catalog:
    return Catalog(environment={})


def make_setup(model: Model = LLAMA_8B, hardware: Any = None, workload: Any = None, **strategy: Any) -> Setup:
    """A serving setup: an 8B model on one H100 with 20 short requests, unless told otherwise."""
    scenario = ServingScenario.model_validate(
        {
            "kind": "serving", "name": "test", "model": model.name,
            "hardware": hardware or {"device": "h100-sxm"},
            "workload": workload or {"rate": "2 req/s", "requests": 20, "prompt": 200, "output": 30},
            "strategy": strategy,
        }
    )  # fmt: skip
    machine = _catalog().hardware(scenario.hardware)
    return Setup(scenario, model, machine, CostModel(machine.device, _catalog().calibration(machine.device)))


class LinearPricer:
    """An iteration takes base + per token + per context token; seconds are the only part of the account."""

    def __init__(self, base: float = 1.0, token: float = 0.0, context: float = 0.0) -> None:
        self.base, self.token, self.context = base, token, context
        self.pieces: list[list[int]] = []

    def decode(self, contexts: Any, steps: int) -> Steps:
        grown = contexts.sum() + len(contexts) * np.arange(1.0, steps + 1.0)
        seconds = self.base + self.token * len(contexts) + self.context * grown
        return Steps(seconds, np.zeros(1), ((0, seconds),))

    def mixed(self, new: Any, cached: Any, contexts: Any, sampled: int) -> Steps:
        self.pieces.append(new.tolist())
        tokens, positions = new.sum() + len(contexts), (cached + new).sum() + (contexts + 1).sum()
        seconds = np.array([self.base + self.token * tokens + self.context * positions])
        return Steps(seconds, seconds.copy())
