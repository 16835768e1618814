"""Command line: the house commands."""

from __future__ import annotations

from typing import NoReturn

import gdyn_common.cli
from gdyn_common.cli import Command

COMMANDS: tuple[Command, ...] = ()


def main() -> NoReturn:
    """Run the command line."""
    gdyn_common.cli.main("chaos.paper:PAPER", COMMANDS)
