"""A training scenario as written: one optimizer step, how it is cut, ordered and kept in memory."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from simulator.specs.base import Spec, Tokens
from simulator.specs.model import Natural, Positive
from simulator.specs.operations import Operations
from simulator.specs.scenario_base import ScenarioBase
from simulator.specs.trainable_spec import Compression, Trainable


class TrainingWorkload(Spec):
    """One optimizer step, and optionally the whole run."""

    global_batch: Positive
    """Sequences of a step."""
    sequence: Positive
    """Tokens of a sequence."""
    tokens: Tokens | None = None
    """Tokens of the whole run, for days and dollars."""


class TrainingStrategy(Spec):
    """How a step is cut, ordered and kept in memory."""

    # --- parallelism
    tensor_parallel: Positive = 1
    pipeline_parallel: Positive = 1
    data_parallel: Positive | None = None
    """Replicas; all remaining GPUs if absent."""
    context_parallel: Positive = 1
    """Ranks that a sequence is cut over, all its layers long."""
    expert_parallel: Positive = 1
    """Ranks, out of those of data and context parallelism, that experts are spread over."""
    expert_tensor_parallel: Positive | None = None
    """Ranks that each expert is cut over; ``tensor_parallel`` if absent."""
    sequence_parallel: bool = False
    """Norms, dropouts and residuals are cut along the sequence over the tensor-parallel group."""
    context_exchange: Literal["all-gather", "ring", "all-to-all"] = "all-gather"
    """How context-parallel ranks see all keys: gathered before attention (Llama 3), passed round beside it (Ring Attention), or
    heads for positions exchanged before and after it (DeepSpeed-Ulysses)."""
    rank_order: Literal["tp-cp-dp-pp", "tp-cp-pp-dp"] = "tp-cp-dp-pp"
    """Neighbours first: which groups lie inside a node."""
    placement: Literal["order", "annealed"] = "order"
    """Which accelerator each rank runs on: rank i on accelerator i, or what simulated annealing over the rates of pairs finds."""
    placement_seed: Natural = 0
    """Of the random moves of ``placement: annealed``; the same seed gives the same placement."""
    layer_split: tuple[Natural, ...] | Literal["balanced"] | None = None
    """Layers of each model chunk in the order in which a micro-batch passes them; ``balanced``: in proportion to the speed of
    each stage's accelerators, within their memory; as even as possible if absent."""
    batch_split: tuple[Positive, ...] | Literal["balanced"] | None = None
    """Micro-batches of each replica; ``balanced``: in proportion to its speed; equal if absent."""
    state_split: Literal["even", "memory"] = "even"
    """Shares of states that are cut over replicas: equal, or in proportion to what memory each rank has left."""
    expert_capacity: Annotated[float, Field(ge=1.0)] | None = None
    """Slots of an expert over its mean load: what exceeds them is dropped, what is missing padded; absent: dropless."""
    expert_nodes: Positive | None = None
    """Nodes that the experts of one token may lie in (node-limited routing); any if absent."""

    # --- states cut over replicas
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    """What is cut over data-parallel ranks: 1 optimizer states, 2 gradients too, 3 parameters too (FSDP)."""
    shard_group: Positive | None = None
    """Ranks that states are cut over; replicas of such a group reduce between them (HSDP). All replicas if absent."""
    reshard_after_forward: bool = True
    """ZeRO-3: gathered parameters are dropped after the forward pass and gathered again in the backward pass."""
    gather_unit: Literal["layer", "tensor"] = "layer"
    """ZeRO-3: what one collective carries: all parameters of a layer, in one buffer (FSDP), or one tensor, copied to and from a
    list with an entry for each rank (DeepSpeed of 2021)."""
    prefetch: Natural = 1
    """ZeRO-3: layers whose parameters are gathered ahead of the one that runs."""

    # --- order of passes
    micro_batch: Positive = 1
    schedule: Literal[
        "naive", "gpipe", "1f1b", "1f1b-interleaved", "2bp", "zb-h1", "zb-h2", "zb-v", "dualpipe", "wrap-around",
    ] = "1f1b"  # fmt: skip
    virtual_stages: Positive = 1
    """Model chunks a stage holds."""

    # --- what is computed again
    recompute: Literal["none", "selective", "full", "optimal"] = "none"
    recompute_layers: Natural | None = None
    """Layers of each model chunk that recompute, from the first on; all if absent (Megatron-LM's ``block`` method)."""
    recompute_operators: tuple[str, ...] = ()
    """Operators that are recomputed beside those that ``recompute`` says: ``attention.core``, ``mlp.norm``."""
    recompute_micro_batches: Natural | None = None
    """Of the micro-batches that a stage holds at once, how many recompute; all if absent (Korthikanti et al. 2022,
    appendix C)."""

    # --- kernels
    fused_attention: bool = True
    """FlashAttention-like kernels, which keep no scores; false: scores, softmax and dropout as separate kernels."""
    attention_kernel: Literal["latest", "flash-2", "flash-1"] = "latest"
    """Generation of fused attention: the best there is on the device (FlashAttention-3, cuDNN), or FlashAttention of 2023 or
    2022."""
    fused_accumulation: bool = True
    """Products of weight gradients add to the sum over micro-batches (Megatron-LM from 2022 on); false: a kernel after each."""
    fused_loss: bool = True
    """Cross entropy in one kernel each way; false: as some ten kernels over the logits (Megatron-LM's own)."""
    wide_loss: bool = True
    """A fused loss keeps its probabilities in fp32 (Megatron-Core); false: in 16 bits (torch.compile, Liger)."""
    joined_projections: bool = True
    """Queries, keys and values, and gate and up, are one product each; false: products of their own (plain PyTorch models)."""
    cuda_graphs: bool = False
    """Passes are captured and issued at once; false: the CPU issues every operator, and the device waits where it is slower."""
    transformer_engine: bool = False
    """Layers are Transformer Engine's modules (Megatron-Core from 2023 on), whose Python takes the CPU longer than PyTorch's and
    the first Megatron-LM's own."""

    # --- number formats and the optimizer
    precision: Literal["fp32", "tf32", "fp16", "bf16", "fp8", "fp4"] = "bf16"
    """Format of matrix products; activations are kept in 16 bit below fp32. fp4 is NVFP4: a scale for 16 elements."""
    fp8_recipe: Literal["delayed", "tensor", "block", "mxfp8"] = "tensor"
    """Scales of fp8 operands: one a tensor from the steps before or from itself, one a block (DeepSeek-V3), one for 32
    elements."""
    parameter_precision: Literal["fp32", "fp16", "bf16", "fp8", "fp4"] | None = None
    """Format in which parameters are kept (and, with ZeRO-3, gathered in the format of products); 16 bit below fp32 if
    absent. fp32 parameters are the master copy."""
    gradient_precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Format in which gradients are accumulated and reduced."""
    moment_precision: Literal["fp32", "bf16", "fp16", "fp8"] = "fp32"
    """Format of the optimizer's moments."""
    master_weights: bool = True
    """Whether 16-bit parameters have an fp32 copy that the optimizer updates."""
    optimizer: Literal["adam", "adam-8bit", "adafactor", "muon", "sgd", "galore"] = "adam"
    optimizer_rank: Positive | None = None
    """Rank that GaLore projects gradients to; a quarter of the smaller dimension if absent."""
    optimizer_update: Literal["step", "layer"] = "step"
    """When parameters change: after the last backward pass, or layer by layer inside it, with no gradient kept."""

    # --- what is trained, and what is coded
    trainable: Trainable | None = None
    """Method and its options: ``{method: lora, rank: 16}``; all parameters if absent."""
    compression: Compression = Compression()
    """Codecs on gradients, stage boundaries and kept activations; none if absent."""

    # --- what runs beside what
    overlap_tensor_parallel: Literal["none", "backward", "chunked"] = "backward"
    """Tensor-parallel collectives: one after the other with products; beside products of the backward pass (Megatron-LM's
    asynchronous linear layers, from 2022 on); or cut into chunks that follow their product's tiles, forward too (Transformer
    Engine's user buffers)."""
    overlap_expert_parallel: bool = False
    """All-to-alls of one micro-batch run beside the products of another (DualPipe's pairs, dual-batch overlap)."""
    overlap_shared_experts: bool = False
    """Shared experts run beside the dispatch of tokens to the others (Megatron-Core)."""
    overlap_gradient_reduction: bool = False
    """Gradient buckets are reduced while the backward pass goes on."""
    overlap_parameter_gather: bool = False
    """ZeRO-1 and -2: updated parameters are gathered while the next step's forward pass goes on."""
    optimize_pipeline_transfer: bool = True
    """Each tensor-parallel rank sends its share of a stage boundary, gathered on arrival (Megatron scatter/gather)."""


class TrainingScenario(ScenarioBase):
    """Train a model for one step."""

    kind: Literal["training"]
    workload: TrainingWorkload
    strategy: TrainingStrategy = TrainingStrategy()
    operations: Operations | None = None
    """What the run meets beside its steps; nothing if absent."""
