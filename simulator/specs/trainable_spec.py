"""What of a model is trained, and how compactly: ``strategy.trainable`` and ``strategy.compression`` as written."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.base import ByteRate, Spec
from simulator.specs.model import Positive

Share = Annotated[float, Field(gt=0.0, le=1.0)]


class Subset(Spec):
    """What every method takes."""

    reference: bool = False
    """A frozen copy runs forward too, as in DPO's policy and reference (Rafailov et al. 2023); batches count sequences, of
    which a preference pair has two. Methods that leave the base alone share its weights with the reference."""


class LayerSubset(Subset):
    """A method that may update some layers a step only."""

    updated_layers: Positive | None = None
    """Layers updated in a step, out of all (IST, Yao et al. 2024; LISA, Pan et al. 2024): placed where the order statistics of
    uniform sampling expect them; all if absent."""


class FullTraining(Subset):
    """All parameters."""

    method: Literal["full"]


class LowRankAdaptation(LayerSubset):
    """LoRA (Hu et al. 2021): a trained product of two thin matrices beside each frozen one."""

    method: Literal["lora"]
    rank: Positive
    targets: tuple[str, ...] = ("attention", "mlp")
    """Groups (``attention``, ``mlp``, ``moe``), projections (``q_proj``, ``down_proj``, ...): an adapter for each, as in PEFT;
    or operators (``attention.qkv``): one for the joined product, as in Megatron."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Of the adapters' input; its mask and result are kept."""


class QuantisedLowRankAdaptation(LayerSubset):
    """QLoRA (Dettmers et al. 2023): LoRA over linear layers in 4 bits, which are dequantised before each product."""

    method: Literal["qlora"]
    rank: Positive
    targets: tuple[str, ...] = ("attention", "mlp")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    block: Positive = 64
    """Weights that share a scale."""
    double_quantisation: bool = True
    """Scales in 8 bits, with an fp32 one for 256 of them."""


class BottleneckAdapter(LayerSubset):
    """Trained bottlenecks behind frozen sublayers (Houlsby et al. 2019), or one for each of several experts (PESC)."""

    method: Literal["adapter"]
    width: Positive
    """Of the bottleneck."""
    experts: Positive | None = None
    """Experts that share the frozen MLP and have a bottleneck each, behind a trained router (PESC, Wu et al. 2024)."""
    experts_per_token: Positive = 2
    quantised: bool = False
    """Frozen linear layers in 4 bits, as in QLoRA."""
    head: bool = False
    """Whether the head is trained too."""

    @model_validator(mode="after")
    def _enough(self) -> BottleneckAdapter:
        if self.experts and self.experts_per_token > self.experts:
            raise PydanticCustomError(
                "trainable",
                "{message}",
                {"message": f"experts_per_token ({self.experts_per_token}) exceeds experts ({self.experts})"},
            )
        return self


class BiasTraining(LayerSubset):
    """Biases alone (BitFit, Zaken et al. 2022), and lite residuals (TinyTL, Cai et al. 2020); a bias needs no activation."""

    method: Literal["bias"]
    residual_width: Positive | None = None
    """Channels of the trained branch beside each sublayer; none if absent."""
    residual_pool: Positive = 4
    """Positions that the branch averages."""
    head: bool = False
    """Whether the head is trained too."""


class LayerTraining(Subset):
    """Some layers a step, each as a whole."""

    method: Literal["layers"]
    updated_layers: Positive
    ends: bool = False
    """Whether embedding and head are updated every step too (LISA)."""


class LowRankSparse(Subset):
    """SLTrain (Han et al. 2024): each weight is a thin product plus a sparse matrix of fixed support, trained from scratch."""

    method: Literal["low-rank-sparse"]
    rank: Positive
    density: Share = 0.03
    """Share of entries in the sparse part."""
    targets: tuple[str, ...] = ("attention", "mlp")


class ForwardOnly(Spec):
    """Zeroth order: the loss at two perturbed points in place of a gradient."""

    method: Literal["forward-only"]
    perturbed: Literal["weights", "input"] = "weights"
    """Weights, in place (MeZO, Malladi et al. 2023), or a prompt from a small coordinator before a black box (BlackVIP, Oh et
    al. 2023)."""


class ReversibleTraining(Subset):
    """Layers whose inputs follow from their outputs: no activations are kept, one more forward pass (Gomez et al. 2017)."""

    method: Literal["reversible"]


class AdjointTraining(Subset):
    """Layers as the right-hand side of an ODE (Chen et al. 2018)."""

    method: Literal["adjoint"]
    evaluations: Positive = 1
    """Of each layer, one after the other with the same weights."""
    gradient: Literal["adjoint", "through-solver"] = "adjoint"
    """A second solution backward, which keeps nothing, or all evaluations kept and differentiated."""


Trainable = Annotated[
    FullTraining
    | LowRankAdaptation
    | QuantisedLowRankAdaptation
    | BottleneckAdapter
    | BiasTraining
    | LayerTraining
    | LowRankSparse
    | ForwardOnly
    | ReversibleTraining
    | AdjointTraining,
    Field(discriminator="method"),
]


class Codec(Spec):
    """A coder of tensors on the way to a link or a memory, such as a GPU's video engines."""

    ratio: Annotated[float, Field(ge=1.0)]
    """Bytes before over bytes after."""
    encode: ByteRate
    """Bytes before coding that one device codes in a second."""
    decode: ByteRate
    chunks: Positive = 1
    """Pieces that follow each other through coder, link and decoder; 1: one stage after the other."""


class Compression(Spec):
    """What is coded (VcLLM)."""

    gradients: Codec | None = None
    """Gradients that data-parallel ranks exchange."""
    boundaries: Codec | None = None
    """Activations and their gradients between pipeline stages."""
    activations: Codec | None = None
    """Activations kept for the backward pass."""
