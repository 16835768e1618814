"""Grids of runs as data: a pure expansion, executors that run its commands, and resumption."""

from variance.paper.grid.executors import Job, Outcome, jobs_for, run_jobs
from variance.paper.grid.expansion import expand, load_grid, run_name

__all__ = ["Job", "Outcome", "expand", "jobs_for", "load_grid", "run_jobs", "run_name"]
