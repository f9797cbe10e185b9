"""The PyTorch backend: what the device is, how a call is timed, and the peaks of memory. Torch is imported here alone."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from simulator.measure import collectives_torch
from simulator.measure.campaign import Case, Target
from simulator.measure.kernels_torch import prepare
from simulator.measure.names import catalog_name, file_name
from simulator.measure.run import FEWEST_REPEATS, Facts, Timing, UnmeasurableError
from simulator.measure.steps_torch import decode_loop, training_step
from simulator.specs import Catalog, MemroofError

MOST_REPEATS = 60
MOST_INNER = 100
BUSY = 0.5
"""Load average above which times of a CPU are doubtful."""
SHORTEST_REPEAT = {"cuda": 5e-4, "cpu": 2e-4}
"""Seconds of one repeat; shorter kernels are called several times in it, since clocks and events are coarse."""


class TorchBackend:
    """Times cases on a GPU (CUDA events, CUDA graphs where a kernel can be captured) or on a CPU (wall clock).

    Parameters
    ----------
    kind : str
        ``cuda`` or ``cpu``; the first GPU is measured.
    catalog : Catalog
        Widths of the steps' models and names of devices.
    seed : int
        Of the random operands.

    Raises
    ------
    MemroofError
        If a GPU is asked for and there is none.
    """

    def __init__(self, kind: str, catalog: Catalog, seed: int = 0) -> None:
        if kind == "cuda" and not torch.cuda.is_available():
            raise MemroofError("PyTorch sees no GPU here; --device cpu measures the CPU")
        self.kind, self.catalog = kind, catalog
        self.device = torch.device("cuda", 0) if kind == "cuda" else torch.device("cpu")
        torch.manual_seed(seed)

    def facts(self, name: str | None = None) -> Facts:
        """Return what is measured on; ``name`` overrides the catalog's name."""
        gpu = self.kind == "cuda"
        reported = torch.cuda.get_device_name(self.device) if gpu else _cpu_name()
        found = name or catalog_name(reported, self.catalog.names("device")) or file_name(reported)
        target = Target(
            formats=_gpu_formats(self.device) if gpu else _cpu_formats(),
            memory=float(torch.cuda.mem_get_info(self.device)[0]) if gpu else _free_memory(),
            gpus=torch.cuda.device_count() if gpu else 0,
        )
        details = _gpu_details(self.device) if gpu else _cpu_details()
        return Facts(found, reported, self.kind, target, details, self._doubts(found))

    def measure(self, case: Case, seconds: float) -> Timing:
        """Warm up and time a case; what PyTorch refuses is an :class:`UnmeasurableError` with its words."""
        try:
            return self._step(case, seconds) if case.group in STEPS else self._kernel(case, seconds)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            text = str(error).strip().splitlines()
            raise UnmeasurableError(text[0] if text else type(error).__name__) from None
        finally:
            if self.kind == "cuda" and case.footprint > 1e9:
                torch.cuda.empty_cache()

    def measure_ranks(self, cases: Sequence[Case], seconds: float) -> Sequence[Timing | str]:
        """Time collectives in processes of their own."""
        return collectives_torch.measure_ranks(cases, seconds, self.kind)

    def _doubts(self, device: str) -> tuple[str, ...]:
        gpu = self.kind == "cuda"
        found = (
            torch.cuda.get_device_properties(self.device).multi_processor_count
            if gpu
            else torch.get_num_threads()
        )
        doubts: list[str] = []
        if device in self.catalog.names("device"):
            known = self.catalog.processor(device).compute.units
            part = "multiprocessors are visible" if gpu else "threads run (OMP_NUM_THREADS sets them)"
            if found != known:
                doubts.append(f"{found} {part}, the catalog's {device} has {known} units")
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        if not gpu and load > BUSY:
            hint = ": threads wait for one another (OMP_NUM_THREADS=1 measures one core)" if found > 1 else ""
            doubts.append(f"other work keeps {load:.1f} cores busy{hint}")
        return tuple(doubts)

    def _kernel(self, case: Case, seconds: float) -> Timing:
        call, kernel = prepare(case, self.device)
        # a copy from pageable memory waits on the host and cannot be captured
        return Timing(self._times(call, seconds, case.operator != "transfer"), kernel)

    def _step(self, case: Case, seconds: float) -> Timing:
        gc.collect()
        before = self._reset_peak()
        call = STEPS[case.group](case, self.device, self.catalog)
        times = self._times(call, seconds, False)
        allocated, reserved = self._peak(before)
        # a decode loop is reported for one token
        count = case.sizes.get("tokens", 1)
        return Timing(tuple(time / count for time in times), "eager", allocated, reserved)

    def _times(self, call: Callable[[], Any], seconds: float, capture: bool) -> tuple[float, ...]:
        """Return the seconds of one call in each repeat."""
        self._seconds(call)
        first = self._seconds(call)
        estimate = max(first, 1e-7)
        if estimate > seconds:
            # a long case: what was timed once is the first repeat
            return (first, *(self._seconds(call) for _ in range(FEWEST_REPEATS - 1)))
        inner = int(min(max(SHORTEST_REPEAT[self.kind] / estimate, 1), MOST_INNER))

        def several() -> None:
            for _ in range(inner):
                call()

        repeat = several
        if capture and self.kind == "cuda":
            repeat = _captured(several) or several
        if inner > 1 or repeat is not several:
            self._seconds(repeat)
            estimate = max(self._seconds(repeat), 1e-7)
        repeats = int(min(max(seconds / estimate, FEWEST_REPEATS), MOST_REPEATS))
        return tuple(self._seconds(repeat) / inner for _ in range(repeats))

    def _seconds(self, call: Callable[[], Any]) -> float:
        if self.kind == "cpu":
            begin = time.perf_counter()
            call()
            return time.perf_counter() - begin
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3

    def _reset_peak(self) -> float:
        """Forget earlier peaks and return what is allocated now [B]."""
        if self.kind == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            return float(torch.cuda.memory_allocated(self.device))
        # what earlier cases freed goes back to the system where the C library can give it (glibc)
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        # 5 resets the high-water mark of the resident set (proc_pid_clear_refs(5)); elsewhere only a new peak shows
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return _resident("VmRSS")

    def _peak(self, before: float) -> tuple[float, float]:
        """Return the peak above what was there before, and the peak that the allocator or the process held [B]."""
        if self.kind == "cuda":
            peak = float(torch.cuda.max_memory_allocated(self.device))
            return peak - before, float(torch.cuda.max_memory_reserved(self.device))
        peak = _resident("VmHWM")
        return max(0.0, peak - before), peak


