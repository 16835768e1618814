"""Command line: the house commands and four of our own."""

from __future__ import annotations

from typing import NoReturn

import gdyn_reproduce.cli
from gdyn_reproduce.registry import Command

COMMANDS = (
    Command(
        "thresholds",
        "Print the stability bounds of an image, kernel size, label and step size.",
        run="instability.commands:thresholds",
        config="instability.config:ThresholdsConfig",
    ),
    Command(
        "sensitivity",
        "Probe how far rounding error drives copies of a built-in model apart.",
        run="instability.commands:sensitivity",
        config="instability.config:SensitivityConfig",
    ),
    Command(
        "train",
        "Train one network with PerturbedSGD and print its accuracies.",
        run="instability.commands:train",
        config="instability.config:TrainConfig",
    ),
    Command(
        "accuracy-spread",
        "Print mean and standard deviation of accuracies in files, over perturbations and over seeds.",
        run="instability.commands:accuracy_spread",
        config="instability.config:AccuracySpreadConfig",
        positional=("files",),
        variadic=True,
    ),
)


def main() -> NoReturn:
    """Run the command line."""
    gdyn_reproduce.cli.main("instability.paper:PAPER", COMMANDS)
