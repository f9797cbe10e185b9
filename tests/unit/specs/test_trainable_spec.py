"""What is trained and coded, as written: each method takes its own options alone."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from simulator.specs.trainable_spec import Compression, LowRankAdaptation, Trainable
from simulator.specs.training_scenario import TrainingStrategy

METHOD: TypeAdapter[Trainable] = TypeAdapter(Trainable)


def test_a_method_and_its_options() -> None:
    strategy = TrainingStrategy.model_validate({"trainable": {"method": "lora", "rank": 16}})
    assert strategy.trainable == LowRankAdaptation(method="lora", rank=16, targets=("attention", "mlp"))
    assert TrainingStrategy().trainable is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "lora"}, "rank"),
        ({"method": "lora", "rank": 8, "density": 0.1}, "density"),
        ({"method": "bias", "rank": 8}, "rank"),
        ({"method": "forward-only", "reference": True}, "reference"),
        ({"method": "adapter", "width": 8, "experts": 2, "experts_per_token": 3}, "exceeds experts"),
        ({"method": "low-rank-sparse", "rank": 8, "density": 2.0}, "less than or equal to 1"),
        ({"method": "prompt"}, "expected tags"),
    ],
)
def test_what_does_not_belong(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        METHOD.validate_python(options)


def test_codecs() -> None:
    read = Compression.model_validate({"gradients": {"ratio": 4, "encode": "20 GB/s", "decode": "40 GB/s"}})
    assert read.gradients is not None
    assert read.gradients.encode == 20e9
    assert read.boundaries is read.activations is None
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Compression.model_validate({"boundaries": {"ratio": 0.5, "encode": "1 GB/s", "decode": "1 GB/s"}})
