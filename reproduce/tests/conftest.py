from gdyn_reproduce.testing import pytest_runtest_setup  # noqa: F401 - the hook is the point
