"""The house rule, tried: a package without its paper imports, and passes its science tests.

    python .ci/house_rule.py PACKAGE [arguments of pytest]

Copies the package without `paper/` and its command line, and its tests without `tests/paper/`, into
a scratch folder, puts in front of the installed gdyn_reproduce, Hydra and matplotlib modules that
refuse to be imported, imports every public name and runs the tests there.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
ABSENT = ("gdyn_reproduce", "hydra", "omegaconf", "matplotlib")
PUBLIC = """
import {package} as p
assert p.__file__.startswith({scratch!r}), p.__file__
for name in p.__all__:
    getattr(p, name)
print(f"{package}: {{len(p.__all__)}} public names without the paper")
"""


def main(package: str, arguments: list[str]) -> int:
    """Return the exit code of the first thing that fails."""
    with tempfile.TemporaryDirectory() as folder:
        scratch, here = Path(folder).resolve(), ROOT / "packages" / package
        there = scratch / "packages" / package
        left_out = shutil.ignore_patterns("paper", "cli.py", "__main__.py", "__pycache__")
        for part in (f"src/{package}", "tests"):
            shutil.copytree(here / part, there / part, ignore=left_out)
        shutil.copy(ROOT / "pyproject.toml", scratch)
        for name in ABSENT:
            (scratch / "absent" / name).mkdir(parents=True)
            refusal = f"raise ModuleNotFoundError('{name} is not there without the paper', name='{name}')\n"
            (scratch / "absent" / name / "__init__.py").write_text(refusal)
        path = os.pathsep.join([str(there / "src"), str(scratch / "absent")])
        environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": ""}
        public = ["-c", PUBLIC.format(package=package, scratch=str(scratch))]
        # Hydra brings a plugin for pytest, which pytest would load by itself.
        tests = ["-m", "pytest", "-p", "no:hydra_pytest", str(there / "tests"), *arguments]
        for command in (public, tests):
            run = subprocess.run([sys.executable, *command], cwd=scratch, env=environment, check=False)
            if run.returncode:
                return run.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
