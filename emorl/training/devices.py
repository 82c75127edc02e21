"""Devices, processes and precision, by Accelerate."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState

from emorl.fields import shown
from emorl.memory import keep_memory
from emorl.ops.extension import extension
from emorl.runs import RunFolder
from emorl.runs.lock import RunLock
from emorl.training.config import Precision, TrainerConfig


def make_accelerator(config: TrainerConfig) -> Accelerator:
    """The devices and the precision of a run; the only place that sets either for the process.

    On the CPU the process keeps its memory from now on (`keep_memory`) and counts float32 numbers
    below 1.2e-38 as 0.

    Raises:
        ValueError: if the environment has a number of processes or a rank that is none.
    """
    _require_launcher()
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    elif torch.is_deterministic_algorithms_warn_only_enabled():  # as an earlier run has set it
        torch.use_deterministic_algorithms(False)
    # Convolutions take TF32 unless told otherwise. Once torch's newer switches (fp32_precision) are
    # set, reading these raises an error, as torch.compile does in torch 2.10.
    tf32 = precision_of(config) == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    # Several runs of one process may differ in device and precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        # Without being told, Accelerate lets the processes of a launcher run apart on the CPU.
        cpu=config.device == "cpu" or not torch.accelerator.is_available(),
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        gradient_accumulation_steps=config.accumulation,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if accelerator.device.type == "cpu":
        keep_memory()
        _flush_denormals()
    return accelerator


def _require_launcher() -> None:
    for name, least in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)):
        text = os.environ.get(name, "1")
        if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
            expected = f"a whole number >= {least}, as a launcher sets it"
            raise ValueError(f"{name} in the environment: expected {expected}, got {shown(text)}")


def precision_of(config: TrainerConfig) -> Precision:
    """The precision, where "auto" is "tf32" on a GPU that has it (8.0 and newer), else "no"."""
    if config.precision != "auto":
        return config.precision
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    return "tf32" if on_gpu and torch.cuda.get_device_capability() >= (8, 0) else "no"


def _flush_denormals() -> None:
    """Count numbers too small for full precision as 0, in every thread.

    A CPU calculates many times slower with them, and moving averages of gradients that have become
    zero end there.
    """
    native = extension()
    if native is None:
        torch.set_flush_denormal(True)  # in this thread alone
    else:
        native.flush_denormals()


def lock_run(accelerator: Accelerator, run: RunFolder) -> RunLock:
    """Take a run's folder, in its main process; all processes of the run call this.

    Raises:
        ValueError: in every process, if another training is under way there.
        OSError: in the main process, if the folder cannot be written to.
    """
    lock: RunLock | Exception
    try:
        lock = RunLock(run, main=accelerator.is_main_process)
    except (ValueError, OSError) as error:
        lock = error
    refused = torch.tensor([int(isinstance(lock, Exception))], device=accelerator.device)
    refusals = int(accelerator.gather(refused).sum())
    if isinstance(lock, Exception):
        raise lock
    if refusals:
        raise ValueError(f"{run.path}: refused, as the main process says")
    return lock


def require_one_step(accelerator: Accelerator, step: int, run_dir: Path) -> None:
    """Make sure that all processes, maybe on several machines, have found the same checkpoint.

    Raises:
        ValueError: in every process, if they have not.
    """
    steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if min(steps) < max(steps):
        raise ValueError(
            f"{run_dir}: expected a folder that all processes see, got checkpoints of steps {steps}"
        )
