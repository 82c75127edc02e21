"""Compile an operator's Triton kernels for GPUs that need not be there; prints one line each.

    python tests/compile_triton.py <operator> <compute capability, as 80> ...

A process of its own, since Triton decides when a kernel is defined whether to interpret it.
"""

from __future__ import annotations

import importlib
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def main(operator: str, capabilities: list[int]) -> None:
    for entry in importlib.import_module(f"emorl.ops.triton.{operator}").AOT:
        kernel, signature, constants, *options = entry
        types = {**signature, **dict.fromkeys(constants, "constexpr")}
        source = ASTSource(kernel, {name: types[name] for name in kernel.arg_names}, constants)
        sizes = " ".join(f"{name}={value}" for name, value in constants.items())
        for capability in capabilities:
            target = GPUTarget("cuda", capability, 32)
            compiled = triton.compile(source, target=target, options=dict(*options))
            cubin, shared = len(compiled.asm["cubin"]), compiled.metadata.shared
            print(
                f"{kernel.__name__} sm_{capability}: cubin {cubin} bytes, shared memory {shared}"
                f" bytes; {sizes}"
            )


if __name__ == "__main__":
    main(sys.argv[1], [int(argument) for argument in sys.argv[2:]])
