"""Command line: see `dd_two_player.paper.cli`."""

from dd_two_player.paper.cli import main

__all__ = ["main"]
