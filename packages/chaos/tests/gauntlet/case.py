"""Models, losses and batches that people bring, as data: every tool of o2grad is tried on each of them.

A case either agrees with plain reverse-mode autograd or is refused with a sentence that matches `refused`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

CE = nn.CrossEntropyLoss()
CASES: dict[str, Case] = {}


@dataclass
class Case:
    """One model with its loss and batch."""

    model: nn.Module
    loss: Callable[..., torch.Tensor]
    x: Any
    y: Any
    refused: str = ""
    kwargs: dict[str, Any] = field(default_factory=dict)
    by_differences: bool = False  # autograd's own second derivative is wrong


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    """Register a case under its function's name."""
    CASES[make.__name__] = make  # type: ignore[assignment]
    return make


class Net(nn.Module):
    """Layers by name, and what they make of an input: ``compute(net, x)``."""

    def __init__(self, compute: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        self.compute = compute
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.compute(self, *args, **kwargs)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def classes(batch: int, count: int = 3) -> torch.Tensor:
    return torch.arange(batch) % count


def mlp(inputs: int = 5, *, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 4), activation(), nn.Linear(4, 3)).double()


def shift(module, args):
    return (args[0] * torch.linspace(-1, 2, args[0].shape[-1], dtype=args[0].dtype) + 1.0,)
