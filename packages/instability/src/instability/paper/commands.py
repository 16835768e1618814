"""The package's own commands; each takes its configuration and prints."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gdyn_common.errors import require_count
from gdyn_common.storage import read_array, read_arrays
from gdyn_reproduce.runs import RunOptions
from instability.copies import Copies
from instability.determinism import bit_reproducible
from instability.metrics import accuracy_spread as spread_of
from instability.paper.config import NetworkConfig, check_not_empty, check_perturbations, check_rates
from instability.paper.images import make_image
from instability.paper.networks import build_model, load_configured_images
from instability.paper.training import TrainingPlan, make_copies, test_accuracies
from instability.paper.training import train as train_copies
from instability.pde.reduced_map import ReducedMap
from instability.perturbed_sgd import PerturbedSGD
from instability.sensitivity.study import numerical_sensitivity
from instability.stability import linear_thresholds

__all__ = ["accuracy_spread", "sensitivity", "thresholds", "train"]


@dataclass
class ThresholdsConfig(RunOptions):
    """Stability bounds of a setting.

    Attributes:
        image: checkerboard, noise, or the path of a .npy matrix.
        image_size: Side of a generated image.
        kernel_size: Side of the kernel.
        weight_decay: Weight decay of the non-linear PDE, for its bounds on the step size.
        label: 0 or 1.
        beta: Slope of the Swish.
        normalize: sum or mean over positions.
    """

    image: str = "checkerboard"
    image_size: int = 256
    kernel_size: int = 32
    learning_rate: float = 1e-8
    weight_decay: float = 20.0
    label: int = 1
    beta: float = 1.0
    normalize: str = "sum"

    def __post_init__(self) -> None:
        if self.label not in (0, 1):
            raise ValueError(f"label={self.label} must be 0 or 1.")
        check_rates("weight_decay", [self.weight_decay], zero=True)
        if self.image not in ("checkerboard", "noise"):
            _check_unset(self, "image_size", f"image={self.image}, which has its own")


@dataclass
class DigitsConfig(NetworkConfig):
    """A small network on digits, trained once, with momentum."""

    dataset: str = "digits"
    train_size: int = 1200
    model: str = "tiny"
    batch_size: int = 32
    momentum: float = 0.9
    nesterov: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.seeds) > 1:
            raise ValueError(f"seeds={self.seeds}: this command trains from one seed; give one.")
        for key, model in (("depth", "resnet"), ("tiny_blocks", "tiny"), ("tiny_width", "tiny")):
            if self.model != model:
                _check_unset(self, key, f"model={self.model}")


@dataclass
class SensitivityConfig(DigitsConfig):
    """Rounding sensitivity of a built-in model.

    Attributes:
        perturbations: The integers k; the first must be 1.
        every: Updates between measurements.
    """

    perturbations: list[int] = field(default_factory=lambda: [1, 1, 2, 3, 5])
    num_steps: int = 200
    every: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_perturbations(self.perturbations)
        for key in ("num_steps", "every"):
            require_count(key, getattr(self, key))


@dataclass
class TrainConfig(DigitsConfig):
    """One training run.

    Attributes:
        perturbation: The integer k of the update; 1 is plain SGD.
        num_epochs: Passes over the data.
        milestones: Epochs at which the learning rate is divided by 10.
    """

    perturbation: int = 1
    num_epochs: int = 8
    milestones: list[int] = field(default_factory=lambda: [6])

    def __post_init__(self) -> None:
        super().__post_init__()
        check_perturbations([1, self.perturbation])
        require_count("num_epochs", self.num_epochs)


@dataclass
class AccuracySpreadConfig(RunOptions):
    """Mean and spread of accuracies in files.

    Attributes:
        files: .npy or .npz files, each a (perturbation, seed, epoch) array, or run folders of table1.
        last: Final epochs that are averaged; not given, ten or as many as there are.
    """

    files: list[str] = field(default_factory=list)
    last: int | None = None

    def __post_init__(self) -> None:
        check_not_empty("files", self.files)


def _check_unset(config: RunOptions, key: str, beside: str) -> None:
    """Raise ValueError if an option that nothing reads beside another was given."""
    value = getattr(config, key)
    if value != getattr(type(config), key):
        raise ValueError(f"{key}={value} has no effect with {beside}; leave it out.")


def thresholds(config: ThresholdsConfig) -> None:
    """Print the bounds of the linear PDE and, on a checkerboard, those of the non-linear one."""
    image = make_image(config.image, config.image_size)
    bounds = linear_thresholds(
        image,
        config.kernel_size,
        config.learning_rate,
        residual=-0.5 if config.label == 1 else 0.5,
        beta=config.beta,
        normalize=config.normalize,  # type: ignore[arg-type]  # checked by linear_thresholds
    )
    print(f"linear PDE, {config.image} {image.shape}, kernel {config.kernel_size}, label {config.label}")
    print(f"  alpha_min      {bounds.alpha_min:.10g}")
    print(f"  alpha_max      {bounds.alpha_max:.10g}   at learning_rate {config.learning_rate:g}")
    print(f"  periodic_bound {bounds.periodic_bound:.10g}   (whole image, an upper bound of alpha_min)")
    if config.weight_decay > 0:
        print(f"non-linear PDE, weight_decay {config.weight_decay:g}")
        print(
            f"  learning rate < {2 / config.weight_decay:.6g}   (2 / weight decay: directions without signal)"
        )
    if config.image == "checkerboard":
        reduced = ReducedMap(
            config.kernel_size, config.image_size, config.weight_decay, config.label, config.beta
        )
        origin = float(reduced.sharpness(0.0))
        print(f"  curvature at w = 0: {origin:.6g}")
        if origin < 0 and config.label == 1:
            c = reduced.fixed_point()
            sharpness = float(reduced.sharpness(c))
            print(f"  learning rate < {2 / sharpness:.6g}   (2 / sharpness {sharpness:.6g} at c = {c:.6g})")


def sensitivity(config: SensitivityConfig) -> int:
    """Train copies of a built-in model, print the report, and return 1 if a null control failed."""
    seed = config.seeds[0]
    images = load_configured_images(config, seed)
    dtype = getattr(torch, config.dtype)

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = images.batch(seed, step, config.batch_size)
        return x.to(device=config.device, dtype=dtype), y.to(config.device)

    def accuracy(model: nn.Module) -> float:
        copies = Copies(model, lambda parameters: torch.optim.SGD(parameters, lr=0.0), (1,))
        return float(test_accuracies(copies, images)[0])

    with bit_reproducible(config.device):
        report = numerical_sensitivity(
            lambda: build_model(config, images, seed),
            batch,
            lambda parameters: PerturbedSGD(
                parameters,
                lr=config.learning_rate,
                momentum=config.momentum,
                nesterov=config.nesterov,
                weight_decay=config.weight_decay,
            ),
            config.num_steps,
            config.perturbations,
            seed,
            evaluate=accuracy,
            every=config.every,
        )
    print(report.summary())
    return 0 if report.controls_hold else 1


def train(config: TrainConfig) -> None:
    """Train one network and print its accuracies after each epoch."""
    seed = config.seeds[0]
    images = load_configured_images(config, seed)
    epoch = images.steps_per_epoch(config.batch_size)
    plan = TrainingPlan.of(
        config, config.num_epochs * epoch, milestones=[m * epoch for m in config.milestones]
    )
    # Trained without a baseline beside it: a single copy's own perturbation is what was asked for.
    copies = make_copies(build_model(config, images, seed), plan, [1])
    for group in copies.optimizers[0].param_groups:
        group["perturbation"] = config.perturbation

    epochs = itertools.count(1)

    def measure(copies: Copies, train_accuracy: np.ndarray) -> list[np.ndarray]:
        test = test_accuracies(copies, images)
        print(f"epoch {next(epochs)}: train {train_accuracy[0]:.2%}, test {test[0]:.2%}", flush=True)
        return [train_accuracy, test]

    with bit_reproducible(config.device):
        train_copies(copies, images, plan, seed=seed, measure=measure, measure_every=epoch)


def accuracy_spread(config: AccuracySpreadConfig) -> None:
    """Print, for each file, mean and standard deviation of the final accuracies along both axes."""
    for name in config.files:
        path = Path(name)
        for label, values in _read_accuracies(path / "arrays.npz" if path.is_dir() else path).items():
            last = min(10, values.shape[-1]) if config.last is None else config.last
            spread = spread_of(values, last=last)
            final = values[:, :, -last:].mean(axis=2)
            perturbations, seeds, _ = values.shape
            print(f"{name} {label}: mean {final.mean():.3f}, {perturbations} perturbations x {seeds} seeds")
            print(f"  std over perturbations, per seed: {np.round(spread['over_perturbations'], 3).tolist()}")
            print(f"  std over seeds, per perturbation: {np.round(spread['over_seeds'], 3).tolist()}")


def _read_accuracies(path: Path) -> dict[str, np.ndarray]:
    """Read (perturbation, seed, epoch) arrays from a .npy, a .npz, or a run folder's arrays."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give .npy or .npz files, or run folders of table1.")
    if path.suffix == ".npy":
        return {"": read_array(path)}
    arrays = read_arrays(path)
    if "activations" in arrays:
        return {
            str(name): np.moveaxis(test, (0, 1, 2), (1, 2, 0))
            for name, test in zip(arrays["activations"], arrays["test"], strict=True)
        }
    return arrays
