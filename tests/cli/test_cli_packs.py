"""Task packs as a user types them."""

from __future__ import annotations

import json

import pytest
from user_catalog import UserCatalog

SCENARIO = "published/harmony2022/gpt2-xl-2x1080ti"


def test_run_names_the_profile_and_the_schedule(user: UserCatalog) -> None:
    result = user.memroof("run", SCENARIO)
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout.startswith(
        "gpt2-xl-2x1080ti: offload of harmony-gpt2-xl on server-2x1080ti, 2 x gtx-1080-ti"
    )
    assert "packs of the backward pass                     8" in result.stdout
    assert "layers as measured on gtx-1080-ti" in result.stdout


def test_json_names_the_profile_in_the_models_place(user: UserCatalog) -> None:
    data = json.loads(user.memroof("run", SCENARIO, "--json").stdout)
    assert data["model"] == "harmony-gpt2-xl"
    assert data["metrics"]["iteration_time"]["value"] == pytest.approx(43.9, rel=0.01)


@pytest.mark.parametrize("names", [("harmony-gpt2-xl",), ("layers", "harmony-gpt2-xl")])
def test_show_says_what_was_measured(user: UserCatalog, names: tuple[str, ...]) -> None:
    text = user.memroof("show", *names).stdout
    assert "weights and buffers           6.29 GiB" in text
    assert "layers[1].forward.time" in text


def test_whatif_varies_the_mode(user: UserCatalog) -> None:
    result = user.memroof(
        "whatif", "offload/gpt2-xl-4x1080ti", "--vary", "strategy.mode=data-parallel,pipeline,virtualised"
    )
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()[-3:]] == [
        "data-parallel",
        "pipeline",
        "virtualised",
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["layers=null"], "found nothing, expected a text"),
        (["model=gpt2-xl"], "needs 'model' or 'layers', and not both"),
        (["strategy.precision=bf16"], "'strategy.precision' is measured in 'layers' already"),
        (["strategy.mode=virtualised"], "decides nothing in mode 'virtualised'"),
        (["strategy.link_sharing=even"], "'link_sharing' decides nothing in mode 'data-parallel'"),
        (["strategy.packing=[balanced]"], "expected one of balanced-time, balanced-memory, greedy"),
        (["workload.minibatch=33"], "33 samples cannot be shared evenly by 2 GPUs"),
        (["layers=harmony-gpt2"], "unknown layers 'harmony-gpt2'; did you mean 'harmony-gpt2-xl'"),
    ],
)
def test_what_is_wrong_is_one_clear_line(user: UserCatalog, options: list[str], says: str) -> None:
    result = user.memroof("run", SCENARIO, *(part for option in options for part in ("--set", option)))
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr
