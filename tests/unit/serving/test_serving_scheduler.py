"""Small cases that can be followed by hand; an iteration takes 1 s unless a test says otherwise."""

import numpy as np
import pytest
from serving_cases import LinearPricer

from simulator.serving import LayerGroup, PagedCache, Policy, Requests, serve
from simulator.serving.workload import closed_loop


def requests(*rows):
    arrival, prompt, output = zip(*rows, strict=True)
    return Requests(np.array(arrival, float), np.array(prompt), np.array(output))


def cache(tokens=1000, block_size=1):
    return PagedCache((LayerGroup(1.0),), block_size, float(tokens))


def test_one_request_takes_a_prefill_and_a_step_for_each_further_token():
    served = serve(requests((2.0, 100, 5)), Policy(8, 128), cache(), LinearPricer())
    assert served.first_token.tolist() == [3.0]
    assert served.end.tolist() == [7.0]
    assert served.log.steps.tolist() == [1, 4]
    # 100 prompt tokens and 4 of the 5 generated are in the cache at the end
    assert served.log.kv_bytes.tolist() == [100.0, 104.0]


def test_chunked_prefill_fills_the_budget_beside_decodes():
    pricer = LinearPricer()
    served = serve(requests((0.0, 10, 9), (0.5, 25, 2)), Policy(8, 10), cache(), pricer)
    # the first prompt fills an iteration; then 9 of 10 tokens are left for the second beside one decode
    assert pricer.pieces == [[10], [9], [9], [7]]
    assert served.first_token.tolist() == [1.0, 4.0]
    assert served.end.tolist() == [9.0, 5.0]


def test_whole_prompts_go_first_and_decodes_wait():
    pricer = LinearPricer()
    served = serve(
        requests((0.0, 10, 3), (0.5, 9, 2), (0.6, 9, 2)), Policy(8, 20, chunked=False), cache(), pricer
    )
    assert pricer.pieces == [[10], [9, 9]]
    assert served.first_token.tolist() == [1.0, 2.0, 2.0]
    assert served.end.tolist() == [4.0, 3.0, 3.0]


def test_whole_prompts_that_exceed_the_budget_together_take_turns():
    pricer = LinearPricer()
    serve(requests((0.0, 15, 1), (0.0, 15, 1)), Policy(8, 20, chunked=False), cache(), pricer)
    assert pricer.pieces == [[15], [15]]


def test_a_run_of_steps_stops_where_a_request_arrives():
    served = serve(requests((0.0, 10, 10), (3.5, 10, 1)), Policy(8, 64), cache(), LinearPricer())
    # it arrives in the iteration that ends at 4 s and is computed in the next
    assert served.admitted.tolist() == [0.0, 4.0]
    assert served.first_token.tolist() == [1.0, 5.0]


def test_a_full_batch_lets_nobody_in_until_one_is_done():
    served = serve(requests((0.0, 1, 4), (0.0, 1, 4), (1.5, 1, 1)), Policy(2, 8), cache(), LinearPricer())
    assert served.end.tolist() == [4.0, 4.0, 5.0]
    assert served.log.steps.tolist() == [1, 3, 1]


def test_the_latest_is_preempted_and_computed_again_when_blocks_run_out():
    policy = Policy(8, 64, watermark=0.0)
    pricer = LinearPricer()
    served = serve(requests((0.0, 4, 4), (0.0, 4, 4)), policy, cache(10), pricer)
    # both hold 5 tokens after a step, and 10 is all there is: the second gives way to the first, which ends at 4 s;
    # then its 4 prompt and 2 generated tokens are computed again, which gives the third, and a step gives the fourth
    assert served.preemptions == 1
    assert pricer.pieces == [[4, 4], [6]]
    assert served.first_token.tolist() == [1.0, 1.0]
    assert served.end.tolist() == [4.0, 6.0]


def test_admission_leaves_the_watermark_to_those_who_run():
    rows = requests((0.0, 40, 2), (0.0, 40, 2))
    assert serve(rows, Policy(8, 100, watermark=0.1), cache(85), LinearPricer()).admitted.tolist() == [
        0.0,
        2.0,
    ]
    assert serve(rows, Policy(8, 100, watermark=0.0), cache(85), LinearPricer()).admitted.tolist() == [
        0.0,
        0.0,
    ]


def test_a_request_that_fills_the_cache_is_let_in_when_nothing_runs():
    served = serve(requests((0.0, 90, 11)), Policy(8, 100, watermark=0.5), cache(100), LinearPricer())
    assert served.end.tolist() == [11.0]


