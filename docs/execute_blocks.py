"""A pytest plugin: execute the Python blocks of Markdown files, each file in a fresh namespace and folder."""

import os
import tempfile
from pathlib import Path

from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser


def in_a_scratch_folder(namespace):
    namespace["_scratch"] = tempfile.TemporaryDirectory()
    namespace["_home"] = Path.cwd()
    os.chdir(namespace["_scratch"].name)
    Path("runs").mkdir()  # the folder the examples read


def back_home(namespace):
    os.chdir(namespace["_home"])
    namespace["_scratch"].cleanup()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()],
    path=str(Path(__file__).parents[1]),
    patterns=["**/*.md", "*.md"],
    setup=in_a_scratch_folder,
    teardown=back_home,
).pytest()
