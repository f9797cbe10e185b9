"""A small machine and model with round figures, for examples that can be checked by hand."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from simulator.cost import CostModel
from simulator.specs import Catalog
from simulator.strategy import Setup

FILES = {
    "hardware_specs/devices/toy-gpu.yaml": """
kind: gpu
name: toy-gpu
vendor: toy
architecture: toy
source: made up
compute: {matrix: {fp16: 10 TFLOP/s}, vector: {fp32: 1 TFLOP/s}, units: 8, clock: 1 GHz}
memory: {hbm: {technology: HBM, capacity: 1 GB, bandwidth: 100 GB/s}}
power: {limit: 100 W}
""",
    "hardware_specs/devices/toy-cpu.yaml": """
kind: cpu
name: toy-cpu
vendor: toy
architecture: toy
source: made up
compute: {vector: {fp32: 1 TFLOP/s}, units: 8, clock: 1 GHz}
memory: {}
power: {limit: 100 W}
""",
    "hardware_specs/devices/toy-dram.yaml": """
kind: dram
name: toy-dram
technology: DDR
source: made up
capacity: 4 GB
read_bandwidth: 20 GB/s
write_bandwidth: 20 GB/s
shared_port: true
""",
    "hardware_specs/devices/toy-ssd.yaml": """
kind: nvme
name: toy-ssd
technology: NAND
source: made up
capacity: 16 GB
read_bandwidth: 2 GB/s
write_bandwidth: 1 GB/s
""",
    "hardware_specs/links/toy-pcie.yaml": """
{kind: link, name: toy-pcie, technology: PCIe, source: made up, bandwidth: 10 GB/s, latency: 0 s}
""",
    "hardware_specs/links/toy-lanes.yaml": """
{kind: link, name: toy-lanes, technology: PCIe, source: made up, bandwidth: 4 GB/s, latency: 0 s}
""",
    "hardware_specs/links/toy-bus.yaml": """
{kind: link, name: toy-bus, technology: DDR, source: made up, bandwidth: 20 GB/s, duplex: half, latency: 0 s}
""",
    "hardware_specs/nodes/toy-node.yaml": """
kind: node
name: toy-node
source: made up
components: {gpu: {device: toy-gpu}, cpu: {device: toy-cpu}, dram: {device: toy-dram}, nvme: {device: toy-ssd}}
wires:
  - {between: [gpu, cpu], link: toy-pcie}
  - {between: [dram, cpu], link: toy-bus}
  - {between: [nvme, cpu], link: toy-lanes}
""",
    "hardware_specs/devices/toy-cxl.yaml": """
kind: cxl
name: toy-cxl
technology: CXL
source: made up
capacity: 8 GB
read_bandwidth: 5 GB/s
write_bandwidth: 5 GB/s
""",
    "hardware_specs/nodes/toy-cxl-node.yaml": """
kind: node
name: toy-cxl-node
source: made up
components:
  gpu: {device: toy-gpu}
  cpu: {device: toy-cpu}
  dram: {device: toy-dram}
  cxl: {device: toy-cxl}
  nvme: {device: toy-ssd}
  pcie: {switch: true}
wires:
  - {between: [gpu, pcie], link: toy-pcie}
  - {between: [pcie, cpu], link: toy-pcie}
  - {between: [dram, cpu], link: toy-bus}
  - {between: [cxl, cpu], link: toy-pcie}
  - {between: [nvme, pcie], link: toy-lanes}
""",
    "hardware_specs/nodes/toy-striped.yaml": """
kind: node
name: toy-striped
source: made up
components:
  gpu: {device: toy-gpu}
  cpu0: {device: toy-cpu}
  cpu1: {device: toy-cpu}
  dram0: {device: toy-dram}
  dram1: {device: toy-dram}
  nvme: {device: toy-ssd, count: 4}
wires:
  - {between: [gpu, cpu0], link: toy-pcie}
  - {between: [dram0, cpu0], link: toy-bus}
  - {between: [dram1, cpu1], link: toy-bus}
  - {between: [cpu0, cpu1], link: toy-pcie}
  - {between: [nvme, cpu0], link: toy-lanes}
""",
    "hardware_specs/nodes/toy-laptop.yaml": """
kind: node
name: toy-laptop
source: made up
components: {gpu: {device: toy-gpu}, nvme: {device: toy-ssd}}
wires: [{between: [nvme, gpu], link: toy-lanes}]
""",
    "hardware_specs/nodes/toy-cpus.yaml": """
kind: node
name: toy-cpus
source: made up
components: {cpu: {device: toy-cpu}, dram: {device: toy-dram}}
wires: [{between: [dram, cpu], link: toy-bus}]
""",
    # copies at line rate and nothing reserved, so that times and bytes are round
    "hardware_specs/calibration/toy-gpu.yaml": """
kind: calibration
name: toy-gpu
source: made up
transfer: {efficiency: 1, storage_efficiency: 1, half_bytes: 1e-9}
host: {context_bytes: 1e-9}
""",
    "models_zoo/toy-model.yaml": """
kind: model
name: toy-model
family: decoder
source: made up
vocab_size: 1000
hidden_size: 256
num_hidden_layers: 4
num_attention_heads: 4
intermediate_size: 1024
max_position_embeddings: 512
position: learned
normalization: layernorm
activation: relu
""",
    "models_zoo/toy-encoder.yaml": """
kind: model
name: toy-encoder
family: encoder
source: made up
vocab_size: 1000
hidden_size: 256
num_hidden_layers: 4
num_attention_heads: 4
intermediate_size: 1024
max_position_embeddings: 512
position: learned
normalization: layernorm
activation: relu
""",
    "scenarios/offload/toy.yaml": """
kind: offload
hardware: toy-node
model: toy-model
workload: {prompt: 64, output: 4, batch: 2, batches: 2}
strategy: {weights: dram, kv: gpu}
""",
}
_folder = TemporaryDirectory(prefix="memroof-toy-")
for _name, _text in FILES.items():
    _file = Path(_folder.name) / _name
    _file.parent.mkdir(parents=True, exist_ok=True)
    _file.write_text(_text.lstrip())


def catalog(overrides: dict[str, str] | None = None) -> Catalog:
    """Return a catalog that has the toy beside what is shipped."""
    return Catalog([Path(_folder.name)], overrides or {}, environment={})


def toy(overrides: dict[str, str] | None = None) -> Setup:
    """Return the toy scenario with some keys set, as by ``--set``."""
    found = catalog(overrides)
    scenario = found.scenario("offload/toy")
    hardware, model = found.hardware(scenario.hardware), found.model(scenario.model)
    return Setup(scenario, model, hardware, CostModel(hardware.device, found.calibration(hardware.device)))


def toy_with(**keys: str) -> Setup:
    """Return the toy scenario with keys of its strategy or workload set."""
    workload = ("prompt", "output", "batch", "batches")
    return toy(
        {f"{'workload' if key in workload else 'strategy'}.{key}": value for key, value in keys.items()}
    )