def test_a_static_batch_returns_when_its_longest_output_is_done():
    served = serve(
        requests((0.0, 5, 2), (0.0, 5, 4), (0.5, 5, 1)), Policy(8, 64, static=True), cache(), LinearPricer()
    )
    assert served.end.tolist() == [4.0, 4.0, 5.0]
    assert served.admitted.tolist() == [0.0, 0.0, 4.0]
    # every slot reserves its prompt and the longest output
    assert served.log.kv_bytes.tolist() == [16.0, 16.0, 5.0]


def test_a_static_batch_is_as_large_as_its_reservations_allow():
    rows = requests(*[(0.0, 5, 6)] * 5)
    served = serve(rows, Policy(8, 64, static=True), cache(25), LinearPricer())
    assert served.log.prefilling.tolist() == [2, 0, 2, 0, 1, 0]


def test_a_static_batch_is_prefilled_within_the_token_budget():
    pricer = LinearPricer()
    served = serve(requests(*[(0.0, 6, 1)] * 3), Policy(8, 10, chunked=False, static=True), cache(), pricer)
    assert pricer.pieces == [[6], [6], [6]]
    assert served.end.tolist() == [3.0, 3.0, 3.0]


def test_an_idle_replica_waits_for_the_next_request():
    served = serve(requests((0.0, 5, 1), (10.0, 5, 1)), Policy(8, 64), cache(), LinearPricer())
    assert served.end.tolist() == [1.0, 11.0]
    assert sum(served.log.seconds) == 2.0


def test_accounts_tell_prompts_from_decodes():
    served = serve(requests((0.0, 10, 4)), Policy(8, 64), cache(), LinearPricer(1.0, 0.5))
    assert served.prefill_account.tolist() == [6.0]
    assert served.decode_account.tolist() == [4.5]
    assert served.account.tolist() == [10.5]
    assert served.makespan == pytest.approx(10.5)


def test_the_timeline_has_a_task_for_each_run_and_one_for_each_iteration_on_demand():
    rows, policy = requests((0.0, 10, 4), (1.5, 10, 4)), Policy(8, 64)
    runs, steps = (serve(rows, policy, cache(), LinearPricer(), one_by_one=one) for one in (False, True))
    assert runs.timeline.n_tasks < steps.timeline.n_tasks
    assert steps.timeline.makespan == runs.timeline.makespan == 6.0
    assert steps.timeline.program.tags == ["prefill", "decode", "mixed"]


def test_the_ledger_holds_what_is_resident_and_the_cache():
    served = serve(
        requests((0.0, 10, 4)), Policy(8, 64), cache(), LinearPricer(),
        memory=("gpu0.hbm", 500.0), resident={"weights": 100.0},
    )  # fmt: skip
    peak = served.timeline.ledger.peak("gpu0.hbm")
    assert peak.by_category == {"weights": 100.0, "KV cache": 13.0}
    times, resident = served.timeline.ledger.resident("gpu0.hbm")
    assert resident["KV cache"].tolist()[-1] == 0.0
    assert times[-1] == 4.0


def test_in_a_closed_loop_an_answer_brings_the_next_request():
    rows = closed_loop(requests((0.0, 1, 3), (0.0, 1, 5), (0.0, 1, 2)), 2)
    served = serve(rows, Policy(8, 64), cache(), LinearPricer())
    # two clients; the first is answered at 3 s and asks again
    assert served.requests.arrival.tolist() == [0.0, 0.0, 3.0]
    assert served.first_token.tolist() == [1.0, 1.0, 4.0]
    assert served.end.tolist() == [3.0, 5.0, 5.0]


def test_a_client_may_think():
    rows = closed_loop(requests((0.0, 1, 2), (0.0, 1, 1)), 1)
    served = serve(rows, Policy(8, 64, turnaround=0.5), cache(), LinearPricer())
    assert served.requests.arrival.tolist() == [0.0, 2.5]
    assert served.end.tolist() == [2.0, 3.5]


def test_iterations_put_together_ahead_let_a_request_in_one_later():
    served = serve(requests((0.0, 10, 10), (3.5, 10, 1)), Policy(8, 64, ahead=True), cache(), LinearPricer())
    # it arrives while an iteration runs that ends at 4 s; the one from 4 to 5 s is already put together
    assert served.admitted.tolist() == [0.0, 5.0]
    assert served.first_token.tolist() == [1.0, 6.0]


def test_an_idle_engine_has_nothing_put_together():
    served = serve(requests((0.0, 10, 1), (0.5, 10, 1)), Policy(8, 64, ahead=True), cache(), LinearPricer())
    assert served.first_token.tolist() == [1.0, 2.0]
