"""The catalog: finds and checks hardware, models and scenarios by name over a search path.

A name is the file's stem (``h100-sxm``) or, for scenarios, also its path below ``scenarios/``
(``training/gpt3-175b-64xa100``). Folders that the user names come first, then ``MEMROOF_PATH``, then what is shipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from simulator.specs.base import Spec, validate
from simulator.specs.calibration import Calibration, merge_calibration
from simulator.specs.cluster import Hardware
from simulator.specs.errors import MemroofError, Problem, SpecError, UnknownNameError, unknown
from simulator.specs.graph import Graph
from simulator.specs.hardware import (
    BandwidthMatrix,
    Cluster,
    Device,
    LinkType,
    MemoryDevice,
    Network,
    Node,
    NodeGroup,
    Processor,
)
from simulator.specs.machine import Engine, Machine, build_machine
from simulator.specs.matrix import pair_rates
from simulator.specs.measured_layers import MeasuredLayers
from simulator.specs.model import Model
from simulator.specs.network import PairRates, Part
from simulator.specs.scenario import Scenario, schema_of
from simulator.specs.scenario_base import HardwareChoice, flattened
from simulator.specs.source import Document, override, read_document

_PACKAGE = Path(__file__).resolve().parent.parent
FOLDERS = {
    "device": "hardware_specs/devices",
    "link": "hardware_specs/links",
    "node": "hardware_specs/nodes",
    "cluster": "hardware_specs/clusters",
    "calibration": "hardware_specs/calibration",
    "model": "models_zoo",
    "layers": "hardware_specs/layers",
    "graph": "models_zoo/graphs",
    "scenario": "scenarios",
}
_SCHEMAS: dict[str, type[Spec]] = {
    "link": LinkType,
    "node": Node,
    "cluster": Cluster,
    "model": Model,
    "layers": MeasuredLayers,
    "graph": Graph,
}
_Checked = TypeVar("_Checked", bound=Spec)


def shipped_root() -> Path:
    """Return the folder that holds the shipped data: inside the installed package, or the checkout."""
    inside = _PACKAGE / "data"
    return inside if inside.is_dir() else _PACKAGE.parent


def scenario_with(scenario: Scenario, overrides: Mapping[str, str]) -> Scenario:
    """Return a checked scenario with some keys set, as by ``--set``; raises :class:`SpecError` if one is wrong."""
    document = override(Document(scenario.name, scenario.model_dump(exclude_unset=True), {}), dict(overrides))
    return validate(document, schema_of(document))


class Catalog:
    """Hardware, models and scenarios by name.

    Parameters
    ----------
    paths : iterable of Path
        Folders that are searched first; each is laid out like the shipped data or holds the files directly.
    overrides : mapping of str to str
        ``--set`` assignments. ``strategy.tensor_parallel`` sets a key of the scenario;
        ``device.h100-sxm.memory.hbm.bandwidth`` one of a catalogued device (likewise link, node, cluster, model).
    environment : mapping, optional
        Where ``MEMROOF_PATH`` is looked up; the process environment if absent.
    """

    def __init__(
        self,
        paths: Iterable[Path] = (),
        overrides: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        listed = (os.environ if environment is None else environment).get("MEMROOF_PATH", "")
        self.roots = (*map(Path, paths), *(Path(p) for p in listed.split(os.pathsep) if p), shipped_root())
        self._cache: dict[tuple[str, str], Spec] = {}
        self._overrides: dict[str, dict[str, str]] = {}
        self._changes: Mapping[str, Mapping[str, str]] = {}
        """What a scenario has otherwise than an entry's file, by the entry."""
        for key, value in (overrides or {}).items():
            scope, rest = self._scope(key)
            self._overrides.setdefault(scope, {})[rest] = value

    def _scope(self, key: str) -> tuple[str, str]:
        kind, _, rest = key.partition(".")
        if kind not in FOLDERS or (kind in ("model", "layers") and not rest):
            return "scenario", key
        names = [name for name in self.names(kind) if rest.startswith(name + ".")]
        if not names:
            raise SpecError(
                [Problem(f"--set {key}", 0, 0, "", unknown(kind, rest.split(".")[0], self.names(kind)))]
            )
        name = max(names, key=len)
        return f"{kind}:{name}", rest[len(name) + 1 :]

    @cached_property
    def _files(self) -> dict[str, dict[str, Path]]:
        table: dict[str, dict[str, Path]] = {}
        for kind, folder in FOLDERS.items():
            found: dict[str, Path] = {}
            for root in self.roots:
                base = root / folder
                inside = [root / other for other in FOLDERS.values() if other.startswith(f"{folder}/")]
                for file in sorted(base.rglob("*.yaml")) if base.is_dir() else ():
                    if any(other in file.parents for other in inside):
                        continue  # of another kind, whose folder lies in this one
                    name = (
                        file.relative_to(base).with_suffix("").as_posix() if kind == "scenario" else file.stem
                    )
                    found.setdefault(name, file)
            table[kind] = found
        return table

    def names(self, kind: str) -> tuple[str, ...]:
        """Return the names of a kind (a key of :data:`FOLDERS`), sorted."""
        return tuple(sorted(self._files[kind]))

    def file(self, kind: str, name: str) -> Path:
        """Return the file of a name; raises :class:`UnknownNameError` with the nearest names."""
        files = self._files[kind]
        if name in files:
            return files[name]
        stems = [key for key in files if key.rsplit("/", 1)[-1] == name]
        if len(stems) == 1:
            return files[stems[0]]
        raise UnknownNameError(kind, name, files)

    def device(self, name: str) -> Device:
        """Return a processor or memory device."""
        document = self._document("device", name)
        kind = document.data.get("kind") if isinstance(document.data, dict) else None
        if kind in ("dram", "cxl", "nvme", "ssd", "ufs"):
            return self._checked("device", name, MemoryDevice)
        return self._checked("device", name, Processor)

    def processor(self, name: str) -> Processor:
        """Return a device that computes; raises :class:`MemroofError` for one that only stores."""
        found = self.device(name)
        if not isinstance(found, Processor):
            raise MemroofError(
                f"device {name!r} only stores ({found.kind}); a GPU, TPU, NPU or CPU is needed here"
            )
        return found

    def link(self, name: str) -> LinkType:
        """Return a link type."""
        return self._checked("link", name, LinkType)

    def node(self, name: str) -> Node:
        """Return a node as written, with its references checked."""
        node = self._checked("node", name, Node)
        self._check(self._document("node", name), self._node_faults(node))
        return node

    def cluster(self, name: str) -> Cluster:
        """Return a cluster as written."""
        cluster = self._checked("cluster", name, Cluster)
        self._check(self._document("cluster", name), self._cluster_faults(cluster))
        return cluster

    def model(self, name: str) -> Model:
        """Return a model by name, or read one from a path that ends in ``.yaml``."""
        if name.endswith((".yaml", ".yml")):
            return validate(self._assigned(read_document(Path(name)), f"model:{Path(name).stem}"), Model)
        return self._checked("model", name, Model)

    def layers(self, name: str) -> MeasuredLayers:
        """Return measured layers by name, or read them from a path that ends in ``.yaml``."""
        if name.endswith((".yaml", ".yml")):
            return validate(read_document(Path(name)), MeasuredLayers)
        return self._checked("layers", name, MeasuredLayers)

    def graph(self, name: str) -> Graph:
        """Return a graph by name, or read one from a path that ends in ``.yaml``."""
        if name.endswith((".yaml", ".yml")):
            return validate(self._assigned(read_document(Path(name)), f"graph:{Path(name).stem}"), Graph)
        return self._checked("graph", name, Graph)

    def calibration(self, device: Processor) -> Calibration:
        """Return a device's constants: fitted ones where they exist, else those of its architecture or kind.

        The files are named after the device, its architecture and its kind; the more special file wins key by key.
        """
        layers = [
            self._checked("calibration", name, Calibration)
            for name in (device.kind, device.architecture, device.name)
            if name in self._files["calibration"]
        ]
        if not layers:
            raise MemroofError(
                f"no calibration for kind {device.kind!r}; add hardware_specs/calibration/{device.kind}.yaml"
            )
        return merge_calibration(layers)

    def scenario(self, name: str) -> Scenario:
        """Return a scenario by name or path, checked, with overrides applied and references resolved."""
        scenario = self.check_scenario(self.scenario_document(name))
        asked = {key.partition(".")[0] for key in self._overrides.get("scenario", {})}
        changed = asked - {"expect", "limit", "name", "description"} or len(self._overrides) > (
            "scenario" in self._overrides
        )
        # what was measured holds for the scenario as it stands, not for a changed one
        return scenario.model_copy(update={"expect": {}}) if changed and "expect" not in asked else scenario

    def check_scenario(self, document: Document) -> Scenario:
        """Check a scenario's tree against the schema of its kind and resolve the names in it."""
        scenario: Scenario = validate(document, schema_of(document))
        if not scenario.name:
            scenario = scenario.model_copy(update={"name": Path(document.file).stem})
        self._check(document, self._reference_faults(scenario))
        return scenario

    def scenario_document(self, name: str) -> Document:
        """Return a scenario's tree with overrides applied, not yet checked against the schema."""
        path = Path(name)
        if path.suffix not in (".yaml", ".yml") and not path.is_file():
            path = self.file("scenario", name)
        return self._assigned(read_document(path), "scenario")

    def scenario_from(self, content: Mapping[str, object], file: str = "scenario") -> Scenario:
        """Check a scenario that is given as keys and values instead of a file."""
        return self.check_scenario(self._assigned(Document(file, dict(content), {}), "scenario"))

    def hardware(self, choice: HardwareChoice) -> Hardware:
        """Expand a choice of device, node or cluster into machines and the network between them."""
        if choice.changes:
            kind, name = choice.named
            kind = next((k for k in (kind, "device", "cluster") if name in self._files[k]), kind)
            plain = choice.model_copy(update={"changes": {}})
            return self._with(f"{kind}:{name}", dict(flattened(choice.changes))).hardware(plain)
        if choice.cluster is not None:
            hardware = self._cluster(self.cluster(choice.cluster))
            return hardware.with_nodes(choice.nodes) if choice.nodes else hardware
        if choice.node is not None and choice.node in self._files["node"]:
            node = self.node(choice.node)
            return Hardware(
                node.name, self.machine(node.name), choice.nodes or 1, self._network(node.network)
            )
        name = choice.device or choice.node or ""
        if name in self._files["cluster"]:
            return self.hardware(HardwareChoice(cluster=name, nodes=choice.nodes))
        if name not in self._files["device"]:
            raise UnknownNameError("hardware", name, self._hardware_names())
        return self._bare(self.processor(name), choice.count or 1)

    def _with(self, scope: str, assignments: Mapping[str, str]) -> Catalog:
        """Return this catalog with some keys of one entry set; what is set by ``--set`` goes before."""
        twin = copy(self)
        twin._cache, twin._changes = {}, {scope: assignments}
        return twin

    def machine(self, node: str) -> Machine:
        """Return a node expanded into its graph of memories, processors and links."""
        return build_machine(self.node(node), self.device, self.link)

    def _cluster(self, cluster: Cluster) -> Hardware:
        matrix = cluster.bandwidth_matrix
        parts = [
            Part(self.machine(group.node), group.count, self._uplink(cluster, group))
            for group in cluster.groups
        ]
        rates = self._rates(cluster, matrix, parts) if matrix else None
        whole = sum(part.nodes for part in parts)
        equal = all(part.machine == parts[0].machine and part.uplink is None for part in parts)
        if equal and (matrix is None or matrix.between != "groups"):
            parts = parts[:1]
        return Hardware(
            cluster.name, parts[0].machine, whole, self._network(cluster.network), tuple(parts[1:]), parts[0].uplink,
            rates,
        )  # fmt: skip

    def _uplink(self, cluster: Cluster, group: NodeGroup) -> tuple[LinkType, int] | None:
        if group.link is None and group.links_per_node is None:
            return None
        level = cluster.network[0]
        return self.link(group.link or level.link), group.links_per_node or level.links_per_node

    def _rates(self, cluster: Cluster, matrix: BandwidthMatrix, parts: list[Part]) -> PairRates:
        nodes = sum(part.nodes for part in parts)
        gpus = sum(len(part.machine.ranks) * part.nodes for part in parts)
        size = {"groups": len(cluster.groups), "nodes": nodes, "gpus": gpus}[matrix.between]
        return pair_rates(matrix, size, self._document("cluster", cluster.name))

    def _bare(self, device: Processor, count: int) -> Hardware:
        if not device.memory:
            raise MemroofError(f"{device.name} has no memory of its own; name a node that gives it DRAM")
        components: dict[str, object] = {"gpu": {"device": device.name, "count": count}}
        wires: list[object] = []
        fabric = self._fabric(device, count)
        if count > 1 and fabric and self.link(fabric).maximum_peers:
            wires.append({"between": ("gpu", "gpu"), "link": fabric})
        elif count > 1 and fabric:
            components["switch"] = {"switch": True}
            wires.append({"between": ("gpu", "switch"), "link": fabric})
        node = Node.model_validate(
            {
                "kind": "node",
                "name": device.name,
                "source": device.source,
                "components": components,
                "wires": wires,
            }
        )
        machine = build_machine(node, self.device, self.link)
        price = device.price.model_copy(update={k: v * count for k, v in device.price if v is not None})
        engines: tuple[Engine, ...] = machine.engines
        return Hardware(
            device.name, Machine(node.name, engines, machine.stores, machine.links, "gpu", node, price), 1, ()
        )

    def _fabric(self, device: Processor, count: int) -> str | None:
        """Return what joins bare devices: their fabric, or the host link where it does not reach that many."""
        if device.fabric is None:
            return device.host_link
        peers = self.link(device.fabric).maximum_peers
        return device.fabric if peers is None or count - 1 <= peers else device.host_link

    def _network(self, levels: Iterable[Network]) -> tuple[tuple[Network, LinkType], ...]:
        return tuple((level, self.link(level.link)) for level in levels)

    def _hardware_names(self) -> list[str]:
        return [name for kind in ("device", "node", "cluster") for name in self._files[kind]]

    def _document(self, kind: str, name: str) -> Document:
        return self._assigned(read_document(self.file(kind, name)), f"{kind}:{self.file(kind, name).stem}")

    def _assigned(self, document: Document, scope: str) -> Document:
        if scope in self._changes:
            document = override(document, self._changes[scope], "hardware.changes.")
        assignments = self._overrides.get(scope, {})
        if scope != "scenario":
            return (
                override(document, assignments, f"--set {scope.replace(':', '.')}.")
                if assignments
                else document
            )
        if any(key.startswith("hardware.") for key in assignments):
            return _with_hardware_keys(document, assignments)
        return override(document, assignments) if assignments else document

    def _checked(self, kind: str, name: str, schema: type[_Checked]) -> _Checked:
        key = (kind, name)
        found = self._cache.get(key)
        if found is None:
            document = self._document(kind, name)
            found = self._cache[key] = validate(document, schema)
            declared = getattr(found, "name", name)
            if declared != self.file(kind, name).stem:
                raise SpecError(
                    [document.problem(("name",), f"found {declared!r}, expected the file's name {name!r}")]
                )
        if not isinstance(found, schema):
            raise MemroofError(f"{kind} {name!r} is a {type(found).__name__}, not a {schema.__name__}")
        return found

    @staticmethod
    def _check(document: Document, faults: Iterable[tuple[tuple[str | int, ...], str]]) -> None:
        problems = [document.problem(key, message) for key, message in faults]
        if problems:
            raise SpecError(problems)

    def _node_faults(self, node: Node) -> list[tuple[tuple[str | int, ...], str]]:
        faults: list[tuple[tuple[str | int, ...], str]] = []
        for name, part in node.components.items():
            if part.device and part.device not in self._files["device"]:
                faults.append(
                    (("components", name, "device"), unknown("device", part.device, self.names("device")))
                )
        for index, wire in enumerate(node.wires):
            counts = []
            for end, name in enumerate(wire.between):
                if name not in node.components:
                    faults.append(
                        (("wires", index, "between", end), unknown("component", name, node.components))
                    )
                else:
                    counts.append(node.components[name].count)
            if len(counts) == 2 and max(counts) % min(counts):
                faults.append(
                    (
                        ("wires", index, "between"),
                        f"{counts[0]} parts cannot be spread evenly over {counts[1]}",
                    )
                )
            if wire.link not in self._files["link"]:
                faults.append((("wires", index, "link"), unknown("link", wire.link, self.names("link"))))
        return faults + self._network_faults(node.network)

    def _network_faults(self, levels: Iterable[Network]) -> list[tuple[tuple[str | int, ...], str]]:
        return [
            (("network", i, "link"), unknown("link", level.link, self.names("link")))
            for i, level in enumerate(levels)
            if level.link not in self._files["link"]
        ]

    def _cluster_faults(self, cluster: Cluster) -> list[tuple[tuple[str | int, ...], str]]:
        faults: list[tuple[tuple[str | int, ...], str]] = []
        for index, group in enumerate(cluster.groups):
            if group.node not in self._files["node"]:
                faults.append((("groups", index, "node"), unknown("node", group.node, self.names("node"))))
            if group.link is not None and group.link not in self._files["link"]:
                faults.append((("groups", index, "link"), unknown("link", group.link, self.names("link"))))
            if (group.link or group.links_per_node) and not cluster.network:
                faults.append(
                    (("groups", index), "has links of its own, but the cluster has no network to join")
                )
        matrix = cluster.bandwidth_matrix
        if matrix and matrix.latency is None and not cluster.network:
            faults.append((("bandwidth_matrix",), "needs 'latency' where the cluster has no network"))
        return faults + self._network_faults(cluster.network)

    def _reference_faults(self, scenario: Scenario) -> list[tuple[tuple[str | int, ...], str]]:
        faults: list[tuple[tuple[str | int, ...], str]] = []
        for key, kind, name in scenario.entries:
            if not name.endswith((".yaml", ".yml")) and name not in self._files[kind]:
                faults.append((key, unknown(kind, name, self.names(kind))))
        choice = scenario.hardware
        for kind in ("device", "node", "cluster"):
            name = getattr(choice, kind)
            known = self._hardware_names() if kind == "node" else self.names(kind)
            if name and name not in known:
                faults.append((("hardware", kind), unknown(kind, name, known)))
        return faults


def _with_hardware_keys(document: Document, assignments: Mapping[str, str]) -> Document:
    """Set keys of the hardware where the file, or another assignment, names it in its short form, which has none."""
    data = document.data
    if isinstance(data, dict) and isinstance(data.get("hardware"), str):
        document = replace(document, data={**data, "hardware": {"node": data["hardware"]}})
    whole = assignments.get("hardware", "{")
    short = {} if whole.lstrip().startswith("{") else {"hardware": f"{{node: {whole}}}"}
    return override(document, {**assignments, **short})
