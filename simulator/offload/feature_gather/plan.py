"""What an iteration asks for: rows and where they lie, rates of the ways they take, seconds of sampling and training."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.graph import FORMAT_BYTES
from simulator.offload.columns import Price
from simulator.offload.feature_gather.access import MiniBatch, accesses, caught, mini_batch
from simulator.offload.feature_gather.network import activation_bytes, train_price
from simulator.offload.feature_gather.reads import DRAM_LATENCY, gather_rate, read_rate
from simulator.offload.tiers import DRAM, GPU, Channel, Host, Tiers, find_tiers, peer_channel
from simulator.specs import MemroofError
from simulator.specs.feature_gather_scenario import FeatureGatherScenario, Way
from simulator.strategy import Setup

SAMPLE_MISSES = 2
"""Lines that no cache holds for each sampled edge, one after the other: the neighbour's number and its place in a hash table
of distinct nodes. Sampling is bound by their latency (Yang et al. 2022, GNNLab, section 3; the count by reasoning)."""
SM_SHARE = 0.1
"""Of the GPU's units that read beside training (Min et al. 2021, arXiv:2103.03330; README of pytorch-direct_dgl: 10:90)."""
BUFFERS = 2


@dataclass(frozen=True)
class Plan:
    """One way of fetching features, worked out for each accelerator.

    Attributes
    ----------
    way : Way
        As written.
    ranks : tuple of Tiers
        Memories and channels of each accelerator.
    host : Host
        The CPUs.
    peers : mapping of (int, int) to Channel
        From one accelerator's memory to another; empty where nothing is read there.
    batch : MiniBatch
        Of one accelerator.
    row : float
        Bytes of a feature row.
    hot : float
        Share of all nodes whose features accelerators hold, in all.
    caught : float
        Share of gathered rows among them.
    sampling : float
        Seconds of one mini-batch on its threads.
    gather : float
        Rate of the CPU threads [B/s].
    reads : float
        Rate of the accelerator's reads of host memory [B/s].
    train : Price
        Of one mini-batch.
    activations : float
        Bytes that training keeps beside the features.
    """

    way: Way
    ranks: tuple[Tiers, ...]
    host: Host
    peers: dict[tuple[int, int], Channel]
    peer_rates: dict[tuple[int, int], float]
    batch: MiniBatch
    row: float
    nodes: int
    edges: int
    hot: float
    caught: float
    sampling: float
    gather: float
    reads: float
    train: Price
    activations: float

    @property
    def features(self) -> float:
        """Bytes of the rows of one mini-batch."""
        return self.batch.nodes[-1] * self.row

    @property
    def cold(self) -> float:
        """Bytes of one mini-batch that come from host memory."""
        return self.features * (1.0 - self.caught)

    @property
    def remote(self) -> float:
        """Bytes of one mini-batch that come from the memory of other accelerators."""
        return self.features * self.caught * (1.0 - 1.0 / len(self.ranks)) if self.peers else 0.0

    @property
    def held(self) -> float:
        """Bytes of hot features in each accelerator's memory."""
        parts = len(self.ranks) if self.peers else 1
        return self.hot * self.nodes * self.row / parts

    @property
    def buffers(self) -> int:
        """Mini-batches whose features are in accelerator memory at a time."""
        return BUFFERS if self.way.overlap == "all" else 1


def make_plan(setup: Setup, way: Way) -> Plan:
    """Work out one way of fetching features.

    Raises
    ------
    MemroofError
        If there is more than one node, no accelerator, or no CPU with DRAM.
    """
    scenario, graph = setup.scenario, setup.graph
    assert isinstance(scenario, FeatureGatherScenario) and graph is not None
    work, strategy, hardware, cost = scenario.workload, scenario.strategy, setup.hardware, setup.cost
    if hardware.others:
        raise MemroofError(f"feature-gather runs on one node; {hardware.name} has several kinds: choose one")
    count = len(hardware.machine.ranks)
    ranks = tuple(find_tiers(hardware, cost.calibration, 1.0, rank) for rank in range(count))
    host = ranks[0].host
    if host is None or DRAM not in ranks[0].pools:
        raise MemroofError(f"feature-gather needs a CPU that is wired to DRAM; {hardware.name} has none")
    device = hardware.device
    element = 2.0 if FORMAT_BYTES[strategy.precision] == 2.0 else 4.0
    row = graph.features * element
    found = accesses(graph)
    batch = mini_batch(found, work.batch, work.fan_outs)
    activations = activation_bytes(batch, graph, work, element)
    rest = batch.nodes[-1] * row * (BUFFERS if way.overlap == "all" else 1) + activations
    shared = count > 1 and way.interleaved is not False
    room = max(0.0, ranks[0].pools[GPU].capacity - rest) * (count if shared else 1)
    hot = min(1.0, room / (graph.nodes * row)) if way.hot == "auto" else float(way.hot)
    within = hot if way.ranking == "degree" else min(1.0, hot / float(graph.reached))
    share = caught(found, batch.gathered, within)
    pairs = [(a, b) for a in range(count) for b in range(count) if a != b] if shared and hot else []
    peers = {pair: peer_channel(hardware, *pair, cost.calibration) for pair in pairs}
    beside = way.overlap == "all" and way.transfer == "zero-copy"
    units = (way.sm_share or SM_SHARE) if beside else 1.0
    shifted = way.shifted is not False
    lent = units if beside else 0.0
    train = train_price(batch, graph, work, strategy.precision, element, cost, lent)
    cores = host.device.compute.units * host.count
    samplers = way.samplers or max(1, cores // 2)
    latency = ranks[0].pools[DRAM].stores[0].read.latency or DRAM_LATENCY
    sampling = sum(batch.edges) * SAMPLE_MISSES * latency / max(1.0, samplers / count)
    channel = ranks[0].channels[DRAM, GPU]
    return Plan(
        way, ranks, host, peers,
        {pair: read_rate(peers[pair], device, row, shifted=shifted, share=units) for pair in pairs},
        batch, row, graph.nodes, graph.edges, hot, share, sampling, gather_rate(host, way.threads or cores, latency),
        read_rate(channel, device, row, shifted=shifted, share=units), train, activations,
    )  # fmt: skip
