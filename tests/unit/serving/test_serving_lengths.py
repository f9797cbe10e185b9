import numpy as np
import pytest

from simulator.serving.lengths import draw_lengths
from simulator.specs import SpecError
from simulator.specs.serving_workload import Lengths


def drawn(count=20000, **fields):
    return draw_lengths(Lengths.model_validate(fields), count, np.random.default_rng(0))


def test_a_list_is_an_empirical_distribution():
    tokens = draw_lengths(Lengths.model_validate([100, 200, 300]), 30000, np.random.default_rng(0))
    values, counts = np.unique(tokens, return_counts=True)
    assert values.tolist() == [100, 200, 300]
    assert counts / 30000 == pytest.approx([1 / 3] * 3, abs=0.02)


def test_weights_make_a_histogram():
    tokens = drawn(values=[10, 20], weights=[1, 3])
    assert (tokens == 20).mean() == pytest.approx(0.75, abs=0.02)


def test_a_histogram_may_be_a_file(tmp_path):
    file = tmp_path / "lengths.csv"
    file.write_text("tokens, weight\n10, 1\n20, 3\n")
    assert (drawn(file=str(file)) == 20).mean() == pytest.approx(0.75, abs=0.02)
    file.write_text("tokens\n7\n7\n9\n")
    assert (drawn(file=str(file)) == 7).mean() == pytest.approx(2 / 3, abs=0.02)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("token\n5\n", "no column 'tokens'"), ("tokens\nmany\n", "invalid literal"), ("tokens\n0\n", "at least 1"),
        ("tokens,weight\n5,-1\n", "weight of at least 0"),
    ],
)  # fmt: skip
def test_faulty_files_are_refused_with_their_line(tmp_path, text, message):
    file = tmp_path / "lengths.csv"
    file.write_text(text)
    with pytest.raises(SpecError, match=message):
        drawn(file=str(file))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SpecError, match="cannot be read"):
        drawn(file=str(tmp_path / "nothing.csv"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fixed": 1, "mean": 2.0}, "needs one of"), ({"values": []}, "at least one length"),
        ({"values": [1, 2], "weights": [1]}, "one each"), ({"values": [1], "weights": [0]}, "not all be 0"),
        ({"fixed": 5, "sigma": 0.3}, "belongs to 'mean'"),
    ],
)  # fmt: skip
def test_meaningless_distributions_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Lengths.model_validate(fields)
