"""Every example in a docstring of the paper's part is true."""

import doctest
import importlib
import pkgutil

import pytest

import eigengame.paper

MODULES = [module.name for module in pkgutil.walk_packages(eigengame.paper.__path__, "eigengame.paper.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
