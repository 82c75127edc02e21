"""One call of each native operator, forward and backward, for a profiler.

python -m emorl.bench.ops.once --device cuda
"""

from __future__ import annotations

import argparse

import torch

from emorl.bench.ops.forms import function_of, obstacle
from emorl.bench.ops.operators import OPERATORS, call
from emorl.bench.passes import BOTH


def main() -> None:
    """Run every native operator on the cases of its device that it takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    device = parser.parse_args().device
    for name, operator in OPERATORS.items():
        for case in operator.batch_32 if device == "cuda" else operator.cases[:1]:
            if obstacle("native", name, device, case) is None:
                inputs = case.inputs(torch.float32, device)
                call(function_of("native", name, case), inputs, BOTH)


if __name__ == "__main__":
    main()
