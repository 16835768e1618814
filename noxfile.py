"""The one driver: every check and every reproduction, each in an environment of its own.

`nox -l` lists the sessions. `make help` lists the short ways to call them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
CORE = ["-e", "common", "-e", "reproduce"]
FAULTS = ROOT / "runs" / "faults"
CONSTRAINTS = "constraints/ci.txt"  # relative: pip and uv split these variables at spaces

# Packages that obey the house rule are listed once, in the contracts of pyproject.toml.
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
STANDING = [name for contract in CONTRACTS if "except_under" in contract for name in contract["packages"]]

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = [
    "lint",
    "types",
    "test-common",
    "test-reproduce",
    *(f"test-{name}" for name in PACKAGES),
]

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
QUIET = {
    "MPLBACKEND": "Agg",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "PYTHONDONTWRITEBYTECODE": "",  # tests start many processes; compiling torch anew costs each ten seconds
}
# Compiled programs of JAX are shared by tests and by the processes they start.
COMPILED_ONCE = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05"}


def wheel_folder() -> str:
    """Return the folder of local wheels that pip is configured to use; uv does not look there by itself."""
    for name in ("UV_FIND_LINKS", "PIP_FIND_LINKS"):
        if os.environ.get(name):
            return os.environ[name]
    command = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def install_environment() -> dict[str, str]:
    """Return the variables every install needs: editable core, tested versions, which torch."""
    constraints = "" if os.environ.get("UNPINNED") else CONSTRAINTS
    environment = {"GDYN_COMMON_SPEC": "", "UV_CONSTRAINT": constraints, "PIP_CONSTRAINT": constraints}
    backend = os.environ.get("TORCH_BACKEND") or os.environ.get("UV_TORCH_BACKEND")
    if backend:
        environment["UV_TORCH_BACKEND"] = backend
    elif folder := wheel_folder():
        environment["UV_FIND_LINKS"] = folder
    else:
        environment["UV_TORCH_BACKEND"] = "auto"  # uv takes a CPU build where it sees no GPU driver
    return environment


def install(session: nox.Session, *arguments: str) -> None:
    """Install into the session's environment."""
    if session.venv_backend != "uv" and not shutil.which("nvidia-smi"):
        session.log(
            "pip may fetch a CUDA build of torch (several GB); with uv on PATH, or with "
            "PIP_FIND_LINKS naming a folder that holds a CPU wheel, it does not."
        )
    session.install(*arguments, env=install_environment())


def editable(name: str, extras: str = "") -> list[str]:
    """Return the arguments that install a package and the core from the clone."""
    return [*CORE, "-e", f"packages/{name}{extras}"]


def everything() -> list[str]:
    """Return the arguments that install the core and all packages from the clone."""
    return [*CORE, *(part for name in PACKAGES for part in ("-e", f"packages/{name}"))]


def say_torch(session: nox.Session) -> None:
    """Say which build of torch was chosen, if the environment has one."""
    code = (
        "import importlib.util as u\n"
        "if u.find_spec('torch'):\n"
        "    import torch\n"
        "    print('torch', torch.__version__, 'with a GPU' if torch.cuda.is_available() else 'on the CPU')"
    )
    session.run("python", "-c", code)


def pytest(session: nox.Session, *arguments: str, command: tuple[str, ...] = ("-m", "pytest")) -> None:
    """Run pytest, or a command that takes its arguments, on two workers of one thread each.

    ``WORKERS`` in the environment is their number; 0 runs the tests in pytest's own process.
    """
    compiled = COMPILED_ONCE | {"JAX_COMPILATION_CACHE_DIR": str(session.cache_dir.resolve() / "jax")}
    session.run(
        "python",
        *command,
        "-n",
        os.environ.get("WORKERS", "2"),
        "--dist",
        "worksteal",
        *arguments,
        *session.posargs,
        env=ONE_THREAD | QUIET | compiled,
        success_codes=[0, 5] if session.posargs else [0],  # 5: a selection need not find tests in each part
    )


