"""Mini-batch training of graph networks with node features in host memory, as written."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.base import Spec
from simulator.specs.model import Positive
from simulator.specs.offload_scenario import OffloadScenario
from simulator.specs.scenario_base import Entry, Share


class FeatureGatherWorkload(Spec):
    """A graph, its sampler and the network that is trained."""

    graph: str
    """Of the catalog, or a path that ends in ``.yaml``."""
    fan_outs: Annotated[list[Positive], Field(min_length=1)]
    """Neighbours sampled of each node, a layer each, from the seeds outwards."""
    batch: Positive
    """Seeds of one accelerator's mini-batch."""
    network: Literal["graphsage", "gcn"] = "graphsage"
    hidden: Positive = 256


class Way(Spec):
    """How features reach the accelerator, and what runs beside what."""

    transfer: Literal["gather", "zero-copy"]
    """gather: CPU threads copy scattered rows into a pinned buffer that is then copied; zero-copy: threads of the
    accelerator read rows where they lie."""
    threads: Positive | None = None
    """Gather: CPU threads in all; every core if absent."""
    shifted: bool | None = None
    """Zero-copy: whether threads are shifted so that each warp reads whole lines of rows that begin anywhere; true if
    absent."""
    sm_share: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Zero-copy beside training: share of the accelerator's units that reads; a tenth if absent."""
    overlap: Literal["none", "sampling", "all"] = "sampling"
    """sampling: workers sample ahead, features are then fetched and trained on in turn; all: those of the next mini-batch
    are fetched beside training as well, into a second buffer."""
    samplers: Positive | None = None
    """CPU threads that sample, in all; half of the cores if absent."""
    hot: Share | Literal["auto"] = 0.0
    """Share of nodes whose features stay in accelerator memory; auto: as many as fit beside the rest."""
    ranking: Literal["degree", "weighted-reverse-pagerank"] | None = None
    """Which nodes are taken for hot: those of most neighbours, wherever they lie, or those that most paths from training
    nodes lead to; the latter if absent."""
    interleaved: bool | None = None
    """Several accelerators: whether each keeps a part of the hot features, which the others read from it, or all of them;
    true if absent."""

    @model_validator(mode="after")
    def _used(self) -> Way:
        hot = self.hot == "auto" or self.hot > 0.0
        for key, decides, beside in (
            ("threads", self.transfer == "gather", "rows that the accelerator reads itself"),
            ("shifted", self.transfer == "zero-copy", "rows that the CPU gathers"),
            (
                "sm_share",
                self.transfer == "zero-copy" and self.overlap == "all",
                "reads with nothing beside them",
            ),
            ("ranking", hot, "no hot features"),
            ("interleaved", hot, "no hot features"),
        ):
            if getattr(self, key) is not None and not decides:
                raise PydanticCustomError(
                    "scenario", "'{key}' decides nothing beside {beside}", {"key": key, "beside": beside}
                )
        return self


class FeatureGatherStrategy(Way):
    """How features reach the accelerator, in what precision, and what that is compared with."""

    method: Literal["feature-gather"]
    precision: Literal["fp32", "tf32", "fp16", "bf16"] = "fp32"
    """Of products; features are 2 bytes an element in a 16-bit format, else 4."""
    baseline: Way | None = None


class FeatureGatherScenario(OffloadScenario):
    """Train a graph network on mini-batches whose features lie in host memory."""

    model: str = ""
    workload: FeatureGatherWorkload
    strategy: FeatureGatherStrategy

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The graph."""
        return (Entry(("workload", "graph"), "graph", self.workload.graph),)

    @field_validator("model")
    @classmethod
    def _no_model(cls, value: Any) -> Any:
        if value:
            raise PydanticCustomError(
                "scenario", "a graph network is described by its workload; name no model"
            )
        return value