STEPS = {"training": training_step, "decode": decode_loop}


def _captured(call: Callable[[], Any]) -> Callable[[], Any] | None:
    """Return the replay of a CUDA graph of a call, so that launching from Python is not timed; None if it cannot be."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


def _gpu_formats(device: torch.device) -> tuple[str, ...]:
    if torch.version.hip is not None:
        return ("bf16", "fp16", "fp32")
    capability = torch.cuda.get_device_capability(device)
    since = {"bf16": (8, 0), "fp16": (7, 0), "fp8": (8, 9), "tf32": (8, 0), "fp32": (0, 0), "int8": (7, 5)}
    return tuple(format for format, first in since.items() if capability >= first)


def _cpu_formats() -> tuple[str, ...]:
    """fp32, and bf16 where the cores multiply it (elsewhere it is emulated and says nothing about the hardware)."""
    flags = set(_cpuinfo("flags").split()) | set(_cpuinfo("Features").split())
    return ("fp32", "bf16") if flags & {"amx_bf16", "avx512_bf16", "avx_ne_convert", "bf16"} else ("fp32",)


def _cpuinfo(key: str) -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), ""
    )


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _free_memory() -> float:
    file = Path("/proc/meminfo")
    if file.exists():
        for line in file.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024.0
    return 0.5 * float(os.sysconf("SC_PAGE_SIZE")) * float(os.sysconf("SC_PHYS_PAGES"))


def _resident(key: str) -> float:
    """Return a figure of /proc/self/status, or the largest resident set so far where there is no such file [B]."""
    file = Path("/proc/self/status")
    if file.exists():
        for line in file.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{key}:"):
                return float(line.split()[1]) * 1024.0
    import resource

    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _cpu_details() -> dict[str, str]:
    return {
        "PyTorch": str(torch.__version__),
        "threads": f"{torch.get_num_threads()} on {os.cpu_count()} logical cores",
        "free memory": f"{_free_memory() / 2**30:.1f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
    }


def _gpu_details(device: torch.device) -> dict[str, str]:
    properties = torch.cuda.get_device_properties(device)
    details = {
        "PyTorch": str(torch.__version__),
        "CUDA": str(torch.version.cuda or f"HIP {torch.version.hip}"),
        "multiprocessors": str(properties.multi_processor_count),
        "memory": f"{properties.total_memory / 2**30:.1f} GiB",
        "GPUs": str(torch.cuda.device_count()),
    }
    if not shutil.which("nvidia-smi"):
        return details
    queries = {
        "driver": "driver_version", "SM clock, highest": "clocks.max.sm", "memory clock, highest": "clocks.max.mem",
        "power limit": "power.limit", "performance state before": "pstate",
    }  # fmt: skip
    asked = ["nvidia-smi", f"--query-gpu={','.join(queries.values())}", "--format=csv,noheader", "--id=0"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return details
    return details | dict(zip(queries, (cell.strip() for cell in answer.strip().split(",")), strict=False))


def default_kind() -> str:
    """Return ``cuda`` where PyTorch sees a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"
