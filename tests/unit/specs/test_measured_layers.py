"""Measured layers as a user writes them: what is refused, with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.specs import Catalog, MemroofError, SpecError

TEXT = """
kind: layers
name: mine
source: my own
device: gtx-1080-ti
micro_batches: {forward: [1, 4], backward: [1, 4]}
layers:
  - name: block
    count: 2
    weights: 100 MB
    input: 1 MB
    update: 5 ms
    forward: {time: [1 ms, 4 ms], memory: [120 MB, 180 MB]}
    backward: {time: [3 ms, 12 ms], memory: [220 MB, 280 MB]}
"""


def read(tmp_path: Path, text: str):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    return Catalog(environment={}).layers(str(file))


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    found = read(tmp_path, TEXT)
    assert found.layers[0].count == 2
    assert found.layers[0].backward.time == [0.003, 0.012]
    assert found.layers[0].buffers == 0.0


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[1 ms, 4 ms]", "[1 ms]", "layer 'block': forward.time has 1 values, micro_batches.forward 2"),
        ("forward: [1, 4]", "forward: [4, 1]", "micro_batches.forward must ascend"),
        ("weights: 100 MB", "weights: -1 MB", "layers[0].weights: '-1 MB' must be at least 0"),
        ("weights: 100 MB", "weight: 100 MB", "layers[0].weight: unknown key; did you mean 'weights'?"),
        ("update: 5 ms", "update: 5 GB", "layers[0].update"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(SpecError) as error:
        read(tmp_path, TEXT.replace(old, new, 1))
    assert says in str(error.value)


def test_an_unknown_profile_is_named_with_the_nearest() -> None:
    content = {
        "kind": "offload",
        "hardware": "server-2x1080ti",
        "layers": "harmony-bert-69",
        "workload": {"minibatch": 32},
        "strategy": {"method": "task-packs"},
    }
    with pytest.raises(
        MemroofError, match="layers: unknown layers 'harmony-bert-69'; did you mean 'harmony-bert-96'"
    ):
        Catalog(environment={}).scenario_from(content)


def test_every_shipped_profile_is_sound() -> None:
    catalog = Catalog(environment={})
    for name in catalog.names("layers"):
        found = catalog.layers(name)
        assert found.source and found.device in catalog.names("device")
        for layer in found.layers:
            # a backward pass begins with the forward pass, and more samples take no less memory
            assert layer.backward.time[0] >= layer.forward.time[0]
            assert all(
                b >= a for a, b in zip(layer.backward.memory, layer.backward.memory[1:], strict=False)
            ) or (
                # cuDNN takes less workspace for some larger batches
                name == "harmony-resnet-1026"
            )
