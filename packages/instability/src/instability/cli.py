"""Command line: see ``instability.paper.cli``."""

from instability.paper.cli import main

__all__ = ["main"]
