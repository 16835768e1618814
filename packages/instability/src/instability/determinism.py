"""What makes two runs comparable bit for bit, and a record of it.

Results are bit-reproducible for one machine, build and thread count; nothing more is promised.

Source: Sec. 6 of the package's README; torch's notes on reproducibility.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from typing import Any

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
    switches = _tf32_switches()
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in switches]
    try:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        for owner, name, off in switches:
            setattr(owner, name, off)
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        for owner, name, value in before:
            setattr(owner, name, value)


def _tf32_switches() -> list[tuple[Any, str, Any]]:
    """Return where TF32 is switched, and the value that switches it off, through the interface in use.

    torch has two interfaces, and reading the older one after the newer was used is an error.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    try:
        _ = matmul.allow_tf32, cudnn.allow_tf32
    except RuntimeError:
        parts: list[Any] = [matmul, getattr(cudnn, "conv"), getattr(cudnn, "rnn")]  # noqa: B009 - untyped in torch
        return [(part, "fp32_precision", "ieee") for part in parts]
    return [(matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]


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
        "tf32": any(getattr(owner, name) != off for owner, name, off in _tf32_switches()),
        "autocast": torch.is_autocast_enabled("cpu"),
    }
