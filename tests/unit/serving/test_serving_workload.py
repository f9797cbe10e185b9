import numpy as np
import pytest

from simulator.serving import draw_requests
from simulator.specs import MemroofError, ServingWorkload


def workload(**fields):
    return ServingWorkload.model_validate({"prompt": 100, "output": 10, **fields})


def test_poisson_arrivals_have_the_rate_and_the_variance_of_exponential_gaps():
    requests = draw_requests(workload(rate="4 req/s", requests=20000))
    gaps = np.diff(requests.arrival, prepend=0.0)
    assert gaps.mean() == pytest.approx(0.25, rel=0.02)
    assert gaps.std() == pytest.approx(0.25, rel=0.03)


def test_offline_requests_are_all_there_at_time_0():
    requests = draw_requests(workload(arrival="offline", requests=7))
    assert requests.arrival.tolist() == [0.0] * 7
    assert requests.prompt.tolist() == [100] * 7


def test_a_list_is_taken_in_order_of_arrival():
    rows = [
        {"arrival": "2 s", "prompt": 20, "output": 2},
        {"arrival": "1 s", "prompt": 10, "output": 1},
        {"arrival": "2 s", "prompt": 30, "output": 3},
    ]
    requests = draw_requests(ServingWorkload.model_validate({"arrival": "list", "list": rows}))
    assert requests.arrival.tolist() == [1.0, 2.0, 2.0]
    assert requests.prompt.tolist() == [10, 20, 30]
    assert requests.output.tolist() == [1, 2, 3]


def test_log_normal_lengths_have_the_mean_and_sigma_asked_for():
    requests = draw_requests(
        workload(arrival="offline", requests=50000, prompt={"mean": 1000.0, "sigma": 0.5})
    )
    assert requests.prompt.mean() == pytest.approx(1000.0, rel=0.01)
    assert np.log(requests.prompt).std() == pytest.approx(0.5, rel=0.02)


def test_a_mean_without_spread_is_a_fixed_length():
    requests = draw_requests(workload(arrival="offline", requests=3, prompt={"mean": 256.0}))
    assert requests.prompt.tolist() == [256, 256, 256]


def test_uniform_lengths_reach_both_ends_and_maximum_cuts_them():
    requests = draw_requests(workload(arrival="offline", requests=2000, prompt={"uniform": [3, 6]}))
    assert np.unique(requests.prompt).tolist() == [3, 4, 5, 6]
    cut = draw_requests(workload(arrival="offline", requests=2000, prompt={"uniform": [3, 6], "maximum": 4}))
    assert np.unique(cut.prompt).tolist() == [3, 4]


def test_the_seed_decides_and_one_stream_does_not_disturb_another():
    fields = {"rate": "1 req/s", "requests": 50, "prompt": {"mean": 100.0, "sigma": 1.0}}
    first, again = draw_requests(workload(**fields)), draw_requests(workload(**fields))
    other = draw_requests(workload(**fields, seed=1))
    longer = draw_requests(workload(**(fields | {"output": {"uniform": [1, 9]}})))
    assert first.arrival.tobytes() == again.arrival.tobytes()
    assert first.prompt.tobytes() == again.prompt.tobytes()
    assert first.arrival.tolist() != other.arrival.tolist()
    assert first.arrival.tolist() == longer.arrival.tolist()


def test_a_share_is_every_nth_request():
    requests = draw_requests(workload(rate="1 req/s", requests=10))
    assert requests.share(4).arrival.tolist() == requests.arrival[[0, 4, 8]].tolist()


def test_the_last_token_is_not_kept_in_the_cache():
    assert draw_requests(workload(arrival="offline", requests=1)).longest == 109


def test_missing_lengths_are_named():
    with pytest.raises(MemroofError, match="'prompt' and 'output'"):
        draw_requests(ServingWorkload.model_construct(arrival="offline", prompt=None, output=None))


