"""Hardware as written: devices, links, nodes and clusters, one YAML file each, no derived quantity.

A *processor* computes and owns memories; a *memory device* (DRAM, CXL card, NVMe drive, UFS) only stores; a *link
type* is a kind of wire; a *node* lists components and how they are wired; a *cluster* is nodes times a network.
Bandwidths are for one direction. Peaks of ``compute.matrix`` and ``compute.vector`` are dense.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.base import (
    ByteRate,
    Bytes,
    DollarRate,
    Dollars,
    FlopRate,
    Hertz,
    Number,
    Rate,
    Seconds,
    Spec,
    Watts,
)

NumberFormat = Literal["fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "fp6", "fp4", "int8", "int4"]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Parts = Annotated[int, Field(ge=1, le=1024)]


class Compute(Spec):
    """Peak rates by number format, and the parts that make them up."""

    matrix: dict[NumberFormat, FlopRate] = {}
    """Dense peak of the matrix units (tensor cores, MXUs, AMX), FLOP/s; a multiply-add counts two."""
    matrix_sparse: dict[NumberFormat, FlopRate] = {}
    """Peak with structured sparsity, where it exists; never used unless a scenario asks for it."""
    vector: dict[NumberFormat, FlopRate]
    """Peak of the vector units (CUDA cores, SIMD), FLOP/s."""
    units: Count
    """Streaming multiprocessors, compute units, tensor cores or CPU cores: what a kernel's tiles spread over."""
    clock: Hertz
    """Boost clock at which the peaks hold."""


class MemoryPort(Spec):
    """A memory of a processor: HBM, GDDR or the DRAM channels of a CPU."""

    technology: str
    capacity: Bytes
    bandwidth: ByteRate
    """Peak of all channels, reads and writes together."""
    latency: Seconds = 0.0


class Cache(Spec):
    """On-chip storage that operators may reuse data in."""

    capacity: Bytes
    bandwidth: ByteRate | None = None


class SpatialArray(Spec):
    """A 2-D array of multiply-add units with a 1-D vector unit beside it, as attention accelerators have."""

    rows: Count
    columns: Count
    lanes: Count
    """Of the vector unit; a lane does one operation a cycle."""
    maximum: bool = False
    """Whether a unit of the array can also compare and add without multiplying, as a softmax on it needs."""
    exponential: Number = 1.0
    """Operations that an exponential takes: 1 in a unit of its own, several multiply-adds where it is a polynomial."""


class Power(Spec):
    """Electrical power; idle is what the device draws when it waits."""

    limit: Watts
    idle: Watts | None = None


class Price(Spec):
    """What one costs to buy or to rent; each dated."""

    purchase: Dollars | None = None
    rent: DollarRate | None = None


class Processor(Spec):
    """A device that computes: GPU, TPU, NPU or CPU."""

    kind: Literal["gpu", "tpu", "npu", "cpu"]
    name: str
    vendor: str
    architecture: str
    """Architecture class (``ampere``, ``hopper``, ``cdna3``, ``sapphire-rapids``): whose constants it inherits."""
    source: str
    """The data sheet that the figures of this file come from, unless a figure names its own."""
    released: str = ""
    note: str = ""
    compute: Compute
    memory: dict[str, MemoryPort]
    """Its memories by name, the main one first. A CPU whose DRAM is configured by the node has none, nor has a CPU or NPU that
    shares the DRAM of a chip's GPU."""
    cache: dict[str, Cache] = {}
    array: SpatialArray | None = None
    """How its matrix and vector units are laid out, where that is known and operators are mapped onto it."""
    power: Power
    price: Price = Price()
    host_link: str | None = None
    """Link type to the host (``pcie-5.0-x16``)."""
    fabric: str | None = None
    """Link type to its peers (``nvlink-4``); absent where peers talk over the host link."""
    memory_channels: Count | None = None
    """CPU only: DRAM channels of a socket."""

    @model_validator(mode="after")
    def _formats_exist(self) -> Processor:
        if self.kind not in ("cpu", "npu") and not self.memory:
            raise PydanticCustomError(
                "hardware", "memory: a processor that is no CPU or NPU needs at least one memory"
            )
        return self


class RandomRead(Spec):
    """What random reads of one size were measured to reach, with as many outstanding as help."""

    block: Bytes
    """Bytes of one read."""
    rate: ByteRate
    span: Bytes | None = None
    """Range of addresses they were scattered over; the whole device if absent."""
    clock: Hertz | None = None
    """Of the core that issued them, where that was seen to matter."""


