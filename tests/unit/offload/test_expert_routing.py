"""Routing of tokens to experts: popularity, reuse, and recorded traces."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.engine import inclusion, zipf_weights
from simulator.offload.expert_cache.routing import Replay, Router
from simulator.specs import MemroofError


def steps(router: Router, length: int, batch: int = 1) -> np.ndarray:
    return router.draw([0, 0], [True, True], length, batch).steps


def test_every_token_goes_to_as_many_experts_as_it_should():
    drawn = Router(2, 8, 3, skew=1.0, reuse=0.3, seed=0).draw([5, 7], [True, False], 4, 2)
    assert drawn.prompt.sum(axis=1).tolist() == [5 * 2 * 3, 7 * 2 * 3]
    assert drawn.steps[:, 0].sum(axis=1).tolist() == [6] * 4
    assert drawn.steps[:, 1].sum() == 0  # an encoder's layer


def test_popularity_is_that_of_successive_sampling():
    router = Router(1, 16, 4, skew=1.2, reuse=0.0, seed=3)
    used = router.draw([0], [True], 6000, 1).steps[:, 0].mean(axis=0)
    expected = inclusion(zipf_weights(16, 1.2), 4)
    assert np.sort(used)[::-1] == pytest.approx(expected, abs=0.025)
    assert np.argmax(used) == np.argmax(router.popularity[0])


@pytest.mark.parametrize("reuse", [0.0, 0.1, 0.5])
def test_a_token_repeats_experts_of_the_one_before(reuse):
    # r + (1 - r)·k/E, as independent draws repeat k/E; the k/E of what is left after keeping some is a little less
    drawn = steps(Router(2, 64, 6, skew=0.0, reuse=reuse, seed=5), 3000)
    repeated = (drawn[1:] * drawn[:-1]).sum() / drawn[1:].sum()
    assert repeated == pytest.approx(reuse + (1.0 - reuse) * 6 / 64, abs=0.035)


def test_mixtral_repeats_as_published():
    # Jiang et al. 2024, table 5 (from memory): the first expert of the token before in 14 to 28 %, 12.5 % at random
    drawn = steps(Router(2, 8, 1, skew=0.0, reuse=0.1, seed=1), 4000)
    assert 0.14 < (drawn[1:] * drawn[:-1]).sum() / drawn[1:].sum() < 0.28


def test_a_trace_is_replayed_from_the_beginning_again(tmp_path):
    file = tmp_path / "trace.csv"
    rows = [(0, 0, 1), (0, 1, 2), (1, 0, 3), (1, 1, 0), (2, 0, 1), (2, 1, 1)]
    file.write_text("token,layer,expert\n" + "".join(f"{t},{m},{e}\n" for t, m, e in rows))
    replay = Replay(str(file), 2, 4)
    drawn = replay.draw([2, 2], [True, True], 2, 1)
    assert drawn.prompt[0].tolist() == [0, 1, 0, 1]
    assert [np.flatnonzero(step[0]).tolist() for step in drawn.steps] == [[1], [1]]  # token 2, then 0 again
    assert replay.popularity[1] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0.0])


@pytest.mark.parametrize(("text", "message"), [
    ("token,layer\n0,0\n", "no column 'expert'"),
    ("token,layer,expert\n", "no routing in it"),
    ("token,layer,expert\n0,0,9\n", "expert 9, but the model has experts 0 to 3"),
    ("token,layer,expert\n0,0,1\n", "no expert of MoE layer 1"),
    ("token,layer,expert\n0,0,x\n", "are whole numbers"),
])  # fmt: skip
def test_a_faulty_trace_is_one_line(tmp_path, text, message):
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(MemroofError, match=message):
        Replay(str(file), 2, 4)


def test_a_trace_is_of_one_sequence(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text("token,layer,expert\n0,0,1\n0,1,1\n")
    with pytest.raises(MemroofError, match=r"use workload\.batch 1"):
        Replay(str(file), 2, 4).draw([1, 1], [True, True], 1, 2)
