"""YAML with its traps closed, and every fault with its place."""

from pathlib import Path

import pytest

from simulator.specs import SpecError
from simulator.specs.source import override, parse_document, read_document


def problems(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse_document(text, "f.yaml")
    return [str(problem) for problem in caught.value.problems]


def test_scalars_stay_text() -> None:
    data = parse_document("a: no\nb: 1e9\nc: 010\nd: 12:30:45\ne: ~\nf: 'null'\n").data
    assert data == {"a": "no", "b": "1e9", "c": "010", "d": "12:30:45", "e": None, "f": "null"}


def test_marks_point_at_keys() -> None:
    document = parse_document("a:\n  - b: 1\n    c: 2\n", "f.yaml")
    assert document.marks[("a", 0, "c")] == ("f.yaml", 3, 5)
    assert str(document.problem(("a", 0, "c"), "wrong")) == "f.yaml:3:5: a[0].c: wrong"
    assert document.problem(("a", 0, "d", "e"), "missing").line == 2


def test_duplicates_are_refused_all_at_once() -> None:
    assert problems("a: 1\na: 2\nb:\n  c: 1\n  c: 2\n") == [
        "f.yaml:2:1: a: duplicate key; it stands already at line 1",
        "f.yaml:5:3: b.c: duplicate key; it stands already at line 4",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.yaml:1:1: the file is empty"),
        ("a: [1, 2", "f.yaml:2:1: not valid YAML"),
        ("a:\n\t- b", "not valid YAML"),
        ("? [1, 2]\n: 3", "a key must be a plain text"),
        ("a: !!python/object:os.system x", "explicit tag"),
        ("a: &x [*x]", "an alias refers to itself"),
        ("a: *nowhere", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: \x07", "not valid YAML"),
    ],
)
def test_what_is_no_yaml(text: str, message: str) -> None:
    found = problems(text)
    assert len(found) == 1
    assert message in found[0]


def test_alias_bombs_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 8)]
    assert "more than 200,000 values" in problems("\n".join(lines))[0]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"a: \xff\xfe")
    for path, message in (
        (binary, "not UTF-8"),
        (tmp_path / "none.yaml", "cannot be read"),
        (tmp_path, "cannot be read"),
    ):
        with pytest.raises(SpecError, match=message):
            read_document(path)


def test_override_sets_nested_keys_and_lists() -> None:
    document = parse_document("a: {b: 1}\nl: [{x: 1}, {x: 2}]\n", "f.yaml")
    changed = override(document, {"a.b": "2", "a.c.d": "[1, 2]", "l.1.x": "9", "a.e": ""})
    assert changed.data == {"a": {"b": "2", "c": {"d": ["1", "2"]}, "e": None}, "l": [{"x": "1"}, {"x": "9"}]}
    assert document.data["a"] == {"b": "1"}
    assert str(changed.problem(("a", "b"), "wrong")) == "--set a.b: wrong"


@pytest.mark.parametrize(
    ("key", "message"),
    [("a.b.c", "cannot be set inside"), ("l.7.x", "not an index"), ("l.x", "not an index")],
)
def test_override_refuses(key: str, message: str) -> None:
    document = parse_document("a: {b: 1}\nl: [{x: 1}]\n")
    with pytest.raises(SpecError, match=message):
        override(document, {key: "1"})