def source_path(*more: str) -> dict[str, str]:
    """Put every source folder on the path, without installing a framework."""
    folders = ["common/src", "reproduce/src", *(f"packages/{name}/src" for name in PACKAGES), *more]
    return {"PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in folders)}


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting, who may import whom, and the workflow files."""
    install(session, "ruff", "import-linter", "check-jsonschema", "zizmor")
    if "--fix" in session.posargs:
        session.run("ruff", "check", "--fix", ".")
        session.run("ruff", "format", ".")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-cache", env=source_path(".ci"))
    for schema, pattern in {
        "github-workflows": "workflows/*.yml",
        "github-actions": "actions/*/action.yml",
        "github-issue-forms": "ISSUE_TEMPLATE/[!c]*.yml",
        "dependabot": "dependabot.yml",
    }.items():
        files = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(f".github/{pattern}"))
        session.run("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files)
    session.run("zizmor", "--offline", "--quiet", ".github")
    for workflow in sorted(ROOT.glob(".github/workflows/*.yml")):
        lists = re.findall(r"session: \[(.*)\]", workflow.read_text())
        if unknown := {name for names in lists for name in names.split(", ")} - set(nox.registry.get()):
            session.error(f"{workflow.name} runs sessions that do not exist: {', '.join(sorted(unknown))}.")


@nox.session
def types(session: nox.Session) -> None:
    """Strict types of every source folder, and of public names as others see them."""
    install(session, "mypy", "pytest", "pytest-timeout", *everything())
    session.run("mypy", "common/src", "reproduce/src", *(f"packages/{name}/src" for name in PACKAGES))
    session.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", ".ci/test_types.py")


@nox.session(name="test-common", tags=["test"])
def test_common(session: nox.Session) -> None:
    """Tests of the common core."""
    install(session, "-e", "common[test]")
    pytest(session, "common/tests", "--doctest-modules", "common/src")


@nox.session(name="test-reproduce", tags=["test"])
def test_reproduce(session: nox.Session) -> None:
    """Tests of claims, runs, reports, the command line and data."""
    install(session, "-e", "common", "-e", "reproduce[test]")
    pytest(session, "reproduce/tests", "--doctest-modules", "reproduce/src")


def _package_sessions(name: str) -> None:
    """Make the sessions of one package."""

    @nox.session(name=f"test-{name}", tags=["test"])
    def test(session: nox.Session) -> None:
        install(session, *editable(name, "[test]"))
        tests = f"packages/{name}/tests"
        if name in STANDING:
            pytest(session, command=(".ci/house_rule.py", name))
            tests += "/paper"
        pytest(session, tests, "--doctest-modules", f"packages/{name}/src")

    @nox.session(name=f"reproduce-{name}")
    def reproduce(session: nox.Session) -> None:
        install(session, *editable(name))
        say_torch(session)
        program = f"gdyn-{name.replace('_', '-')}"
        size = ["preset=paper", "include=long"] if os.environ.get("FULL") else []
        size += [f"max_hours={hours}"] if (hours := os.environ.get("MAX_HOURS")) else []
        size += ["yes=true"] if os.environ.get("YES") else []
        session.run(program, "run", "all", *size, *session.posargs, env=ONE_THREAD | QUIET)

    @nox.session(name=f"bench-{name}")
    def bench(session: nox.Session) -> None:
        # Peers that pull in torchvision replace a CPU build of torch, hence only when asked for.
        install(session, *editable(name, "[bench]" if os.environ.get("BENCH_PEERS") else ""))
        for script in sorted(ROOT.glob(f"packages/{name}/benchmarks/bench*.py")):
            session.run("python", str(script), *session.posargs, env=ONE_THREAD | QUIET)

    @nox.session(name=f"lowest-{name}", venv_backend="uv", python=["3.11"])
    def lowest(session: nox.Session) -> None:
        environment = install_environment() | {"UV_CONSTRAINT": "", "PIP_CONSTRAINT": ""}
        session.install("--resolution", "lowest-direct", *editable(name, "[test]"), env=environment)
        pytest(session, f"packages/{name}/tests")

    test.__doc__ = f"Tests of packages/{name}."
    reproduce.__doc__ = f"Run every default figure of packages/{name}."
    bench.__doc__ = f"Benchmarks of packages/{name}, written to its results/bench.json."
    lowest.__doc__ = f"Tests of packages/{name} with the lowest versions its pyproject allows."


for _name in PACKAGES:
    _package_sessions(_name)


@nox.session(name="test-tfgan", tags=["test"])
def test_tfgan(session: nox.Session) -> None:
    """Scores of packages/dd_two_player against TF-GAN's, in an environment with TensorFlow."""
    install(session, *editable("dd_two_player", "[test,tfgan]"))
    # Without the extra the tests would be skipped; here it must be there.
    session.run("python", "-c", "import dd_two_player.gans.tfgan as t; t.load_backend()", env=QUIET)
    test = "packages/dd_two_player/tests/paper/test_tfgan.py"
    session.run("python", "-m", "pytest", "-m", "tfgan", test, *session.posargs, env=ONE_THREAD | QUIET)


@nox.session(name="test-faults", tags=["test"])
def test_faults(session: nox.Session) -> None:
    """Kill, interrupt and starve runs, damage files, type nonsense; `-- --long` takes hours and resumes."""
    install(session, "pytest", "pytest-timeout", "pytest-xdist", "hypothesis", *everything())
    if "--long" not in session.posargs:
        shutil.rmtree(FAULTS / "short", ignore_errors=True)
    suites = ["tests/faults", "--ignore=tests/faults/test_slurm.py", "--tally", str(FAULTS)]
    pytest(session, "--dist", "loadgroup", *suites)  # what imports the same package goes to the same worker


@nox.session(name="test-slurm", default=False)
def test_slurm(session: nox.Session) -> None:
    """Run a sweep through a real SLURM of one node, and requeue a job; skipped where that cannot start."""
    install(session, *editable("variance", "[test,sweep]"))
    pytest(session, "tests/faults/test_slurm.py", "--tally", str(FAULTS))


@nox.session(venv_backend="none", default=False)
def reliability(session: nox.Session) -> None:
    """Write docs/reliability.md from what the suites of faults noted."""
    session.run(sys.executable, "tests/faults/reliability.py", str(FAULTS))


@nox.session(default=False)
def audit(session: nox.Session) -> None:
    """Look up known holes in what is installed, and search the files of the repository for secrets."""
    install(session, "pip-audit", "detect-secrets", *everything())
    listed = session.run("git", "ls-files", silent=True, external=True) or ""
    files = [name for name in listed.split() if not name.endswith((".svg", ".png", ".npz"))]
    # Hashes of data and records look like secrets of high entropy; keys and tokens have forms of their own.
    quiet = ["--disable-plugin", "HexHighEntropyString", "--disable-plugin", "Base64HighEntropyString"]
    session.run("detect-secrets-hook", *quiet, *files)
    session.run("pip-audit", "--local", "--skip-editable", *session.posargs)


@nox.session(venv_backend="none")
def reproduce(session: nox.Session) -> None:
    """Reproduce the packages named as arguments, or all, two at a time, and write the report."""
    names = [argument for argument in session.posargs if argument] or PACKAGES
    for name in names:
        if name not in PACKAGES:
            session.error(f"Unknown package {name!r}. Allowed: {', '.join(PACKAGES)}.")
    longest_first = "dd_two_player variance chaos instability eigengame"
    codes = two_at_a_time([f"reproduce-{name}" for name in sorted(names, key=longest_first.find)])
    codes.append(_nox("report", *names))
    if any(codes):
        session.error("A claim's outcome is not the registered one, or a run failed; see the lines above.")


@nox.session(venv_backend="none", default=False)
def test(session: nox.Session) -> None:
    """Run all checks and tests, two sessions at a time, the longest first."""
    names = [
        "test-instability",
        "test-eigengame",
        "test-faults",
        "test-chaos",
        "test-variance",
        "test-dd_two_player",
        "docs",
        "types",
        "test-tfgan",
        "dist",
        "test-report",
        "test-reproduce",
        "test-common",
        "lint",
        "report-check",
    ]
    if any(two_at_a_time(names)):
        session.error("A check failed; see the lines above.")


def two_at_a_time(names: list[str], *posargs: str) -> list[int]:
    """Run sessions side by side, with their names before their lines; return the exit codes.

    The last lines of those that failed are repeated at the end, where a reader of a long log looks first.
    """
    labels = [name.removeprefix("reproduce-") for name in names]
    width = max(len(label) for label in labels)
    codes = dict.fromkeys(names, 1)
    ends = {name: deque[str](maxlen=60) for name in names}

    def run(name: str, label: str) -> None:
        begin = time.monotonic()
        codes[name] = _nox(name, *posargs, prefix=f"{label:>{width}} | ", end=ends[name])
        minutes = (time.monotonic() - begin) / 60
        print(f"{label:>{width}} | {'FAILED' if codes[name] else 'passed'} in {minutes:.1f} min", flush=True)

    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(run, names, labels))
    if failed := [name for name, code in codes.items() if code]:
        for name in failed:
            print(f"\nThe end of {name}:\n" + "".join(ends[name]))
        print(f"Failed: {', '.join(failed)}.", flush=True)
    return list(codes.values())


