"""A pytest plugin: check the code blocks of Markdown files.

Python blocks are executed, each file in a fresh namespace and folder. Shell blocks are read by bash without
running them; their words must not need quotes in zsh; and the commands of this project are asked to
compose their settings, so that a key which does not exist fails here.
"""

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from sybil import Sybil
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser

WITHOUT_SETTINGS = {"list", "show", "cite", "report", "build", "compare", "fetch", "check"}
"""Second words of commands that take no ``key=value`` settings."""


def in_a_scratch_folder(namespace):
    namespace["_scratch"] = tempfile.TemporaryDirectory()
    namespace["_home"] = Path.cwd()
    os.chdir(namespace["_scratch"].name)
    Path("runs").mkdir()  # the folder the examples read
    Path("gdyn").symlink_to(namespace["_home"])  # the clone they speak of


def back_home(namespace):
    os.chdir(namespace["_home"])
    namespace["_scratch"].cleanup()


def check_shell(example):
    """Return what is wrong with a shell block, or nothing."""
    block = example.parsed.replace("\\\n", " ")
    problem = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False).stderr
    if problem:
        return problem
    for line in block.splitlines():
        bare = re.sub(r"'[^']*'|\"[^\"]*\"|(^|\s)#.*", "", line)
        if re.search(r"=\S*[\[({*?]", bare):
            return f"zsh expands the brackets of this line; put its settings in quotes: {line}"
        words = shlex.split(line, comments=True)
        if words and words[0].startswith("gdyn-") and shutil.which(words[0]):
            problem = check_command(words)
            if problem:
                return f"{line}\n{problem}"
    return None


def check_command(words):
    """Compose the settings of one of our commands; return its complaint, or nothing."""
    if len(words) < 2 or words[1] in WITHOUT_SETTINGS or any(word.isupper() for word in words):
        return None
    if words[1:3] == ["run", "all"]:
        return None
    if "-m" in words:  # the first job of a sweep
        words = [
            re.split(r",(?![^\[]*\])", word)[0] for word in words if not re.match(r"-m|hydra|.*range\(", word)
        ]
    found = subprocess.run([*words, "--cfg", "job"], capture_output=True, text=True, check=False)
    return found.stdout + found.stderr if found.returncode else None


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), CodeBlockParser("bash", check_shell)],
    path=str(Path(__file__).parents[1]),
    patterns=["**/*.md", "*.md"],
    setup=in_a_scratch_folder,
    teardown=back_home,
).pytest()
