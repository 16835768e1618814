"""Command line: the house commands and three of our own."""

from __future__ import annotations

from typing import NoReturn

import gdyn_reproduce.cli
from gdyn_reproduce.registry import Command

COMMANDS = (
    Command(
        "fit",
        "Stream a .npy file and save its top k components; resumes after an interruption.",
        run="eigengame.paper.commands:fit",
        config="eigengame.paper.commands:FitConfig",
        options=("out", "overwrite"),
        positional=("dataset",),
    ),
    Command(
        "eval",
        "Compare fitted components with an exact solver or a file of true vectors.",
        run="eigengame.paper.commands:evaluate",
        config="eigengame.paper.commands:EvalConfig",
        options=(),
        positional=("components",),
    ),
    Command(
        "embed",
        "Save the spectral embedding of a graph given by its edges.",
        run="eigengame.paper.commands:embed",
        config="eigengame.paper.commands:EmbedConfig",
        options=("out",),
        positional=("edges",),
    ),
)


def main() -> NoReturn:
    """Run the command line."""
    gdyn_reproduce.cli.main("eigengame.paper:PAPER", COMMANDS)
