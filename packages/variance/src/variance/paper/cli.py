"""The command line `gdyn-variance`."""

from typing import NoReturn

from gdyn_reproduce.cli import main as common_main
from gdyn_reproduce.registry import Command

COMMANDS = (
    Command(
        "train",
        "Train one network and measure estimators along the way.",
        run="variance.paper.commands:train",
        config="variance.paper.commands:TrainConfig",
    ),
    Command(
        "grid",
        "Run every configuration of a grid file (see grids/*.yaml); finished runs are skipped.",
        run="variance.paper.grid.command:run_grid",
        config="variance.paper.grid.command:GridConfig",
        options=("out", "dry_run"),
        positional=("file",),
    ),
    Command(
        "collect",
        "One tidy table of all finished runs below a folder.",
        run="variance.paper.grid.command:collect",
        config="variance.paper.grid.command:CollectConfig",
        options=(),
        positional=("folder",),
    ),
)


def main() -> NoReturn:
    """Run the command line and exit."""
    common_main("variance.paper:PAPER", COMMANDS)
