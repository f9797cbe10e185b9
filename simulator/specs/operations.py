"""What a long run meets beside its steps, as written: failures, checkpoints, slow ranks, data loading, evaluation."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.base import ByteRate, Bytes, Rate, Seconds, Spec
from simulator.specs.model import Natural


class Checkpoints(Spec):
    """How the state of a run is saved."""

    write_time: Seconds | None = None
    """From the state in GPU memory to storage, as measured."""
    storage_bandwidth: ByteRate | None = None
    """Of all ranks together, to storage and back; with the bytes of the model states it gives the time."""
    size: Bytes | None = None
    """Of all ranks together; weights and optimizer states of the scenario if absent."""
    asynchronous: bool = False
    """Training goes on while a copy in host memory is written; false: it waits."""
    snapshot_time: Seconds = 0.0
    """Asynchronous: training waits for the copy to host memory."""
    interval: Seconds | None = None
    """Training time between two checkpoints; the optimal one if absent."""

    @model_validator(mode="after")
    def _one_of(self) -> Checkpoints:
        if (self.write_time is None) == (self.storage_bandwidth is None):
            raise PydanticCustomError("scenario", "needs one of 'write_time' and 'storage_bandwidth'")
        if self.size is not None and self.storage_bandwidth is None:
            raise PydanticCustomError("scenario", "'size' belongs to 'storage_bandwidth'")
        if self.snapshot_time and not self.asynchronous:
            raise PydanticCustomError("scenario", "'snapshot_time' belongs to 'asynchronous: true'")
        return self


class Loading(Spec):
    """How samples reach the GPUs."""

    time: Seconds | None = None
    """For the batch of a step, as measured."""
    sample_size: Bytes | None = None
    """Of one sequence."""
    bandwidth: ByteRate | None = None
    """Of all loaders together, preprocessing included."""
    hidden: bool = True
    """The next batch is loaded while a step runs; false: before it."""

    @model_validator(mode="after")
    def _one_of(self) -> Loading:
        if (self.sample_size is None) != (self.bandwidth is None):
            raise PydanticCustomError("scenario", "'sample_size' and 'bandwidth' belong together")
        if (self.time is None) == (self.bandwidth is None):
            raise PydanticCustomError("scenario", "needs either 'time', or 'sample_size' and 'bandwidth'")
        return self


class Operations(Spec):
    """What a long run meets beside its steps; nothing happens that is not given."""

    mtbf_per_gpu: Seconds | None = None
    """Mean time between failures of one GPU with all that fails with it: hours of GPUs over interruptions."""
    mtbf_per_node: Seconds | None = None
    """Mean time between failures of a node."""
    detection_time: Seconds = 0.0
    """From a failure until the job is stopped: a hang runs into a timeout."""
    restart_time: Seconds = 0.0
    """From then until training goes on, without the reading of the checkpoint where storage has a bandwidth."""
    spare_nodes: Natural | None = None
    """Nodes that stand by; always enough if absent."""
    repair_time: Seconds | None = None
    """Of a failed node; a job without spares waits for the first that returns."""
    planned_stops: Rate | None = None
    """Maintenance, new settings: a checkpoint and a restart, no work lost."""
    checkpoints: Checkpoints | None = None
    straggler_spread: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Relative standard deviation of a rank's time for the same step; a step ends with the slowest rank."""
    loading: Loading | None = None
    evaluation_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Of the time in which the job runs, what goes into evaluation."""

    @model_validator(mode="after")
    def _consistent(self) -> Operations:
        rates = [name for name in ("mtbf_per_gpu", "mtbf_per_node") if getattr(self, name) is not None]
        if any(getattr(self, name) == 0.0 for name in rates):
            raise PydanticCustomError("scenario", "a mean time between failures must be above 0")
        if rates and self.checkpoints is None:
            raise PydanticCustomError("scenario", "a job that fails needs 'checkpoints'")
        if (self.spare_nodes is None) != (self.repair_time is None):
            raise PydanticCustomError("scenario", "'spare_nodes' and 'repair_time' belong together")
        if self.spare_nodes is not None and not rates:
            raise PydanticCustomError("scenario", "'spare_nodes' need 'mtbf_per_gpu' or 'mtbf_per_node'")
        if self.planned_stops is not None and self.checkpoints is None:
            raise PydanticCustomError("scenario", "'planned_stops' need 'checkpoints'")
        if (self.detection_time or self.restart_time) and not rates and self.planned_stops is None:
            raise PydanticCustomError(
                "scenario",
                "'detection_time' and 'restart_time' need 'mtbf_per_gpu', 'mtbf_per_node' or 'planned_stops'",
            )
        return self
