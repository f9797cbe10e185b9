"""The collective data sets: units, groups, what is skipped and why."""

from pathlib import Path

import numpy as np
import pytest

from simulator.cost import CostModel
from simulator.specs import Catalog
from simulator.validation import SHIPPED
from simulator.validation.dataset import constants_for
from simulator.validation.datasets.collectives import (
    DATASETS,
    FITS,
    MIB,
    TOPOLOGIES,
    engine_kernel,
    node_span,
)

CATALOG = Catalog()
BY_NAME = {dataset.name: dataset for dataset in DATASETS}


def load(tmp_path: Path, name: str, text: str):
    file = tmp_path / "table.csv"
    file.write_text(text, encoding="utf-8")
    return BY_NAME[name].load(file, CATALOG)


def model(device: str) -> CostModel:
    return constants_for(CATALOG, device)


def test_library_rows(tmp_path):
    loaded = load(
        tmp_path,
        "aiconfigurator/nccl_collectives.csv#all_gather",
        "src,op_name,kernel_source,nccl_dtype,num_gpus,message_elements,latency_ms,size_bytes\n"
        "a100_sxm/nccl/2.27.3,all_gather,NCCL,half,8,268435456,2.288,536870912\n"
        "a100_sxm/nccl/2.27.3,all_gather,NCCL,half,2,512,0.00908,1024\n"
        "a100_sxm/nccl/2.27.3,all_reduce,NCCL,half,2,512,0.00908,1024\n"
        "a100_sxm/nccl/2.27.3,all_gather,NCCL,half,16,512,0.00908,1024\n"
        "a100_sxm/nccl/2.27.3,all_gather,NCCL,half,2,512,0,1024\n"
        "mars/nccl/2.27.3,all_gather,NCCL,half,2,512,0.009,1024\n",
    )
    (part,) = loaded.parts
    assert part.device == "a100-80gb-sxm"
    assert part.measured == pytest.approx([2.288e-3, 9.08e-6])
    assert part.rows.tolist() == [2, 3]
    # the size is the whole tensor: seven eighths of it pass each link at some 200 of 300 GB/s
    assert part.predict(model(part.device))[0] == pytest.approx(7 / 8 * 536870912 / 205e9, rel=0.1)
    assert len(set(part.groups.tolist())) == 2
    assert loaded.skipped == {
        "another collective of the table": 1,
        "several machines": 1,
        "latency is not positive": 1,
        "device is not in the catalog": 1,
    }


def test_the_switch_does_not_add_int8(tmp_path):
    row = "h100_sxm/nccl/2.27.3,all_reduce,NCCL,{},8,268435456,2.1,536870912\n"
    loaded = load(
        tmp_path,
        "aiconfigurator/nccl_collectives.csv#all_reduce",
        "src,op_name,kernel_source,nccl_dtype,num_gpus,message_elements,latency_ms,size_bytes\n"
        + row.format("half")
        + row.format("int8"),
    )
    half, int8 = (part.predict(model("h100-sxm"))[0] for part in loaded.parts)
    assert int8 > 1.15 * half


