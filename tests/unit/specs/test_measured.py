"""A table of measured products: read with clear errors, used only where asked for, and said so."""

from pathlib import Path

import numpy as np
import pytest

from simulator.analysis import run
from simulator.cost import CostModel
from simulator.graph import Matmul
from simulator.specs import Catalog, SpecError, read_measured

HEADER = "device,format,m,n,k,time\n"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    file = tmp_path / "mine.csv"
    file.write_text(
        HEADER + "h100-sxm,bf16,128,4096,8192,1 ms\nh100-sxm,bf16,64,4096,8192,2 ms\na100,bf16,1,2,3,1 s\n"
    )
    return file


def test_the_very_shape_is_replaced_and_no_other(table: Path) -> None:
    catalog = Catalog(environment={})
    device = catalog.processor("h100-sxm")
    plain = CostModel(device, catalog.calibration(device))
    measured = CostModel(device, catalog.calibration(device), measured=read_measured(table, "h100-sxm"))
    assert measured.price(Matmul(128, 4096, 8192)).time == pytest.approx(1e-3)
    for other in (
        Matmul(127, 4096, 8192),
        Matmul(128, 4096, 8192, format="fp16"),
        Matmul(128, 4096, 8192, 2),
    ):
        assert measured.price(other).time == plain.price(other).time
    m = np.array([64.0, 100.0, 128.0])
    together = measured.price(Matmul(m, 4096, 8192)).time
    assert together[[0, 2]] == pytest.approx([2e-3, 1e-3])
    assert together[1] == pytest.approx(plain.price(Matmul(100, 4096, 8192)).time)
    assert measured.price(Matmul(128, 4096, 8192)).bound == plain.price(Matmul(128, 4096, 8192)).bound


def test_an_answer_says_that_it_uses_a_table(tmp_path: Path) -> None:
    scenario = {
        "kind": "training",
        "hardware": "dgx-h100",
        "model": "llama3.1-8b",
        "workload": {"global_batch": 8, "sequence": 4096},
        "strategy": {"recompute": "full"},
    }
    file = tmp_path / "down.csv"
    file.write_text(HEADER + "h100-sxm,bf16,4096,4096,14336,50 ms\n")
    plain, measured = run(scenario), run({**scenario, "measured": str(file)})
    # the down projection of 32 layers, forward and again in the backward pass
    assert measured.headline.value > plain.headline.value + 32 * 2 * 0.045
    assert measured.assumptions[0] == f"1 measured products of {file} replace predicted times"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("device,format,m,n,time\n", "mine.csv:1:1: no column 'k'"),
        (HEADER + "h100-sxm,bf16,128,4096,8192,1\n", "mine.csv:2:1: '1' has no unit; write it like '5 us'"),
        (HEADER + "h100-sxm,bf16,-1,4096,8192,1 ms\n", "mine.csv:2:1: '-1' is not a whole number above 0"),
        (HEADER + "h100-smx,bf16,1,4096,8192,1 ms\n", "no row of device 'h100-sxm'; did you mean 'h100-smx'"),
    ],
)
def test_faulty_tables(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(text)
    with pytest.raises(SpecError) as caught:
        read_measured(file, "h100-sxm")
    assert message in str(caught.value)
    with pytest.raises(SpecError, match="cannot be read"):
        read_measured(tmp_path / "none.csv", "h100-sxm")
