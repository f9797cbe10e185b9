"""Collectives of torch.distributed, one process a rank: NCCL on GPUs, Gloo on CPUs."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from simulator.measure.campaign import Case
from simulator.measure.run import FEWEST_REPEATS, Timing, UnmeasurableError

WARM_UPS = 3
MOST_REPEATS = 50
MOST_INNER = 50
SHORTEST_REPEAT = 5e-4
"""Seconds of one repeat: several calls in it hide what launching the first from Python takes."""
LEAST_SHARE = 0.3
PATIENCE = timedelta(seconds=120)
ELEMENT_BYTES = 2


def measure_ranks(cases: Sequence[Case], seconds: float, kind: str) -> list[Timing | str]:
    """Time collectives of one count of ranks in processes of their own; the time of a repeat is that of its slowest rank.

    Raises
    ------
    UnmeasurableError
        If the processes cannot be started or end before they are done.
    """
    if not cases:
        return []
    ranks = int(cases[0].sizes["ranks"])
    with tempfile.TemporaryDirectory(prefix="memroof-") as folder:
        try:
            torch.multiprocessing.spawn(
                _worker,
                args=(ranks, tuple(cases), time.monotonic(), seconds, kind, folder),
                nprocs=ranks,
                join=True,
            )
            outcomes = json.loads((Path(folder) / "outcomes.json").read_text(encoding="utf-8"))
        except (
            torch.multiprocessing.ProcessRaisedException, torch.multiprocessing.ProcessExitedException, OSError
        ) as error:  # fmt: skip
            reason = str(error).strip().splitlines()
            raise UnmeasurableError(
                f"the {ranks} ranks ended early: {reason[-1] if reason else error}"
            ) from None
    library = "nccl" if kind == "cuda" else "gloo"
    return [outcome if isinstance(outcome, str) else Timing(tuple(outcome), library) for outcome in outcomes]


def _worker(
    rank: int, ranks: int, cases: Sequence[Case], begin: float, seconds: float, kind: str, folder: str
) -> None:
    device = torch.device("cuda", rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks,
        timeout=PATIENCE, device_id=device if kind == "cuda" else None,
    )  # fmt: skip
    try:
        # starting processes takes part of the time, but must not leave them none
        deadline = max(begin + seconds, time.monotonic() + LEAST_SHARE * seconds)
        outcomes: list[list[float] | str] = []
        for index, case in enumerate(cases):
            limit = (deadline - time.monotonic()) / (len(cases) - index)
            outcomes.append(_case(case, limit, ranks, device))
        if rank == 0:
            (Path(folder) / "outcomes.json").write_text(json.dumps(outcomes), encoding="utf-8")
    finally:
        dist.destroy_process_group()


def _case(case: Case, limit: float, ranks: int, device: torch.device) -> list[float] | str:
    # rank 0 decides, so that all make the same calls
    if not _agreed(float(limit > 0.0), device):
        return "the time of its group was spent"
    try:
        call = _call(case.sizes["kind"], int(case.sizes["size"]), ranks, device)
        for _ in range(WARM_UPS):
            call()
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return str(error).strip().splitlines()[0]
    estimate = max(statistics.median(_once(call, 1, device) for _ in range(3)), 1e-7)
    inner = int(_agreed(min(max(SHORTEST_REPEAT / estimate, 1), MOST_INNER), device))
    repeats = int(_agreed(min(max(limit / (estimate * inner), FEWEST_REPEATS), MOST_REPEATS), device))
    mine = torch.tensor(
        [_once(call, inner, device) for _ in range(repeats)], dtype=torch.float64, device=device
    )
    dist.all_reduce(mine, op=dist.ReduceOp.MAX)
    return [float(value) for value in mine.tolist()]


def _agreed(value: float, device: torch.device) -> float:
    told = torch.tensor([value], dtype=torch.float64, device=device)
    dist.broadcast(told, 0)
    return float(told.item())


def _once(call: Callable[[], Any], inner: int, device: torch.device) -> float:
    """Return the seconds of one of some calls that all ranks begin together."""
    dist.barrier()
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(inner):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3 / inner
    begin = time.perf_counter()
    for _ in range(inner):
        call()
    return (time.perf_counter() - begin) / inner


def _call(kind: str, size: int, ranks: int, device: torch.device) -> Callable[[], Any]:
    """Return a collective on bf16 tensors of ``size`` bytes in all, rounded up to whole shares.

    PyTorch 2.13 renames two of them and warns of the old names.
    """
    share = max(1, -(-size // (ELEMENT_BYTES * ranks)))
    whole = torch.ones(share * ranks, dtype=torch.bfloat16, device=device)
    part = torch.ones(share, dtype=torch.bfloat16, device=device)
    if kind == "all-reduce":
        return lambda: dist.all_reduce(whole, op=dist.ReduceOp.MAX)
    if kind == "all-gather":
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        return lambda: gather(whole, part)
    if kind == "reduce-scatter":
        scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        return lambda: scatter(part, whole)
    received = torch.empty_like(whole)
    return lambda: dist.all_to_all_single(received, whole)
