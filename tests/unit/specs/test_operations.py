"""The ``operations`` of a training scenario: units, short forms, and what is refused."""

import pytest
from pydantic import ValidationError

from simulator.specs import TrainingScenario
from simulator.specs.operations import Operations


def test_units():
    operations = Operations.model_validate(
        {
            "mtbf_per_gpu": "50700 h", "detection_time": "2 min", "restart_time": "8 min", "planned_stops": "0.87 /d",
            "checkpoints": {"storage_bandwidth": "2 TB/s", "asynchronous": True, "snapshot_time": "5 s"},
            "loading": {"sample_size": "32 kB", "bandwidth": "10 GB/s"},
        }
    )  # fmt: skip
    assert operations.mtbf_per_gpu == 50700 * 3600.0
    assert operations.planned_stops == pytest.approx(0.87 / 86400)
    assert operations.checkpoints.snapshot_time == 5.0


def test_part_of_a_training_scenario():
    scenario = TrainingScenario.model_validate(
        {
            "kind": "training", "hardware": {"node": "x"}, "model": "m", "workload": {"global_batch": 1, "sequence": 1},
            "operations": {"straggler_spread": 0.01},
        }
    )  # fmt: skip
    assert scenario.operations.straggler_spread == 0.01


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"mtbf_per_gpu": "1 h"}, "needs 'checkpoints'"),
        ({"mtbf_per_gpu": "0 s", "checkpoints": {"write_time": "1 s"}}, "above 0"),
        ({"spare_nodes": 1}, "belong together"),
        ({"spare_nodes": 1, "repair_time": "1 d"}, "'spare_nodes' need"),
        ({"planned_stops": "1 /d"}, "'planned_stops' need"),
        ({"restart_time": "1 min"}, "need 'mtbf_per_gpu'"),
        ({"checkpoints": {}}, "needs one of"),
        ({"checkpoints": {"write_time": "1 s", "storage_bandwidth": "1 GB/s"}}, "needs one of"),
        ({"checkpoints": {"write_time": "1 s", "size": "1 GB"}}, "'size' belongs"),
        ({"checkpoints": {"write_time": "1 s", "snapshot_time": "1 s"}}, "'snapshot_time' belongs"),
        ({"loading": {}}, "needs either"),
        ({"loading": {"sample_size": "1 kB"}}, "belong together"),
        ({"straggler_spread": 2.0}, "less than or equal to 1"),
    ],
)
def test_refused(fields, word):
    with pytest.raises(ValidationError, match=word):
        Operations.model_validate(fields)
