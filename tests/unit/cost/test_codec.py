"""Messages through a codec: bytes, seconds and the codec's ceiling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cost.codec import codec_times, compressed
from simulator.specs.trainable_spec import Codec


def codec(ratio: float, throughput: float, chunks: int = 1) -> Codec:
    return Codec(ratio=ratio, encode=throughput, decode=throughput, chunks=chunks)


def test_no_codec() -> None:
    assert compressed(8.0, 2.0, None) == (8.0, 2.0)


def test_one_stage_after_the_other() -> None:
    """1 GB over 1 GB/s and 1 ms, a quarter of it coded at 10 GB/s: 0.1 + 0.249750 + 0.001 + 0.1 s."""
    size, time = compressed(1e9, 1.0, codec(4, 10e9), latency=1e-3)
    assert size == 0.25e9
    assert time == pytest.approx(0.1 + 0.999 / 4 + 1e-3 + 0.1)


def test_many_chunks_take_as_long_as_the_slowest_stage() -> None:
    """3.5 bits a value (VcLLM) over a fast link: the coder is the bottleneck, and nothing is gained."""
    size, time = compressed(1e9, 1e9 / 50e9, codec(16 / 3.5, 10e9, chunks=1000))
    assert size == pytest.approx(1e9 * 3.5 / 16)
    assert time == pytest.approx(0.1, rel=3e-3)
    assert time > 1e9 / 50e9


def test_arrays() -> None:
    sizes, times = compressed(np.array([1e9, 2e9]), np.array([1.0, 2.0]), codec(2, 10e9, chunks=4))
    assert sizes == pytest.approx([0.5e9, 1e9])
    assert times[1] == pytest.approx(2 * times[0])


def test_tensors_that_stay() -> None:
    assert codec_times(20e9, Codec(ratio=2, encode=10e9, decode=40e9)) == (2.0, 0.5)


@given(
    ratio=st.floats(1, 16), throughput=st.floats(1e8, 1e12), chunks=st.integers(1, 64), bandwidth=st.floats(1e8, 1e12),
)  # fmt: skip
def test_laws(ratio: float, throughput: float, chunks: int, bandwidth: float) -> None:
    """More chunks never take longer; no chunking beats the slowest stage."""
    time = 1e9 / bandwidth
    _, seconds = compressed(1e9, time, codec(ratio, throughput, chunks))
    _, finer = compressed(1e9, time, codec(ratio, throughput, chunks + 1))
    assert finer <= seconds * (1 + 1e-12)
    assert seconds >= max(time / ratio, 1e9 / throughput) * (1 - 1e-12)
