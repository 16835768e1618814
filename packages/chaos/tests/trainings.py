"""Trainings by PyTorch itself, as oracles: their ends, and differences of them."""

from __future__ import annotations

import torch
from torch import nn

CE = nn.CrossEntropyLoss()
SETTINGS = {
    "sgd": (torch.optim.SGD, {"lr": 0.3}),
    "momentum": (torch.optim.SGD, {"lr": 0.3, "momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"lr": 0.2, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05}),
    "dampening": (torch.optim.SGD, {"lr": 0.3, "momentum": 0.5, "dampening": 0.4}),
    "maximize": (torch.optim.SGD, {"lr": 0.1, "maximize": True, "weight_decay": 0.1}),
    "adam": (torch.optim.Adam, {"lr": 0.05, "eps": 1e-3}),
    "adam-decay": (torch.optim.Adam, {"lr": 0.05, "eps": 1e-3, "weight_decay": 0.1, "betas": (0.8, 0.95)}),
    "adamw": (torch.optim.AdamW, {"lr": 0.05, "eps": 1e-3, "weight_decay": 0.2}),
    "amsgrad": (torch.optim.Adam, {"lr": 0.05, "eps": 1e-3, "amsgrad": True, "betas": (0.8, 0.5)}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.02, "eps": 1e-2, "weight_decay": 0.1}),
    "rmsprop-momentum": (torch.optim.RMSprop, {"lr": 0.01, "alpha": 0.8, "eps": 1e-2, "momentum": 0.7}),
    "rmsprop-centered": (
        torch.optim.RMSprop,
        {"lr": 0.01, "alpha": 0.8, "eps": 1e-2, "momentum": 0.7, "centered": True, "maximize": True},
    ),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.1, "eps": 1e-2, "lr_decay": 0.3, "weight_decay": 0.1}),
    "adagrad-started": (torch.optim.Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.1}),
    "adam-maximize": (torch.optim.Adam, {"lr": 0.02, "eps": 1e-3, "maximize": True}),
}


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def batches(num_steps):
    generator = torch.Generator().manual_seed(4)
    return [
        (
            torch.randn(6, 5, dtype=torch.float64, generator=generator),
            torch.randint(3, (6,), generator=generator),
        )
        for _ in range(num_steps)
    ]


def trained_as(model, optimizer, data, start, schedule=None):
    """Parameters after training this model with its optimiser."""
    nn.utils.vector_to_parameters(start.clone(), model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule) if schedule else None
    for x, y in data:
        optimizer.zero_grad()
        CE(model(x), y).backward()
        optimizer.step()
        if scheduler:
            scheduler.step()
    return flat(model)


def trained(kind, options, data, start, *, schedule=None, groups=None):
    """Parameters after training a network with PyTorch's own optimiser."""
    model = network()
    optimizer = kind(model.parameters() if groups is None else groups(model), **options)
    return trained_as(model, optimizer, data, start, schedule)


def differences(run, start, epsilon=1e-5):
    columns = [
        (run(start + epsilon * e) - run(start - epsilon * e)) / (2 * epsilon)
        for e in torch.eye(len(start), dtype=torch.float64)
    ]
    return torch.stack(columns, 1)


def flat(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()
