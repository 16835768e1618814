"""Every example in a docstring is true."""

import doctest
import importlib
import pkgutil

import pytest

import eigengame

MODULES = [
    module.name
    for module in pkgutil.walk_packages(eigengame.__path__, "eigengame.")
    if not module.name.startswith(("eigengame.paper", "eigengame.cli", "eigengame.__main__"))
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
