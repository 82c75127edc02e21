"""Random calls of the operators, values and gradients against float64, within derived bounds.

    python tests/ops/random_cases.py --op mixture_nll --backend native --cases 5000 --seed 0

A case is a function of operator, seed and index. With --out FILE the counts are kept there, and a
run that was stopped goes on; `--first INDEX --cases 1` repeats one case. --simt runs the CUDA
kernels on the CPU as `native` (docs/simt.md). The exit code is 1 where a case is wrong.
"""

# ruff: noqa: E402  (a script finds its neighbours, and Triton its interpreter, before imports)
from __future__ import annotations

import argparse
import copy
import json
import os
import random
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent), str(HERE)]
    os.environ.setdefault("TRITON_INTERPRET", "1")

import mixture_nll_testing
import slot_iterations_testing
import test_convolution
import test_spatial_broadcast
import torch
from rounding_testing import FACTOR, rounding_of
from slot_attention_testing import roundings as attention_roundings
from test_slot_attention_drawn import Draw, mask_of, tensors
from test_slot_attention_drawn import results as attention_results
from torch import Tensor

from emorl.bench.accuracy import assert_as_accurate_as_plain
from emorl.ops import library

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SAVE_EVERY = 50  # cases
# A case's results in a dtype by a backend, and how far rounding may move them.
Results = dict[str, Tensor]
Run = Callable[[torch.dtype, str], Results]
Case = tuple[str, torch.dtype, Run, Callable[[Results], dict[str, float]]]


def side(rng: random.Random, most: int) -> int:
    """Often one of the sizes at which loops have their ends, rarely 0."""
    ends = [n for n in (0, 1, 1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65) if n <= most]
    return rng.choice(ends) if rng.random() < 0.5 else rng.randint(1, most)


def slot_attention_case(rng: random.Random, dtype: torch.dtype) -> Case:
    draw = Draw(
        batch=side(rng, 3),
        slots=max(1, side(rng, 19)),
        pixels=max(1, side(rng, 150)),
        key_width=side(rng, 20),
        value_width=rng.choice([None, side(rng, 20)]),
        heads=rng.choice([1, 1, 2, 3]),
        joint=rng.random() < 0.5,
        strides=rng.randrange(3),
        biased=rng.random() < 0.5,
        masked=rng.random() < 0.5,
        eps=rng.choice([1e-8, 1e-2]),
    )
    bias = rng.choice([0.0, 0.0, 10.0, 100.0])
    given = tensors(draw)
    if draw.biased:
        given["logit_bias"] += bias
    given = {name: x.to(dtype) for name, x in given.items()}

    def run(dtype: torch.dtype, backend: str) -> Results:
        return attention_results(draw, {n: x.to(dtype) for n, x in given.items()}, backend)

    def bounds(truth: Results) -> dict[str, float]:
        mask = mask_of(draw)
        options = {"eps": draw.eps, "slot_mask": mask, "heads": draw.heads, "joint": draw.joint}
        return attention_roundings(given, truth["attention"], **options)

    return f"{draw} bias {bias}", dtype, run, bounds


def mixture_nll_case(rng: random.Random, dtype: torch.dtype) -> Case:
    kind = rng.choice(["gaussian", "mixture", "mixture_joint"])
    slots, channels = max(1, side(rng, 11)), side(rng, 5)
    size = (side(rng, 3), slots, channels + 1, side(rng, 23), side(rng, 23))
    options: dict[str, Any] = {
        "kind": kind,
        "sigma": 10 ** rng.uniform(-1.2, 0.3),
        "rgb_activation": rng.choice(["sigmoid", "none"]),
        "density": rng.random() < 0.5,
    }
    if kind != "gaussian" and rng.random() < 0.3:
        options["sigma"] = torch.linspace(0.1, 0.4, slots, dtype=torch.float64)
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    decoded = torch.randn(size, generator=generator, dtype=torch.float64) * rng.choice([1, 1, 4])
    if rng.random() < 0.5:  # channels last
        decoded = decoded.movedim(2, -1).contiguous().movedim(-1, 2)
    image = torch.rand((size[0], channels, *size[3:]), generator=generator, dtype=torch.float64)
    given = {"image": image, "rgb": decoded[:, :, :-1], "mask_logits": decoded[:, :, -1:]}
    given = {name: x.to(dtype) for name, x in given.items()}
    sigma = options["sigma"]
    wide = torch.promote_types(dtype, torch.float32)
    if isinstance(sigma, Tensor):
        options["sigma"] = sigma.to(wide)

    def run(dtype: torch.dtype, backend: str) -> Results:
        values = {n: x.to(dtype).requires_grad_(n != "image") for n, x in given.items()}
        return mixture_nll_testing.results(values, backend, **options)

    def bounds(_: Results) -> dict[str, float]:
        return mixture_nll_testing.roundings(given, **options)

    return f"{list(size)} {options}", dtype, run, bounds


