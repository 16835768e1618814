"""What makes two runs comparable bit for bit, and a record of it.

Results are bit-reproducible for one machine, build and thread count; nothing more is promised.

Source: Sec. 6 of the package's README; torch's notes on reproducibility.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch

__all__ = ["bit_reproducible", "check_device", "numerical_settings"]


def check_device(device: str) -> str:
    """Return ``device`` if work can be bit-reproducible there.

    Raises:
        ValueError: it is neither cpu nor a GPU that torch sees; or it is a GPU and CUBLAS_WORKSPACE_CONFIG is
            not set, which must happen before the first call.
    """
    if device != "cpu" and not device.startswith("cuda"):
        raise ValueError(f"device={device} is unknown. Allowed: cpu, cuda, cuda:0, ...")
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise ValueError(f"device={device} was asked for, but torch sees no GPU. Use device=cpu.")
        if "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
            raise ValueError("On a GPU set CUBLAS_WORKSPACE_CONFIG=:4096:8 before starting Python.")
    return device


@contextlib.contextmanager
def bit_reproducible(device: str = "cpu") -> Iterator[None]:
    """Run torch with deterministic algorithms, without TF32 and without cuDNN's benchmark, then restore.

    Args:
        device: where the work will run, see ``check_device``.
    """
    check_device(device)
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        with float32_precision("ieee"):
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


@contextlib.contextmanager
def float32_precision(precision: Literal["ieee", "tf32"]) -> Iterator[None]:
    """Multiply float32 numbers in full, or let TF32 round them, then put both of torch's interfaces back.

    torch has two: reading the older one is an error after the newer was used, and writing only the older one
    leaves what ``set_float32_matmul_precision("medium")`` changed on the CPU.
    """
    cudnn, parts = torch.backends.cudnn, _float32_parts()
    newer = [part.fp32_precision for part in parts]
    try:
        older = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    except RuntimeError:
        older = None
    try:
        if older is not None:
            torch.set_float32_matmul_precision("highest" if precision == "ieee" else "high")
            cudnn.allow_tf32 = precision == "tf32"
        for part in parts:  # of the newer interface alone the older one may know nothing
            if older is None or part.fp32_precision not in (precision, "none"):
                part.fp32_precision = precision
        yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older[0])
            cudnn.allow_tf32 = older[1]
        for part, value in zip(parts, newer, strict=True):
            part.fp32_precision = value


def _float32_parts() -> list[Any]:
    """Return what has a precision of its own in torch's newer interface; nothing before that existed."""
    backends: Any = torch.backends
    owners = [backends.cuda.matmul]
    owners += [
        getattr(b, part, None)
        for b in (backends.cudnn, backends.mkldnn)
        for part in ("conv", "rnn", "matmul")
    ]
    return [owner for owner in owners if hasattr(owner, "fp32_precision")]


def numerical_settings(dtype: torch.dtype) -> dict[str, Any]:
    """Return everything that is known to change the rounding of a run: record it with every result.

    >>> numerical_settings(torch.float32)["dtype"]
    'float32'
    """
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "mkl": torch.backends.mkl.is_available(),
        "mkldnn": torch.backends.mkldnn.is_available(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "tf32": _uses_tf32(),
        "autocast": torch.is_autocast_enabled("cpu"),
    }


def _uses_tf32() -> bool:
    parts = _float32_parts()
    if parts:
        return any(part.fp32_precision not in ("ieee", "none") for part in parts)
    return torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
