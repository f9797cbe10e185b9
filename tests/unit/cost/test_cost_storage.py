"""Scattered reads: published points, Little's law by hand, and what must hold between and beyond them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cost import OUTSTANDING_READS, lines_touched, read_rate, zero_copy_rate
from simulator.specs import Catalog, MemoryDevice, MemroofError

GB, KIB, MIB, GIB = 1e9, 2.0**10, 2.0**20, 2.0**30
CATALOG = Catalog(environment={})
laws = settings(derandomize=True, max_examples=60, deadline=None, database=None)


@pytest.fixture(scope="module")
def devices():
    return CATALOG.device


@pytest.mark.parametrize(
    ("block", "options", "rate"),
    [
        (512 * KIB, {"sequential": True}, 4.2),
        (512 * KIB, {}, 3.5),
        (4 * KIB, {}, 0.45),
        (4 * KIB, {"span": 512 * MIB}, 0.85),
        (4 * KIB, {"span": 128 * MIB}, 1.0),
        (4 * KIB, {"span": 1 * MIB}, 1.0),
        (4 * KIB, {"span": 128 * MIB, "clock": 3.3e9}, 1.0),
        (4 * KIB, {"span": 128 * MIB, "clock": 2.2e9}, 0.76),
    ],
)
def test_ufs_4_as_powerinfer_2_measured_it(devices, block, options, rate):
    """Xue et al. 2024, section 2.3; the sequential rate is the vendor's (they found 4)."""
    assert read_rate(devices("ufs-4.0-512gb"), block, **options) == pytest.approx(rate * GB)


def test_the_core_matters_less_for_larger_reads(devices):
    """(1/0.76 - 1) 4.096 us are 8,540 cycles over the 0.152 ns by which one at 2.2 GHz is longer."""
    ufs = devices("ufs-4.0-512gb")
    small, large = (
        read_rate(ufs, block, clock=2.2e9) / read_rate(ufs, block, clock=3.3e9)
        for block in (4 * KIB, 512 * KIB)
    )
    assert small == pytest.approx(1 / (1 + (1 / 0.76 - 1) * 0.45), rel=1e-9)
    assert large == pytest.approx(0.991, abs=0.001)


@pytest.mark.parametrize(
    ("block", "options", "rate"),
    [(8 * KIB, {}, 1.25), (16 * KIB, {}, 2.25), (GIB, {"sequential": True}, 6.1)],
)
def test_apple_ssd_as_llm_in_a_flash_measured_it(devices, block, options, rate):
    """Alizadeh et al. 2024, table 2."""
    assert read_rate(devices("apple-ssd-1tb"), block, **options) == pytest.approx(rate * GB)


def test_between_and_beyond_the_points(devices):
    ssd = devices("apple-ssd-1tb")
    assert read_rate(ssd, 12 * KIB) == pytest.approx(1.25 * GB * 1.5 ** np.log2(2.25 / 1.25))
    # Below: as many reads a second. Part of a page costs a page.
    assert read_rate(ssd, 4 * KIB) == pytest.approx(1.25 * GB / 2)
    assert read_rate(ssd, KIB) == pytest.approx(1.25 * GB / 8)
    # Above: 16 KiB / 2.25 GB/s and the rest at 6.1 GB/s.
    time = 16 * KIB / (2.25 * GB) + 1008 * KIB / (6.1 * GB)
    assert read_rate(ssd, MIB) == pytest.approx(1024 * KIB / time)


def test_little_and_the_data_sheet_limit_what_was_not_measured(devices):
    """Intel P5510: 82 us, 700 k reads of 4 KiB a second, 6.5 GB/s."""
    drive = devices("intel-p5510-3.84tb")
    assert read_rate(drive, 4 * KIB, outstanding=1) == pytest.approx(4096 / 82e-6)
    assert read_rate(drive, 4 * KIB) == pytest.approx(700e3 * 4096)
    assert read_rate(drive, 512, outstanding=32) == pytest.approx(32 * 512 / 82e-6)
    np.testing.assert_allclose(
        read_rate(drive, np.array([4, 64, 1024]) * KIB, outstanding=4),
        [4 * 4 * KIB / 82e-6, 4 * 64 * KIB / 82e-6, 6.5 * GB],
    )


def test_a_machine_hands_on_the_data_sheet():
    (flash,) = CATALOG.machine("phone-snapdragon-8-gen-3").tier("ufs")
    assert read_rate(flash.device, 512 * KIB) == pytest.approx(3.5 * GB)