def spatial_broadcast_case(rng: random.Random, dtype: torch.dtype) -> Case:
    slots, channels, border = side(rng, 40), side(rng, 70), rng.random() < 0.5
    height, width = (max(2 * border, side(rng, 33)) for _ in range(2))
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    scale, last = rng.choice([0.1, 1, 8]), rng.random() < 0.5
    shape = (slots, channels, 3, 3) if border else (slots, channels)
    position = torch.randn((channels, height, width), generator=generator, dtype=torch.float64)
    if last:
        position = position.movedim(0, -1).contiguous().movedim(-1, 0)
    slot = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    given = {"slot": slot.to(dtype), "position": position.to(dtype)}
    activation = rng.choice(["elu", "none"])  # ReLU's slope jumps where rounding may end

    def run(dtype: torch.dtype, backend: str) -> Results:
        values = {name: x.to(dtype).requires_grad_() for name, x in given.items()}
        return test_spatial_broadcast.outputs_and_gradients(values, backend, activation)

    def bounds(truth: Results) -> dict[str, float]:
        return test_spatial_broadcast.roundings(given, truth["output"])

    sizes = f"{list(shape)} {list(position.shape)} {'last' if last else 'first'}"
    return f"{sizes} {activation}", dtype, run, bounds


def convolution_case(rng: random.Random, dtype: torch.dtype) -> Case:
    on_gpu = library.on_gpu(torch.empty(0))
    kernel = rng.choice([1, 3, 5]) if on_gpu else rng.choice([3, 5])
    padding, stride = rng.randrange(kernel), rng.choice([1, 2]) if on_gpu else 1
    if dtype.itemsize < 4:  # of these, PyTorch's own on the CPU may be NaN (2.13, without a bias)
        stride = 1
    channels, out = (
        side(rng, 20) or 1 if on_gpu else 16 * rng.choice([1, 1, 2, 3]) for _ in range(2)
    )
    least = max(1, kernel - 2 * padding)
    height, width = (max(least, side(rng, 24)) for _ in range(2))
    generator = torch.Generator().manual_seed(rng.randrange(2**31))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = normal(rng.choice([1, 2, 3]), channels, height, width)
    if rng.random() < 0.5:
        x = x.contiguous(memory_format=torch.channels_last)
    weight = normal(out, channels, kernel, kernel) / (channels**0.5 * kernel)
    given = {n: t.to(dtype) for n, t in {"x": x, "weight": weight, "bias": normal(out)}.items()}
    options = {"padding": padding, "stride": stride, "activation": rng.choice(["elu", "none"])}

    def run(dtype: torch.dtype, backend: str) -> Results:
        values = {name: t.to(dtype).requires_grad_() for name, t in given.items()}
        return test_convolution.results(values, backend=backend, **options)

    def bounds(_: Results) -> dict[str, float]:
        exact = {name: t.double() for name, t in given.items()}
        return test_convolution.roundings(exact, dtype, padding, stride)

    return f"{list(x.shape)} {list(weight.shape)} {options}", dtype, run, bounds


def slot_iterations_case(rng: random.Random, dtype: torch.dtype) -> Case:
    def least_1(most: int) -> int:
        return max(1, side(rng, most))

    case = slot_iterations_testing.Case(
        batch=least_1(3),
        inputs=least_1(80),
        channels=least_1(33),
        slots=least_1(13),
        width=1 + least_1(32),  # one number alone, less its mean, is 0 but for rounding
        hidden=least_1(40),
        queries=rng.choice([None, least_1(20)]),
        values=rng.choice([None, least_1(20)]),
        biases=rng.random() < 0.5,
        iterations=rng.randint(1, 4),
        seed=rng.randrange(2**31),
    )
    module = case.module()
    with torch.no_grad():  # ReLU's slope jumps at 0, on either side of which rounding may end
        module.bias_in.copy_(8 * module.bias_in.sign())
    names = ["states", "x", *dict(module.named_parameters())]

    def run(dtype: torch.dtype, backend: str) -> Results:
        own = copy.deepcopy(module).to(dtype)
        results = slot_iterations_testing.run(own, case.x(dtype=dtype), backend)
        return dict(zip(names, results, strict=True))

    def bounds(_: Results) -> dict[str, float]:
        """In units of half an eps of float32, in which they are measured."""
        x = case.x(dtype=torch.float32)
        errors = rounding_of(slot_iterations_testing.run, copy.deepcopy(module).float(), x)
        unit = torch.finfo(torch.float32).eps / 2
        return {name: FACTOR * error / unit for name, error in zip(names, errors, strict=True)}

    return str(case), dtype, run, bounds


