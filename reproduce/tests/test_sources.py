"""The digest changes with what can change a number, and with nothing else."""

import subprocess
import sys

import pytest

from gdyn_reproduce import sources

FILES = {
    "__init__.py": '"""A package."""\nimport lazy_loader as lazy\n',
    "__init__.pyi": (
        "from .science import solve as solve\n"
        "from .unused import other as other\n"
        "__all__ = ['solve', 'other']\n"
    ),
    "science.py": (
        '"""Science."""\nfrom probe_package import constants\nclass Found:\n    scale = 1\n'
        "def solve(x):\n    return x + constants.SHIFT\n"
    ),
    "constants.py": "SHIFT = 1\n",
    "unused.py": "other = 1\n",
    "late.py": "def late():\n    return 3\n",
    "floor/__init__.py": "from probe_package.floor.engine import run\n",
    "floor/engine.py": "def run():\n    return 5\n",
    "floor/scale.py": "FACTOR = 1\n",
    "named.py": "def by_name():\n    return 4\n",
    "paper/__init__.py": "from probe_package.paper.claims import CLAIMS\n",
    "paper/claims.py": "CLAIMS = ()\n",
    "paper/experiment.py": (
        "from gdyn_reproduce.records import Result\n"
        "from probe_package import solve\n"
        "from probe_package.floor import run\n"
        "from probe_package.floor.scale import FACTOR\n"
        "NAMED = 'probe_package.named:by_name'\n"
        "def compute(config, run):\n"
        "    from ..late import late\n"
        "    return solve(late())\n"
        "def plot(result):\n"
        "    return None\n"
    ),
}
EXPERIMENT = "probe_package.paper.experiment"


@pytest.fixture
def package(tmp_path, monkeypatch):
    for name, text in FILES.items():
        path = tmp_path / "probe_package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "probe_package"


def digest(*modules):
    for cached in (sources.digest, sources._file, sources._stub, sources._tree):
        cached.cache_clear()
    return sources.digest(*(modules or (EXPERIMENT,)))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("paper/experiment.py", "solve(late())", "solve(late()) + 1"),
        ("paper/experiment.py", "def compute(", "raise RuntimeError\ndef compute("),
        ("science.py", "x + constants", "x - constants"),
        ("constants.py", "1", "1.0"),
        ("constants.py", "1", "True"),
        ("late.py", "3", "4"),
        ("named.py", "4", "5"),
        ("science.py", "scale = 1", "scale = 2"),
        ("floor/engine.py", "5", "6"),  # behind a package that is both a parent and imported from
        ("__init__.py", "import lazy_loader as lazy", "import os; os.environ['X'] = '1'"),
    ],
)
def test_it_changes_with_everything_the_experiment_reaches(package, name, old, new):
    before = digest()
    path = package / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert digest() != before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("science.py", '"""Science."""', '"""Other words."""'),
        ("science.py", "def solve(x):\n", 'def solve(x):\n    """Solve."""\n    # a comment\n\n'),
        ("science.py", "x + constants.SHIFT", "(x\n        + constants.SHIFT)"),
        ("unused.py", "1", "2"),
        ("paper/claims.py", "()", "(1,)"),
        ("paper/__init__.py", "CLAIMS", "CLAIMS as OTHER"),
        ("paper/experiment.py", "return None", "return 'a better picture'"),
        ("paper/experiment.py", "def plot(result)", "def _plot_panel(axis):\n    pass\ndef plot(result)"),
        ("science.py", "class Found:", "class Found:\n    def plot(self):\n        return 1"),
        ("science.py", "class Found:", "class Found:\n    def __repr__(self):\n        return 'found'"),
        ("paper/experiment.py", "import Result", "import Result as Record"),
        ("science.py", "def solve", "if TYPE_CHECKING:\n    from numpy import ndarray\ndef solve"),
    ],
)
def test_it_does_not_change_with_words_pictures_or_what_is_not_reached(package, name, old, new):
    before = digest()
    path = package / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert digest() == before


def test_it_reaches_the_core_but_not_what_only_judges_stores_or_shows():
    reached = sources.closure("toy_paper.decay", "toy_paper.config")
    assert {"toy_paper.decay", "toy_paper.config", "gdyn_common.seeding"} <= reached.keys()
    assert not {"gdyn_reproduce.claims", "gdyn_reproduce.runs", "gdyn_reproduce.plotting"} & reached.keys()
    assert "gdyn_reproduce.data.generators" in sources.closure("gdyn_reproduce.data.generators")


def test_two_modules_with_the_same_text_differ():
    assert digest("toy_paper.decay") != digest("toy_paper.config")


def test_a_module_without_source_is_named():
    with pytest.raises(ModuleNotFoundError, match=r"No source of module 'toy_paper\.nowhere'"):
        digest("toy_paper.nowhere")


def test_nothing_is_imported(package):
    (package / "science.py").write_text("raise RuntimeError('imported')\n")
    code = f"from gdyn_reproduce.sources import digest; print(digest({EXPERIMENT!r}))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=package.parent, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == digest()


def test_a_package_may_be_one_file(tmp_path, monkeypatch):
    path = tmp_path / "one_file_probe.py"
    path.write_text("def compute(config, run):\n    return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert sources.closure("one_file_probe") == {"one_file_probe": path}
