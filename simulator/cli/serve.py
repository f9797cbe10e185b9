"""``memroof serve``: a serving question from flags."""

from __future__ import annotations

from simulator.cli.flags import Flag, scenario_command

FLAGS = (
    Flag("--prompt", "workload.prompt", "Tokens of a prompt.", required=True),
    Flag("--output", "workload.output", "Tokens of an answer.", required=True),
    Flag("--rate", "workload.rate", "Requests per second of Poisson arrivals: '5 req/s'."),
    Flag("--offline", "workload.arrival", "All requests at once instead.", switch="offline"),
    Flag("--requests", "workload.requests", "Requests that are simulated."),
    Flag("--seed", "workload.seed", "Of the arrivals and lengths."),
    Flag("--tp", "strategy.tensor_parallel", "Tensor-parallel degree."),
    Flag("--batching", "strategy.batching", "continuous or static."),
    Flag("--max-batch", "strategy.max_batch", "Sequences that run at once."),
    Flag("--max-batched-tokens", "strategy.max_batched_tokens", "Token budget of an iteration."),
    Flag("--precision", "strategy.precision", "fp32, fp16, bf16 or fp8."),
    Flag("--weights", "strategy.weight_precision", "Format that weights are stored in (int4, fp8, ...)."),
    Flag("--kv", "strategy.kv_precision", "Format that keys and values are stored in."),
    Flag("--memory-utilization", "strategy.memory_utilization", "Share of device memory that may be used."),
    Flag("--slo-ttft", "slo.time_to_first_token", "Objective: time to first token of a request, '500 ms'."),
    Flag(
        "--slo-tpot", "slo.time_per_output_token", "Objective: time per output token of a request, '50 ms'."
    ),
    Flag("--slo-e2e", "slo.end_to_end", "Objective: end-to-end time of a request."),
    Flag("--slo-share", "slo.share", "Share of the requests that must hold all of it (0.9)."),
    Flag(
        "--limit-ttft",
        "limit.time_to_first_token_p99",
        "Largest 99th percentile of the time to first token: '2 s'.",
    ),
    Flag(
        "--limit-tpot",
        "limit.time_per_output_token_p99",
        "Largest 99th percentile of the time a token: '50 ms'.",
    ),
)

command = scenario_command(
    "serving",
    "serve",
    FLAGS,
    """Answer a serving question without a file.

    MODEL is a name of `memroof list models` or a model's YAML file; HARDWARE a device, node or cluster. Everything
    that a scenario file can say can be said with --set.

    \b
    memroof serve llama3.1-70b dgx-h100 --tp 8 --rate '5 req/s' --prompt 1000 --output 250
    """,
)
