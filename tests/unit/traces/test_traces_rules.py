"""Names of kernels as profilers print them, and the groups that they belong to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.specs import OPERATOR_CLASSES
from simulator.traces import UNMATCHED, group_classes, kernel_group
from simulator.traces.rules import operator_group, rules

NAMES = {
    # cuBLAS, cuBLASLt (nvjet), CUTLASS, Triton, Marlin, hipBLASLt, llama.cpp
    "ampere_bf16_s16816gemm_bf16_128x256_ldg8_f2f_stages_64x3_tn": "gemm",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off_kernel__5x_cublas": "gemm",
    "nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNT": "gemm",
    "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_128x128_32x5_tn_align8>(T1::Params)": "gemm",
    "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>(cublasLt::cublasSplitKParams<float>)": "gemm",
    "void gemv2T_kernel_val<int, int, __nv_bfloat16, __nv_bfloat16, float>(cublasGemvParamsEx<int>)": "gemm",
    "void deep_gemm::fp8_gemm_kernel<4096u, 7168u, 128u, 112u, 128u, 1u, 6u>(__nv_bfloat16*, float*)": "gemm",
    "void deep_gemm::sm90_fp8_gemm_1d2d_impl<0u, 2112u, 7168u, 1u, 128u, 64u>(float*, int*)": "gemm",
    "void marlin::Marlin<(int)256, (int)1, (int)8, (int)8, (int)4, (int)2>(const int4 *)": "gemm",
    "_w8a8_block_fp8_matmul": "gemm",
    "Cijk_Alik_Bljk_BBS_BH_Bias_HA_S_SAV_UserArgs_MT256x256x64": "gemm",
    "void mul_mat_vec_q<(ggml_type)12, 1>(void const*, void const*, float*)": "gemm",
    "void dpsk::grouped_gemm::cuda::fp8_ptp128c::GemmKernel": "gemm",
    "fused_moe_kernel": "grouped-gemm",
    "void deep_gemm::fp8_m_grouped_gemm_contiguous<...>": "grouped-gemm",
    "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<cutlass::gemm::GroupProblemShape<...>>>": "grouped-gemm",
    "void mul_mat_id<12>": "grouped-gemm",
    # attention
    "void flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4, false, false>>(Flash_fwd_params)": "attention",
    "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<...>>>": "attention",
    "void cutlass::device_kernel<flash::FlashAttnFwdCombine<cute::tuple<...>>>": "decode-attention",
    "void flashinfer::BatchPrefillWithPagedKVCacheKernel<...>": "attention",
    "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel<...>::Params)": "attention",
    "_attn_fwd": "attention",
    "kernel_unified_attention_2d": "attention",
    "void flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>(Flash_bwd_params)": "attention-backward",
    "void cutlass::device_kernel<flash::FlashAttnBwdPreprocess<cute::tuple<...>>>": "attention-backward",
    "fmha_cutlassB_bf16_aligned_64x64_k64_sm80(PyTorchMemEffAttention::AttentionBackwardKernel<...>)": "attention-backward",
    "void flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128, 64, 128, 4>>(Flash_fwd_params)": "decode-attention",
    "void vllm::paged_attention_v2_kernel<uint16_t, uint16_t, 128, 16, 128>": "decode-attention",
    "void flashinfer::BatchDecodeWithPagedKVCacheKernel<...>": "decode-attention",
    "_fwd_grouped_kernel_stage1": "decode-attention",
    "void flash_attn_ext_vec_f16<128, 1, 4>": "decode-attention",
    "void flash_fwd_splitkv_mla_kernel<Flash_fwd_kernel_traits_mla<576, 64, 64, 8>>": "latent-decode",
    "void flash_fwd_mla_combine_kernel<float, 512>": "latent-decode",
    # communication
    "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)": "all-reduce",
    "ncclKernel_AllReduce_RING_LL_Sum_half(ncclWorkElem)": "all-reduce",
    "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)": "all-gather",
    "ncclDevKernel_ReduceScatter_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)": "reduce-scatter",
    "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)": "send",
    "void vllm::cross_device_reduce_1stage<__nv_bfloat16, 8>(RankData*, RankSignals)": "all-reduce",
    "void flashinfer::trtllm_allreduce_fusion::allreduce_fusion_kernel_oneshot_lamport<...>": "all-reduce",
    "void deep_ep::internode::dispatch<...>": "all-to-all",
    "void deep_ep::intranode::combine<__nv_bfloat16, 8, 768>": "all-to-all",
    "void deep_ep::intranode::notify_dispatch<8>": "collective-wait",
    # the rest of a layer
    "void vllm::rms_norm_kernel<c10::BFloat16>(c10::BFloat16*, c10::BFloat16 const*, float, int, int)": "normalization",
    "void layer_norm::ln_fwd_kernel<layer_norm::Kernel_traits<__nv_bfloat16, __nv_bfloat16>>": "normalization",
    "triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_rms_norm_0": "normalization",
    "void vllm::act_and_mul_kernel<c10::BFloat16, &vllm::silu_kernel<c10::BFloat16>>": "activation",
    "void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>": "activation",
    "void vllm::rotary_embedding_kernel<c10::BFloat16, true>": "rotary",
    "void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16, __nv_bfloat16>": "kv-store",
    "void per_token_group_quant_8bit_kernel<c10::BFloat16, c10::Float8_e4m3fn>": "quantize",
    "void transformer_engine::detail::cast_transpose_optimized_kernel<...>": "quantize",
    "void quantize_q8_1(float const*, void*, long)": "quantize",
    "void at::native::sbtopk::gatherTopK<float, unsigned int, 2, false>": "routing",
    "moe_align_block_size_kernel": "routing",
    "void cuda::reduce_fused_impl<__nv_bfloat16, false, false>": "permute",
    "void at::native::(anonymous namespace)::cunn_SoftMaxForward<8, float, float, float>": "loss-and-sampling",
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>": "optimizer",
    "void at::native::(anonymous namespace)::indexSelectLargeIndex<c10::BFloat16, long>": "embedding",
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>>": "elementwise",
    "triton_poi_fused_add_mul_3": "elementwise",
    "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float>>": "elementwise",
    "void at::native::elementwise_kernel<128, 4, direct_copy_kernel_cuda>": "copy",
    "Memcpy DtoD (Device -> Device)": "copy",
    "Memset (Device)": "copy",
    "Memcpy HtoD (Pinned -> Device)": "host-copy",
    "a_kernel_of_our_own(float*)": UNMATCHED,
}  # fmt: skip


@pytest.mark.parametrize(("name", "group"), NAMES.items())
def test_the_group_of_a_kernel(name: str, group: str) -> None:
    assert kernel_group(name) == group


def test_what_the_file_calls_a_kernel_helps_where_its_name_does_not() -> None:
    assert kernel_group("void ", "elementwise") == "elementwise"
    assert kernel_group("secret", "ep_combine") == "all-to-all"
    assert kernel_group("ampere_sgemm", "elementwise") == "gemm"


def test_every_rule_names_a_group_and_every_group_a_class() -> None:
    table = rules()
    assert {rule.group for rule in (*table.kernels, *table.operators)} <= set(table.groups)
    assert set(table.groups.values()) <= set(OPERATOR_CLASSES)
    assert set(group_classes()) == set(table.groups)


@given(st.text(max_size=60))
def test_any_name_has_one_group(name: str) -> None:
    assert kernel_group(name) in {*group_classes(), UNMATCHED}


def test_groups_of_memroofs_own_operators() -> None:
    assert operator_group("attention.norm") == "normalization"
    assert operator_group("moe.dispatch") == "permute"
    assert operator_group("mlp.residual") == "elementwise"
