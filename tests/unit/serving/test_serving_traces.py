"""Recorded traces in the layouts in which they are published."""

import numpy as np
import pytest

from simulator.serving import draw_requests
from simulator.serving.prefix_cache import PrefixCache
from simulator.specs import MemroofError, ServingWorkload, SpecError

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:14.0781490,110,27
"""
# the second conversation begins with the first block of the first, the third goes on with all of it
MOONCAKE = """{"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]}
{"timestamp": 1000, "input_length": 600, "output_length": 5, "hash_ids": [0, 3]}
{"timestamp": 3000, "input_length": 1600, "output_length": 5, "hash_ids": [0, 1, 4, 5]}
"""
PLAIN = """arrival,prompt,output,prefix,priority,class
0.5,40,3,7 8,1,batch
0.1,50,4,7 8 9,0,chat
2.0,20,1,,0,chat
"""


def requests(tmp_path, text, name="trace.csv", count=None, **fields):
    file = tmp_path / name
    file.write_text(text)
    workload = {"arrival": "trace", "trace": {"file": str(file), **fields}}
    return draw_requests(ServingWorkload.model_validate(workload | ({"requests": count} if count else {})))


def test_azure(tmp_path):
    found = requests(tmp_path, AZURE)
    assert found.arrival == pytest.approx([0.0, 0.052, 10.098189])
    assert found.prompt.tolist() == [4808, 3180, 110]
    assert found.output.tolist() == [10, 8, 27]
    assert (found.texts, found.priority, found.kind) == (None, None, None)


def test_mooncake(tmp_path):
    found = requests(tmp_path, MOONCAKE, "trace.jsonl")
    assert found.arrival.tolist() == [0.0, 1.0, 3.0]
    assert found.texts is not None
    # blocks 0, 1, 2 (76 tokens), 3 (88), 4, 5 (64), and what each request adds
    assert found.texts.end.tolist() == [512, 1024, 1100, 600, 1536, 1600, 1105, 605, 1605]
    assert found.texts.parent.tolist() == [-1, 0, 1, 0, 1, 4, 2, 3, 5]


def test_the_hit_rate_of_an_endless_cache_is_a_fact_of_the_trace(tmp_path):
    found = requests(tmp_path, MOONCAKE, "trace.jsonl")
    cache = PrefixCache(found.texts, 512)
    hits = []
    for request, prompt in enumerate(found.prompt.tolist()):
        hits.append(cache.lock(request, prompt).blocks)
        cache.publish(request, prompt)
        cache.release(request)
    assert hits == [0, 1, 2]


def test_plain_csv_is_put_in_order(tmp_path):
    found = requests(tmp_path, PLAIN)
    assert found.arrival == pytest.approx([0.0, 0.4, 1.9])
    assert found.prompt.tolist() == [50, 40, 20]
    assert found.priority.tolist() == [0, 1, 0]
    assert [found.names[kind] for kind in found.kind] == ["chat", "batch", "chat"]
    # blocks of 16 tokens; the third of the first prompt is its own
    assert found.texts.end.tolist() == [16, 32, 48, 54, 43, 21]


def test_a_trace_is_cut_and_sped_up(tmp_path):
    found = requests(tmp_path, AZURE, start="0.02 s", duration="20 s", speed=2.0)
    assert found.arrival == pytest.approx([0.016, 5.0390945])
    assert len(requests(tmp_path, AZURE, count=2)) == 2


def test_block_tokens_may_be_said(tmp_path):
    found = requests(tmp_path, PLAIN, block_tokens=10)
    assert found.texts.end[:3].tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("a,b\n1,2\n", MemroofError, "unknown layout"),
        ("arrival,prompt,output\n0,5,0\n", SpecError, "at least 1"),
        ("arrival,prompt,output\n0,5\n", SpecError, "no 'output'"),
        ("arrival,prompt,output\n", MemroofError, "no requests"),
        ('{"timestamp": 0, "input_length": 5}\n', SpecError, "no 'output_length'"),
    ],
)
def test_faulty_traces_are_refused(tmp_path, text, error, message):
    with pytest.raises(error, match=message):
        requests(tmp_path, text)


def test_a_cut_that_leaves_nothing_is_refused(tmp_path):
    with pytest.raises(MemroofError, match="no request between"):
        requests(tmp_path, AZURE, start="1 h")
    with pytest.raises(SpecError, match="cannot be read"):
        draw_requests(ServingWorkload.model_validate({"arrival": "trace", "trace": {"file": "nowhere.csv"}}))


def test_a_large_trace_stays_arrays(tmp_path):
    rows = "\n".join(f"{i * 0.01},100,10" for i in range(20000))
    found = requests(tmp_path, "arrival,prompt,output\n" + rows + "\n")
    assert isinstance(found.prompt, np.ndarray)
    assert found.prompt.sum() == 2_000_000
