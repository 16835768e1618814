"""Whose commit a record names."""

import shutil
import subprocess
from pathlib import Path

import pytest

from gdyn_reproduce import provenance


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Return a repository in which a copy of the module lies, and that is asked."""
    copy = tmp_path / "site-packages" / "provenance.py"
    copy.parent.mkdir()
    shutil.copy(provenance.__file__, copy)
    monkeypatch.setattr(provenance, "__file__", str(copy))
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "theirs")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    return subprocess.run(
        ["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_repository_around_an_installation_is_not_ours(repository):
    assert provenance.commit() is None


def test_a_checkout_names_its_commit_and_marks_changes(repository):
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "ours")
    head = git(repository, "rev-parse", "--short=12", "HEAD")
    assert provenance.commit() == head
    with Path(provenance.__file__).open("a") as file:
        file.write("# changed")
    assert provenance.commit() == f"{head}-dirty"


def test_the_repository_of_a_hook_is_not_ours(repository, tmp_path_factory, monkeypatch):
    other = tmp_path_factory.mktemp("other")
    git(other, "init", "-q")
    git(other, "commit", "-q", "--allow-empty", "-m", "theirs")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "ours")
    head = git(repository, "rev-parse", "--short=12", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert provenance.commit() == head
