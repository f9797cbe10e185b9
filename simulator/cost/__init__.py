"""Cost: roofline and collective formulas, a device's cost model, and how sure its times are."""

from simulator.cost.attention import attention_time, decode_attention_time
from simulator.cost.breakdown import BOUNDS, Bound, Breakdown, Cost, OperatorTime
from simulator.cost.collectives import (
    Algorithm,
    LinkConstants,
    algorithms,
    collective_time,
    collective_traffic,
)
from simulator.cost.custom_all_reduce import CustomConstants, custom_all_reduce_time
from simulator.cost.expert_exchange import ExchangeConstants, exchange_time, low_latency_exchange_time
from simulator.cost.host_kernels import Sockets, host_product_time
from simulator.cost.matmul import matmul_time
from simulator.cost.model import ALONE, CostModel
from simulator.cost.numeric import Parts, overlap
from simulator.cost.overlap import Overlap
from simulator.cost.peaks import peak_flops
from simulator.cost.storage import OUTSTANDING_READS, lines_touched, read_rate, zero_copy_rate
from simulator.cost.streams import adam_bytes, gather_bytes, stream_time, transfer_time
from simulator.cost.uncertainty import class_errors, interval, relative_error

__all__ = [
    "ALONE",
    "BOUNDS",
    "OUTSTANDING_READS",
    "Algorithm",
    "Bound",
    "Breakdown",
    "Cost",
    "CostModel",
    "CustomConstants",
    "ExchangeConstants",
    "LinkConstants",
    "OperatorTime",
    "Overlap",
    "Parts",
    "Sockets",
    "adam_bytes",
    "algorithms",
    "attention_time",
    "class_errors",
    "collective_time",
    "collective_traffic",
    "custom_all_reduce_time",
    "decode_attention_time",
    "exchange_time",
    "gather_bytes",
    "host_product_time",
    "interval",
    "lines_touched",
    "low_latency_exchange_time",
    "matmul_time",
    "overlap",
    "peak_flops",
    "read_rate",
    "relative_error",
    "stream_time",
    "transfer_time",
    "zero_copy_rate",
]
