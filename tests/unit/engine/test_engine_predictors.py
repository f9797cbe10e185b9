"""Predictors: the share that is useful against its closed form, and when fetches are due."""

import numpy as np
import pytest

from simulator.engine import (
    Predictor,
    ProgramError,
    fetch_share,
    predict,
    useful_fraction,
    wasted_fraction,
    zipf_trace,
    zipf_weights,
)


@pytest.mark.parametrize(("accuracy", "share", "named"), [(0.9, 0.8, None), (0.6, 1.0, 8), (0.0, 0.5, 6)])
def test_drawn_shares_are_the_expected_ones(accuracy, share, named):
    predictor = Predictor(accuracy, fetch_share=share)
    generator = np.random.default_rng(1)
    trace = zipf_trace(zipf_weights(64, 0.5), 4000, 6, seed=2).tolist()
    drawn = [predict(predictor, used, 64, generator, named=named) for used in trace]
    for used, one in zip(trace, drawn, strict=True):
        assert sorted((*one.right, *one.late, *one.missed)) == sorted(used)
        assert not set(one.wrong) & set(used)
        assert len(one.right) + len(one.late) + len(one.wrong) <= (named or 6)
    uses = 6 * len(trace)
    error = 3 * 0.5 / uses**0.5
    assert sum(len(one.right) for one in drawn) / uses == pytest.approx(useful_fraction(predictor), abs=error)
    wasted = wasted_fraction(predictor, (named or 6) / 6)
    assert sum(len(one.wrong) for one in drawn) / uses == pytest.approx(wasted, abs=2 * error)


def test_the_same_seed_draws_the_same():
    predictor = Predictor(0.5, fetch_share=0.5)
    one, other = (predict(predictor, [3, 1, 4], 9, np.random.default_rng(5)) for _ in range(2))
    assert one == other


def test_a_perfect_predictor_and_one_of_few_words():
    generator = np.random.default_rng(0)
    assert predict(Predictor(1.0), [2, 0], 4, generator) == ((2, 0), (), (), ())
    assert predict(Predictor(1.0), [2, 0], 4, generator, named=1) == ((2,), (), (0,), ())
    # All that is not used is wrong, and there is no more of it.
    assert sorted(predict(Predictor(0.0), [2, 0], 4, generator, named=9).wrong) == [1, 3]
    weights = [1.0, 0.0, 1.0, 5.0]
    assert predict(Predictor(0.0), [2], 4, generator, named=2, weights=weights).wrong in ((0, 3), (3, 0))


def test_fetches_are_bound_by_the_link_and_by_the_lead():
    """Layers of 1 ms; a predictor of 0.2 ms."""
    one_ahead, three_ahead = Predictor(0.9, latency=2e-4, lead=1), Predictor(0.9, latency=2e-4, lead=3)
    assert fetch_share(one_ahead, 1e-3, 0.5e-3) == 1.0
    assert fetch_share(one_ahead, 1e-3, 1e-3) == pytest.approx(0.8)
    assert fetch_share(three_ahead, 1e-3, 1e-3) == 1.0
    assert fetch_share(three_ahead, 1e-3, 2e-3) == pytest.approx(0.5)
    assert fetch_share(Predictor(0.9, latency=2e-3), 1e-3, 1e-3) == 0.0
    assert fetch_share(one_ahead, 1e-3, 0.0) == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Predictor(1.2), "accuracy must lie"),
        (lambda: Predictor(0.9, fetch_share=-0.1), "fetch_share must lie"),
        (lambda: Predictor(0.9, latency=-1.0), "latency must be finite"),
        (lambda: Predictor(0.9, lead=-1), "lead must not be negative"),
        (lambda: predict(Predictor(0.9), [1, 1], 4, np.random.default_rng(0)), "must be distinct"),
        (lambda: predict(Predictor(0.9), [4], 4, np.random.default_rng(0)), "between 0 and 3"),
    ],
)
def test_bad_predictors_are_refused(call, message):
    with pytest.raises(ProgramError, match=message):
        call()
