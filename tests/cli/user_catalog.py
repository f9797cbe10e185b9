"""A small catalog of a user's own, and the command line as that user types it."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from simulator.cli import main

MODEL = """\
name: tiny
family: decoder
source: made up for these tests
vocab_size: 1024
hidden_size: 256
num_hidden_layers: 4
num_attention_heads: 8
num_key_value_heads: 4
intermediate_size: 1024
max_position_embeddings: 2048
position: rope
normalization: rmsnorm
activation: silu
gated_mlp: true
kind: model
"""
DEVICE = """\
name: toy-gpu
vendor: none
architecture: toy
source: made up for these tests
compute:
  matrix:
    bf16: 100 TFLOP/s
    fp16: 100 TFLOP/s
  vector:
    fp32: 10 TFLOP/s
  units: 64
  clock: 1.5 GHz
memory:
  hbm:
    technology: HBM
    capacity: 16 GiB
    bandwidth: 1 TB/s
power:
  limit: 300 W
host_link: pcie-4.0-x16
kind: gpu
"""
TRAINING = """\
description: a tiny model on four toy GPUs
hardware:
  device: toy-gpu
  count: 4
model: tiny
workload:
  global_batch: 16
  sequence: 512
strategy:
  tensor_parallel: 2
  pipeline_parallel: 2
  micro_batch: 1
  schedule: 1f1b
  recompute: none
  precision: bf16
kind: training
"""
FILES = {
    "models_zoo/tiny.yaml": MODEL,
    "hardware_specs/devices/toy-gpu.yaml": DEVICE,
    "scenarios/tiny-training.yaml": TRAINING,
}


class UserCatalog:
    """The user's folder, and memroof run on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name, text in FILES.items():
            self.write(name, text)

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def memroof(self, *arguments: str) -> Result:
        """Run a command line with this folder in front of the shipped catalog."""
        return CliRunner().invoke(main, [*arguments, "--path", str(self.root)], prog_name="memroof")

    def plain(self, *arguments: str) -> Result:
        """Run a command line as it stands."""
        return CliRunner().invoke(main, list(arguments), prog_name="memroof")
