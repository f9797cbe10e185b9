"""Collectives: the communication library, serving engines' own all-reduce kernels, and expert exchange."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simulator.cost import CostModel
from simulator.cost.custom_all_reduce import CustomKernel
from simulator.cost.expert_exchange import ExchangeStep
from simulator.graph import Collective
from simulator.graph.work import CollectiveKind
from simulator.specs import Catalog, Span, Tier
from simulator.specs.scenario_base import HardwareChoice
from simulator.validation.dataset import FloatArray, Part, TableDataSet, keep, labels
from simulator.validation.datasets.devices import AICONFIGURATOR
from simulator.validation.fit import Constant, Fit

if TYPE_CHECKING:
    import pandas as pd

    Split = Callable[[pd.DataFrame, Catalog, Counter[str]], Sequence[Part]]

MIB = 2**20
NODES: Mapping[str, str] = {
    "a100-80gb-sxm": "dgx-a100-80gb",
    "h100-sxm": "dgx-h100",
    "h200-sxm": "dgx-h200",
    "b200": "dgx-b200",
    "gb200": "gb200-nvl72",
    "l40s": "l40s-8x",
    "h800-sxm": "h800-node",
}
"""Machines that the devices were measured in."""
KINDS: Mapping[str, CollectiveKind] = {
    "all_reduce": "all-reduce",
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "alltoall": "all-to-all",
    "send_recv": "send",
}
"""Sizes are the whole tensor's bytes in all of them: at 512 MiB over eight A100 the bus bandwidth is then 203 to 222 GB/s."""


OTHER_MACHINE = 0.1
"""Further relative error where another machine and another release of the library were measured than the constants come from."""


class Fabric(NamedTuple):
    """A network that one table was measured on: line rates at which :attr:`network_efficiency` gives what it carried."""

    send: float
    """Of one network adapter that sends or receives [B/s]."""
    reduce: float
    """Of one that does both at once [B/s]."""
    node: float
    """Of all adapters of a node together [B/s]."""
    latency: float
    """Of one message [s]."""


class Topology(NamedTuple):
    """A machine type of the vidur table: whose constants, what joins accelerators in a node, what joins nodes."""

    device: str
    pair: str
    """Link between two, or machine whose switch joins any number."""
    others: str
    """Link from one pair to the next; empty where a switch joins all."""
    fabric: Fabric
    staged: float = 1.0
    """Share of a link that is left where it is crossed through host memory."""


TOPOLOGIES: Mapping[str, Topology] = {
    "a100_dgx": Topology("a100-80gb-sxm", "dgx-a100-80gb", "", Fabric(9.1e9, 6.9e9, 23e9, 12e-6)),
    "h100_dgx": Topology("h100-sxm", "dgx-h100", "", Fabric(42e9, 42e9, 400e9, 5e-6)),
    "a100_pairwise_nvlink": Topology(
        "a100-80gb-pcie", "nvlink-bridge-a100", "pcie-4.0-x16", Fabric(2.75e9, 2.75e9, 11e9, 6e-6)
    ),
    "h100_pairwise_nvlink": Topology(
        "h100-pcie", "nvlink-bridge-h100", "pcie-5.0-x16", Fabric(2.75e9, 2.75e9, 11e9, 6e-6)
    ),
    "a40_pairwise_nvlink": Topology(
        "a40", "pcie-4.0-x16", "pcie-4.0-x16", Fabric(3.1e9, 3.1e9, 12e9, 12e-6), 0.17
    ),
}
"""Fabrics are read off the largest messages of the table's own send rows, the share of a node off its all-reduce over two
nodes; they belong to machines that nobody named, not to devices. The A40 pairs answer at PCIe's rate through host memory."""


def node_span(catalog: Catalog, device: str, ranks: int) -> Span:
    """Return what ranks in the machine of a device span."""
    return catalog.hardware(HardwareChoice(node=NODES[device])).span(ranks)


def _inside(
    frame: pd.DataFrame, device: pd.Series[Any], catalog: Catalog, skipped: Counter[str]
) -> pd.DataFrame:
    """Keep the groups that the machine of their device holds."""
    sizes = {str(name): len(catalog.machine(NODES[str(name)]).ranks) for name in device.unique()}
    return keep(frame, frame["num_gpus"] <= device.map(sizes), "several machines", skipped)


def _sized(kind: CollectiveKind, spans: Mapping[int, Span], ranks: Any, size: FloatArray) -> Any:
    """Return a prediction of a collective of the library for rows of several group sizes."""

    def predict(cost: CostModel) -> FloatArray:
        time = np.empty(len(size))
        for count, span in spans.items():
            rows = ranks == count
            time[rows] = cost.price(Collective(kind, "tensor", size[rows]), span).time
        return time

    return predict


