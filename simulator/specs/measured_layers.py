"""A user's profile of layers: seconds and bytes of each at some micro-batch sizes, in place of a priced model.

One YAML under ``measured_layers/``. What is equal in several layers in a row is written once, with a ``count``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.base import ByteSize, Seconds, Spec
from simulator.specs.model import Depth, Positive


class MeasuredPass(Spec):
    """One pass through one layer alone, at each micro-batch size of the profile."""

    time: list[Seconds]
    """Of a backward pass: with the forward pass that it begins with (recomputation from the layer's input)."""
    memory: list[ByteSize]
    """Most bytes in use: weights, input, output and what lives between; of a backward pass also its gradients."""


class MeasuredLayer(Spec):
    """Some equal layers in a row."""

    name: str
    count: Depth = 1
    weights: ByteSize
    """Bytes of parameters; each has a gradient as wide."""
    buffers: ByteSize = 0.0
    """Bytes of other tensors that belong to the layer (masks, running statistics); they move with weights and gradients."""
    state: ByteSize = 0.0
    """Bytes of optimizer states, which stay with the CPU."""
    input: ByteSize
    """Bytes of the layer's input for one sample."""
    update: Seconds
    """The optimizer's step on the CPU."""
    forward: MeasuredPass
    backward: MeasuredPass


class MicroBatches(Spec):
    """Micro-batch sizes that were measured, ascending; between two of them seconds and bytes are linear."""

    forward: Annotated[list[Positive], Field(min_length=1)]
    backward: Annotated[list[Positive], Field(min_length=1)]


class MeasuredLayers(Spec):
    """Layers of a model in order, as measured on a device; the last computes the loss."""

    kind: Literal["layers"]
    name: str
    source: str
    note: str = ""
    device: str
    """Where they were measured."""
    micro_batches: MicroBatches
    layers: Annotated[list[MeasuredLayer], Field(min_length=1)]

    @model_validator(mode="after")
    def _shapes(self) -> MeasuredLayers:
        for which in ("forward", "backward"):
            sizes: list[int] = getattr(self.micro_batches, which)
            if any(b <= a for a, b in pairwise(sizes)):
                raise PydanticCustomError(
                    "layers", "{message}", {"message": f"micro_batches.{which} must ascend"}
                )
            for layer in self.layers:
                for key in ("time", "memory"):
                    found = len(getattr(getattr(layer, which), key))
                    if found != len(sizes):
                        message = f"layer {layer.name!r}: {which}.{key} has {found} values, micro_batches.{which} {len(sizes)}"
                        raise PydanticCustomError("layers", "{message}", {"message": message})
        return self
