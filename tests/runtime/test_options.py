"""Tests the classification of ONNX Runtime's failures and of nodes that may stay on the CPU."""

import pytest

from foldserve.runtime.options import CudaOptions, heavy_operators, is_device_loss


@pytest.mark.parametrize(
    "message",
    [
        "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=x ; file=/a/b.cc",
        "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 719: unspecified launch failure ; GPU=0",
        "CUDNN failure 8: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0",
        "CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED",
        "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED",
        "CUDA error 46: all CUDA-capable devices are busy or unavailable",
    ],
)
def test_permanent_failures_are_device_losses(message):
    assert is_device_loss(message)


@pytest.mark.parametrize(
    "message",
    [
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN failure 3000: CUDNN_STATUS_NOT_SUPPORTED",
        "CUDNN failure 9: CUDNN_STATUS_NOT_SUPPORTED",
        "Got invalid dimensions for input: image for the following indices\n index: 1 Got: 700 Expected: 3",
        "",
    ],
)
def test_failures_of_one_run_are_not_device_losses(message):
    assert not is_device_loss(message)


def test_only_shape_arithmetic_may_stay_on_the_cpu():
    assert heavy_operators(["Shape", "Gather", "Concat"]) == []
    assert heavy_operators(["Shape", "Conv", "MatMul", "Conv"]) == ["Conv", "MatMul"]


def test_cuda_options_are_spelled_as_the_provider_does():
    options = CudaOptions(use_tf32=True, cudnn_conv_algo_search="EXHAUSTIVE", gpu_mem_limit_mib=1024)
    assert options.to_provider_options() == {
        "use_tf32": "1",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "gpu_mem_limit": "1073741824",
    }
    assert CudaOptions().to_provider_options()["use_tf32"] == "0"
