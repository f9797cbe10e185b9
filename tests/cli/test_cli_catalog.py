"""The catalog as a user browses it: list, show, import."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from user_catalog import UserCatalog

CONFIG = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "intermediate_size": 11008, "max_position_embeddings": 4096, "hidden_act": "silu", "tie_word_embeddings": False,
    "num_key_value_heads": 32, "rms_norm_eps": 1e-5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name", "fact"),
    [
        ("devices", "toy-gpu", "16.0 GiB"),
        ("devices", "a100-80gb-sxm", "312 TFLOP/s bf16"),
        ("devices", "intel-p5510-3.84tb", "read 6.50 GB/s"),
        ("links", "nvlink-3", "300 GB/s"),
        ("nodes", "dgx-a100-80gb", "8 x a100-80gb-sxm"),
        ("models", "tiny", "4 layers"),
        ("layers", "harmony-gpt2-xl", "52 layers"),
        ("scenarios", "tiny-training", "4 x toy-gpu"),
        ("calibrations", "gpu", "A100"),
    ],
)
def test_list_has_a_line_of_facts_for_each_entry(user: UserCatalog, kind: str, name: str, fact: str) -> None:
    result = user.memroof("list", kind)
    assert result.exit_code == 0, result.stderr
    line = next(line for line in result.stdout.splitlines() if line.split()[0] == name)
    assert fact in line


def test_list_without_a_kind_counts_and_names_scenarios(user: UserCatalog) -> None:
    result = user.memroof("list")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("devices ")
    assert "tiny-training" in result.stdout


def test_list_as_json(user: UserCatalog) -> None:
    data = json.loads(user.memroof("list", "models", "--json").stdout)
    tiny = next(row for row in data["models"] if row["name"] == "tiny")
    # 4 layers x (q, o: 256 x 256; k, v: 256 x 128; gate, up, down: 256 x 1024; 2 norms), 2 tables of 1024 x 256, 1 norm
    assert (
        tiny["parameters"]
        == 4 * (2 * 256**2 + 2 * 256 * 128 + 3 * 256 * 1024 + 2 * 256) + 2 * 1024 * 256 + 256
    )
    assert tiny["kv_bytes_per_token"] == 4 * 2 * 128 * 2


def test_everything_shipped_can_be_listed(user: UserCatalog) -> None:
    result = user.plain("list", "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert all(data[kind] for kind in ("devices", "links", "nodes", "clusters", "calibrations"))


def test_a_broken_entry_does_not_hide_the_others(user: UserCatalog) -> None:
    user.write("models_zoo/broken.yaml", "kind: model\n")
    result = user.memroof("list", "models")
    assert result.exit_code == 2
    assert "tiny" in result.stdout
    assert all(line.startswith("error: ") and "broken.yaml" in line for line in result.stderr.splitlines())


@pytest.mark.parametrize(
    ("names", "lines"),
    [
        (("toy-gpu",), ("memory.hbm.capacity", "FLOP per byte at the ridge, bf16  100")),
        (("devices", "toy-gpu"), ("time to read all of its memory",)),
        (("xeon-8380",), ("power.limit",)),
        (("intel-p5510-3.84tb",), ("time to read all of it",)),
        (("dgx-a100-80gb",), ("accelerators        8", "dram0 to gpu0.hbm")),
        (("tiny",), ("KV cache a token, bytes in 16 bit", "2,048")),
        (("scenario", "tiny-training"), ("strategy.tensor_parallel",)),
        (("nvlink-3",), ("bandwidth",)),
        (("gpu",), ("matmul",)),
    ],
)
def test_show_gives_figures_and_what_follows(
    user: UserCatalog, names: tuple[str, ...], lines: tuple[str, ...]
) -> None:
    result = user.memroof("show", *names)
    assert result.exit_code == 0, result.stderr
    for line in lines:
        assert line in result.stdout


def test_show_names_the_source_of_a_figure(user: UserCatalog) -> None:
    text = (user.root / "hardware_specs/devices/toy-gpu.yaml").read_text()
    sourced = "limit: {value: 300 W, source: the label, date: 2024-05}"
    user.write("hardware_specs/devices/toy-gpu.yaml", text.replace("limit: 300 W", sourced))
    assert "300 W  [the label, 2024-05]" in user.memroof("show", "toy-gpu").stdout


def test_show_as_json_has_si_values(user: UserCatalog) -> None:
    data = json.loads(user.memroof("show", "toy-gpu", "--json").stdout)
    assert data["values"]["memory"]["hbm"]["capacity"] == 16 * 2**30
    assert data["derived"]["ridge_bf16"] == 100.0


def test_show_of_every_cluster(user: UserCatalog) -> None:
    data = json.loads(user.plain("list", "clusters", "--json").stdout)
    for row in data["clusters"]:
        assert row["accelerators"] >= row["nodes"] >= 1


def test_a_name_of_two_kinds_asks_which(user: UserCatalog) -> None:
    user.write(
        "models_zoo/toy-gpu.yaml",
        (user.root / "models_zoo/tiny.yaml").read_text().replace("name: tiny", "name: toy-gpu"),
    )
    result = user.memroof("show", "toy-gpu")
    assert result.exit_code == 2
    assert "'toy-gpu' is a device and a model; say which: memroof show device toy-gpu" in result.stderr
    assert user.memroof("show", "model", "toy-gpu").exit_code == 0


def test_import_writes_a_model_that_can_be_used(user: UserCatalog, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    target = user.root / "models_zoo/mine.yaml"
    result = user.plain("import", str(config), "-o", str(target), "--source", "a test")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    shown = json.loads(user.memroof("show", "mine", "--json").stdout)
    assert shown["derived"]["parameters"] == 6_738_415_616  # Llama 2 7B, Hugging Face safetensors index


def test_import_prints_without_a_file(user: UserCatalog, tmp_path: Path) -> None:
    config = tmp_path / "my-model" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps(CONFIG))
    assert "name: my-model" in user.plain("import", str(config)).stdout
    assert (
        json.loads(user.plain("import", str(config), "--json", "--name", "x").stdout)["hidden_size"] == 4096
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", ":1:2: not valid JSON"),
        (b"\xff", "not UTF-8"),
        (b'{"model_type": "lama"}', "did you mean 'llama'"),
        (b'{"model_type": "llama"}', "missing"),
        (b"[]", "expected keys and values"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"model_type": "llama", "hidden_size": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_import_refuses_what_it_cannot_read(
    user: UserCatalog, tmp_path: Path, content: bytes, message: str
) -> None:
    config = tmp_path / "config.json"
    config.write_bytes(content)
    result = user.plain("import", str(config))
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


def test_import_of_no_file(user: UserCatalog) -> None:
    result = user.plain("import", "/no/such/config.json")
    assert result.exit_code == 2
    assert result.stderr == "error: /no/such/config.json: cannot be read: No such file or directory\n"
