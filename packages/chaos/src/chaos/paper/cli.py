"""Command line: the house commands and ``train``."""

from __future__ import annotations

import sys
from typing import NoReturn

import gdyn_reproduce.cli
from gdyn_reproduce.registry import Command

COMMANDS = (
    Command(
        "train",
        "Train as the published train.py does; its option names, defaults and command lines.",
        run="chaos.paper.train.engine:train",
        config="chaos.paper.train.config:TrainConfig",
        rewrite="chaos.paper.train.published:repair",
    ),
)


def main() -> NoReturn:
    """Run the command line."""
    gdyn_reproduce.cli.main("chaos.paper:PAPER", COMMANDS)


def train() -> NoReturn:
    """Run ``gdyn-chaos train`` under the name ``chaos-train``."""
    gdyn_reproduce.cli.main("chaos.paper:PAPER", COMMANDS, ["train", *sys.argv[1:]])
