"""``memroof offload``: an offloading question from flags."""

from __future__ import annotations

from simulator.cli.flags import Flag, scenario_command

FLAGS = (
    Flag("--prompt", "workload.prompt", "Tokens of a prompt.", required=True),
    Flag("--output", "workload.output", "Tokens of an answer.", required=True),
    Flag("--batch", "workload.batch", "Sequences of one GPU batch.", required=True),
    Flag("--batches", "workload.batches", "GPU batches of a block, which share each load of a layer."),
    Flag("--weights-dram", "strategy.weights.dram", "Share of the weights in host memory."),
    Flag("--weights-cxl", "strategy.weights.cxl", "Share of the weights in CXL memory."),
    Flag("--weights-nvme", "strategy.weights.nvme", "Share of the weights on flash."),
    Flag("--kv-dram", "strategy.kv.dram", "Share of the KV cache in host memory."),
    Flag("--kv-cxl", "strategy.kv.cxl", "Share of the KV cache in CXL memory."),
    Flag("--kv-nvme", "strategy.kv.nvme", "Share of the KV cache on flash."),
    Flag(
        "--attention",
        "strategy.attention",
        "gpu or cpu: where decode attention over an offloaded cache runs.",
    ),
    Flag("--prefetch", "strategy.prefetch", "Layers fetched ahead (1: double buffering)."),
    Flag("--precision", "strategy.precision", "fp32, fp16 or bf16."),
    Flag("--weights", "strategy.weight_precision", "Format that weights are stored in (int4, ...)."),
    Flag("--kv", "strategy.kv_precision", "Format that keys and values are stored in."),
)

command = scenario_command(
    "offload",
    "offload",
    FLAGS,
    """Answer an offloading question without a file.

    MODEL is a name of `memroof list models` or a model's YAML file; HARDWARE a device, node or cluster with the
    memories that tensors go to. Everything that a scenario file can say can be said with --set.

    \b
    memroof offload opt-30b gcp-n1-t4 --prompt 512 --output 32 --batch 64 --batches 10 \\
        --weights-dram 1.0 --kv-dram 1.0
    memroof offload opt-30b gcp-n1-t4 --prompt 512 --output 32 --batch 48 --batches 3 \\
        --set strategy.weights=optimal --set strategy.kv=optimal
    """,
)
