"""`memroof measure` as a user types it: without PyTorch, and with a backend that stands in for it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from user_catalog import UserCatalog

from simulator.measure import Facts, Timing
from simulator.measure.campaign import Target


class StandIn:
    """A backend for a machine with the user's toy GPU."""

    reported = "NVIDIA Toy-GPU"

    def __init__(self, kind: str, catalog: Any, seed: int) -> None:
        self.kind = kind

    def facts(self, name: str | None) -> Facts:
        known = name or self.reported.removeprefix("NVIDIA ").lower()
        return Facts(
            known,
            self.reported,
            self.kind,
            Target(("fp16",), 1e9),
            doubts=("other work keeps 2.0 cores busy",),
        )

    def measure(self, case: Any, seconds: float) -> Timing:
        return Timing((1e-3, 1e-3, 1.2e-3))


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("simulator.measure.backend_torch")
    module.TorchBackend, module.default_kind = StandIn, lambda: "cpu"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "simulator.measure.backend_torch", module)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: name == "torch" or found(name, *more)
    )


def test_without_pytorch_one_line_names_the_extra(
    user: UserCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "torch" else found(name, *more)
    )
    result = user.memroof("measure", "-o", str(tmp_path / "rows"))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == "error: measuring needs PyTorch: pip install 'memroof[measure]'\n"
    assert not (tmp_path / "rows").exists()


@pytest.mark.usefixtures("torch")
def test_a_table_on_stdout_and_a_file_that_calibrate_reads(user: UserCatalog, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    result = user.memroof("measure", "--only", "gemm,decode", "--device", "cpu", "-o", str(folder))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("toy-gpu (NVIDIA Toy-GPU): 86 cases in ")
    assert lines[2].split()[:4] == ["operator", "format", "kernel", "cases"]
    row = next(line for line in lines if line.startswith("matmul"))
    # 2 x 1024 x 11008 x 4096 FLOP in 1 ms
    assert row.split()[:4] == ["matmul", "fp16", "84", "92.3"]
    assert "doubt: other work keeps 2.0 cores busy" in result.stderr
    assert f"wrote {folder}/memroof-measure/measurements.csv" in result.stderr
    assert "is not in the catalog" not in result.stderr
    checked = user.memroof("validate", "--measurements", str(folder), "--only", "#matmul", "--json")
    assert checked.exit_code == 0, checked.output
    assert json.loads(checked.stdout)[0]["rows"] == 84


@pytest.mark.usefixtures("torch")
def test_json_has_the_summary_and_what_was_left_out(user: UserCatalog, tmp_path: Path) -> None:
    result = user.memroof(
        "measure", "--only", "elementwise,training", "-o", str(tmp_path), "--json", "--name", "toy-gpu"
    )
    # fp16 is no format of the CPU's grid of streams, and 1 GB holds no training step
    assert result.exit_code == 2
    assert "no case could be measured: does not fit in the 0.931 GiB that are free" in result.stderr
    answer = json.loads(
        user.memroof("measure", "--only", "gemm,training", "-o", str(tmp_path), "--json").stdout
    )
    assert answer["device"] == "toy-gpu"
    assert [line["operator"] for line in answer["summary"]] == ["matmul"]
    assert answer["skipped"] == [
        {"group": "training", "reason": "does not fit in the 0.931 GiB that are free", "cases": 2}
    ]


@pytest.mark.usefixtures("torch")
def test_an_unknown_device_is_told_how_to_add_it(
    user: UserCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StandIn, "reported", "NVIDIA Unheard-Of")
    result = user.memroof("measure", "--only", "gemm", "-o", str(tmp_path))
    assert result.exit_code == 0
    assert "write hardware_specs/devices/unheard-of.yaml in a folder of your own" in result.stderr
    wrong = user.memroof("measure", "--only", "gemm", "-o", str(tmp_path), "--name", "toy-gpus")
    assert wrong.exit_code == 2
    assert "unknown device 'toy-gpus'; did you mean 'toy-gpu'?" in wrong.stderr


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize(
    ("only", "text"),
    [
        ("gem", "unknown group 'gem'; did you mean 'gemm'?"),
        ("collective", "nothing to measure: collective needs more than NVIDIA Toy-GPU has"),
    ],
)
def test_groups_that_cannot_be_measured(user: UserCatalog, tmp_path: Path, only: str, text: str) -> None:
    result = user.memroof("measure", "--only", only, "-o", str(tmp_path))
    assert result.exit_code == 2
    assert text in result.stderr
    assert "Traceback" not in result.output
