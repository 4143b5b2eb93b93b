"""The fused kernels compile for an H100 or H200 on any machine, and fit its shared memory at every size they take."""

import os

import pytest
import torch

from psa.inference.kernel_launches import blocks_for

triton = pytest.importorskip("triton", reason="needs Triton: pip install psa-slots[triton]")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

SHARED_MEMORY = 227 * 1024  # bytes of a block, compute capability 9.0
COUNTS = ("num_tokens", "num_slots", "num_features", "tokens_each", "splits")
SIZES = [(11, 64), (16, 128), (7, 256), (32, 256), (64, 64), (64, 256), (3, 2)]


def compiled(kernel, tokens: str, constants: dict, warps: int, stages: int):
    """A kernel with these constants; tokens and their gradients are ``tokens``, the other arrays float32."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    of_tokens = ("keys", "values", "grad_keys", "grad_values")
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        array = "*" + (tokens if name in of_tokens else "fp32")
        signature[name] = "constexpr" if name in constants else ("i32" if name in COUNTS else array)
        if signature[name].startswith("*"):
            attributes[index,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": warps, "num_stages": stages}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("num_slots", "num_features"), SIZES)
def test_kernels_compile_for_hopper_and_fit_its_shared_memory(dtype, num_slots, num_features):
    import triton.language as tl

    from psa.inference.kernels.backward import gradient_kernel
    from psa.inference.kernels.forward import moments_kernel

    blocks = blocks_for(torch.empty(4, 1024, num_features, dtype=dtype, device="meta"), num_slots)
    low = dtype == torch.bfloat16
    constants = {"SAME": True, "WEIGHTED": True, "LOW": low, "OPERAND": tl.bfloat16, "ROWS": blocks.rows}
    constants |= {"SLOTS": blocks.slots, "FEATURES": blocks.features, "CHUNKS": blocks.chunks}
    for kernel, more in (
        (moments_kernel, {"KEEP": True}),
        (gradient_kernel, {"KEPT": True, "KEYS": True, "VALUES": True}),
    ):
        made = compiled(kernel, "bf16" if low else "fp32", constants | more, blocks.warps, blocks.stages)
        assert made.metadata.shared <= SHARED_MEMORY
        assert len(made.asm["cubin"]) > 0
        print(f"{kernel.__name__}, {dtype}, K {num_slots}, D {num_features}: {made.metadata.shared} bytes shared")
