from gdyn_reproduce.testing import pytest_runtest_setup  # noqa: F401