def test_engines_choose_kernel_and_limit():
    kernel, limit = engine_kernel("h100_sxm/vllm/0.19.0", "vLLM_custom_graph", "hopper")
    assert (kernel, limit(4)) == ("pull", 8 * MIB - 1)
    kernel, limit = engine_kernel("h100_sxm/sglang/0.5.9", "SGLang_CustomAllReduce_eager", "hopper")
    assert (kernel, limit(4)) == ("pull", 16 * MIB - 1)
    kernel, limit = engine_kernel("h100_sxm/sglang/0.5.14", "SGLang_CustomAllReduce_eager", "hopper")
    assert (kernel, limit(4)) == ("push", 16 * MIB)
    kernel, limit = engine_kernel("h100_sxm/sglang/0.5.6.post2", "TRTLLM", "hopper")
    assert (kernel, limit(2), limit(8)) == ("push", 8 * MIB, MIB // 2)
    assert engine_kernel("b200_sxm/trtllm/1.3.0rc10", "TRTLLM", "blackwell")[1](8) == 16 * MIB


def test_engine_rows(tmp_path):
    loaded = load(
        tmp_path,
        "aiconfigurator/custom_allreduce.csv",
        "src,kernel_source,allreduce_dtype,num_gpus,message_elements,latency_ms,backend,implementation,size_bytes\n"
        "h100_sxm/vllm/0.14.0,vLLM_custom_graph,bfloat16,8,512,0.0046,vllm_graph,,1024\n"
        "h100_sxm/vllm/0.14.0,vLLM_custom_eager,bfloat16,8,512,0.021,vllm_eager,,1024\n"
        "h100_sxm/vllm/0.14.0,vLLM_custom_eager,bfloat16,8,512,0,vllm_eager,,1024\n"
        "l40s/vllm/0.14.0,vLLM_custom_graph,bfloat16,8,536870912,884.5,vllm_graph,,1073741824\n",
    )
    eager, graph = loaded.parts
    assert eager.predict(model("h100-sxm"))[0] > 3 * graph.predict(model("h100-sxm"))[0]
    assert sum(loaded.skipped.values()) == 2
    assert any("host memory" in reason for reason in loaded.skipped)


def test_vidur_rows(tmp_path):
    header = "topology,min_ms,max_ms,mean_ms,median_ms,std_ms,rank,num_workers,size,collective,devices_per_node,max_devices_per_node\n"
    text = header + "".join(
        f"{topology},0,0,0,{time},0,0,{ranks},{size},{kind},{local},8\n"
        for topology, time, ranks, size, kind, local in (
            ("a100_dgx", 0.043, 2, 2048, "all_reduce", 1),
            ("a100_dgx", 0.430, 8, 67108864, "all_reduce", 8),
            ("a100_pairwise_nvlink", 6.4, 4, 67108864, "all_reduce", 4),
            ("a40_pairwise_nvlink", 16.9, 2, 67108864, "send_recv", 2),
            ("h100_pairwise_nvlink", 0.2, 2, 67108864, "send_recv", 2),
            ("a100_pairwise_nvlink", 0.2, 2, 67108864, "send_recv", 2),
            ("nobody", 0.2, 2, 67108864, "send_recv", 2),
        )
    )
    reduce = load(tmp_path, "vidur/collectives.csv#all_reduce", text)
    assert [part.device for part in reduce.parts] == ["a100-80gb-sxm", "a100-80gb-sxm", "a100-80gb-pcie"]
    far, near, pairs = reduce.parts
    cost = model("a100-80gb-sxm")
    # a small message takes its launch; over the network the error is wider
    assert far.predict(cost)[0] >= cost.calibration.custom_collective.eager_latency
    assert far.relative_errors(cost)[0] > near.relative_errors(cost)[0]
    # pairs meet over PCIe: 1.5 times the tensor at some 24 of 31.5 GB/s
    assert pairs.predict(model(pairs.device))[0] == pytest.approx(1.5 * 67108864 / 24e9, rel=0.2)
    send = load(tmp_path, "vidur/collectives.csv#send_recv", text)
    assert [part.device for part in send.parts] == ["a40"]
    assert sum(send.skipped.values()) == 6


def test_every_topology_is_in_the_catalog():
    for topology in TOPOLOGIES.values():
        assert CATALOG.processor(topology.device)
    assert node_span(CATALOG, "gb200", 4).size == 4


def test_bus_bandwidth_gives_the_time_where_none_is_stated(tmp_path):
    loaded = load(
        tmp_path,
        "ml-engineering/collective_busbw.csv",
        "collective,hardware,tool,n_gpus,n_nodes,size_bytes,time_us,busbw_gb_s,algo_note,source\n"
        "all_gather,H200 8x node NVLink4,nccl-tests,8,1,17179869184,,361.4,Ring,x\n"
        "all_reduce,H200 8x node NVLink4,nccl-tests,8,1,8589934592,31774.2,480.0,NVLS,x\n"
        "all_reduce,B200 (AWS P6-B200) NVLink5 + 8x50GB/s EFA per node,nccl-tests,32,4,8589934592,43752,380.4,,x\n"
        "all_reduce,a machine,nccl-tests,8,1,8589934592,31774.2,480.0,NVLS,x\n",
    )
    assert loaded.skipped == {"hardware is not named": 1}
    measured = {(part.device, str(part.frame["algo_note"].iloc[0])): part for part in loaded.parts}
    assert measured["h200-sxm", "Ring"].measured[0] == pytest.approx(7 / 8 * 17179869184 / 361.4e9)
    switched = measured["h200-sxm", "NVLS"]
    assert switched.predict(model("h200-sxm"))[0] == pytest.approx(switched.measured[0], rel=0.05)
    assert ("b200", "") in measured


def test_expert_exchange_rows(tmp_path):
    normal = load(
        tmp_path,
        "aiconfigurator/deepep_normal.csv#combine",
        "src,kernel_source,node_num,hidden_size,num_token,num_topk,num_experts,dispatch_sms,dispatch_transmit_us,"
        "dispatch_notify_us,combine_sms,combine_transmit_us,combine_notify_us\n"
        "h100_sxm/sglang/0.5.12,deepep,1,7168,4096,8,256,4,2112,0,4,3733,0\n"
        "h100_sxm/sglang/0.5.12,deepep,1,7168,4096,8,256,24,469,0,24,856,0\n"
        "h100_sxm/sglang/0.5.12,deepep,2,7168,4096,8,256,24,469,0,24,856,0\n",
    )
    (part,) = normal.parts
    assert part.measured == pytest.approx([3733e-6, 856e-6])
    few, many = part.predict(model("h100-sxm"))
    assert few > 3 * many
    assert normal.skipped == {"several nodes": 1}
    low = load(
        tmp_path,
        "aiconfigurator/deepep_low_latency.csv#dispatch",
        "src,kernel_source,node_num,hidden_size,num_token,num_topk,num_experts,combine_avg_t_us,combine_bandwidth_gbps,"
        "dispatch_avg_t_us,dispatch_bandwidth_gbps\n"
        "h100_sxm/sglang/0.5.12,deepep,1,2048,16,8,128,12.671,41.4,11.05,24.7\n",
    )
    assert low.parts[0].measured == pytest.approx([11.05e-6])
    assert low.parts[0].relative_errors(model("h100-sxm"))[0] < part.relative_errors(model("h100-sxm"))[0]


def test_published_exchange(tmp_path):
    loaded = load(
        tmp_path,
        "deepep/all_to_all_bandwidth.csv",
        "kernel,op,ep_size,latency_us,bottleneck_bw_gb_s,link,tokens_per_rank,hardware,source\n"
        "normal,dispatch,8,,153.0,NVLink,4096.0,H800 + CX7 400Gb/s,x\n"
        "normal,dispatch,16,,43.0,RDMA,4096.0,H800 + CX7 400Gb/s,x\n"
        "low_latency,combine,64,353.0,41.0,RDMA,128.0,H800 + CX7 400Gb/s,x\n"
        "normal_v2,dispatch,16,,90.0,RDMA,,SM90 NIC=CX7 SMs=12,x\n",
    )
    assert sum(loaded.skipped.values()) == 2
    for part in loaded.parts:
        assert part.predict(model("h800-sxm")) == pytest.approx(part.measured, rel=0.25)


def test_fits_name_known_constants():
    for fit in FITS:
        for constant in fit.constants:
            assert (
                getattr(
                    getattr(CATALOG.calibration(CATALOG.processor("h100-sxm")), constant.section),
                    constant.name,
                )
                is not None
            )
        assert set(fit.datasets) <= set(BY_NAME)
        assert len(fit.constants) <= 14


@pytest.mark.parametrize("name", list(BY_NAME))
def test_shipped_rows_are_predicted(name):
    loaded = BY_NAME[name].load(SHIPPED / name.partition("#")[0], CATALOG)
    assert loaded.parts
    errors = np.concatenate(
        [np.log(part.predict(model(part.device)) / part.measured) for part in loaded.parts]
    )
    assert np.isfinite(errors).all()
    assert np.median(np.abs(errors)) < 0.2