CASES: dict[str, Callable[[random.Random, torch.dtype], Case]] = {
    "slot_attention": slot_attention_case,
    "mixture_nll": mixture_nll_case,
    "spatial_broadcast": spatial_broadcast_case,
    "convolution": convolution_case,
    "slot_iterations": slot_iterations_case,
}


def case_of(op: str, backend: str, seed: int, index: int) -> Case:
    rng = random.Random(f"{op} {seed} {index}")
    dtypes = DTYPES
    on_cpu = op == "convolution" and not library.on_gpu(torch.empty(0))
    if on_cpu or op == "slot_iterations":
        dtypes = DTYPES[:2]
    if backend == "reference":  # in float64 it is the truth
        dtypes = tuple(dtype for dtype in dtypes if dtype != torch.float64)
    return CASES[op](rng, rng.choice(dtypes))


def fault(case: Case, backend: str) -> str | None:
    """What is wrong with a case, if anything; plain PyTorch itself gets the bounds alone."""
    _, dtype, run, bounds = case
    truth = run(torch.float64, "reference")
    found = run(dtype, backend)
    plain = run(dtype, "reference")
    if backend == "reference":
        plain = {name: truth[name].to(x.dtype) for name, x in plain.items()}
    try:
        assert_as_accurate_as_plain(found, plain, truth, bounds(truth))
    except AssertionError as error:
        return str(error).splitlines()[0]
    return None


def compare(
    op: str,
    backend: str,
    cases: int,
    seed: int = 0,
    first: int = 0,
    out: Path | None = None,
    before: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Run cases `first` to `first + cases`, from where `out` says that an earlier run stopped.

    Args:
        op: The operator.
        backend: Of the operator.
        cases: How many.
        seed: Of all cases.
        first: Index of the first one.
        out: Where the counts are kept, as JSON.
        before: Called with each case's name.

    Returns:
        The counts: `done`, and what was `wrong`, with index, case and message.
    """
    asked = {"op": op, "backend": backend, "seed": seed, "first": first}
    counts: dict[str, Any] = {**asked, "done": 0, "wrong": []}
    if out is not None and out.exists():
        earlier = json.loads(out.read_text())
        if {name: earlier.get(name) for name in asked} == asked:
            counts = earlier
    while counts["done"] < cases:
        index = first + counts["done"]
        before(f"{op} {seed} {index}")
        case = case_of(op, backend, seed, index)
        if message := fault(case, backend):
            wrong = {"index": index, "case": case[0], "dtype": str(case[1]), "fault": message}
            print(f"{op} {backend} seed {seed} index {index}: {message}: {wrong['case']}")
            counts["wrong"].append(wrong)
        counts["done"] += 1
        if out is not None and (counts["done"] % SAVE_EVERY == 0 or counts["done"] == cases):
            part = out.with_suffix(".part")
            part.write_text(json.dumps(counts, indent=1) + "\n")
            part.replace(out)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", choices=CASES, required=True)
    parser.add_argument("--backend", choices=["native", "triton", "reference"], required=True)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--simt", action="store_true", help="CUDA kernels on the CPU as `native`")
    options = vars(parser.parse_args())
    if options.pop("simt"):
        if options["op"] == "slot_iterations":
            parser.error("slot_iterations has no CUDA kernels")
        if "EMORL_SIMT_CASES" not in os.environ:
            return in_simulator(sys.argv[1:])
        options["before"] = configured_simulator()
    print(f"seed {options['seed']}")
    counts = compare(**options)
    wrong = len(counts["wrong"])
    print(f"{counts['op']} {counts['backend']}: {counts['done']} cases, {wrong} wrong")
    return 1 if wrong else 0


def in_simulator(arguments: list[str]) -> int:
    """Run this script with the package whose native operators are simulated."""
    sys.path.insert(0, str(HERE.parent / "simt"))
    from simt_build import ROOT, Simulator

    simulator = Simulator(ROOT / "build" / "simt")
    simulator.build()
    folders = [str(simulator.folder), str(HERE.parent / "simt")]
    variables = {"PYTHONPATH": os.pathsep.join(folders), "EMORL_SIMT_CASES": "1"}
    variables["EMORL_TEST_DEVICE"] = "cpu"
    command = [sys.executable, str(Path(__file__)), *arguments]
    return subprocess.run(command, env=os.environ | variables).returncode


def configured_simulator() -> Callable[[str], None]:
    """Makes operators take a GPU's sizes; gives each case an order of threads by its name."""
    import simt_plugin

    simt_plugin.pytest_configure()
    kernels = simt_plugin.library()

    def configure(name: str) -> None:
        order, _, processors = simt_plugin.chosen_for(name)
        kernels.simt_configure(
            simt_plugin.ORDERS.index(order), zlib.crc32(name.encode()), processors
        )

    return configure


if __name__ == "__main__":
    sys.exit(main())
