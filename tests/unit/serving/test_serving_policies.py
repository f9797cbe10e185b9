"""Policies of the scheduler, on cases that can be followed by hand; an iteration takes 1 s unless a test says otherwise."""

import numpy as np
import pytest
from serving_cases import LinearPricer, make_setup

from simulator.serving import LayerGroup, PagedCache, Policy, Requests, closed_loop, serve
from simulator.serving.kv_cache import ContiguousCache, VirtualCache
from simulator.serving.prefix_cache import PrefixCache
from simulator.serving.prefixes import Prefixes, grouped_texts
from simulator.serving.tiers import Channel, Tier

GROUP = (LayerGroup(1.0),)


def requests(*rows, priority=None, **fields):
    arrival, prompt, output = zip(*rows, strict=True)
    numbers = None if priority is None else np.array(priority)
    return Requests(np.array(arrival, float), np.array(prompt), np.array(output), priority=numbers, **fields)


def cache(tokens=1000, block_size=1):
    return PagedCache(GROUP, block_size, float(tokens))


def tier(rate, latency=0.0, capacity=1e9, name="dram"):
    return Tier(name, capacity, Channel(rate, latency), Channel(rate, latency))


# --- order ---


def test_the_lowest_number_goes_first():
    rows = requests((0.0, 5, 1), (0.0, 5, 1), (0.0, 5, 1), priority=[2, 1, 0])
    served = serve(rows, Policy(1, 8, order="priority"), cache(), LinearPricer())
    assert served.end.tolist() == [3.0, 2.0, 1.0]


def test_the_shortest_prompt_goes_first():
    rows = requests((0.0, 7, 1), (0.0, 3, 1), (0.0, 5, 1))
    served = serve(rows, Policy(1, 8, order="shortest-prompt"), cache(), LinearPricer())
    assert served.end.tolist() == [3.0, 1.0, 2.0]


def test_a_static_batch_takes_the_most_urgent():
    rows = requests((0.0, 5, 1), (0.0, 5, 1), priority=[1, 0])
    served = serve(rows, Policy(1, 8, static=True, order="priority"), cache(), LinearPricer())
    assert served.end.tolist() == [2.0, 1.0]


def test_the_least_urgent_is_preempted():
    rows = requests((0.0, 4, 4), (0.0, 4, 4), priority=[1, 0])
    policy = Policy(8, 64, watermark=0.0, order="priority")
    served = serve(rows, policy, cache(10), LinearPricer())
    # the second is admitted first and stays; first come, first served the other way round
    assert served.end.tolist() == [6.0, 4.0]


def test_an_urgent_request_takes_the_slot_of_another():
    rows = requests((0.0, 5, 10), (2.5, 5, 2), priority=[1, 0])
    plain = serve(rows, Policy(1, 8, order="priority"), cache(), LinearPricer())
    assert plain.admitted.tolist() == [0.0, 10.0]
    served = serve(rows, Policy(1, 8, order="priority", priority_preemption=True), cache(), LinearPricer())
    assert served.admitted.tolist() == [0.0, 3.0]
    assert served.preemptions == 1
    # 3 of 10 tokens are there when it gives way; 5 s are spent on the other, and its 8 tokens are computed again
    assert served.end.tolist() == [12.0, 5.0]


def test_nobody_is_preempted_in_vain():
    # the urgent one would need more than the less urgent hold
    rows = requests((0.0, 40, 10), (0.0, 5, 10), (2.5, 60, 2), priority=[0, 1, 0])
    policy = Policy(8, 100, watermark=0.0, order="priority", priority_preemption=True)
    served = serve(rows, policy, cache(100), LinearPricer())
    assert served.preemptions == 0
    assert served.admitted[2] == 10.0


# --- what an iteration holds ---


def test_prompts_first_stop_decodes():
    pricer = LinearPricer()
    rows = requests((0.0, 4, 3), (0.5, 12, 2))
    served = serve(rows, Policy(8, 8, iteration="prefill-first"), cache(), pricer)
    assert pricer.pieces == [[4], [8], [4]]
    assert served.end.tolist() == [5.0, 4.0]


