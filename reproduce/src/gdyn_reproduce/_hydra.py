"""The only module of the core that knows Hydra: one application per command."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gdyn_reproduce._arguments import prepare
from gdyn_reproduce.exits import DONE, INTERRUPTED, guard, worst
from gdyn_reproduce.keys import check
from gdyn_reproduce.registry import resolve

_CODES = "GDYN_SWEEP_CODES"
"""Names the file to which every job of a sweep appends its exit code, also from other processes."""


def run_hydra(
    package: str,
    name: str,
    config: str,
    task: Callable[[Any, str, list[str]], int],
    overrides: list[str],
    groups: Mapping[str, Mapping[str, Mapping[str, Any]]],
    default_groups: Mapping[str, str],
) -> int:
    """Compose the configuration, build its dataclass and run the task, once per job of a sweep.

    Args:
        package: Import name of the package, for messages.
        name: Name of the command, for messages.
        config: ``"module:DataclassName"``; its ``__post_init__`` validates.
        task: Takes the configuration object, the chosen option of the group ``preset``, and the overrides.
        overrides: Hydra's command-line grammar.
        groups: Config groups; each option is a mapping of overrides at the top level.
        default_groups: Options that apply when none is chosen.

    Returns:
        The exit code, for a sweep the worst of its jobs.
    """
    config_class = resolve(config)
    ready = prepare(overrides, config_class, groups)
    flags = [argument for argument in ready if argument.startswith("-") or argument == "job"]
    values = [argument for argument in ready if argument not in flags]
    for override in values:
        _check_syntax(override)

    def job(composed: DictConfig, preset: str, given: list[str]) -> int:
        def checked() -> int:
            settings = OmegaConf.to_object(composed)
            check(settings)
            return task(settings, preset, given)

        return guard(package, checked)

    with _one_at_a_time, _told(values), tempfile.TemporaryDirectory() as nothing:
        _register(config_class, groups, default_groups)
        if "-m" in flags and "--cfg" not in flags:
            return _sweep(name, nothing, job, values)
        # Not under `hydra.main`, which composes twice, and reads and writes what belongs to the process.
        with _without_sweeps(), hydra.initialize_config_dir(nothing, version_base="1.3", job_name=name):
            composed = hydra.compose("command", values, return_hydra_config=True)
    preset = composed.hydra.runtime.choices.get("preset", "")
    OmegaConf.set_struct(composed, False)
    del composed["hydra"]
    OmegaConf.set_struct(composed, True)
    if "--cfg" in flags:
        print(OmegaConf.to_yaml(composed), end="")
        return DONE
    return job(composed, preset, values)


_one_at_a_time = threading.RLock()
"""Hydra keeps what it knows in the process, so two threads take turns."""


@contextlib.contextmanager
def _without_sweeps() -> Iterator[None]:
    """Leave out Hydra's groups of loggers, launchers and sweepers: two thirds of the time to compose."""
    known = ConfigStore.instance().repo["hydra"]
    whole = known["config.yaml"]
    known["config.yaml"] = dataclasses.replace(whole, node=_BARE)
    try:
        yield
    finally:
        known["config.yaml"] = whole


_BARE = OmegaConf.structured(HydraConf(defaults=[]))


@contextlib.contextmanager
def _told(values: list[str]) -> Iterator[None]:
    """Tell in one line what Hydra and OmegaConf raise by classes that are not their own."""
    try:
        yield
    except MissingConfigException as error:  # of Hydra's own groups: others are checked before
        kind, _, option = str(error.missing_cfg_file).rpartition("/")
        raise ValueError(
            f"{kind}={option} is not installed. Allowed: {', '.join(error.options or ['none'])}. "
            'Launchers come with pip install "./reproduce[sweep]".'
        ) from error
    except (HydraException, OmegaConfBaseException):
        raise
    except Exception as error:
        told = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{' '.join(values)} cannot be put into the settings: {told}") from error


