"""Attention's operators on the two units: cycles of each, the order that they wait for each other in, bytes over memory.

A head's queries come in tiles as wide as the array has columns, its keys in tiles as long as it has rows. An operator that
touches every pair of a query and a key takes one cycle of the array, or ``rows`` cycles of the vector unit, for one such
tile; a product takes one cycle for each of the ``head_dim`` elements that it sums over.

The dataflows, their waterfall and the costs of operators are those of Nayak et al. 2024 (FuseMax), sections 4 and 5 and
figure 5; row-wise fusion is that of Kao et al. 2023 (FLAT), section 4. The names of operators follow FuseMax's cascade 5:
local and running maximum (LM, RM), numerator and denominator (SLN, SLD) and numerator times values (SLNV) of a tile, and
their corrections (PRM, SPD, SPNV, RD, RNV); AV is the division at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from simulator.offload.waterfall.units import Layer, Units, largest_divisor
from simulator.specs import MemroofError
from simulator.specs.waterfall_scenario import Mapping

Unit = Literal["array", "vector"]
SOFTMAX_PASSES = 4
"""Operations on each score where softmax is not fused: maximum, exponential, sum, division. The subtraction before the
exponential is pipelined with it."""
CROSSINGS = 7
"""Times that what a buffer cannot hold of the scores goes to memory or comes back: the product is written, read for the
maximum and for the exponential; exponentials are written and read for the division; weights are written and read for the
product with the values."""
STAGING_TILES = 2


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds of one operator on a unit, of the whole layer."""

    name: str
    unit: Unit
    time: float


Stage = tuple[Work, ...]
"""Operators that may run together: those of one unit one after the other; the next stage waits for all."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Stages one after the other, while ``traffic`` bytes cross the memory beside them."""

    name: str
    stages: tuple[Stage, ...]
    traffic: float


@dataclass(frozen=True, slots=True)
class Attention:
    """A layer's attention, mapped.

    Attributes
    ----------
    phases : tuple of Phase
        One after the other.
    tile_rows : int
        Query rows that are held together.
    held : mapping
        Bytes of the buffer by what they hold.
    """

    phases: tuple[Phase, ...]
    tile_rows: int
    held: dict[str, float]

    @property
    def traffic(self) -> float:
        """Bytes over the memory."""
        return sum(phase.traffic for phase in self.phases)

    def busy(self, unit: Unit) -> float:
        """Seconds in which a unit has work."""
        return sum(w.time for phase in self.phases for stage in phase.stages for w in stage if w.unit == unit)


def attention(layer: Layer, units: Units, mapping: Mapping) -> Attention:
    """Map a layer's attention onto the units.

    Raises
    ------
    MemroofError
        If softmax is asked for on an array that cannot compare, or a tile of rows does not divide the sequence.
    """
    if mapping.dataflow == "unfused":
        return _unfused(layer, units, mapping)
    if mapping.dataflow == "row-fused":
        return _row_fused(layer, units, mapping)
    on_array = units.compares if mapping.softmax is None else mapping.softmax == "array"
    if on_array and not units.compares:
        raise MemroofError(
            "softmax: the array of this device only multiplies and adds, so that softmax runs on the vector unit"
        )
    if not on_array and mapping.interleaved is not None:
        raise MemroofError("interleaved decides nothing where softmax is on the vector unit")
    return _one_pass(layer, units, mapping, on_array)


