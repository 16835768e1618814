from gdyn_reproduce.testing import pytest_runtest_setup

__all__ = ["pytest_runtest_setup"]  # the hook that skips absent data
