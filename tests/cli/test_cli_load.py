"""Capacity, load, fleet, pareto and latency as a user types them."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from user_catalog import UserCatalog

SERVING = """\
kind: serving
description: a tiny model on two toy GPUs
hardware: {device: toy-gpu, count: 2}
model: tiny
workload: {rate: 500 req/s, requests: 200, prompt: 128, output: 8}
slo: {time_to_first_token: 5 ms, time_per_output_token: 1 ms, share: 0.9}
"""


@pytest.fixture
def serving(user: UserCatalog) -> UserCatalog:
    user.write("scenarios/tiny-serving.yaml", SERVING)
    return user


QUICK = ("--requests", "200")


def test_run_tells_whether_the_objective_is_held(serving: UserCatalog) -> None:
    held = serving.memroof("run", "tiny-serving")
    assert held.exit_code == 0, held.output
    assert re.search(r"^goodput, requests per second +[\d.,]+/s", held.stdout, re.MULTILINE)
    assert re.search(
        r"^limit +requests that hold the objective at least 90 %: .*, held$", held.stdout, re.MULTILINE
    )
    for phase in ("prefill", "decode"):
        assert re.search(rf"^  {phase} +\w+ \d+ %", held.stdout, re.MULTILINE)
    missed = serving.memroof("run", "tiny-serving", "--set", "slo.time_per_output_token=1 us", "--json")
    assert missed.exit_code == 3
    data = json.loads(missed.stdout)
    assert data["metrics"]["goodput"]["value"] == 0.0
    assert data["ok"] is False
    assert set(data["time_by_bottleneck_and_phase"]) == {"prefill", "decode"}


def test_an_objective_from_flags(serving: UserCatalog) -> None:
    flags = ("--rate", "100 req/s", "--prompt", "64", "--output", "4", "--requests", "20")
    objective = ("--slo-ttft", "1 s", "--slo-tpot", "1 s", "--slo-e2e", "1 s", "--slo-share", "0.99")
    result = serving.memroof("serve", "tiny", "toy-gpu", *flags, *objective, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["metrics"]["slo_attainment"]["value"] == 1.0


def test_an_objective_without_a_bound_is_refused(serving: UserCatalog) -> None:
    result = serving.memroof("run", "tiny-serving", "--set", "slo={share: 0.9}")
    assert result.exit_code == 2
    assert "needs one of time_to_first_token, time_per_output_token, end_to_end" in result.stderr


def test_capacity_is_a_rate_with_its_doubt(serving: UserCatalog) -> None:
    result = serving.memroof("capacity", "tiny-serving", *QUICK, "--draws", "2")
    assert result.exit_code == 0, result.output
    assert re.search(r"^largest request rate +[\d.,]+ req/s$", result.stdout, re.MULTILINE)
    assert re.search(
        r"^80 % interval +[\d.,]+ to [\d.,]+ req/s by the cost model$", result.stdout, re.MULTILINE
    )
    assert re.search(r"by what was drawn \(200 requests\)$", result.stdout, re.MULTILINE)
    assert re.search(r"^binds first +.*: missed at [\d.,]+ req/s$", result.stdout, re.MULTILINE)


def test_capacity_as_json_is_the_same_twice(serving: UserCatalog) -> None:
    command = (
        "capacity",
        "tiny-serving",
        "--requests",
        "100",
        "--draws",
        "0",
        "--tolerance",
        "0.05",
        "--json",
    )
    first, second = (serving.memroof(*command).stdout for _ in range(2))
    assert first == second
    data = json.loads(first)
    assert data["low"] < data["largest"] < data["high"]
    assert data["answer"]["metrics"]["goodput"]["value"] > 0.0


def test_capacity_that_is_none_exits_with_3(serving: UserCatalog) -> None:
    result = serving.memroof("capacity", "tiny-serving", "--set", "slo.time_per_output_token=1 us")
    assert result.exit_code == 3
    assert re.search(r"^largest request rate +none$", result.stdout, re.MULTILINE)


def test_capacity_of_what_has_no_load_is_an_input_error(serving: UserCatalog) -> None:
    result = serving.memroof("capacity", "tiny-training")
    assert result.exit_code == 2
    assert "load is that of serving" in result.stderr


def test_load_is_a_table_a_csv_and_a_plot(serving: UserCatalog, tmp_path: Path) -> None:
    table, picture = tmp_path / "l.csv", tmp_path / "l.svg"
    result = serving.memroof(
        "load", "tiny-serving", "--at", "100,400 req/s", *QUICK, "--csv", str(table), "--plot", str(picture),
        "--set", "device.toy-gpu.price.rent=2 $/h",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert re.search(r"^100 req/s +yes .* J .* \$", result.stdout, re.MULTILINE)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [float(row["load"]) for row in rows] == [100.0, 400.0]
    assert float(rows[0]["dollars_per_million_tokens"]) > float(rows[1]["dollars_per_million_tokens"])
    assert picture.read_text().startswith("<svg")
    data = json.loads(serving.memroof("load", "tiny-serving", "--at", "100", *QUICK, "--json").stdout)
    assert data["points"][0]["attainment"] == 1.0


@pytest.mark.parametrize("at", ["many", "0", "1,,2", "inf"])
def test_loads_that_are_none_are_usage_errors(serving: UserCatalog, at: str) -> None:
    result = serving.memroof("load", "tiny-serving", "--at", at)
    assert result.exit_code == 2
    assert "--at" in result.stderr


def test_a_picture_of_no_known_kind_is_refused_before_the_work(serving: UserCatalog) -> None:
    for command in ("load", "pareto", "latency"):
        result = serving.memroof(command, "tiny-serving", "--plot", "x.gif")
        assert result.exit_code == 2
        assert ".png or .svg" in result.stderr


def test_a_fleet_is_replicas_power_and_dollars(serving: UserCatalog) -> None:
    arguments = (
        "fleet",
        "tiny-serving",
        "--load",
        "20000 req/s",
        *QUICK,
        "--headroom",
        "0.1",
        "--spares",
        "2",
    )
    result = serving.memroof(*arguments, "--set", "device.toy-gpu.price.rent=2 $/h")
    assert result.exit_code == 0, result.output
    assert re.search(r"^replicas +\d+ \+ 2 spare, \d+ accelerators", result.stdout, re.MULTILINE)
    assert re.search(r"^cost +\$.*/h, .* a month, .* per million output tokens", result.stdout, re.MULTILINE)
    data = json.loads(serving.memroof(*arguments, "--json").stdout)
    assert data["replicas"] + data["spares"] == data["devices"]
    assert data["worst"]["holds"] is True
    assert data["dollars_per_second"] is None


def test_a_fleet_needs_one_load(serving: UserCatalog) -> None:
    assert serving.memroof("fleet", "tiny-serving").exit_code == 2
    assert serving.memroof("fleet", "tiny-serving", "--load", "1,2").exit_code == 2


def test_pareto_is_the_front_and_all_points_on_request(serving: UserCatalog, tmp_path: Path) -> None:
    table, picture = tmp_path / "p.csv", tmp_path / "p.png"
    result = serving.memroof(
        "pareto", "tiny-serving", "--concurrency", "1,4", "--csv", str(table), "--plot", str(picture)
    )
    assert result.exit_code == 0, result.output
    assert "on the front of 4 that ran" in result.stdout
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 4
    assert picture.read_bytes().startswith(b"\x89PNG")
    every = serving.memroof("pareto", "tiny-serving", "--concurrency", "1,4", "--all")
    assert "4 points of 4 that ran" in every.stdout
    vary = ("--vary", "strategy.tensor_parallel=1", "--concurrency", "2", "--jobs", "1", "--json")
    (point,) = json.loads(serving.memroof("pareto", "tiny-serving", *vary).stdout)["points"]
    assert point["replicas"] == 2
    assert point["on_front"] is True
    assert serving.memroof("pareto", "tiny-serving", "--concurrency", "1.5").exit_code == 2


def test_latency_is_percentiles_requests_and_pictures(serving: UserCatalog, tmp_path: Path) -> None:
    table, picture, queue = tmp_path / "r.csv", tmp_path / "d.svg", tmp_path / "q.png"
    result = serving.memroof(
        "latency", "tiny-serving", "--csv", str(table), "--plot", str(picture), "--series", str(queue)
    )
    assert result.exit_code == 0, result.output
    assert re.search(r"^time to first token +100 ( +[\d.]+ [mu]?s){10}$", result.stdout, re.MULTILINE)
    assert len(table.read_text().splitlines()) == 1 + 100
    assert picture.read_text().startswith("<svg")
    assert queue.read_bytes().startswith(b"\x89PNG")
    data = json.loads(serving.memroof("latency", "tiny-serving", "--json").stdout)
    assert data["latencies"]["inter_token"]["p50"] > 0.0


def test_a_report_shows_requests_and_phases(serving: UserCatalog, tmp_path: Path) -> None:
    page, text = tmp_path / "r.html", tmp_path / "r.md"
    result = serving.memroof("report", "tiny-serving", "-o", str(page), "--markdown", str(text))
    assert result.exit_code == 0, result.output
    assert "What waits, what runs" in page.read_text()
    assert "| of prefill | of decode |" in text.read_text()
