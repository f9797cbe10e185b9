"""Quantised training: how operands of linear layers get their scales, what that costs and what is kept.

A recipe says how many bytes an element takes with its scales, which kernels make it, and in which direction scales run:
where they run along a row, the products of the backward pass need a second copy with scales along columns, and where they
do not, matrix units that read operands in one order only (Hopper) need it transposed. Both copies come from one kernel.

References: Micikevicius et al. 2022, arXiv:2209.05433 (delayed scaling); DeepSeek-V3, arXiv:2412.19437, section 3.3 (blocks);
Mishra et al. 2025, arXiv:2506.08027 (MXFP8); NVIDIA 2025, arXiv:2509.25149 (NVFP4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from simulator.graph.graph import FORMAT_BYTES, Numerics, Operator
from simulator.graph.work import Elementwise, Numeric, ProductKernel, Work


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a tensor is quantised."""

    format: str
    activation_scales: float
    """Bytes of scales for each element of an activation or gradient."""
    weight_scales: float
    maximum_first: bool
    """Whether the largest element is looked for by a kernel of its own, which reads the tensor once more."""
    scaled: float
    """:attr:`Matmul.scaled` of products: promotions of the sum at every block; 0 where matrix units scale."""
    two_directions: bool
    """Whether the two copies have scales of their own, so that one cannot be made from the other."""
    dispatched: bool = False
    """Whether tokens on the way to experts are cast before they are sent (DeepSeek-V3, section 3.3.3)."""

    @property
    def activation(self) -> float:
        """Bytes of one copy of an activation's element."""
        return FORMAT_BYTES[self.format] + self.activation_scales

    @property
    def weight(self) -> float:
        """Bytes of one copy of a weight."""
        return FORMAT_BYTES[self.format] + self.weight_scales

    @property
    def gathered(self) -> float:
        """Bytes in which a sharded weight is gathered: one copy, or 16 bits where one does not give the other."""
        return 2.0 if self.two_directions else self.weight


RECIPES: Mapping[str, Recipe] = {
    "delayed": Recipe("fp8", 0.0, 0.0, False, 0.0, False),
    "tensor": Recipe("fp8", 0.0, 0.0, True, 0.0, False),
    # 1 x 128 along the products' inner dimension; 128 x 128 serves both directions
    "block": Recipe("fp8", 4.0 / 128, 4.0 / 128**2, False, 1.0, False, dispatched=True),
    "mxfp8": Recipe("fp8", 1.0 / 32, 1.0 / 32, False, 0.0, True),
    # one fp8 scale for 16 elements (16 x 16 weights) under an fp32 scale of the tensor, which needs its maximum
    "nvfp4": Recipe("fp4", 1.0 / 16, 1.0 / 16**2, True, 0.0, False),
}
COPIES = 2
"""Of a tensor that has scales in two directions, or that matrix units must find transposed."""


def recipe_of(numerics: Numerics) -> Recipe | None:
    """Return the recipe of linear layers; none where nothing is quantised on the way."""
    return RECIPES.get(numerics.scaling)


def copies(numerics: Numerics) -> int:
    """Copies of a quantised tensor that products of a forward and a backward pass read."""
    recipe = recipe_of(numerics)
    return 1 if recipe and numerics.any_order and not recipe.activation_scales else COPIES


def activation_width(numerics: Numerics) -> float:
    """Bytes of an operand of a linear layer's products [B]."""
    recipe = recipe_of(numerics)
    return recipe.activation if recipe else numerics.activation_bytes


def dispatch_width(numerics: Numerics) -> float:
    """Bytes of an element on its way to an expert [B]; results return in 16 bits."""
    recipe = recipe_of(numerics)
    return recipe.activation if recipe and recipe.dispatched else numerics.activation_bytes


def weight_width(numerics: Numerics) -> float:
    """Bytes of a weight as a product reads it [B]."""
    recipe = recipe_of(numerics)
    return recipe.weight if recipe else numerics.weight_bytes


def scaled(numerics: Numerics) -> float:
    """Return :attr:`Matmul.scaled` of products."""
    recipe = recipe_of(numerics)
    return recipe.scaled if recipe else 0.0


def product_kernel(numerics: Numerics) -> ProductKernel:
    """Return :attr:`Matmul.kernel`: the vendor's for recipes of training, an engine's own for what is narrow without one."""
    return "engine" if recipe_of(numerics) is None else "vendor"


def cast(numerics: Numerics, elements: Numeric, *, weight: bool = False) -> tuple[Elementwise, ...]:
    """Return the kernels that quantise a 16-bit tensor: all copies in one, after one for the maximum where it is needed.

    Examples
    --------
    >>> [float(k.bytes) for k in cast(Numerics(compute="fp8", scaling="tensor"), 1000)]
    [2000.0, 4000.0]
    """
    recipe = recipe_of(numerics)
    if recipe is None:
        return ()
    read = elements * numerics.activation_bytes
    written = copies(numerics) * elements * (recipe.weight if weight else recipe.activation)
    kernel = Elementwise(read, written, 2.0 * elements)
    return (Elementwise(read, 0.0, elements), kernel) if recipe.maximum_first else (kernel,)


def one_copy(operator: Operator, numerics: Numerics) -> Operator:
    """Return a quantised linear operator without weight gradient: each cast writes the one copy that is read."""
    kernels = len(cast(numerics, 1.0))
    if not kernels or not operator.matrices or operator.stored is None or operator.weight_gradient:
        return operator

    def halved(works: tuple[Work, ...]) -> tuple[Work, ...]:
        last = works[kernels - 1] if len(works) >= kernels else None
        if not isinstance(last, Elementwise):
            return works
        return (
            *works[: kernels - 1],
            replace(last, written=last.written / copies(numerics)),
            *works[kernels:],
        )

    return replace(operator, forward=halved(operator.forward), input_gradient=halved(operator.input_gradient))


def stored_weights(numerics: Numerics, weights: Numeric, others: Numeric = 0) -> Numeric | None:
    """Bytes of a quantised layer through a step: its copies, and the 16-bit parameters unless they are kept narrow alone.

    Copies stay from the first micro-batch to the last. ``others`` are biases, which nobody quantises [B].
    """
    recipe = recipe_of(numerics)
    if recipe is None:
        return None
    parameters = 0.0 if numerics.narrow_parameters else numerics.weight_bytes
    return weights * (parameters + copies(numerics) * recipe.weight) + others * numerics.weight_bytes


def gathered_bytes(operator: Operator, numerics: Numerics) -> Numeric:
    """Bytes in which an operator's sharded parameters are gathered over replicas [B].

    Narrow parameters travel in their own format, if the second copy can be made from the first; all others in 16 bits.
    """
    recipe = recipe_of(numerics)
    if recipe is None or not numerics.narrow_parameters or operator.stored is None:
        return operator.parameters * numerics.weight_bytes
    weights = sum((matrix.elements for matrix in operator.matrices), start=0.0)
    return weights * recipe.gathered + (operator.parameters - weights) * numerics.weight_bytes