class _Cycles:
    """Seconds of operators over a whole layer, by how often they are done for each tile."""

    def __init__(self, layer: Layer, units: Units) -> None:
        self._units, self._layer = units, layer
        self.query_tiles = math.ceil(layer.sequence / units.columns)
        self.key_tiles = math.ceil(layer.sequence / units.rows)
        self._lane_tiles = math.ceil(layer.sequence / units.lanes)
        self._pairs = layer.maps * self.key_tiles

    def array(self, name: str, cycles: float) -> Work:
        """Operator of ``cycles`` a tile of keys and queries on the array."""
        return Work(name, "array", self._pairs * self.query_tiles * cycles / self._units.clock)

    def vector(self, name: str, cycles: float) -> Work:
        """Operator of ``cycles`` a query and tile of keys on the vector unit."""
        return Work(name, "vector", self._pairs * self._lane_tiles * cycles / self._units.clock)

    def last(self, name: str, cycles: float) -> Work:
        """Operator of ``cycles`` a query on the vector unit, once."""
        return Work(name, "vector", self._layer.maps * self._lane_tiles * cycles / self._units.clock)


def _operand(layer: Layer, units: Units) -> float:
    """Bytes of the layer's queries, and so of its keys, its values and its output."""
    return layer.maps * layer.sequence * layer.head_dim * units.element


def _tile(layer: Layer, units: Units, mapping: Mapping, limit: float) -> int:
    """Return query rows of a tile: what is asked for, or the largest whole number of columns that a limit in rows allows."""
    wanted = mapping.tile_rows
    if wanted is None:
        tiles = math.ceil(layer.sequence / units.columns)
        return min(layer.sequence, units.columns * largest_divisor(tiles, limit / units.columns))
    if layer.sequence % wanted and wanted < layer.sequence:
        raise MemroofError(f"tile_rows: {wanted} does not divide a sequence of {layer.sequence}")
    return min(wanted, layer.sequence)


# --- one pass over the keys ------------------------------------------------------------------------------------------


def _one_pass(layer: Layer, units: Units, mapping: Mapping, on_array: bool) -> Attention:
    """Keys and values stream past a tile of queries: they are read once for each tile, nothing else is re-read."""
    size, width = units.element, layer.head_dim
    keys = 2 * units.rows * width * size
    # queries, output, running maximum and running sum; and where softmax leaves the array, scores and numerators
    each = (2 * width + 2 + (0 if on_array else 2 * units.rows)) * size
    tile = _tile(layer, units, mapping, (units.buffer - keys) / each)
    reads = math.ceil(layer.sequence / tile)
    traffic = _operand(layer, units) * (2 + 2 * reads)
    stages = _on_array(layer, units, mapping) if on_array else _on_vector(layer, units)
    held = {"keys and values": keys, "queries and output": tile * each}
    return Attention((Phase("attention", stages, traffic),), tile, held)


def _on_array(layer: Layer, units: Units, mapping: Mapping) -> tuple[Stage, ...]:
    of, width = _Cycles(layer, units), layer.head_dim
    exponential = units.exponential + 1  # and the subtraction before it
    products = (of.array("QK", width), of.array("LM", 1))
    update = (of.vector("RM", 1),)
    sums = (
        of.array("SLN", exponential), of.array("SLD", 1), of.vector("PRM", exponential), of.vector("SPD", 1)
    )  # fmt: skip
    if mapping.interleaved is not False:
        return (
            (*products, of.vector("RD", 1), of.vector("RNV", width), of.last("AV", width)),
            update,
            sums,
            (of.array("SLNV", width), of.vector("SPNV", width)),
        )
    # the maximum of a tile ripples through the rows before the vector unit has it, and nothing else is there to do
    ripple = (of.array("LM ripple", units.rows),)
    return (
        (*products, of.vector("RD", 1), of.last("AV", width)),
        ripple,
        update,
        sums,
        (of.array("SLNV", width), of.vector("SPNV", width), of.vector("RNV", width)),
    )


def _on_vector(layer: Layer, units: Units) -> tuple[Stage, ...]:
    of, width, rows = _Cycles(layer, units), layer.head_dim, units.rows
    exponential = units.exponential + 1
    return (
        (
            of.array("QK", width), of.array("SLNV", width),
            of.vector("LM", rows), of.vector("RM", 1), of.vector("SLN", rows * exponential), of.vector("SLD", rows),
            of.vector("PRM", exponential), of.vector("SPD", 1), of.vector("SPNV", width), of.vector("RD", 1),
            of.vector("RNV", width), of.last("AV", width),
        ),
    )  # fmt: skip


