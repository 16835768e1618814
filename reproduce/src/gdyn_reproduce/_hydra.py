"""The only module of the core that knows Hydra: one application per command."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gdyn_reproduce.exits import guard, worst
from gdyn_reproduce.keys import check

_CODES = "GDYN_SWEEP_CODES"
"""Names the file to which every job of a sweep appends its exit code, also from other processes."""


def run_hydra(
    package: str,
    name: str,
    config_class: type,
    task: Callable[[Any, str, list[str]], int],
    overrides: list[str],
    groups: Mapping[str, Mapping[str, Mapping[str, Any]]],
    default_groups: Mapping[str, str],
) -> int:
    """Run `task` under `hydra.main`; see `gdyn_reproduce.cli.hydra_main`."""
    for override in overrides:
        if not override.startswith("-") and override != "job":
            _check_syntax(override)
    _register(config_class, groups, default_groups)

    def job(composed: DictConfig) -> None:
        hydra_config = HydraConfig.get()
        preset = hydra_config.runtime.choices.get("preset", "")
        # As typed: an override may hold a lookup, and one that fails is to be told below, in one line.
        given = list(map(str, OmegaConf.to_container(hydra_config.overrides.task, resolve=False) or ()))

        def checked() -> int:
            config = OmegaConf.to_object(composed)
            check(config)
            return task(config, preset, given)

        code = guard(package, checked)
        with Path(os.environ[_CODES]).open("a") as codes:
            codes.write(f"{code}\n")

    quiet = [
        "hydra/job_logging=none",
        "hydra/hydra_logging=none",
        "hydra.run.dir=.",
        "hydra.output_subdir=null",
    ]
    sweeps = ["hydra.sweep.dir=runs/sweeps/${now:%Y-%m-%d_%H-%M-%S}", "hydra.sweep.subdir=${hydra.job.num}"]
    argv, environment = sys.argv, dict(os.environ)
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as nothing:
        codes = Path(scratch) / "codes"
        codes.touch()
        os.environ |= {_CODES: str(codes), "HYDRA_FULL_ERROR": "1"}  # let errors reach us as they are
        flags = [argument for argument in overrides if argument.startswith("-") or argument == "job"]
        values = [argument for argument in overrides if argument not in flags]
        sys.argv = [name, *flags, *quiet, *sweeps, *values]  # its parser wants flags first
        try:
            # Without a folder Hydra searches this package, and takes its folder `data` for a config group.
            hydra.main(version_base="1.3", config_path=nothing, config_name="command")(job)()
        except (HydraException, OmegaConfBaseException):
            raise
        except Exception as error:  # of the job itself nothing arrives here: values that cannot be merged
            told = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(f"{' '.join(values)} cannot be put into the settings: {told}") from error
        finally:
            sys.argv = argv
            os.environ.clear()
            os.environ.update(environment)
            GlobalHydra.instance().clear()
        finished = [int(line) for line in codes.read_text().split()]
    return worst(finished)


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
        raise ValueError(
            f"{override} cannot be read; quote a text with special characters twice: \"{key}='{value}'\"."
        ) from None


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