def test_decodes_first_let_prompts_wait():
    pricer = LinearPricer()
    rows = requests((0.0, 4, 3), (0.5, 12, 2), (0.6, 4, 1))
    served = serve(rows, Policy(8, 8, iteration="decode-first"), cache(), pricer)
    # 8 tokens, then the last 4 with the third prompt
    assert pricer.pieces == [[4], [8], [4, 4]]
    assert served.first_token.tolist() == [1.0, 5.0, 5.0]
    assert served.end.tolist() == [3.0, 6.0, 5.0]


def test_whole_prompts_may_run_beside_decodes():
    pricer = LinearPricer()
    rows = requests((0.0, 4, 5), (0.5, 8, 2))
    served = serve(rows, Policy(8, 9, chunked=False, iteration="mixed"), cache(), pricer)
    assert pricer.pieces == [[4], [8]]
    assert served.log.decoding.tolist() == [0, 1, 2, 1]
    # with room for 8 tokens beside a decode only once that is done
    late = serve(rows, Policy(8, 8, chunked=False, iteration="mixed"), cache(), LinearPricer())
    assert late.admitted.tolist() == [0.0, 5.0]


# --- swapping ---


def test_who_is_swapped_out_goes_on_where_it_was():
    rows = requests((0.0, 4, 4), (0.0, 4, 4))
    policy = Policy(8, 64, watermark=0.0, swap=True, overlap=False)
    served = serve(rows, policy, cache(10), LinearPricer(), swap=tier(rate=10.0, latency=0.5))
    # 5 bytes out before the third step of the first, and in before the third of the second: 1 s each
    assert served.preemptions == 1
    assert served.moved == {"swapped out": 5.0, "swapped in": 5.0}
    assert served.stall == 2.0
    assert served.end.tolist() == [5.0, 8.0]
    assert served.log.swapped.tolist() == [0, 0, 1, 0]
    assert served.timeline.ledger.peak("dram").bytes == 5.0


def test_copies_may_run_beside_the_iteration():
    rows = requests((0.0, 4, 4), (0.0, 4, 4))
    policy = Policy(8, 64, watermark=0.0, swap=True)
    fast = serve(rows, policy, cache(10), LinearPricer(), swap=tier(rate=10.0))
    assert (fast.stall, fast.end.tolist()) == (0.0, [4.0, 6.0])
    slow = serve(rows, policy, cache(10), LinearPricer(), swap=tier(rate=2.0))
    # 2.5 s instead of 1 s, twice
    assert (slow.stall, slow.end.tolist()) == (3.0, [5.5, 9.0])


def test_without_room_to_swap_it_is_computed_again():
    rows = requests((0.0, 4, 4), (0.0, 4, 4))
    pricer = LinearPricer()
    policy = Policy(8, 64, watermark=0.0, swap=True)
    served = serve(rows, policy, cache(10), pricer, swap=tier(rate=10.0, capacity=4.0))
    assert served.moved == {}
    assert pricer.pieces == [[4, 4], [6]]


# --- prefixes ---


def shared(*rows, length=8):
    """Requests with their first tokens in common."""
    plain = requests(*rows)
    texts = grouped_texts(np.zeros(len(plain), int), np.array([length]), plain.prompt, plain.output)
    return Requests(plain.arrival, plain.prompt, plain.output, texts=texts)


def test_a_shared_beginning_is_computed_and_held_once():
    rows = shared((0.0, 10, 5), (0.5, 12, 4))
    pricer = LinearPricer()
    served = serve(rows, Policy(8, 64), cache(), pricer, prefixes=PrefixCache(rows.texts, 1))
    assert pricer.pieces == [[10], [4]]
    assert served.found.tolist() == [0, 8]
    # 12 and 15 tokens with 8 in common, then 14 and 15
    assert max(served.log.kv_bytes) == 14 + 15 - 8
    assert (served.log.stored_bytes == served.log.kv_bytes).all()


