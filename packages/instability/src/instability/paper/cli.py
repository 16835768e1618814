"""Command line: the house commands and four of our own."""

from __future__ import annotations

from typing import NoReturn

import gdyn_reproduce.cli
from gdyn_reproduce.registry import Command

COMMANDS = (
    Command(
        "thresholds",
        "Print the stability bounds of an image, kernel size, label and step size.",
        run="instability.paper.commands:thresholds",
        config="instability.paper.commands:ThresholdsConfig",
        options=(),
    ),
    Command(
        "sensitivity",
        "Probe how far rounding error drives copies of a built-in model apart.",
        run="instability.paper.commands:sensitivity",
        config="instability.paper.commands:SensitivityConfig",
        options=(),
    ),
    Command(
        "train",
        "Train one network with PerturbedSGD and print its accuracies.",
        run="instability.paper.commands:train",
        config="instability.paper.commands:TrainConfig",
        options=(),
    ),
    Command(
        "accuracy-spread",
        "Print mean and standard deviation of accuracies in files, over perturbations and over seeds.",
        run="instability.paper.commands:accuracy_spread",
        config="instability.paper.commands:AccuracySpreadConfig",
        positional=("files",),
        variadic=True,
        options=(),
    ),
)


def main() -> NoReturn:
    """Run the command line."""
    gdyn_reproduce.cli.main("instability.paper:PAPER", COMMANDS)
