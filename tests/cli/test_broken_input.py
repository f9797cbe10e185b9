"""Broken files: each gives exit code 2 and clear lines with file and line, never a traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from user_catalog import FILES, UserCatalog

REQUIRED = {
    "models_zoo/tiny.yaml": [
        "name",
        "source",
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "position",
        "normalization",
        "activation",
        "family",
        "kind",
    ],
    "hardware_specs/devices/toy-gpu.yaml": [
        "name",
        "vendor",
        "architecture",
        "source",
        "compute",
        "vector",
        "units",
        "clock",
        "memory",
        "technology",
        "capacity",
        "bandwidth",
        "power",
        "limit",
    ],
    "scenarios/tiny-training.yaml": ["hardware", "model", "workload", "global_batch", "sequence", "kind"],
}
QUANTITIES = {"bf16", "fp16", "fp32", "clock", "capacity", "bandwidth", "limit"}
WHOLE = [
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "max_position_embeddings",
    "units",
    "count",
    "global_batch",
    "sequence",
    "tensor_parallel",
    "pipeline_parallel",
    "micro_batch",
]
CHOICES = {"family", "position", "normalization", "activation", "schedule", "recompute", "precision", "kind"}
NAMES = {"device", "model"}
MAPPINGS = {"compute", "vector", "memory", "hbm", "power", "hardware", "workload", "strategy"}
WRONG_QUANTITIES = (
    "80", "1.5", "5 us", "12 parsecs", "fast", "-3 TB/s", "-1 GiB", "0 W", "nan GiB", ".nan", "inf", "1e400 GiB",
    "GiB", "''", "3 GiB GiB", "[1, 2]", "{a: 1}", "null", "{value: 3, unit: W}", "{source: nobody}", "true", "5 req/s",
    "{value: 1 GiB, range: [2 GiB, 3 GiB]}",
)  # fmt: skip
WRONG_NUMBERS = (
    "0", "-1", "1.5", "four", "4 GiB", ".nan", ".inf", "1e400", "[4]", "{a: 4}", "'4 '4", "9" * 5000, "0x10", "12:30",
    "true", "4,5", "null_",
)  # fmt: skip
WRONG_CHOICES = ("nonsense", "none-such", "[a]", "{a: b}", "42", "BF16", "Decoder", "''")
BYTES = (b"\xff\xfe\x00", b"\x00", b"\x07", b"\xc3\x28", b"\x80abc", b"\x1b[31m")
SYNTAX = (
    "{", "[", "}", "key: [1, 2", "'open", '"open', "a: b: c", "\tindented: 1", "- item", "!!python/object:os.system {}",
    "*nowhere", "loop: &loop [*loop]", "? [a]\n: b", "@at", "%directive", "&anchor", "key:\n- a\n b",
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """A file that is broken by construction."""

    file: str
    content: bytes
    how: str


def keys(text: str) -> list[tuple[int, str, str, str]]:
    """Line number, indentation, key and value of every line."""
    found = []
    for number, line in enumerate(text.splitlines()):
        match = re.fullmatch(r"( *)([\w.-]+):(.*)", line)
        assert match
        found.append((number, match[1], match[2], match[3].strip()))
    return found


def replace(text: str, number: int, line: str | None) -> str:
    """The text with one line replaced, or dropped together with what is nested below it."""
    lines = text.splitlines()
    if line is not None:
        lines[number] = line
        return "\n".join(lines) + "\n"
    depth = len(lines[number]) - len(lines[number].lstrip())
    end = number + 1
    while end < len(lines) and len(lines[end]) - len(lines[end].lstrip()) > depth:
        end += 1
    return "\n".join(lines[:number] + lines[end:]) + "\n"


def line_variants(file: str, text: str) -> Iterator[tuple[str, str]]:
    """Every variant that changes one line of a file: how it is broken, and the text."""
    for number, indent, key, value in keys(text):
        yield f"tab before {key}", replace(text, number, f"\t{indent}{key}: {value}")
        yield (
            f"duplicate {key}",
            replace(text, number, f"{indent}{key}: {value or '{}'}\n{indent}{key}: {value or '{}'}"),
        )
        if key not in ("hbm", "name"):
            for wrong in (key + "x", key[:-1], key.upper(), key.replace("_", "-") + "s"):
                yield f"misspelt {key}", replace(text, number, f"{indent}{wrong}: {value}")
        if key in REQUIRED[file]:
            yield f"missing {key}", replace(text, number, None)
            dropped = replace(text, number, None)
            line = f"{indent}{key}:"
            lines = dropped.splitlines()
            yield f"empty {key}", "\n".join([*lines[:number], line, *lines[number:]]) + "\n"
        if key in QUANTITIES:
            for wrong in WRONG_QUANTITIES:
                yield f"{key}: {wrong}", replace(text, number, f"{indent}{key}: {wrong}")
        if key in WHOLE:
            for wrong in WRONG_NUMBERS:
                yield f"{key}: {wrong[:20]}", replace(text, number, f"{indent}{key}: {wrong}")
        if key in CHOICES:
            for wrong in WRONG_CHOICES:
                yield f"{key}: {wrong}", replace(text, number, f"{indent}{key}: {wrong}")
        if key in NAMES:
            for wrong in ("no-such-thing", "tin", "toy", "''", "[tiny]", "{a: b}", "../tiny"):
                yield f"{key}: {wrong}", replace(text, number, f"{indent}{key}: {wrong}")
        if key in MAPPINGS:
            dropped = replace(text, number, None).splitlines()
            for wrong in ("[1, 2]", "- 1", "text", "3", "{nonsense: 1}"):
                line = f"{indent}{key}: {wrong}"
                yield f"{key}: {wrong}", "\n".join([*dropped[:number], line, *dropped[number:]]) + "\n"


LINES = {file: list(line_variants(file, text)) for file, text in FILES.items()}


@st.composite
def broken(draw: st.DrawFn) -> Variant:
    """A broken scenario, model or device."""
    file = draw(st.sampled_from(sorted(FILES)))
    text = FILES[file]
    family = draw(st.sampled_from(["line", "line", "line", "line", "bytes", "syntax", "truncated"]))
    if family == "line":
        how, changed = draw(st.sampled_from(LINES[file]))
        return Variant(file, changed.encode(), how)
    if family == "bytes":
        position = draw(st.integers(0, len(text)))
        junk = draw(st.sampled_from(BYTES))
        return Variant(file, text[:position].encode() + junk + text[position:].encode(), f"bytes {junk!r}")
    if family == "syntax":
        lines = text.splitlines()
        number = draw(st.sampled_from([n for n, indent, _, _ in keys(text) if not indent] + [len(lines)]))
        junk = draw(st.sampled_from(SYNTAX))
        return Variant(file, "\n".join([*lines[:number], junk, *lines[number:]]).encode(), f"syntax {junk!r}")
    # the last key of every file is required, so that no cut before it leaves a whole file
    position = draw(st.integers(0, text.rindex("kind:") + len("kind")))
    return Variant(file, text[:position].encode(), f"cut at {position}")


def test_the_unbroken_files_are_answered(user: UserCatalog) -> None:
    result = user.memroof("run", str(user.root / "scenarios/tiny-training.yaml"))
    assert result.exit_code == 0, result.stderr


def test_two_hundred_broken_files_give_clear_lines(tmp_path: Path) -> None:
    seen: set[bytes] = set()

    @settings(
        max_examples=260, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(variant=broken())
    def check(variant: Variant) -> None:
        user = UserCatalog(tmp_path)
        path = user.write(variant.file, variant.content)
        result = user.memroof("run", str(tmp_path / "scenarios/tiny-training.yaml"))
        lines = result.stderr.splitlines()
        shown = f"{variant.how}\n{result.stdout}\n{result.stderr}"
        assert result.exit_code == 2, shown
        assert result.stdout == "", shown
        assert lines and all(line.startswith("error: ") for line in lines), shown
        assert any(path.name in line or str(path) in line or "no-such" in line for line in lines), shown
        if b"not UTF-8" not in result.stderr.encode():
            assert any(re.search(r"\.yaml:\d+:\d+: ", line) for line in lines), shown
        seen.add(variant.content)

    check()
    assert len(seen) >= 200


def test_all_problems_of_a_file_are_told_at_once(user: UserCatalog) -> None:
    text = FILES["scenarios/tiny-training.yaml"].replace("global_batch: 16", "global_batch: many")
    path = user.write("scenarios/tiny-training.yaml", text.replace("schedule: 1f1b", "shedule: 1f1b"))
    result = user.memroof("run", "tiny-training")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        f"error: {path}:7:3: workload.global_batch: found 'many', expected a whole number",
        f"error: {path}:13:3: strategy.shedule: unknown key; did you mean 'schedule'?",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "no/such/file.yaml"), "no/such/file.yaml"),
        (("run", "tiny-traning"), "did you mean 'tiny-training'"),
        (("run", "tiny-training", "--set", "strategy.tensor_paralel=2"), "did you mean 'tensor_parallel'"),
        (("run", "tiny-training", "--set", "strategy.tensor_parallel"), "write it like --set"),
        (("run", "tiny-training", "--set", "model.name.deep=2"), "model"),
        (("run", "tiny-training", "--set", "device.no-gpu.power=2"), "unknown device 'no-gpu'"),
        (("run", "tiny-training", "--set", "strategy.tensor_parallel=3"), "tensor_parallel"),
        (("run", "tiny-training", "--set", "limit={no_such: 1 s}"), "no such metric"),
        (("run", "tiny-training", "--set", "expect.step_time={value: 3 W, source: me}"), "step_time"),
        (("run", "tiny-training", "--set", "strategy.precision=tf32"), "tf32"),
        (("whatif", "tiny-training", "--vary", "strategy.micro_batch"), "--vary"),
        (("whatif", "tiny-training", "--vary", "strategy.micro_batch=1,,2"), "empty value"),
        (("whatif", "tiny-training", "--vary", "strategy.micro_batch=3,5"), "micro_batch"),
        (("fit", "tinny", "toy-gpu"), "did you mean 'tiny'"),
        (("fit", "tiny", "toygpu"), "did you mean 'toy-gpu'"),
        (("fit", "tiny", "toy-gpu", "--precision", "fp12"), "--precision: unknown number format 'fp12'"),
        (("fit", "tiny", "toy-gpu", "--tp", "3"), "tensor_parallel 3"),
        (("fit", "tiny", "toy-gpu", "--nodes", "2"), "--count"),
        (("show", "device", "toygpu"), "did you mean 'toy-gpu'"),
        (("show", "planet", "toy-gpu"), "unknown kind 'planet'"),
        (("show", "a", "b", "c"), "expected [KIND] NAME"),
        (("report", "tiny-training"), "nothing to write"),
        (("report", "tiny-training", "-o", "/no/such/folder/r.html"), "/no/such/folder/r.html: cannot be written"),
        (("train", "tiny", "toy-gpu", "--global-batch", "16"), "missing option '--sequence'"),
    ],
)  # fmt: skip
def test_what_a_user_may_mistype(user: UserCatalog, arguments: tuple[str, ...], message: str) -> None:
    result = user.memroof(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
