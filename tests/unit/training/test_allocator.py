"""PyTorch's caching allocator and what else a framework takes."""

import numpy as np
import pytest

from simulator.training.allocator import (
    MIB,
    Allocation,
    CachingAllocator,
    cublas_workspaces,
    nccl_bytes,
    rounded,
    segment_bytes,
)


@pytest.mark.parametrize(
    ("size", "segment"),
    [
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (9 * MIB, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 1, 12 * MIB),
    ],
)
def test_segments(size: int, segment: int) -> None:
    # kSmallSize 1 MiB, kSmallBuffer 2 MiB, kMinLargeAlloc 10 MiB, kLargeBuffer 20 MiB, kRoundLarge 2 MiB
    assert segment_bytes(size) == segment
    assert np.array_equal(segment_bytes(np.array([size, size])), [segment, segment])


def test_rounding() -> None:
    assert [float(rounded(size)) for size in (1, 512, 513)] == [512.0, 512.0, 1024.0]


def test_small_blocks_share_a_segment() -> None:
    allocator = CachingAllocator()
    for _ in range(4):
        allocator.allocate(MIB / 2)
    assert allocator.used == Allocation(2 * MIB, 2 * MIB)
    allocator.allocate(1)
    assert allocator.used.reserved == 4 * MIB


def test_a_remainder_of_a_mebibyte_is_not_split() -> None:
    allocator = CachingAllocator()
    allocator.release(allocator.allocate(16 * MIB))
    allocator.allocate(15 * MIB)
    assert allocator.used == Allocation(16 * MIB, 16 * MIB)


def test_holes_that_nothing_fits() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.allocate(30 * MIB) for _ in range(2)]
    for block in blocks:
        allocator.release(block)
    allocator.allocate(40 * MIB)  # neither of two free segments of 30 MiB holds it
    assert allocator.used == Allocation(60 * MIB, 100 * MIB)
    assert allocator.used.fragmentation == pytest.approx(2 / 3)


def test_free_neighbours_are_joined() -> None:
    allocator = CachingAllocator()
    allocator.release(allocator.allocate(60 * MIB))
    parts = [allocator.allocate(20 * MIB) for _ in range(3)]
    for part in (parts[0], parts[2], parts[1]):
        allocator.release(part)
    allocator.allocate(60 * MIB)
    assert allocator.used.reserved == 60 * MIB
    assert Allocation(0, 0).fragmentation == 0.0


def test_the_smallest_block_that_fits() -> None:
    allocator = CachingAllocator()
    for block in [allocator.allocate(size * MIB) for size in (40, 24)]:
        allocator.release(block)
    allocator.allocate(24 * MIB)
    allocator.allocate(40 * MIB)
    assert allocator.used.reserved == 64 * MIB


def test_workspaces_and_communicators() -> None:
    assert cublas_workspaces("hopper") == 64 * MIB
    assert cublas_workspaces("ampere", 1) == 8_519_680  # CUBLAS_WORKSPACE_CONFIG=:4096:2:16:8
    assert nccl_bytes(0, 24) == 0
    assert nccl_bytes(2, 24) == 2 * nccl_bytes(1, 24)
    assert 200 * MIB < nccl_bytes(1, 24) < 300 * MIB