_LOCAL = re.compile(r"hydra/launcher=(basic|joblib)|hydra\.launcher\..*")
"""Settings of a sweep that stays on this machine, and whose jobs do not leave the working folder."""


def _sweep(
    name: str, folder: str, job: Callable[[DictConfig, str, list[str]], int], values: list[str]
) -> int:
    """Run one job for every combination of values; return the worst of their exit codes.

    An interrupt ends the sweep. In another process it ends that job; the launcher hears of it by itself.
    """
    here = os.getpid()

    def note_code(composed: DictConfig) -> None:
        known = HydraConfig.get()
        # As typed: an override may hold a lookup, and one that fails is to be told by the job, in one line.
        given = list(map(str, OmegaConf.to_container(known.overrides.task, resolve=False) or ()))
        code = job(composed, known.runtime.choices.get("preset", ""), given)
        with Path(os.environ[_CODES]).open("a") as codes:
            codes.write(f"{code}\n")
        if code == INTERRUPTED and os.getpid() == here:
            raise KeyboardInterrupt

    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null"]
    # Runs have folders of their own; Hydra's is for launchers that reach other machines, and for who asks.
    scratch = all(_LOCAL.fullmatch(value) for value in values if value.startswith("hydra"))
    place = f"'{folder}/sweep'" if scratch else "runs/sweeps/${now:%Y-%m-%d_%H-%M-%S}"
    places = [f"hydra.sweep.dir={place}", "hydra.sweep.subdir=${hydra.job.num}"]
    codes = Path(folder) / "codes"
    codes.touch()
    variables = {_CODES: str(codes), "HYDRA_FULL_ERROR": "1"}  # let errors reach us as they are
    argv, before = sys.argv, {name: os.environ.get(name) for name in variables}
    sys.argv = [name, "-m", *quiet, *places, *values]
    os.environ |= variables
    try:
        # Without a folder Hydra searches this package, and takes its folder `data` for a config group.
        hydra.main(version_base="1.3", config_path=folder, config_name="command")(note_code)()
    except KeyboardInterrupt:
        if str(INTERRUPTED) not in codes.read_text().split():  # a job has said so already
            raise
    finally:
        sys.argv = argv
        for variable, value in before.items():
            del os.environ[variable]
            os.environ |= {} if value is None else {variable: value}
        GlobalHydra.instance().clear()
    return worst([int(line) for line in codes.read_text().split()])


def to_object(config_class: type, values: Mapping[str, Any]) -> Any:
    """See `gdyn_reproduce.keys.build`."""
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(config_class), dict(values)))
    except OmegaConfBaseException as error:
        raise ValueError(str(error).strip().split("\n")[0]) from None


def _check_syntax(override: str) -> None:
    """Refuse in one line what Hydra's grammar refuses in many.

    Raises:
        ValueError: If the value has characters that need quotes.
    """
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        key, _, value = override.partition("=")
        advice = f"quote a text with special characters twice: \"{key}='{value}'\""
        if value.startswith("~/"):  # what bash expands and zsh does not
            advice = f'write {key}="$HOME{value[1:]}"'
        raise ValueError(f"{override} cannot be read; {advice}.") from None


def _register(
    config_class: type,
    groups: Mapping[str, Mapping[str, Mapping[str, Any]]],
    default_groups: Mapping[str, str],
) -> None:
    """Make the command's schema and groups the only ones Hydra can see."""
    store = ConfigStore.instance()
    for stale in _registered:
        store.repo.pop(stale, None)
    _registered.clear()
    store.store(name="schema", node=config_class)
    for group, options in groups.items():
        for option, values in options.items():
            store.store(group=group, name=option, node=dict(values), package="_global_")
    defaults = ["schema", *({group: option} for group, option in default_groups.items()), "_self_"]
    store.store(name="command", node={"defaults": defaults})
    _registered.update({"schema.yaml", "command.yaml", *groups})


_registered: set[str] = set()
