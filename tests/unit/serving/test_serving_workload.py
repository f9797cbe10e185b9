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
