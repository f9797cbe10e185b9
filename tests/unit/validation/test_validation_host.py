"""Host time of a serving iteration."""

import pytest

from simulator.specs import Catalog
from simulator.validation.dataset import constants_for
from simulator.validation.datasets.host import DATASETS, STEPS


def test_steps_add_up(tmp_path):
    catalog = Catalog()
    file = tmp_path / "cpu_overheads_a100.csv"
    header = ["gpu", *STEPS, "model_name", "batch_size", "tensor_parallel_degree"]
    rows = [
        ["a100", 1.0, 1.0, 0.5, 1.0, 6.0, "llama", 64, 2],
        ["a100", 1.0, 1.0, 0.5, 1.0, 0.5, "llama", 64, 1],
        ["a100", "", 1.0, 0.5, 1.0, 0.5, "llama", 64, 1],
        ["t4", 1.0, 1.0, 0.5, 1.0, 0.5, "llama", 64, 1],
    ]
    file.write_text("\n".join(",".join(map(str, row)) for row in [header, *rows]) + "\n", encoding="utf-8")
    loaded = DATASETS[0].load(file, catalog)
    alone, several = loaded.parts
    assert alone.measured == pytest.approx([4e-3])
    assert several.measured == pytest.approx([9.5e-3])
    cost = constants_for(catalog, "a100-80gb-sxm")
    assert several.predict(cost)[0] - alone.predict(cost)[0] == pytest.approx(cost.calibration.host.workers)
    assert loaded.skipped == {"a time is missing or not positive": 1, "device is not in the catalog": 1}