class MemoryDevice(Spec):
    """A device that only stores: DRAM modules of a socket, CXL card, NVMe drive, UFS."""

    kind: Literal["dram", "cxl", "nvme", "ssd", "ufs"]
    name: str
    vendor: str = ""
    technology: str
    source: str
    released: str = ""
    note: str = ""
    capacity: Bytes
    read_bandwidth: ByteRate
    """Sequential reads with large requests and a deep queue."""
    write_bandwidth: ByteRate
    shared_port: bool = False
    """True where reads and writes share one bus (DRAM), false where each has its own figure (NVMe, UFS)."""
    read_latency: Seconds = 0.0
    write_latency: Seconds = 0.0
    read_iops: Rate | None = None
    """Random 4 KiB reads per second."""
    random_read: tuple[RandomRead, ...] = ()
    """Measured random reads; they take the place of `read_iops` wherever there are any."""
    write_iops: Rate | None = None
    endurance: Bytes | None = None
    """Bytes that may be written in its life."""
    power: Power | None = None
    price: Price = Price()
    link: str | None = None
    """Link type to its host (``pcie-4.0-x4``, ``cxl-2.0-x8``)."""

    @model_validator(mode="after")
    def _random_reads_are_a_surface(self) -> MemoryDevice:
        points = [(read.block, read.span, read.clock) for read in self.random_read]
        if len(set(points)) < len(points):
            raise PydanticCustomError("hardware", "random_read: one block, span and clock has two rates")
        if any(read.rate > self.read_bandwidth for read in self.random_read):
            raise PydanticCustomError("hardware", "random_read: a rate is above read_bandwidth")
        return self


class LinkType(Spec):
    """A kind of wire between two components."""

    kind: Literal["link"]
    name: str
    technology: str
    source: str
    note: str = ""
    bandwidth: ByteRate
    """Payload-carrying peak in one direction, after line coding."""
    duplex: Literal["full", "half"] = "full"
    latency: Seconds
    """One way, hardware and driver together, for a small message."""
    maximum_peers: Count | None = None
    """Other parts that one part is wired to directly (1: a bridge between two cards, 7: eight all-to-all); absent where a
    switch joins any count."""
    in_network_reduction: bool = False
    """True where the switch reduces (NVLink SHARP, InfiniBand SHARP)."""


class Component(Spec):
    """Some equal parts of a node: a catalogued device, or a switch."""

    device: str | None = None
    switch: bool = False
    count: Parts = 1
    capacity: Bytes | None = None
    """Overrides the device's capacity of each part (DRAM as configured, a drive's size)."""
    bandwidth: ByteRate | None = None
    """Overrides the device's read and write bandwidth of each part (DRAM channels as populated)."""

    @model_validator(mode="after")
    def _is_something(self) -> Component:
        if (self.device is None) == (not self.switch):
            raise PydanticCustomError("hardware", "needs 'device: NAME' or 'switch: true', and not both")
        return self


class Wire(Spec):
    """Links between the parts of two components.

    Parts are joined one to one where counts are equal, in equal blocks where one count divides the other, and all
    pairs within one component (``between: [gpu, gpu]``).
    """

    between: tuple[str, str]
    link: str
    lanes: Number = 1.0
    """Parallel links of this type between each two parts (6 NVLinks, 2 UPI)."""


class Network(Spec):
    """One level of the network between nodes, innermost first."""

    name: str
    link: str
    links_per_node: Count
    """NICs or rails of one node."""
    nodes: Count | None = None
    """Nodes that this level reaches; the outermost may leave it open."""
    oversubscription: Number = 1.0
    """Bandwidth below divided by bandwidth above (1: non-blocking)."""


class Node(Spec):
    """A server, laptop or phone: components and wires."""

    kind: Literal["node"]
    name: str
    source: str
    note: str = ""
    components: dict[str, Component]
    wires: list[Wire] = []
    network: list[Network] = []
    """How this node is usually clustered; a cluster file may say otherwise."""
    power: Power | None = None
    """Of the whole node, where published."""
    price: Price = Price()


class NodeGroup(Spec):
    """Equal nodes of a cluster."""

    node: str
    count: Count
    link: str | None = None
    """Link type of its nodes into the innermost level of the network, where it is not that level's."""
    links_per_node: Count | None = None
    """NICs or rails of one of its nodes, where they are not as many as that level says."""


class Matrix(Spec):
    """A square table of plain numbers in a unit that is named once: from the row to the column."""

    unit: str
    """``GB/s``, ``Gb/s``, ``us``."""
    rows: list[list[Annotated[float, Field(ge=0.0)]]] | None = None
    file: str | None = None
    """CSV file beside the cluster's, without a header."""

    @model_validator(mode="after")
    def _one_of(self) -> Matrix:
        if (self.rows is None) == (self.file is None):
            raise PydanticCustomError("hardware", "needs 'rows' or 'file', and not both")
        return self


class BandwidthMatrix(Spec):
    """What was measured between pairs; it replaces what the links of the network promise.

    Between groups, an entry is what a node of the one gets to a node of the other (the diagonal: between two nodes of
    the group); between nodes, what one gets to another, all its links together, shared by its accelerators; between
    GPUs, what one gets to another while the others communicate too.
    """

    between: Literal["groups", "nodes", "gpus"]
    source: str
    bandwidth: Matrix
    latency: Matrix | None = None
    """One way, for a small message; that of the network's links if absent."""


class Cluster(Spec):
    """Nodes times a network."""

    kind: Literal["cluster"]
    name: str
    source: str
    note: str = ""
    groups: Annotated[list[NodeGroup], Field(min_length=1)]
    """In rank order; of one kind of node or of several."""
    network: list[Network]
    bandwidth_matrix: BandwidthMatrix | None = None


Device = Processor | MemoryDevice