@pytest.mark.parametrize(
    ("reads", "message"),
    [
        ([("4 KiB", "1 GB/s"), ("4 KiB", "2 GB/s")], "one block, span and clock has two rates"),
        ([("4 KiB", "9 GB/s")], "a rate is above read_bandwidth"),
    ],
)
def test_impossible_tables_are_refused(reads, message):
    with pytest.raises(ValueError, match=message):
        MemoryDevice.model_validate(
            {
                "kind": "ufs",
                "name": "x",
                "technology": "x",
                "source": "x",
                "capacity": "1 TB",
                "read_bandwidth": "4 GB/s",
                "write_bandwidth": "2 GB/s",
                "random_read": [{"block": block, "rate": rate} for block, rate in reads],
            }
        )


@laws
@given(
    st.sampled_from(["ufs-4.0-512gb", "apple-ssd-1tb", "intel-p5510-3.84tb"]),
    st.integers(1, 2**14),
    st.floats(1.0, 4.0),
    st.floats(1e6, 1e12),
    st.integers(1, 256),
)
def test_larger_deeper_and_nearer_is_never_slower(name, pages, factor, span, outstanding):
    device = CATALOG.device(name)
    block = 4096.0 * pages
    rate = read_rate(device, block, span=span, outstanding=outstanding)
    slack = 1 + 1e-12
    assert 0.0 < rate <= device.read_bandwidth * slack
    assert rate <= outstanding * block / device.read_latency * slack
    assert rate <= read_rate(device, 4096.0 * (pages + 1), span=span, outstanding=outstanding) * slack
    assert rate <= read_rate(device, block, span=span / factor, outstanding=outstanding) * slack
    assert rate <= read_rate(device, block, span=span, outstanding=outstanding + 1) * slack
    assert rate <= read_rate(device, block, outstanding=outstanding, sequential=True) * slack


def test_arrays_give_what_scalars_give(devices):
    ufs = devices("ufs-4.0-512gb")
    blocks, spans = np.meshgrid(np.array([1, 4, 24, 512, 4096]) * KIB, np.array([1.0, 300, 1e9]) * MIB)
    table = read_rate(ufs, blocks, span=spans, outstanding=32, clock=2.8e9)
    for index, rate in np.ndenumerate(table):
        alone = read_rate(ufs, float(blocks[index]), span=float(spans[index]), outstanding=32, clock=2.8e9)
        assert rate == pytest.approx(alone, rel=1e-12)


def test_latency_decides_zero_copy():
    """256 reads of 128 B under way: 20.5 GB/s at 1.6 us, 12.6 at 2.6 us, against 15.75 GB/s of PCIe 3.0 x16."""
    options = {"bandwidth": 15.75e9, "outstanding": OUTSTANDING_READS["pcie-3.0"], "useful": 4096}
    assert zero_copy_rate(latency=1.6e-6, **options) == pytest.approx(15.75e9 * 128 / 146)
    assert zero_copy_rate(latency=2.6e-6, **options) == pytest.approx(256 * 128 / 2.6e-6)


def test_rows_that_begin_anywhere_touch_another_line():
    """A row of 1 KiB: 8 lines, or 8.97 on average over the 32 places where it may begin."""
    assert lines_touched(1024) == 8
    by_place = [np.ceil((start + 1024) / 128) for start in range(0, 128, 4)]
    assert lines_touched(1024, granularity=4) == pytest.approx(np.mean(by_place)) == 8.96875
    fast = {"bandwidth": 31.5e9, "latency": 1e-6, "outstanding": 768}
    assert zero_copy_rate(useful=32, **fast) == pytest.approx(31.5e9 * 32 / 146)
    ratio = zero_copy_rate(useful=1024, granularity=4, **fast) / zero_copy_rate(useful=1024, **fast)
    assert ratio == pytest.approx(8 / 8.96875)
    np.testing.assert_allclose(
        zero_copy_rate(useful=np.array([32.0, 1024.0]), **fast), 31.5e9 * np.array([32 / 146, 128 / 146])
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 0.0}, "block: found 0.0"),
        ({"block": 4096, "outstanding": 0}, "outstanding: found 0"),
        ({"block": 4096, "span": -1.0}, "span: found -1.0"),
        ({"block": 4096, "clock": 3e9}, "no random reads measured at two clocks"),
    ],
)
def test_bad_requests_are_refused(devices, options, message):
    with pytest.raises(MemroofError, match=message):
        read_rate(devices("intel-p5510-3.84tb"), **options)
