"""Processors on one memory: what each reaches alone, and what they leave each other on its port."""

import pytest

from simulator.analysis.run import load
from simulator.engine import execute
from simulator.offload.emit import Emitter
from simulator.offload.processors import find_worker
from simulator.offload.tiers import find_tiers
from simulator.specs import MemroofError

PHONE = load({
    "kind": "offload", "hardware": "phone-oneplus-12", "model": "bamboo-7b", "workload": {"prompt": 1, "output": 1},
    "strategy": {"method": "neuron-cache", "dense": {"resident": 0}},
})  # fmt: skip


def worker(name, efficiency=1.0):
    return find_worker(PHONE.hardware, name, "fp16", efficiency=efficiency)


def test_each_has_its_own_roofline():
    """Snapdragon 8 Gen 3: 76.8 GB/s of DRAM, 45 GB/s to a processor alone; CPU arithmetic of 756 GFLOP/s."""
    assert worker(None).seconds(76.8e9) == pytest.approx(1.0)
    assert worker("cpu").seconds(45e9) == pytest.approx(1.0)
    assert worker("cpu").seconds(1.0, 756e9) == pytest.approx(1.0)
    assert worker("cpu", 0.5).seconds(45e9) == pytest.approx(2.0)
    assert worker("npu").peak == 10e12


def test_two_at_once_share_the_port():
    """45 and 45 over 76.8 GB/s: 38.4 each until the first is done."""
    tiers = find_tiers(PHONE.hardware, PHONE.cost.calibration, 1.0)
    cpu, npu = worker("cpu"), worker("npu")
    emit = Emitter("both", tiers, channels=(cpu.channel, npu.channel))
    first = cpu.work(emit, 38.4e9, 0.0, [], "a", "a")
    second = npu.work(emit, 38.4e9 + 22.5e9, 0.0, [], "b", "b")
    timeline = execute(emit.program)
    assert timeline.end[first] == pytest.approx(1.0)
    assert timeline.end[second] == pytest.approx(1.5)


def test_no_such_processor_and_one_on_another_memory():
    with pytest.raises(MemroofError, match=r"has no processor 'gpu'.*it has soc, cpu, npu"):
        worker("gpu")
    server = load({
        "kind": "offload", "hardware": "desktop-4090", "model": "bamboo-7b", "workload": {"prompt": 1, "output": 1},
        "strategy": {"method": "neuron-cache", "dense": {"resident": 0}},
    })  # fmt: skip
    with pytest.raises(MemroofError, match=r"the model lies in gpu\.hbm"):
        find_worker(server.hardware, "cpu", "fp32")