def test_requests_admitted_together_share_at_once():
    rows = shared((0.0, 10, 1), (0.0, 12, 1))
    pricer = LinearPricer()
    serve(rows, Policy(8, 64), cache(), pricer, prefixes=PrefixCache(rows.texts, 4))
    assert pricer.pieces == [[10, 4]]


def test_a_prompt_that_is_all_there_computes_its_last_token():
    rows = requests((0.0, 8, 2), (5.0, 8, 2))
    rows = Requests(
        rows.arrival, rows.prompt, rows.output, texts=Prefixes(np.array([-1, 0, 0]), np.array([8, 10, 10]), np.array([1, 2]))
    )  # fmt: skip
    pricer = LinearPricer()
    served = serve(rows, Policy(8, 64), cache(), pricer, prefixes=PrefixCache(rows.texts, 4))
    assert pricer.pieces == [[8], [1]]
    assert served.found.tolist() == [0, 7]


def test_a_turn_finds_the_history():
    rows = Requests(
        np.array([0.0, np.inf]), np.array([6, 11]), np.array([3, 2]), following=np.array([1, -1]),
        pause=np.array([0.0, 2.0]), texts=Prefixes(np.array([-1, 0]), np.array([9, 13]), np.array([0, 1])),
    )  # fmt: skip
    pricer = LinearPricer()
    policy = Policy(8, 64, round_trip=0.5)
    served = serve(rows, policy, cache(), pricer, prefixes=PrefixCache(rows.texts, 2))
    assert served.requests.arrival.tolist() == [0.0, 5.5]
    # 8 of the 9 tokens said are cached: the last one generated never is
    assert pricer.pieces == [[6], [3]]
    assert served.found.tolist() == [0, 8]
    assert served.end.tolist() == [3.0, 7.5]


def test_a_hit_in_dram_costs_the_copy():
    # between the second and the last somebody needs all the room; the first 8 tokens are those of three
    texts = Prefixes(np.array([-1, 0, 0, -1, 0]), np.array([8, 11, 13, 19, 13]), np.array([1, 2, 3, 4]))
    rows = requests((0.0, 10, 1), (2.0, 12, 1), (3.0, 18, 1), (5.0, 12, 1), texts=texts)
    room = cache(18)
    for overlap, ends in ((False, 8.0), (True, 7.0)):
        served = serve(
            rows, Policy(8, 64, overlap=overlap), room, LinearPricer(),
            prefixes=PrefixCache(texts, 1, [100]), lower=(tier(rate=4.0),),
        )  # fmt: skip
        assert served.found.tolist() == [0, 8, 0, 8]
        assert served.moved == {"from dram": 8.0}
        # 2 s for 8 bytes, beside an iteration of 1 s or before it
        assert served.end[-1] == ends


def test_in_a_closed_loop_a_client_ends_its_session_first():
    rows = Requests(
        np.array([0.0, np.inf, 0.0]), np.array([2, 4, 2]), np.array([1, 1, 1]), following=np.array([1, -1, -1]),
        pause=np.array([0.0, 3.0, 0.0]),
    )  # fmt: skip
    served = serve(closed_loop(rows, 1), Policy(8, 64, turnaround=0.5), cache(), LinearPricer())
    # a turn at 0 s, the next 3 s after its answer, and a new session 0.5 s after that
    assert served.requests.arrival.tolist() == [0.0, 4.0, 5.5]
    assert served.requests.prompt.tolist() == [2, 4, 2]


# --- layouts ---


def test_contiguous_slots_bound_the_batch_and_waste_the_rest():
    rows = requests(*[(0.0, 5, 3)] * 3)
    slots = ContiguousCache(GROUP, 20, 50.0)
    assert (slots.capacity, slots.tokens, slots.growth_time) == (40.0, 40, 0.0)
    served = serve(rows, Policy(8, 64, watermark=0.0), slots, LinearPricer())
    assert served.admitted.tolist() == [0.0, 0.0, 3.0]
    assert served.log.kv_bytes.tolist() == [40.0, 40.0, 20.0, 20.0]
    assert served.log.stored_bytes.tolist() == [10.0, 14.0, 5.0, 7.0]


