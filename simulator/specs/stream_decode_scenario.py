"""Generation on an accelerator that streams compressed weights past activations on its chip, as written."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.base import Seconds, Spec
from simulator.specs.hardware import NumberFormat
from simulator.specs.model import Positive
from simulator.specs.offload_scenario import OffloadScenario
from simulator.specs.scenario_base import Fraction


class StreamDecodeWorkload(Spec):
    """One sequence after the other."""

    prompt: Positive
    output: Positive


class StreamDecodeStrategy(Spec):
    """How weights are compressed, and where activations are."""

    method: Literal["stream-decode"]
    weight_bits: Annotated[float, Field(gt=0.0, le=32.0)] = 8.0
    """Mean bits of a stored weight."""
    density: Fraction = 1.0
    """Weights that are stored and multiplied, of all: N/M of N:M sparsity."""
    index_bits: Annotated[float, Field(ge=0.0, le=32.0)] | None = None
    """Bits beside each stored weight that say where it was; with a density below 1."""
    precision: NumberFormat = "int8"
    """Of products, whose peak is the device's."""
    kv_precision: NumberFormat = "int8"
    activations: Literal["on-chip", "off-chip"] = "on-chip"
    """off-chip: each operator writes its output to memory, from where the next reads it."""
    memory_latency: Seconds | None = None
    """Of such a round trip, which nothing hides; 1 us if absent."""
    memory_efficiency: Fraction = 0.9
    """Share of the memory's bandwidth that a stream of weights reaches."""
    array_efficiency: Fraction = 1.0
    """Share of the multiply-add units that a matrix-vector product keeps busy."""

    @model_validator(mode="after")
    def _used(self) -> StreamDecodeStrategy:
        if self.index_bits and self.density == 1.0:
            raise PydanticCustomError("scenario", "'index_bits' has no meaning with a density of 1")
        if self.memory_latency is not None and self.activations == "on-chip":
            raise PydanticCustomError("scenario", "'memory_latency' belongs to activations 'off-chip'")
        return self


class StreamDecodeScenario(OffloadScenario):
    """Generate one sequence at a time, weights streamed from memory for every token."""

    workload: StreamDecodeWorkload
    strategy: StreamDecodeStrategy
