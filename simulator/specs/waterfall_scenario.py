"""Attention on a spatial accelerator as written: a 2-D array, a vector unit, a buffer, and how softmax flows through them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.base import Bytes, Spec
from simulator.specs.hardware import NumberFormat
from simulator.specs.model import Natural, Positive
from simulator.specs.offload_scenario import OffloadScenario

Dataflow = Literal["unfused", "row-fused", "one-pass"]


class LayerShape(Spec):
    """One transformer layer, by its sizes."""

    heads: Positive
    head_dim: Positive
    hidden: Positive | None = None
    """Width of the layer; heads times their width if absent."""
    feed_forward: Positive | None = None
    """Inner width of the feed-forward network; absent: attention alone, no linear layers."""
    gated: bool = False
    """Whether the feed-forward network has a third product, a gate."""


class WaterfallWorkload(Spec):
    """Layers, each at every sequence length."""

    batch: Positive = 1
    sequence: Annotated[list[Positive], Field(min_length=1)]
    """Tokens of a sequence; several: every layer at each of them."""
    layers: dict[str, LayerShape] = {}
    """By name; the layer of the scenario's model if absent."""

    @field_validator("sequence", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return value if isinstance(value, list) else [value]


class Mapping(Spec):
    """How attention is mapped onto the two units."""

    dataflow: Dataflow = "one-pass"
    """unfused: scores and weights go through memory between the products; row-fused: they stay in the buffer, whole rows
    at a time (FLAT); one-pass: maximum, sum and output are corrected as each tile of keys passes (FlashAttention)."""
    softmax: Literal["array", "vector"] | None = None
    """Which unit computes the softmax of a one-pass tile: the array, whose units then compare too, or the vector unit.
    The array if absent and it can."""
    interleaved: bool | None = None
    """Softmax on the array: whether two tiles alternate, so that the array works on one while the maximum of the other
    ripples through it (FuseMax's binding); true if absent."""
    tile_rows: Positive | None = None
    """Query rows that are held together; if absent, the largest divisor of the sequence that fits. Row-fused: at most as
    many as their scores fit, where those of as many rows as the array has columns do."""
    hold_queries: bool | None = None
    """Row-fused: whether a tile's queries and output stay in the buffer while keys stream by; true if absent."""
    staging_tiles: Natural | None = None
    """Row-fused: array-sized tiles of the buffer through which operands stream; 2 if absent."""

    @model_validator(mode="after")
    def _used(self) -> Mapping:
        if self.dataflow != "one-pass" and self.softmax is not None:
            raise PydanticCustomError(
                "scenario", "'softmax' decides nothing here: only a one-pass dataflow has a choice"
            )
        on_vector = self.dataflow != "one-pass" or self.softmax == "vector"
        if on_vector and self.interleaved is not None:
            raise PydanticCustomError(
                "scenario", "'interleaved' decides nothing where softmax is on the vector unit"
            )
        if self.dataflow != "row-fused":
            for key in ("hold_queries", "staging_tiles"):
                if getattr(self, key) is not None:
                    raise PydanticCustomError(
                        "scenario",
                        "'{key}' decides nothing here: only a row-fused dataflow has it",
                        {"key": key},
                    )
        return self


class Compared(Mapping):
    """A mapping that the scenario's is compared with, on the same units."""

    buffer: Bytes | None = None
    """On-chip buffer, where it is not the device's."""
    exponential: Annotated[float, Field(ge=1.0)] | None = None
    """Operations of an exponential, where they are not the device's."""


class WaterfallStrategy(Mapping):
    """How attention is mapped, and what it is compared with."""

    method: Literal["waterfall"]
    precision: NumberFormat = "bf16"
    baseline: Compared | None = None


class WaterfallScenario(OffloadScenario):
    """Attention, and the linear layers around it, on a 2-D array with a vector unit and a buffer."""

    model: str = ""
    workload: WaterfallWorkload
    strategy: WaterfallStrategy

    @model_validator(mode="after")
    def _one_source(self) -> WaterfallScenario:
        if bool(self.model) == bool(self.workload.layers):
            raise PydanticCustomError("scenario", "needs 'model' or 'workload.layers', and not both")
        return self
