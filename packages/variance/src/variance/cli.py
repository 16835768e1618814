"""Command line: see `variance.paper.cli`."""

from variance.paper.cli import main

__all__ = ["main"]
