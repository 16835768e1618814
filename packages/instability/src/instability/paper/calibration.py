"""Expected cost of a run on this machine, from a few timed steps."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from gdyn_reproduce.data import is_available
from gdyn_reproduce.runs import Estimate
from instability.paper.config import NetworkConfig, OneLayerConfig
from instability.paper.data import ImageSet
from instability.paper.networks import build_model, load_configured_images
from instability.paper.training import TrainingPlan, make_copies, train
from instability.pde.convolution import checkerboard
from instability.pde.nonlinear import initial_kernel

__all__ = ["one_layer_cost", "steps_per_epoch", "training_cost"]

REPEATS = 3
CIFAR10_TRAINING_IMAGES = 50_000


def one_layer_cost(config: OneLayerConfig, num_simulations: int) -> Estimate:
    """Return the cost of ``num_simulations`` runs of ``config.num_steps`` gradient steps each."""
    size = config.image_size
    start = initial_kernel(config.kernel_size)
    network = config.options().network(checkerboard(size), start, config.label)
    kernel = torch.from_numpy(start).to(getattr(torch, config.dtype))
    seconds = _median_seconds(lambda: network.evaluate(kernel))
    taps = config.kernel_size**2 if config.method == "direct" else 16
    return Estimate(seconds * num_simulations * config.num_steps, 8.0 * size**2 * taps)


def steps_per_epoch(config: NetworkConfig) -> int:
    """Return batches per epoch, without reading data that is not there."""
    images = config.train_size or CIFAR10_TRAINING_IMAGES
    if is_available(config.dataset, config.data_root):
        images = len(load_configured_images(config, config.seeds[0]).train_x)
    return -(-images // config.batch_size)


def training_cost(config: NetworkConfig, num_copy_steps: int) -> Estimate:
    """Return the cost of that many updates of one copy; zeros of CIFAR-10's shape replace missing data."""
    images = (
        load_configured_images(config, config.seeds[0])
        if is_available(config.dataset, config.data_root)
        else _blank_cifar(config.batch_size)
    )
    plan = TrainingPlan(
        REPEATS, config.batch_size, config.learning_rate, (), config.momentum, config.nesterov
    )
    copies = make_copies(build_model(config, images, 0), plan, [1])
    stamps = [time.perf_counter()]
    train(
        copies,
        images,
        plan,
        seed=0,
        measure=lambda _, accuracy: stamps.append(time.perf_counter()) or [accuracy],  # type: ignore[func-returns-value]
        measure_every=1,
    )
    seconds = float(np.median(np.diff(stamps)))
    weights = sum(p.numel() for p in copies.models[0].parameters())
    return Estimate(seconds * num_copy_steps, 12.0 * weights)


def _blank_cifar(count: int) -> ImageSet:
    x, y = np.zeros((count, 3, 32, 32), np.uint8), np.arange(count) % 10
    return ImageSet("cifar10", x, y, x, y, np.zeros(3), np.ones(3), 255.0, True, {})


def _median_seconds(task: Callable[[], object]) -> float:
    stamps = [time.perf_counter()]
    for _ in range(REPEATS):
        task()
        stamps.append(time.perf_counter())
    return float(np.median(np.diff(stamps)))