# --- scores in memory, or in the buffer row by row -------------------------------------------------------------------


def _softmax(layer: Layer, units: Units) -> Work:
    keys = math.ceil(layer.sequence / units.lanes)
    return Work("softmax", "vector", layer.maps * layer.sequence * keys * SOFTMAX_PASSES / units.clock)


def _scores(layer: Layer, units: Units) -> float:
    return layer.maps * float(layer.sequence) ** 2 * units.element


def _unfused(layer: Layer, units: Units, mapping: Mapping) -> Attention:
    """Two products and a softmax, one after the other; each bound by its unit or by memory.

    Keys stay in the buffer where all of them fit beside a tile of queries and its scores; else they are read for each tile.
    """
    of, width, size = _Cycles(layer, units), layer.head_dim, units.element
    keys = layer.sequence * width * size
    each = (width + units.rows) * size
    resident = keys + units.columns * each <= units.buffer
    streamed = keys if resident else units.rows * width * size
    tile = _tile(layer, units, mapping, (units.buffer - streamed) / each)
    reads = 1 if resident else math.ceil(layer.sequence / tile)
    operand, scores = _operand(layer, units), _scores(layer, units)
    row = layer.sequence * size
    spilled = max(0.0, 1.0 - units.buffer / row)
    product = operand * (1 + reads) + scores
    # what does not fit of a row is read again for the exponential, and its exponentials are written and read
    softmax = scores * (2 + 3 * spilled)
    phases = (
        Phase("QK", ((of.array("QK", width),),), product),
        Phase("softmax", ((_softmax(layer, units),),), softmax),
        Phase("AV", ((of.array("AV", width),),), product),
    )
    held = {"keys": streamed, "queries and scores": min(tile, layer.sequence) * each}
    return Attention(phases, tile, held)


def _row_fused(layer: Layer, units: Units, mapping: Mapping) -> Attention:
    """Rows of scores stay in the buffer through softmax and both products, all units and the memory at work together.

    The products stream their operands: keys and values are read for every ``columns`` queries, and queries, unless they
    are held, for every ``rows`` keys. What staging leaves no room for is spilled. Where not even ``columns`` rows of
    scores fit, scores cross the memory as if unfused, though still overlapped, and keys and values are read once for each
    tile of queries.
    """
    of, size, width = _Cycles(layer, units), units.element, layer.head_dim
    hold = mapping.hold_queries is not False
    tiles = STAGING_TILES if mapping.staging_tiles is None else mapping.staging_tiles
    staging = tiles * units.rows * units.columns * size
    row = layer.sequence * size
    operand, scores = _operand(layer, units), _scores(layer, units)
    queries = 2 * width * size  # and the output
    if min(units.columns, layer.sequence) * row <= units.buffer:
        fits = _tile(layer, units, Mapping(), units.buffer / row)
        tile = min(_tile(layer, units, mapping, units.buffer / row), fits)
        held = {"scores": tile * row, "queries and output": tile * queries * hold, "staging": staging}
        spilled = max(0.0, 1.0 - units.buffer / sum(held.values()))
        again = (1 - spilled) * 2 + spilled * (of.key_tiles + 1) if hold else of.key_tiles + 1
        traffic = operand * (2 * of.query_tiles + again) + CROSSINGS * spilled * scores
        held["scores"] -= max(0.0, sum(held.values()) - units.buffer)
    else:
        tile = _tile(layer, units, mapping, (units.buffer - staging) / queries)
        traffic = operand * (2 + 2 * math.ceil(layer.sequence / tile)) + 4 * scores
        held = {"queries and output": tile * queries, "staging": staging}
    stage = (of.array("QK", width), of.array("AV", width), _softmax(layer, units))
    return Attention((Phase("attention", (stage,), traffic),), tile, held)