def test_gamma_arrivals_have_the_variation_asked_for():
    requests = draw_requests(
        workload(arrival="gamma", rate="4 req/s", coefficient_of_variation=3.0, requests=50000)
    )
    gaps = np.diff(requests.arrival, prepend=0.0)
    assert gaps.mean() == pytest.approx(0.25, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(3.0, rel=0.05)


def test_classes_are_mixed_by_their_shares():
    classes = [
        {"name": "chat", "share": 3, "prompt": 100, "output": 10},
        {"name": "batch", "share": 1, "prompt": {"uniform": [500, 600]}, "output": 50, "priority": 2},
    ]
    requests = draw_requests(
        ServingWorkload.model_validate({"rate": "5 req/s", "requests": 20000, "classes": classes})
    )
    batch = requests.kind == 1
    assert requests.names == ("chat", "batch")
    assert batch.mean() == pytest.approx(0.25, abs=0.01)
    assert set(requests.prompt[~batch].tolist()) == {100}
    assert requests.prompt[batch].min() >= 500
    assert requests.priority.tolist() == np.where(batch, 2, 0).tolist()


def test_a_shared_prefix_comes_before_the_prompt_of_its_group():
    requests = draw_requests(
        workload(arrival="offline", requests=4000, prefix={"length": [1000, 2000], "groups": 6, "share": 0.8})
    )
    lengths = requests.prompt - 100
    assert (lengths > 0).mean() == pytest.approx(0.8, abs=0.02)
    group = requests.texts.parent[requests.texts.leaf]
    assert lengths.tolist() == np.where(group >= 0, requests.texts.end[group], 0).tolist()
    assert np.unique(group).tolist() == [-1, 0, 1, 2, 3, 4, 5]


def test_popular_prefixes_follow_zipf():
    requests = draw_requests(
        workload(arrival="offline", requests=30000, prefix={"length": 50, "groups": 3, "zipf": 1.0})
    )
    counts = np.bincount(requests.texts.parent[requests.texts.leaf])
    assert counts / counts[0] == pytest.approx([1.0, 1 / 2, 1 / 3], rel=0.05)


def session(**fields):
    return {"turns": {"uniform": [1, 5]}, "think_time": "10 s", **fields}


def test_a_turn_repeats_the_history_and_adds_a_message():
    requests = draw_requests(
        workload(rate="1 req/s", requests=500, session=session(), prefix={"length": 30, "groups": 2})
    )
    ends = requests.prompt + requests.output
    turns = np.flatnonzero(requests.following >= 0)
    following = requests.following[turns]
    assert len(requests) == 500
    assert requests.prompt[following].tolist() == (ends[turns] + 100).tolist()
    assert requests.prompt[requests.first_turns].tolist() == [130] * len(requests.first_turns)
    # a turn's text goes on from that of the turn before
    assert (
        requests.texts.parent[requests.texts.leaf[following]].tolist() == requests.texts.leaf[turns].tolist()
    )
    assert np.isfinite(requests.arrival).sum() == len(requests.first_turns)
    assert requests.pause[following].mean() == pytest.approx(10.0, rel=0.2)


def test_fixed_think_times_are_fixed():
    requests = draw_requests(workload(rate="1 req/s", requests=50, session=session(think="fixed")))
    assert set(requests.pause[requests.following[requests.following >= 0]].tolist()) == {10.0}


def test_a_session_ends_where_it_grows_too_long():
    requests = draw_requests(
        workload(rate="1 req/s", requests=500, session=session(turns=9, maximum=400, think="fixed"))
    )
    # 110 tokens a turn: three fit
    assert set((requests.prompt + requests.output).tolist()) == {110, 220, 330}
    following = requests.following
    assert (requests.prompt[following[following >= 0]] > requests.prompt[following >= 0]).all()


def test_sessions_stay_on_a_replica():
    requests = draw_requests(workload(rate="1 req/s", requests=300, session=session()))
    part = requests.share(3)
    assert len(part.first_turns) == -(-len(requests.first_turns) // 3)
    turns = np.flatnonzero(part.following >= 0)
    ends = part.prompt + part.output
    assert part.prompt[part.following[turns]].tolist() == (ends[turns] + 100).tolist()


def test_clients_of_a_closed_loop_hold_whole_sessions():
    requests = draw_requests(workload(arrival="closed", concurrency=4, requests=100, session=session()))
    assert np.flatnonzero(requests.arrival == 0.0).tolist() == requests.first_turns[:4].tolist()
    assert np.isfinite(requests.arrival).sum() == 4
    assert requests.share(2).concurrency == 2


def test_a_list_may_have_priorities():
    rows = [
        {"arrival": "0 s", "prompt": 5, "output": 1, "priority": 3},
        {"arrival": "0 s", "prompt": 5, "output": 1},
    ]
    requests = draw_requests(ServingWorkload.model_validate({"arrival": "list", "list": rows}))
    assert requests.priority.tolist() == [3, 0]


def test_a_million_requests_are_drawn_as_arrays():
    requests = draw_requests(
        workload(rate="100 req/s", requests=1_000_000, prompt={"mean": 500.0, "sigma": 1.0})
    )
    assert requests.prompt.nbytes == 8_000_000
    assert (np.diff(requests.arrival) >= 0.0).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arrival": "gamma", "rate": "1 req/s"}, "'coefficient_of_variation' and arrival 'gamma'"),
        ({"rate": "1 req/s", "coefficient_of_variation": 2}, "belong together"),
        ({"arrival": "gamma", "coefficient_of_variation": 2}, "Gamma arrivals need a 'rate'"),
        ({"arrival": "trace"}, "'trace' and arrival 'trace'"),
        ({"arrival": "trace", "trace": {"file": "x"}}, "'prompt' has no meaning beside 'trace'"),
        ({"rate": "1 req/s", "think_time": "1 s"}, "'think_time' belongs to"),
        ({"rate": "1 req/s", "classes": [{"prompt": 1, "output": 1}]}, "has no meaning beside 'classes'"),
        ({"arrival": "list", "list": []}, "at least one"),
    ],
)
def test_meaningless_workloads_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        workload(**fields)


def test_no_classes_are_refused():
    with pytest.raises(ValueError, match="at least one class"):
        ServingWorkload.model_validate({"rate": "1 req/s", "classes": []})
    with pytest.raises(ValueError, match="needs the lengths"):
        ServingWorkload.model_validate({"rate": "1 req/s", "prompt": 5})