def _nox(name: str, *posargs: str, prefix: str = "", end: deque[str] | None = None) -> int:
    """Run a session in a process of its own, with its output line by line; tests take one worker.

    ``end``, if given, keeps the last lines.
    """
    command = [sys.executable, "-m", "nox", "--no-error-on-missing-interpreters", "-s", name, "--", *posargs]
    environment = os.environ | {"WORKERS": "0"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            print(prefix + line, end="", flush=True)
            if end is not None:
                end.append(line)
    return child.returncode


@nox.session
def report(session: nox.Session) -> None:
    """Write runs/report/index.html from the default runs of the packages named, or of all."""
    install(session, *CORE)
    folders = [f"runs/{name}" for name in session.posargs or PACKAGES if (ROOT / "runs" / name).is_dir()]
    session.run("gdyn-report", "build", "--unmodified", *folders)


@nox.session(venv_backend="none")
def controls(session: nox.Session) -> None:
    """Run the default figures at quick size anew, and check that every claim's control is rejected.

    With `-- include=long max_hours=9` all figures, which takes about five hours.
    """
    out = "runs/controls"
    settings = ["preset=quick", f"out={out}", "overwrite=true", *session.posargs]
    codes = two_at_a_time([f"reproduce-{name}" for name in PACKAGES], *settings)
    if any(codes) or _nox("control-verdicts", out):
        session.error("A control is not rejected, or a run failed; see the lines above.")


@nox.session(name="control-verdicts")
def control_verdicts(session: nox.Session) -> None:
    """List what the criteria say of the controls in the run folders named."""
    install(session, *CORE)
    session.run("gdyn-report", "controls", *session.posargs)


@nox.session
def verify(session: nox.Session) -> None:
    """Check every committed record against its answer key, and compute three cheap ones again."""
    install(session, *everything())
    session.run("python", "-m", "gdyn_reproduce.verify", *session.posargs, env=ONE_THREAD | QUIET)


@nox.session(name="report-check")
def report_check(session: nox.Session) -> None:
    """Check that README tables, RESULTS.md and the answer keys agree with the committed records."""
    install(session, *CORE)
    session.run("python", "-m", "gdyn_reproduce.results", *session.posargs, env=source_path())
    session.run("python", "-m", "gdyn_reproduce.verify", "--no-rerun", env=source_path())


@nox.session(name="test-report")
def test_report(session: nox.Session) -> None:
    """Open the report in a headless browser: filters, pictures, console, network."""
    install(session, "-e", "common", "-e", "reproduce[test]", "playwright")
    session.run("python", "-m", "pytest", "reproduce/tests/browser", *session.posargs, env=QUIET)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation, execute its code blocks, check its internal links."""
    install(session, *everything(), "-r", "docs/requirements.txt")
    pages = [
        "docs",
        "common/README.md",
        "reproduce/README.md",
        *(f"packages/{name}/README.md" for name in PACKAGES),
    ]
    environment = ONE_THREAD | QUIET | {"PYTHONPATH": "docs"}
    session.run("python", "-m", "pytest", "-p", "execute_blocks", *pages, *session.posargs, env=environment)
    for tour in sorted(ROOT.glob("packages/*/notebooks/*.py")):
        session.run("python", str(tour), env=environment)
    session.run("sphinx-build", "-q", "-W", "--keep-going", "docs", "docs/_build/html")


@nox.session(default=False)
def dev(session: nox.Session) -> None:
    """Make .venv with the core and all packages, editable, and their test extras."""
    if not (ROOT / ".venv").exists():
        session.run("python", "-m", "venv", ".venv")
    packages = [part for name in PACKAGES for part in ("-e", f"packages/{name}[test]")]
    python = ROOT / ".venv" / "bin" / "python"
    command = ["uv", "pip", "install", "--python", str(python)]
    if not shutil.which("uv"):
        command = [str(python), "-m", "pip", "install"]
    session.run(
        *command,
        "-e",
        "common[test]",
        "-e",
        "reproduce[test]",
        *packages,
        env=install_environment(),
        external=True,
    )
    session.log(f"Activate it with: source {ROOT / '.venv' / 'bin' / 'activate'}")


@nox.session
def dist(session: nox.Session) -> None:
    """Build the wheels of a release, and check what they carry."""
    install(session, "build", "hatchling", "pytest", "pytest-timeout")
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    version = tomllib.loads((ROOT / "common" / "pyproject.toml").read_text())["project"]["version"]
    major, minor = map(int, version.split(".")[:2])
    environment = {"GDYN_COMMON_SPEC": f">={major}.{minor},<{major}.{minor + 1}"}
    for folder in ("common", "reproduce", *(f"packages/{name}" for name in PACKAGES)):
        session.run(
            "python", "-m", "build", "--wheel", "--outdir", "dist", folder, env=environment, silent=True
        )
    session.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", ".ci/test_wheels.py")


@nox.session(name="interop-torchvision", default=False)
def interop_torchvision(session: nox.Session) -> None:
    """Our readers and tools with torchvision's data sets and models, in a version that fits torch."""
    tools = [f"-epackages/{name}" for name in ("chaos", "instability", "variance")]
    install(session, "-e", "common", "-e", "reproduce[test]", *tools, "torchvision")
    session.run("python", "-c", "import torchvision", env=QUIET)  # without it the tests would be skipped
    tests = "reproduce/tests/interop"
    session.run("python", "-m", "pytest", tests, *session.posargs, env=ONE_THREAD | QUIET)
