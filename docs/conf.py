"""Sphinx configuration."""

from __future__ import annotations

import importlib.util

project = "gdyn"
author = "the gdyn authors"
copyright = "2026, the gdyn authors"
release = "0.1.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinxcontrib.bibtex",
]
bibtex_bibfiles = ["references.bib"]
exclude_patterns = ["_build", "requirements.txt"]
html_theme = "furo"
html_title = "gdyn"

myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # shapes stand in the signatures' annotations, which would be unreadable as types
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": True}
napoleon_google_docstring = True

# Reference pages of packages that are not installed here are left out instead of failing the build.
exclude_patterns += [
    f"reference/{name}.md"
    for name in ("instability", "chaos", "variance", "eigengame", "dd_two_player")
    if importlib.util.find_spec(name) is None
]
suppress_warnings = ["toc.excluded", "myst.xref_missing"]