def test_pages_that_are_not_hidden_cost_their_mapping():
    rows = requests((0.0, 5, 9))
    pages = VirtualCache(GROUP, 4.0, 100.0, 0.25)
    served = serve(rows, Policy(8, 64), pages, LinearPricer())
    # 13 tokens in pages of 4: two with the prompt, one at the ninth and one at the thirteenth token
    assert served.mapping == 1.0
    assert served.first_token.tolist() == [1.5]
    assert served.end.tolist() == [10.0]
    hidden = serve(rows, Policy(8, 64), VirtualCache(GROUP, 4.0, 100.0), LinearPricer())
    assert (hidden.mapping, hidden.end.tolist()) == (0.0, [9.0])


@pytest.mark.parametrize("chunked", [True, False])
def test_an_iteration_is_what_its_policy_says(chunked):
    assert Policy(1, 1, chunked).mixes == chunked
    assert not Policy(1, 1, chunked, static=True, iteration="mixed").mixes
    assert Policy(1, 1, chunked, iteration="decode-first").decodes_first


def test_a_scheduler_that_looks_every_few_steps_lets_a_request_in_then():
    # the first prompt ends at 1 s; the engine looks at 5 s and 9 s, and who came at 2.5 s is computed in the iteration after
    rows = requests((0.0, 10, 20), (2.5, 10, 1))
    served = serve(rows, Policy(8, 64, receive_interval=4), cache(), LinearPricer())
    assert served.admitted.tolist() == [0.0, 5.0]
    # ahead, it sees at 5 s who had come when the step before began, at 4 s
    ahead = serve(rows, Policy(8, 64, receive_interval=4, ahead=True), cache(), LinearPricer())
    assert ahead.admitted.tolist() == [0.0, 5.0]
    late = requests((0.0, 10, 20), (4.5, 10, 1))
    assert serve(
        late, Policy(8, 64, receive_interval=4, ahead=True), cache(), LinearPricer()
    ).admitted.tolist() == [0.0, 9.0]


def test_an_idle_engine_and_one_that_runs_prompts_look_at_once():
    rows = requests((0.0, 10, 1), (0.5, 10, 1), (7.0, 10, 1))
    served = serve(rows, Policy(8, 64, receive_interval=100), cache(), LinearPricer())
    assert served.admitted.tolist() == [0.0, 1.0, 7.0]


def test_prompts_wait_beside_decodes_until_there_are_enough_of_them():
    policy = Policy(8, 20, wait_steps=6, wait_share=0.9)
    # one prompt and a decode are 9 tokens of 18: it waits its six steps, from 3 s on
    alone = serve(requests((0.0, 8, 30), (2.5, 8, 1)), policy, cache(), LinearPricer())
    assert alone.admitted.tolist() == [0.0, 9.0]
    # a second one makes it 17, a third 20
    three = serve(
        requests((0.0, 8, 30), (2.5, 8, 1), (3.5, 8, 1), (4.5, 4, 1)), policy, cache(), LinearPricer()
    )
    assert three.admitted.tolist() == [0.0, 5.0, 5.0, 5.0]
    # nothing decodes: nobody waits
    assert serve(requests((0.0, 8, 2)), policy, cache(), LinearPricer()).admitted.tolist() == [0.0]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            {"batching": "static", "receive_interval": 4},
            "'receive_interval' has no meaning with batching 'static'",
        ),
        (
            {"iteration": "decode-first", "batch_wait": {"steps": 4}},
            "'batch_wait' has no meaning with iteration",
        ),
    ],
)
def test_waiting_that_decides_nothing_is_refused(option, message):
    with pytest.raises(ValueError, match=message):
        make_setup(**option)
