"""Answers as a user gets them: run, fit, whatif, explain, and the same from flags."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from user_catalog import TRAINING, UserCatalog


def test_run_tells_everything_a_decision_needs(user: UserCatalog) -> None:
    result = user.memroof("run", "tiny-training")
    assert result.exit_code == 0
    assert result.stderr == ""
    text = result.stdout
    assert text.startswith("tiny-training: training of tiny on 4 x toy-gpu")
    assert re.search(r"^step time +[\d.,]+ \w+ +\(80 %: [\d.,]+ to [\d.,]+ \w+\)$", text, re.MULTILINE)
    assert re.search(r"^fits +yes$", text, re.MULTILINE)
    assert re.search(r"^  hbm +[\d.]+ \w+ of 16.0 GiB", text, re.MULTILINE)
    last = text[text.index("\nbottleneck") :]
    assert re.search(r"^interval +80 % for step time: ", last, re.MULTILINE)
    assert re.search(r"^assumptions +- ", last, re.MULTILINE)
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_json_is_one_document_and_deterministic(user: UserCatalog) -> None:
    first, second = (user.memroof("run", "tiny-training", "--json") for _ in range(2))
    assert first.stdout == second.stdout
    data = json.loads(first.stdout)
    value = data["metrics"][data["headline"]]
    assert value["low"] < value["value"] < value["high"]
    assert data["fits"] and data["ok"]


def test_set_overrides_the_scenario_and_the_hardware(user: UserCatalog) -> None:
    def step_time(*options: str) -> float:
        data = json.loads(user.memroof("run", "tiny-training", "--json", *options).stdout)
        return float(data["metrics"]["step_time"]["value"])

    base = step_time()
    assert step_time("--set", "workload.global_batch=32") > base
    slow = (
        "--set",
        "device.toy-gpu.memory.hbm.bandwidth=10 GB/s",
        "--set",
        "device.toy-gpu.compute.clock=1 GHz",
    )
    assert step_time(*slow) > base


def test_what_does_not_fit_exits_with_3_and_says_what_would(user: UserCatalog) -> None:
    small = ("--set", "device.toy-gpu.memory.hbm.capacity=1.45 GiB", "--set", "strategy.micro_batch=4")
    result = user.memroof("run", "tiny-training", *small)
    assert result.exit_code == 3
    assert re.search(r"^fits +NO$", result.stdout, re.MULTILINE)
    assert "short" in result.stdout
    assert "what would make it fit" in result.stdout
    assert json.loads(user.memroof("run", "tiny-training", "--json", *small).stdout)["fits"] is False


@pytest.mark.parametrize(
    ("bound", "code", "word"), [("1 us", 3, "MISSED"), ("1 h", 0, "held"), ("'>1 us'", 0, "held")]
)
def test_a_limit_is_held_or_missed(user: UserCatalog, bound: str, code: int, word: str) -> None:
    result = user.memroof("run", "tiny-training", "--set", f"limit.step_time={bound}")
    assert result.exit_code == code
    shown = bound.strip("'").replace(">", "at least ") if ">" in bound else f"at most {bound}"
    assert re.search(rf"^limit +step time {shown}: [\d.]+ \w+, {word}$", result.stdout, re.MULTILINE)


def test_a_published_figure_is_compared(user: UserCatalog) -> None:
    result = user.memroof(
        "run", "tiny-training", "--set", "expect.step_time={value: 1 s, source: a paper, tolerance: 0.1}"
    )
    assert result.exit_code == 0
    assert re.search(r"published +step time 1 s: -\d+.\d %, outside its tolerance \(a paper\)", result.stdout)


def test_flags_ask_the_same_question_as_a_file(user: UserCatalog, tmp_path: Path) -> None:
    saved = tmp_path / "saved.yaml"
    flags = (
        "--global-batch", "16", "--sequence", "512", "--tp", "2", "--pp", "2", "--micro-batch", "1", "--schedule", "1f1b",
        "--recompute", "none", "--precision", "bf16", "--count", "4",
    )  # fmt: skip
    from_flags = user.memroof("train", "tiny", "toy-gpu", *flags, "--save", str(saved), "--json")
    assert from_flags.exit_code == 0
    assert from_flags.stderr == f"wrote {saved}\n"
    answers = [
        json.loads(user.memroof("run", name, "--json").stdout) for name in ("tiny-training", str(saved))
    ]
    for answer in answers:
        assert answer["metrics"] == json.loads(from_flags.stdout)["metrics"]


def test_the_flag_is_the_place_of_an_error(user: UserCatalog) -> None:
    result = user.memroof(
        "train", "tiny", "toy-gpu", "--global-batch", "many", "--sequence", "512", "--recompute", "sometimes",
        "--tokens", "3 GB", "--set", "strategy.zero=1",
    )  # fmt: skip
    assert result.exit_code == 2
    places = [line.split(": ")[1] for line in result.stderr.splitlines()]
    assert sorted(places) == ["--global-batch", "--recompute", "--set strategy.zero", "--tokens"]


@pytest.mark.parametrize(
    ("model", "hardware", "place"), [("tinny", "toy-gpu", "MODEL"), ("tiny", "toygpu", "HARDWARE")]
)
def test_names_on_the_command_line_are_checked(
    user: UserCatalog, model: str, hardware: str, place: str
) -> None:
    result = user.memroof("train", model, hardware, "--global-batch", "8", "--sequence", "512")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {place}: ")
    assert "did you mean" in result.stderr


def test_switches_and_hardware_kinds(user: UserCatalog) -> None:
    common = ("--global-batch", "16", "--sequence", "512", "--json")
    node = user.memroof(
        "train", "tiny", "dgx-a100-80gb", *common, "--tp", "2", "--sp", "--nodes", "1", "--overlap"
    )
    assert node.exit_code == 0, node.stderr
    assert json.loads(node.stdout)["hardware"]["name"] == "dgx-a100-80gb"
    assert "tiny on dgx-a100-80gb" in json.loads(node.stdout)["scenario"]


def test_whatif_is_a_table_with_reasons_for_what_cannot_be(user: UserCatalog, tmp_path: Path) -> None:
    table, picture = tmp_path / "w.csv", tmp_path / "w.png"
    result = user.memroof(
        "whatif", "tiny-training", "--vary", "strategy.micro_batch=1,2,3", "--vary", "strategy.recompute=none,full",
        "--csv", str(table), "--plot", str(picture),
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split("  ")[0].strip() == "micro_batch"
    assert sum("not possible, see below" in line for line in lines) == 2
    assert any(line.startswith("  - 3, none: ") for line in lines)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 6
    assert float(rows[0]["low"]) < float(rows[0]["value"]) < float(rows[0]["high"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert result.stderr.splitlines() == [f"wrote {table}", f"wrote {picture}"]


def test_whatif_as_json_and_svg(user: UserCatalog, tmp_path: Path) -> None:
    picture = tmp_path / "w.svg"
    result = user.memroof(
        "whatif", "tiny-training", "--vary", "hardware={device: toy-gpu, count: 4},{device: toy-gpu, count: 8}", "--json",
        "--plot", str(picture),
    )  # fmt: skip
    data = json.loads(result.stdout)
    assert len(data["rows"]) == 2
    assert data["headline"] == "step_time"
    assert picture.read_text().startswith("<svg")
    assert user.memroof("whatif", "tiny-training", "--vary", "name=a,b", "--plot", "w.gif").exit_code == 2


def test_explain_shows_ledger_time_formulas_and_doubt(user: UserCatalog) -> None:
    result = user.memroof("explain", "tiny-training")
    assert result.exit_code == 0
    headings = (
        "memory at its fullest", "largest holders", "time by bottleneck", "time by class of operator", "sensitivity of",
        "formulas", "sources", "assumptions", "\nbottleneck", "\ninterval",
    )  # fmt: skip
    places = [result.stdout.index(heading) for heading in headings]
    assert places == sorted(places)
    assert "simulator.cost.matmul_time" in result.stdout
    data = json.loads(user.memroof("explain", "tiny-training", "--json").stdout)
    assert all(abs(row["effect"]) < 0.2 for row in data["sensitivity"].values())


def test_explain_of_what_does_not_fit(user: UserCatalog) -> None:
    result = user.memroof(
        "explain",
        "tiny-training",
        "--set",
        "device.toy-gpu.memory.hbm.capacity=1 GiB",
        "--set",
        "limit.step_time=1 h",
    )
    assert result.exit_code == 3
    assert "MISSING" in result.stdout
    assert "limit           step time at most 1 h: " in result.stdout


def test_fit_says_how_much(user: UserCatalog) -> None:
    good = user.memroof("fit", "tiny", "toy-gpu", "--context", "2048")
    assert good.exit_code == 0
    assert re.search(r"^largest batch +[\d,]+ sequences of 2,048 tokens$", good.stdout, re.MULTILINE)
    data = json.loads(user.memroof("fit", "tiny", "toy-gpu", "--json", "--count", "2", "--kv", "fp8").stdout)
    assert data["fits"] and data["tensor_parallel"] == 2


def test_fit_says_what_is_missing(user: UserCatalog) -> None:
    small = ("--set", "model.tiny.hidden_size=8192", "--set", "model.tiny.intermediate_size=65536")
    result = user.memroof("fit", "tiny", "toy-gpu", *small, "--set", "model.tiny.num_hidden_layers=16")
    assert result.exit_code == 3
    assert re.search(r"^fits +NO: [\d.]+ GiB short on each device", result.stdout, re.MULTILINE)
    assert "what would make it fit:\n  - " in result.stdout


def test_fit_refuses_nodes_of_a_node_count(user: UserCatalog) -> None:
    result = user.memroof("fit", "tiny", "dgx-a100-80gb", "--count", "2")
    assert result.exit_code == 2
    assert "--nodes" in result.stderr


def test_a_scenario_may_be_any_file(user: UserCatalog) -> None:
    path = user.write("elsewhere/mine.yaml", TRAINING)
    result = user.memroof("run", str(path), "--json")
    assert json.loads(result.stdout)["scenario"] == "mine"


def test_explain_divides_the_whole_doubt(user: UserCatalog) -> None:
    """The shares of the doubt sum to all of it, what lies beyond kernels among them."""
    output = user.memroof("explain", "training/gpt3-175b-64xa100").stdout
    table = output.split("share of the doubt\n")[1].split("\n\n")[0].splitlines()
    shares = {line.split()[0]: line.split()[-2:] for line in table}
    assert "composition" in shares
    assert 97 <= sum(float(number) for number, sign in shares.values() if not number.startswith("<")) <= 101
