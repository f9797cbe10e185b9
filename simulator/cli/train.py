"""``memroof train``: a training question from flags."""

from __future__ import annotations

from simulator.cli.flags import Flag, scenario_command

FLAGS = (
    Flag("--global-batch", "workload.global_batch", "Sequences of an optimizer step.", required=True),
    Flag("--sequence", "workload.sequence", "Tokens of a sequence.", required=True),
    Flag("--tokens", "workload.tokens", "Tokens of the whole run ('300 B tokens'), for days and dollars."),
    Flag("--tp", "strategy.tensor_parallel", "Tensor-parallel degree."),
    Flag("--pp", "strategy.pipeline_parallel", "Pipeline-parallel degree."),
    Flag("--dp", "strategy.data_parallel", "Replicas; all remaining devices if absent."),
    Flag("--cp", "strategy.context_parallel", "Context-parallel degree."),
    Flag("--ep", "strategy.expert_parallel", "Expert-parallel degree."),
    Flag("--sp", "strategy.sequence_parallel", "Cut norms and residuals along the sequence.", switch="true"),
    Flag("--micro-batch", "strategy.micro_batch", "Sequences of a micro-batch."),
    Flag(
        "--schedule",
        "strategy.schedule",
        "1f1b, gpipe, 1f1b-interleaved, zb-h1, zb-h2, zb-v, 2bp, dualpipe, wrap-around, naive.",
    ),
    Flag(
        "--virtual-stages", "strategy.virtual_stages", "Model chunks a stage (1f1b-interleaved, wrap-around)."
    ),
    Flag("--recompute", "strategy.recompute", "none, selective, full or optimal."),
    Flag("--precision", "strategy.precision", "fp32, tf32, fp16, bf16, fp8 or fp4."),
    Flag("--optimizer", "strategy.optimizer", "adam, adam-8bit, adafactor, muon, sgd or galore."),
    Flag(
        "--zero",
        "strategy.zero_stage",
        "States cut over replicas: 1 optimizer, 2 gradients too, 3 parameters too (FSDP).",
    ),
    Flag(
        "--shard-group",
        "strategy.shard_group",
        "Ranks that states are cut over (HSDP); all replicas if absent.",
    ),
    Flag(
        "--overlap",
        "strategy.overlap_gradient_reduction",
        "Reduce gradients during the backward pass.",
        switch="true",
    ),
)

command = scenario_command(
    "training",
    "train",
    FLAGS,
    """Answer a training question without a file.

    MODEL is a name of `memroof list models` or a model's YAML file; HARDWARE a device, node or cluster. Everything
    that a scenario file can say can be said with --set.

    \b
    memroof train gpt3-175b dgx-a100-80gb --nodes 8 --global-batch 64 --sequence 2048 \\
        --tp 8 --pp 8 --sp --recompute selective --precision fp16
    """,
)