def _library(op: str) -> Split:
    def split(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
        frame = keep(frame, frame["op_name"] == op, "another collective of the table", skipped)
        device = frame["src"].str.split("/").str[0].map(AICONFIGURATOR)
        frame = keep(frame, device.notna(), "device is not in the catalog", skipped)
        frame = keep(frame, frame["latency_ms"] > 0.0, "latency is not positive", skipped)
        frame = _inside(frame, device[frame.index], catalog, skipped)
        parts = []
        for (name, form), rows in frame.groupby([device[frame.index], "nccl_dtype"], sort=True):
            ranks = rows["num_gpus"].to_numpy(np.int64)
            spans = {count: node_span(catalog, str(name), count) for count in np.unique(ranks).tolist()}
            if form == "int8":  # which the switch does not add
                spans = {count: _without_switch(span) for count, span in spans.items()}
            predict = _sized(KINDS[op], spans, ranks, rows["size_bytes"].to_numpy(float))
            groups = labels(rows, ["op_name", "message_elements"])
            parts.append(
                Part(
                    str(name),
                    rows["latency_ms"].to_numpy(float) * 1e-3,
                    predict,
                    groups,
                    rows["line"].to_numpy(np.int64),
                    rows,
                    "collective",
                )
            )
        return parts

    return split


def _custom(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    device = frame["src"].str.split("/").str[0].map(AICONFIGURATOR)
    frame = keep(frame, device.notna(), "device is not in the catalog", skipped)
    frame = keep(frame, frame["latency_ms"] > 0.0, "latency is not positive", skipped)
    frame = _inside(frame, device[frame.index], catalog, skipped)
    staged = frame["src"].str.startswith("l40s") & (frame["num_gpus"] > 2) & (frame["size_bytes"] >= MIB // 4)
    frame = keep(
        frame,
        ~staged,
        "large all-reduce through host memory of an L40S server is no fabric to model",
        skipped,
    )
    parts = []
    for (source, kernel_source), rows in frame.groupby(["src", "kernel_source"], sort=True):
        name = AICONFIGURATOR[str(source).split("/")[0]]
        kernel, limit = engine_kernel(str(source), str(kernel_source), catalog.processor(name).architecture)
        eager = "eager" in str(kernel_source)
        ranks, size = rows["num_gpus"].to_numpy(np.int64), rows["size_bytes"].to_numpy(float)
        spans = {count: node_span(catalog, name, count) for count in np.unique(ranks).tolist()}

        def predict(
            cost: CostModel, ranks: Any = ranks, size: FloatArray = size, spans: Mapping[int, Span] = spans,
            kernel: CustomKernel = kernel, limit: Callable[[int], float] = limit, eager: bool = eager,
        ) -> FloatArray:  # fmt: skip
            time = np.empty(len(size))
            for count, span in spans.items():
                chosen = ranks == count
                time[chosen] = cost.custom_all_reduce(
                    size[chosen], span, kernel, limit=limit(count), eager=eager
                ).time
            return time

        parts.append(
            Part(name, rows["latency_ms"].to_numpy(float) * 1e-3, predict, labels(rows, ["src", "num_gpus"]),
                 rows["line"].to_numpy(np.int64), rows, "custom-collective")
        )  # fmt: skip
    return parts


def engine_kernel(
    source: str, kernel_source: str, architecture: str
) -> tuple[CustomKernel, Callable[[int], float]]:
    """Return which kernel a serving engine runs, and up to how many bytes by ranks.

    vLLM's workspace holds less than 8 MiB, SGLang's less than 16 MiB and, with the kernel that it has had since 0.5.14,
    16 MiB. TensorRT-LLM chooses by table: 8 MiB for a pair, else 4 MiB over the ranks, on Blackwell 16 MiB.
    """
    _, engine, version = source.split("/")
    if kernel_source == "TRTLLM":
        larger = 16 * MIB if architecture == "blackwell" else 4 * MIB
        return (
            "push",
            lambda ranks: 8 * MIB if ranks == 2 else larger / (1 if architecture == "blackwell" else ranks),
        )
    if engine == "vllm":
        return "pull", lambda ranks: 8 * MIB - 1
    if tuple(int(number) for number in version.split(".")[:3]) >= (0, 5, 14):
        return "push", lambda ranks: 16 * MIB
    return "pull", lambda ranks: 16 * MIB - 1


def _vidur(op: str) -> Split:
    def split(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
        frame = keep(frame, frame["collective"] == op, "another collective of the table", skipped)
        frame = keep(frame, frame["topology"].isin(list(TOPOLOGIES)), "topology is not known", skipped)
        if op == "send_recv":
            copied = frame["topology"] == "h100_pairwise_nvlink"
            frame = keep(frame, ~copied, "a copy of the A100 pairs' rows, not a measurement of H100", skipped)
            fast = (frame["topology"] == "a100_pairwise_nvlink") & (frame["devices_per_node"] > 1)
            frame = keep(frame, ~fast, "above the line rate of the bridge, so of another machine", skipped)
        frame = keep(frame, frame["median_ms"] > 0.0, "latency is not positive", skipped)
        parts = []
        keys = ["topology", "num_workers", "devices_per_node"]
        for (name, workers, local), rows in frame.groupby(keys, sort=True):
            topology = TOPOLOGIES[str(name)]
            span = _vidur_span(catalog, topology, op, int(str(workers)), int(str(local)))
            size = rows["size"].to_numpy(float)

            def predict(cost: CostModel, size: FloatArray = size, span: Span = span) -> FloatArray:
                time: Any = cost.price(Collective(KINDS[op], "tensor", size), span).time
                # timed call by call, so that no all-reduce is seen that is shorter than its launch
                least = float(cost.calibration.custom_collective.eager_latency or 0.0)
                return np.asarray(np.maximum(time, least if op == "all_reduce" else 0.0), float)

            groups = labels(rows.assign(octave=np.floor(np.log2(size)).astype(int)), [*keys, "octave"])
            parts.append(
                Part(topology.device, rows["median_ms"].to_numpy(float) * 1e-3, predict, groups,
                     rows["line"].to_numpy(np.int64), rows, None, _error(span, KINDS[op], len(size)))
            )  # fmt: skip
        return parts

    return split


def _error(span: Span, kind: CollectiveKind, rows: int) -> Callable[[CostModel], FloatArray]:
    """Return the relative error of a collective over a span, wider where it leaves the node."""

    def errors(cost: CostModel) -> FloatArray:
        return np.full(
            rows, math.hypot(cost.price(Collective(kind, "tensor", 1.0), span).error, OTHER_MACHINE)
        )

    return errors


def _vidur_span(catalog: Catalog, topology: Topology, op: str, workers: int, local: int) -> Span:
    tiers = []
    if local > 1:
        if topology.others:
            link = catalog.link(topology.pair if local == 2 else topology.others)
            tiers.append(
                Tier(
                    "node",
                    local,
                    link.bandwidth * topology.staged,
                    link.latency * (1.0 if local == 2 else 2.0),
                )
            )
        else:
            hardware = catalog.hardware(HardwareChoice(node=topology.pair))
            tiers.extend(hardware.span(local).tiers)
    if workers > local:
        fabric = topology.fabric
        adapter = fabric.send if op == "send_recv" else fabric.reduce
        tiers.append(
            Tier(
                "network",
                workers // local,
                min(adapter * local, fabric.node) / local,
                fabric.latency,
            )
        )
    return Span(tuple(tiers))


ENGINEERING: Mapping[str, tuple[str, str]] = {
    "A100 8x node NVLink3": ("a100-80gb-sxm", "dgx-a100-80gb"),
    "H200 8x node NVLink4": ("h200-sxm", "dgx-h200"),
    "B200 8x node NVLink5": ("b200", "dgx-b200"),
    "B200 (AWS P6-B200) NVLink5 + 8x50GB/s EFA per node": ("b200", "aws-p6-b200.48xlarge"),
}


def _engineering(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    frame = keep(frame, frame["hardware"].isin(list(ENGINEERING)), "hardware is not named", skipped)
    frame = keep(frame, frame["collective"].isin(list(KINDS)), "collective is not modelled", skipped)
    frame = frame.assign(algo_note=frame["algo_note"].fillna(""))
    parts = []
    for (hardware, collective, note, count, nodes), rows in frame.groupby(
        ["hardware", "collective", "algo_note", "n_gpus", "n_nodes"], sort=True
    ):
        ranks = int(str(count))
        device, node = ENGINEERING[str(hardware)]
        span = catalog.hardware(HardwareChoice(node=node, nodes=int(str(nodes)))).span(ranks)
        if "Ring" in str(note):
            span = _without_switch(span)
        size = rows["size_bytes"].to_numpy(float)
        passes = 2.0 if collective == "all_reduce" else 1.0
        from_bus = passes * (ranks - 1) / ranks * size / (rows["busbw_gb_s"].to_numpy(float) * 1e9)
        measured = np.where(rows["time_us"].notna(), rows["time_us"].to_numpy(float) * 1e-6, from_bus)

        def predict(
            cost: CostModel,
            size: FloatArray = size,
            span: Span = span,
            kind: CollectiveKind = KINDS[str(collective)],
        ) -> FloatArray:
            return np.asarray(cost.price(Collective(kind, "data", size), span).time)

        parts.append(
            Part(device, measured, predict, labels(rows, ["hardware", "collective", "n_gpus", "algo_note"]),
                 rows["line"].to_numpy(np.int64), rows, None, _error(span, KINDS[str(collective)], len(size)))
        )  # fmt: skip
    return parts


def _without_switch(span: Span) -> Span:
    return Span(tuple(Tier(tier.name, tier.size, tier.bandwidth, tier.latency) for tier in span.tiers))


def _exchange(step: ExchangeStep, *, low_latency: bool) -> Split:
    def split(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
        device = frame["src"].str.split("/").str[0].map(AICONFIGURATOR)
        frame = keep(frame, device.notna(), "device is not in the catalog", skipped)
        frame = keep(frame, frame["node_num"] == 1, "several nodes", skipped)
        column = f"{step}_avg_t_us" if low_latency else f"{step}_transmit_us"
        frame = keep(frame, frame[column] > 0.0, "latency is not positive", skipped)
        parts = []
        for name, rows in frame.groupby(device[frame.index], sort=True):
            span = node_span(catalog, str(name), 8)
            tokens, hidden, top_k, experts = (
                rows[c].to_numpy(float) for c in ("num_token", "hidden_size", "num_topk", "num_experts")
            )
            units = 24.0 if low_latency else rows[f"{step}_sms"].to_numpy(float)
            groups = labels(rows, ["hidden_size", "num_topk", "num_experts"])

            def predict(
                cost: CostModel, span: Span = span, tokens: Any = tokens, hidden: Any = hidden, top_k: Any = top_k,
                experts: Any = experts, units: Any = units,
            ) -> FloatArray:  # fmt: skip
                exchanged = cost.expert_exchange(
                    step, span, tokens, hidden, top_k, experts, low_latency=low_latency, units=units
                )
                return np.asarray(exchanged.time)

            parts.append(
                Part(str(name), rows[column].to_numpy(float) * 1e-6, predict, groups, rows["line"].to_numpy(np.int64),
                     rows, None, _exchange_error(step, span, low_latency, len(rows)))
            )  # fmt: skip
        return parts

    return split


def _exchange_error(
    step: ExchangeStep, span: Span, low_latency: bool, rows: int
) -> Callable[[CostModel], FloatArray]:
    return lambda cost: np.full(
        rows, cost.expert_exchange(step, span, 1.0, 1.0, 1.0, 8.0, low_latency=low_latency).error
    )


def _deepep(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    frame = keep(frame, frame["hardware"].str.startswith("H800"), "which device is not stated", skipped)
    across = (frame["kernel"] == "normal") & (frame["ep_size"] > 8)
    frame = keep(frame, ~across, "rate over RDMA counts what NVLink forwards, above the line rate", skipped)
    link = catalog.hardware(HardwareChoice(node=NODES["h800-sxm"], nodes=2)).span(16).tiers[-1]
    parts = []
    for (kernel, op), rows in frame.groupby(["kernel", "op"], sort=True):
        step: ExchangeStep = "dispatch" if op == "dispatch" else "combine"
        low, ranks = kernel == "low_latency", rows["ep_size"].to_numpy(float)
        tokens, rate = rows["tokens_per_rank"].to_numpy(float), rows["bottleneck_bw_gb_s"].to_numpy(float)
        # 7168 elements and 8 experts of 256 a token; a normal kernel's rate counts what passes to other ranks
        node = node_span(catalog, "h800-sxm", 8)
        span = Span((Tier(link.name, 8, link.bandwidth, link.latency),)) if low else node
        width = 7168.0 * (1.0 + 4.0 / 128.0) if step == "dispatch" else 2.0 * 7168.0
        moved = tokens * 8.0 * (1.0 - (7.0 / 8.0) ** 8.0) * width
        measured = rows["latency_us"].to_numpy(float) * 1e-6 if low else moved / (rate * 1e9)

        def predict(
            cost: CostModel, step: ExchangeStep = step, span: Span = span, tokens: Any = tokens, low: bool = low,
        ) -> FloatArray:  # fmt: skip
            return np.asarray(
                cost.expert_exchange(step, span, tokens, 7168.0, 8.0, 256.0, low_latency=low).time
            )

        parts.append(
            Part("h800-sxm", measured, predict, labels(rows.assign(ranks=ranks), ["kernel", "op", "ranks"]),
                 rows["line"].to_numpy(np.int64), rows, None, _exchange_error(step, span, low, len(rows)))
        )  # fmt: skip
    return parts


LIBRARY = tuple(
    f"aiconfigurator/nccl_collectives.csv#{op}"
    for op in ("all_reduce", "all_gather", "reduce_scatter", "alltoall")
)
CUSTOM = "aiconfigurator/custom_allreduce.csv"
VIDUR = ("vidur/collectives.csv#all_reduce", "vidur/collectives.csv#send_recv")
NORMAL = tuple(f"aiconfigurator/deepep_normal.csv#{step}" for step in ("dispatch", "combine"))
LOW_LATENCY = tuple(f"aiconfigurator/deepep_low_latency.csv#{step}" for step in ("dispatch", "combine"))

DATASETS = (
    *(TableDataSet(name, _library(name.partition("#")[2])) for name in LIBRARY),
    TableDataSet(CUSTOM, _custom),
    *(TableDataSet(name, _vidur(name.partition("#")[2])) for name in VIDUR),
    TableDataSet("ml-engineering/collective_busbw.csv", _engineering),
    TableDataSet(NORMAL[0], _exchange("dispatch", low_latency=False)),
    TableDataSet(NORMAL[1], _exchange("combine", low_latency=False)),
    TableDataSet(LOW_LATENCY[0], _exchange("dispatch", low_latency=True)),
    TableDataSet(LOW_LATENCY[1], _exchange("combine", low_latency=True)),
    TableDataSet("deepep/all_to_all_bandwidth.csv", _deepep),
)

FITS = (
    Fit(
        "collective",
        (
            Constant("collective", "bandwidth_efficiency", 0.05, 1.0),
            Constant("collective", "in_switch_efficiency", 0.4, 1.0),
            Constant("collective", "exchange_efficiency", 0.05, 1.0),
            Constant("collective", "base_latency", 1e-6, 3e-5),
            Constant("collective", "hop_latency", 1e-8, 5e-6),
            Constant("collective", "flag_bandwidth", 5e8, 1e11),
            Constant("collective", "line_latency", 1e-7, 2e-5),
            Constant("collective", "handshake", 1e-7, 5e-5),
            Constant("collective", "switch_handshake", 1e-7, 2e-4),
            Constant("collective", "exchange_handshake", 1e-7, 5e-5),
            Constant("collective", "bulk_bytes", 3e4, 1e7),
            Constant("collective", "chunk_latency", 1e-8, 1e-4),
            Constant("collective", "ring_edge", 0.01, 2.0),
        ),
        LIBRARY,
        "collective and message size, all ranks together",
        starts=({}, {"bulk_bytes": 2e6}),
        # over a switch, or through host memory, where every pair's copies cross the same memory twice
        choices=({("collective", "staging_exponent"): 0.0}, {("collective", "staging_exponent"): 2.0}),
    ),
    Fit(
        "custom-collective",
        tuple(
            Constant("custom_collective", name, low, high)
            for name, low, high in (
                ("pull_efficiency", 0.05, 1.0), ("push_efficiency", 0.05, 1.0), ("pull_latency", 1e-6, 3e-5),
                ("push_latency", 1e-6, 3e-5), ("peer_latency", 1e-9, 5e-6), ("pull_second", 1e-7, 5e-5),
                ("push_second", 1e-7, 5e-5), ("eager_latency", 5e-6, 2e-4),
            )
        ),
        (CUSTOM,),
        "engine, its release and ranks",
    ),
    Fit(
        "expert-exchange",
        tuple(
            Constant("expert_exchange", name, low, high)
            for name, low, high in (
                ("dispatch_latency", 1e-6, 2e-4), ("combine_latency", 1e-6, 2e-4), ("dispatch_unit_bandwidth", 1e9, 1e11),
                ("combine_unit_bandwidth", 1e9, 1e11), ("efficiency", 0.1, 1.0), ("low_latency_dispatch", 1e-6, 1e-4),
                ("low_latency_combine", 1e-6, 1e-4), ("expert_latency", 1e-10, 1e-6), ("dispatch_token_latency", 1e-8, 2e-5),
                ("combine_token_latency", 1e-8, 2e-5), ("low_latency_efficiency", 0.1, 1.0),
            )
        ),
        (*NORMAL, *LOW_LATENCY),
        "hidden size, experts and top-k",
        judged=NORMAL,
    ),
)  # fmt: skip
