"""Work without a model, graphs and accelerators as a user meets them."""

from __future__ import annotations

import json
import re

from user_catalog import UserCatalog


def metric(user: UserCatalog, name: str, *arguments: str) -> float:
    result = user.memroof(*arguments, "--json")
    assert result.exit_code in (0, 3), result.stderr
    return float(json.loads(result.stdout)["metrics"][name]["value"])


def test_a_scenario_without_a_model_is_answered(user: UserCatalog) -> None:
    result = user.memroof("run", "published/fusemax2024/fusemax")
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout.startswith("fusemax: offload on 1 x fusemax-cloud")
    assert re.search(r"^attention's speedup over the baseline, mean +6\.72$", result.stdout, re.MULTILINE)
    explained = user.memroof("explain", "offload/attention-accelerator")
    assert explained.exit_code == 0 and explained.stderr == ""


def test_dataflows_and_buffers_are_swept(user: UserCatalog) -> None:
    swept = user.memroof(
        "whatif", "offload/attention-accelerator", "--set", "strategy.baseline=null",
        "--vary", "strategy.dataflow=one-pass,row-fused,unfused",
        "--vary", "hardware.changes.cache.buffer.capacity=8MiB,32MiB",
    )  # fmt: skip
    assert swept.exit_code == 0, swept.stderr
    assert all(name in swept.stdout for name in ("one-pass", "row-fused", "unfused"))


def test_graphs_are_in_the_catalog(user: UserCatalog) -> None:
    listed = user.memroof("list", "graphs")
    assert "ogbn-papers100m  111,059,956 nodes" in listed.stdout
    shown = user.memroof("show", "graph", "reddit")
    assert "features in 32 bits" in shown.stdout and "access_exponent" in shown.stdout
    assert "memroof list graphs" in user.memroof("list").stdout


def test_graph_training_is_answered_and_varied(user: UserCatalog) -> None:
    result = user.memroof("run", "offload/graphsage-papers100m")
    assert result.exit_code == 0 and result.stderr == ""
    assert "offload of ogbn-papers100m on workstation-3090" in result.stdout
    swept = user.memroof(
        "whatif", "offload/graphsage-papers100m", "--vary", "strategy.hot=0.02,0.05,0.1",
        "--vary", "hardware.changes.components.gpu.count=1,2",
    )  # fmt: skip
    assert swept.exit_code == 0, swept.stderr
    scenario = ("run", "offload/graphsage-papers100m")
    usual = metric(user, "feature_bytes", *scenario)
    assert (
        metric(user, "feature_bytes", *scenario, "--set", "graph.ogbn-papers100m.features=256") == 2 * usual
    )


def test_wrong_options_are_one_line(user: UserCatalog) -> None:
    for name, assignment, message in (
        ("offload/graphsage-papers100m", "workload.graph=papers", "unknown graph 'papers'"),
        ("offload/graphsage-papers100m", "strategy.transfer=dma", "expected one of gather, zero-copy"),
        ("offload/attention-accelerator", "strategy.dataflow=two-pass", "expected one of unfused, row-fused, one-pass"),
        ("offload/llama2-7b-fpga", "strategy.density=2", "less than or equal to 1"),
    ):  # fmt: skip
        result = user.memroof("run", name, "--set", assignment)
        assert result.exit_code not in (0, 3) and message in result.stderr, result.stderr
        assert "Traceback" not in result.stderr


def test_the_artifact_of_fusemax_is_validated(user: UserCatalog) -> None:
    result = user.memroof("validate", "--only", "fusemax")
    assert result.exit_code == 0, result.stdout
    assert result.stdout.count("105 rows") == 2
