"""The two units of a spatial accelerator, its buffer and its memory; layers by their sizes; tiles that divide evenly."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.graph import FORMAT_BYTES
from simulator.specs import MemroofError
from simulator.specs.waterfall_scenario import Compared, LayerShape, WaterfallScenario
from simulator.strategy import Setup


@dataclass(frozen=True, slots=True)
class Units:
    """What operators are mapped onto.

    Attributes
    ----------
    rows, columns : int
        Of the array of multiply-add units.
    lanes : int
        Of the vector unit.
    clock : float
        Of both [Hz]; a unit and a lane do one operation a cycle.
    exponential : float
        Operations of an exponential.
    compares : bool
        Whether the array's units can compare and add, so that softmax may run on them.
    buffer : float
        On-chip bytes.
    bandwidth : float
        Of the memory [B/s].
    element : float
        Bytes of one element.
    """

    rows: int
    columns: int
    lanes: int
    clock: float
    exponential: float
    compares: bool
    buffer: float
    bandwidth: float
    element: float


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer layer at one sequence length."""

    name: str
    batch: int
    sequence: int
    heads: int
    head_dim: int
    hidden: int
    feed_forward: int
    """0 where the layer is attention alone."""
    gated: bool

    @property
    def maps(self) -> int:
        """Attention maps: sequences times heads."""
        return self.batch * self.heads


def units_of(setup: Setup) -> Units:
    """Return the units of the scenario's accelerator.

    Raises
    ------
    MemroofError
        If it is several, or its device says nothing of an array or of a buffer.
    """
    hardware, scenario = setup.hardware, setup.scenario
    assert isinstance(scenario, WaterfallScenario)
    if hardware.size != 1:
        raise MemroofError(f"this method runs on one accelerator; {hardware.name} has {hardware.size}")
    device = hardware.device
    if device.array is None or not device.cache:
        missing = "array" if device.array is None else "cache"
        raise MemroofError(
            f"device {device.name} has no {missing!r}: a waterfall needs an array and a buffer, as fusemax-cloud has them"
        )
    array = device.array
    return Units(
        array.rows, array.columns, array.lanes, float(device.compute.clock), float(array.exponential), array.maximum,
        float(next(iter(device.cache.values())).capacity), hardware.memory.read.bandwidth,
        FORMAT_BYTES[scenario.strategy.precision],
    )  # fmt: skip


def changed(units: Units, baseline: Compared) -> Units:
    """Return the units that a baseline runs on."""
    return Units(
        units.rows, units.columns, units.lanes, units.clock, baseline.exponential or units.exponential, units.compares,
        baseline.buffer or units.buffer, units.bandwidth, units.element,
    )  # fmt: skip


def layers_of(setup: Setup) -> tuple[Layer, ...]:
    """Return every layer of the workload at every length."""
    scenario = setup.scenario
    assert isinstance(scenario, WaterfallScenario)
    work, model = scenario.workload, setup.described
    shapes = dict(work.layers)
    if model is not None:
        head = model.head_dim or model.hidden_size // model.num_attention_heads
        shapes = {
            model.name: LayerShape(
                heads=model.num_attention_heads, head_dim=head, hidden=model.hidden_size,
                feed_forward=model.intermediate_size, gated=model.gated_mlp,
            )
        }  # fmt: skip
    return tuple(
        Layer(
            name, work.batch, length, shape.heads, shape.head_dim, shape.hidden or shape.heads * shape.head_dim,
            shape.feed_forward or 0, shape.gated,
        )
        for name, shape in shapes.items()
        for length in work.sequence
    )  # fmt: skip


def largest_divisor(count: int, limit: float) -> int:
    """Return the largest divisor of a count that is no larger than a limit; 1 where the limit is below 2."""
    return next((each for each in range(min(count, int(max(limit, 1.0))), 0, -1) if count % each == 0), 1)
