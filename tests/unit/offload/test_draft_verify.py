"""Drafts verified from flash: rounds drawn against closed forms, times by hand, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.analysis.run import load, run
from simulator.offload import remedies, simulate
from simulator.offload.draft_verify.rounds import draw_rounds, expected_taken, threshold_length, token_time
from simulator.specs import MemroofError, SpecError
from simulator.specs.draft_verify_scenario import Agreement, Drafting

laws = settings(derandomize=True, max_examples=25, deadline=None, database=None)
EVEN = 1e6
"""Concentration at which all tokens are alike."""


def rounds(drafting, confidence=0.8, concentration=EVEN, tokens=30_000, ahead=0, second=0.0, seed=3):
    agreement = Agreement(confidence=confidence, concentration=concentration, second=second)
    return draw_rounds(agreement, Drafting(**drafting), tokens, ahead, np.random.default_rng(seed))


def per_round(found, key="taken"):
    return np.mean([getattr(each, key) for each in found])


def scenario(**strategy):
    given = {
        "method": "draft-verify", "weight_precision": "int4", "weight_group": 32, "processor": "cpu", "memory": "6 GB",
        **strategy,
    }  # fmt: skip
    return {
        "kind": "offload", "hardware": "phone-xiaomi-11", "model": "llama2-13b",
        "workload": {"prompt": 128, "output": 128}, "strategy": given,
    }  # fmt: skip


DRAFT = {
    "draft": {"model": "llama2-7b"}, "agreement": {"confidence": 0.85, "concentration": 2},
    "drafting": {"length": 5},
}  # fmt: skip


@pytest.mark.parametrize(("confidence", "length"), [(0.5, 3), (0.8, 5), (0.9, 10)])
def test_fixed_lengths_bring_what_leviathan_says(confidence, length):
    """Leviathan et al. 2023, equation 1; for 0.8 and 5 by hand: (1 - 0.8^6) / 0.2 = 3.689."""
    assert expected_taken(0.8, 5) == pytest.approx(3.68928)
    found = rounds({"length": length}, confidence)
    assert per_round(found) == pytest.approx(expected_taken(confidence, length), rel=0.02)
    assert {each.drafted for each in found} == {length}


@pytest.mark.parametrize("threshold", [0.5, 0.1, 0.01])
def test_a_threshold_is_a_length_where_all_tokens_are_alike(threshold):
    """0.8^n < 0.1 from n = 11 on."""
    assert threshold_length(0.8, 0.1) == 11
    found = rounds({"threshold": threshold})
    length = threshold_length(0.8, threshold)
    assert per_round(found, "drafted") == pytest.approx(length, abs=0.05)
    assert per_round(found) == pytest.approx(expected_taken(0.8, length), rel=0.02)


def test_adaptive_thresholds_halve_or_become_the_share_that_was_wrong():
    never = rounds({"threshold": 0.6, "adaptive": True}, confidence=1 - 1e-9, tokens=50)
    assert never[-1].drafted == 64  # the longest: all is right and the threshold falls for ever
    strict = rounds({"threshold": 0.01, "adaptive": True}, confidence=0.5)
    loose = rounds({"threshold": 0.01}, confidence=0.5)
    assert per_round(strict, "drafted") < per_round(loose, "drafted")


def test_a_tree_rescues_second_choices():
    chain = rounds({"threshold": 0.05}, concentration=2, second=0.9)
    tree = rounds({"threshold": 0.05, "tree": True}, concentration=2, second=0.9)
    assert per_round(tree) > per_round(chain)
    assert per_round(tree, "candidates") > per_round(chain, "candidates")


def test_drafts_made_while_the_target_is_read_are_free():
    rested = rounds({"length": 4})
    busy = rounds({"length": 4, "continues": True}, ahead=10)
    assert per_round(busy, "drafted") < per_round(rested, "drafted")
    assert per_round(busy) >= per_round(rested) * 0.99


@laws
@given(st.floats(0.2, 0.95), st.floats(0.5, 50.0), st.integers(1, 12), st.booleans(), st.integers(0, 5))
def test_rounds_conserve_tokens(confidence, concentration, length, tree, ahead):
    found = rounds(
        {"length": length, "tree": tree, "continues": True},
        confidence,
        concentration,
        tokens=200,
        ahead=ahead,
        second=0.3,
    )
    made = sum(each.taken for each in found)
    assert made - found[-1].taken < 200 <= made
    assert all(1 <= each.taken <= each.candidates + 1 for each in found)
    assert found == rounds(
        {"length": length, "tree": tree, "continues": True},
        confidence,
        concentration,
        tokens=200,
        ahead=ahead,
        second=0.3,
    )


def test_a_token_takes_the_rounds_by_hand():
    """(n t_draft + t_verify) / tokens taken, where nothing goes on during the verification and all tokens are alike."""
    strategy = {**DRAFT, "agreement": {"confidence": 0.8, "concentration": EVEN}}
    found = {key: metric.value for key, metric in simulate(load(scenario(**strategy))).metrics.items()}
    verify = found["standard_time_per_output_token"]
    by_hand = token_time(found["draft_time"], verify, 5, 0.8)
    assert found["time_per_output_token"] == pytest.approx(by_hand, rel=0.03)
    assert found["speedup_over_standard"] == pytest.approx(verify / by_hand, rel=0.03)


def test_the_target_alone_by_hand():
    """13.0 billion weights of 4.5 bits, the looked-up table left out, by faults of 128 KiB: 100 us and 62 us each."""
    strategy = {"reading": {"way": "mapped", "overlap": False}}
    found = {key: metric.value for key, metric in simulate(load(scenario(**strategy))).metrics.items()}
    size = (13015864320 - 32000 * 5120) * 4.5 / 8
    assert found["flash_bytes"] == pytest.approx(size, rel=1e-3)
    rate = 131072 / (100e-6 + 131072 / 2.1e9)
    assert found["flash_time"] == pytest.approx(size / rate, rel=1e-3)
    total = found["flash_time"] + found["compute_time"]
    assert found["time_per_output_token"] == pytest.approx(total, rel=1e-6)


def test_what_fits_is_not_read():
    result = simulate(load({**scenario(), "model": "llama-7b"}))
    assert result.metrics["flash_bytes"].value == 0.0
    assert "flash reads" not in result.timeline.busy() or result.metrics["flash_time"].value == 0.0


@pytest.mark.parametrize(
    ("name", "metric", "low", "high"),
    [
        # Xu et al. 2023, section 4.2: against the target alone, and figure 9
        ("llama2-13b-xiaomi-11", "speedup_over_standard", 3.47, 4.67),
        ("llama2-13b-xiaomi-11", "verification_speedup", 8.5, 10.0),
        ("mt5-large-tx2", "speedup_over_standard", 2.9, 9.3),
        # table 1, within 20 %
        ("table1-llama-13b-xiaomi-10", "time_per_output_token", 8.1, 12.1),
        ("table1-llama-33b-xiaomi-10", "time_per_output_token", 17.6, 26.4),
    ],
)
def test_published_runs_of_llmcad(name, metric, low, high):
    assert low <= run(f"published/llmcad2023/{name}").outcome.metrics[metric].value <= high


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ({"draft": {"model": "llama2-7b"}}, "'draft' needs 'agreement' too"),
        ({"seed": 3}, "'seed' decides nothing without a draft"),
        ({**DRAFT, "drafting": {"length": 3, "threshold": 0.1}}, "needs one of 'length' and 'threshold'"),
        ({**DRAFT, "drafting": {"length": 3, "adaptive": True}}, "'adaptive' decides nothing"),
        ({**DRAFT, "drafting": {"length": 3, "branches": 2}}, "'branches' belongs to 'tree'"),
        ({"reading": {"way": "sequential", "faults": 2}}, "'faults' belongs to way 'mapped'"),
    ],
)
def test_options_that_decide_nothing_are_refused(strategy, message):
    with pytest.raises(SpecError, match=message):
        load(scenario(**strategy))


def test_an_unknown_draft_and_an_encoder_are_refused():
    with pytest.raises(MemroofError, match="llama2-7x"):
        load(scenario(**{**DRAFT, "draft": {"model": "llama2-7x"}}))
    with pytest.raises(MemroofError, match="bert-large is an encoder"):
        simulate(load(scenario(**{**DRAFT, "draft": {"model": "bert-large"}})))


def test_remedies_narrow_the_draft_first():
    setup = load(scenario(**{**DRAFT, "weight_precision": "int8"}))
    assert next(iter(remedies(setup))).overrides == {"strategy.draft.weight_precision": "int4"}


def test_the_table_of_fixed_lengths_is_the_closed_form():
    result = simulate(load(scenario(**DRAFT)))
    table = result.tables["lengths"]
    found = result.metrics
    by_hand = token_time(found["draft_time"].value, found["standard_time_per_output_token"].value, 5, 0.85)
    assert table["time_per_output_token"][table["length"].tolist().index(5)] == pytest.approx(by_hand)
