"""The vocabulary of settings: what a key means and which values it takes, once for all packages.

A configuration is a dataclass; a field that has a name from `KEYS` has that meaning. Its help text
comes from here unless the class documents it, and `check` is applied to every configuration that the
command line or `gdyn_reproduce.runs.configure` builds. `OTHER_NAMES` are words that people type or
published programs use for the same thing: they are hints in messages, never accepted silently.

>>> Config = dataclasses.make_dataclass("Config", [("seeds", list)])
>>> check(Config([0, 0]))
Traceback (most recent call last):
ValueError: seeds=[0, 0] repeats a seed; each run needs one of its own.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

DTYPES = ("float64", "float32", "bfloat16", "float16")


def _seed(name: str, value: Any) -> None:
    for seed in value if isinstance(value, list | tuple) else [value]:
        # The range that the generators of NumPy, PyTorch and JAX all take in full.
        if isinstance(seed, int) and not 0 <= seed < 2**32:
            raise ValueError(f"{name}={seed}: a seed is an integer from 0 to 2**32 - 1.")


def _seeds(name: str, value: Any) -> None:
    _seed(name, value)
    if len(value) == 0:
        raise ValueError(f"{name} is empty; pass at least one, for example {name}=[0,1,2].")
    if len(set(value)) < len(value):
        raise ValueError(f"{name}={list(value)} repeats a seed; each run needs one of its own.")


def _device(name: str, value: Any) -> None:
    if not re.fullmatch(r"(cpu|gpu|cuda|mps|tpu)(:\d+)?", str(value)):
        raise ValueError(f"{name}={value!r} is no device. Allowed: cpu, cuda, cuda:1, mps, gpu, tpu.")


def _dtype(name: str, value: Any) -> None:
    if value not in DTYPES:
        raise ValueError(f"{name}={value!r} is no floating type. Allowed: {', '.join(DTYPES)}.")


def _positive_count(name: str, value: Any) -> None:
    if isinstance(value, int) and value < 1:
        raise ValueError(f"{name}={value}; pass at least 1.")


def _not_negative(name: str, value: Any) -> None:
    for number in value if isinstance(value, list | tuple) else [value]:
        if isinstance(number, int | float) and not 0 <= number < math.inf:
            raise ValueError(f"{name}={value}; pass a number that is finite and not negative.")


def _folder(name: str, value: Any) -> None:
    if not str(value).strip():
        raise ValueError(f"{name} is empty; name a folder, for example {name}=runs.")
    if str(value).startswith("~"):
        raise ValueError(f'{name}={value} names a folder ~ here; write {name}="$HOME/...".')


def _anything(name: str, value: Any) -> None: ...


KEYS: Mapping[str, tuple[str, Callable[[str, Any], None]]] = {
    "out": ("Folder that receives the run folders.", _folder),
    "seed": ("Seed of everything random.", _seed),
    "seeds": ("One run per seed.", _seeds),
    "device": ("Where arrays live and are computed: cpu, cuda, cuda:1, mps, gpu or tpu.", _device),
    "dtype": ("Floating type of the computation.", _dtype),
    "dataset": ("Name of the data set; `gdyn-data list` has them all.", _anything),
    "data_root": ("Folder of the data; null is $GDYN_DATA_DIR, else ~/.cache/gdyn.", _anything),
    "download": ("Whether missing data may be fetched, as `gdyn-data fetch` does.", _anything),
    "batch_size": ("Samples in a batch.", _positive_count),
    "learning_rate": ("Learning rate.", _anything),
    "learning_rates": ("Learning rates, one run each.", _anything),
    "momentum": ("Momentum factor.", _not_negative),
    "weight_decay": ("Weight decay: its product with the weights joins the gradient.", _not_negative),
    "num_steps": ("Number of updates.", _not_negative),
    "num_components": ("Number of eigenvectors or components.", _positive_count),
}

_COUNT = re.compile(r"(num|max)_\w+|\w+_(size|every|steps|epochs|width)|milestones|drop_at")
"""Names of counts, of steps among them: whatever else they mean, they are not negative."""

OTHER_NAMES = {
    "batch": "batch_size",
    "bs": "batch_size",
    "clusters": "num_clusters",
    "cuda": "device",
    "data": "dataset",
    "data_dir": "data_root",
    "datadir": "data_root",
    "epochs": "num_epochs",
    "eval_every": "measure_every",
    "evaluate_every": "measure_every",
    "every": "measure_every",
    "gpu": "device",
    "hidden": "width",
    "inter_dim": "width",
    "k": "num_components",
    "log_freq": "log_every",
    "lr": "learning_rate",
    "lrs": "learning_rates",
    "max_epochs": "num_epochs",
    "max_iter": "num_steps",
    "max_steps": "num_steps",
    "n_clusters": "num_clusters",
    "n_components": "num_components",
    "n_epochs": "num_epochs",
    "num_iterations": "num_steps",
    "num_seeds": "seeds",
    "outdir": "out",
    "output": "out",
    "output_dir": "out",
    "precision": "dtype",
    "random_state": "seed",
    "steps": "num_steps",
}

ELSEWHERE = {
    "data_root": "Set GDYN_DATA_DIR to the folder of the data.",
    "download": "Fetch the data with `gdyn-data fetch NAME`.",
}
"""What to do in a command that lacks the key."""

_MAY_BE_EMPTY = ("milestones",)
"""Lists that may have no entry although they have some by default."""


def meaning(name: str) -> str:
    """Return what a key of the vocabulary means, empty for any other.

    >>> meaning("seeds"), meaning("colour")
    ('One run per seed.', '')
    """
    return KEYS.get(name, ("", _anything))[0]


def check(config: Any) -> None:
    """Check the values of keys that belong to the vocabulary, and all for NaN and for empty lists.

    Raises:
        ValueError: With the key, its value and what is allowed.
    """
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, float) and math.isnan(number):
                raise ValueError(f"{item.name} is nan; pass a number.")
            if isinstance(number, int) and not -(2**63) <= number < 2**63:
                raise ValueError(f"{item.name}={number} has more than 64 bits; pass a smaller number.")
            if number is not value and isinstance(number, list | dict) and _is_flat(type(config), item.name):
                raise ValueError(f"{item.name}={value} is nested; write its values in one pair of brackets.")
        if value is not None and value != item.default:  # a default may mean "all"
            KEYS.get(item.name, ("", _not_negative if _COUNT.fullmatch(item.name) else _anything))[1](
                item.name, value
            )
        has_entries = item.default_factory is not dataclasses.MISSING and bool(item.default_factory())
        if value == [] and has_entries and item.name not in _MAY_BE_EMPTY:
            raise ValueError(f"{item.name} is empty; pass at least one value.")
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            check(value)


def _is_flat(config_class: type, name: str) -> bool:
    """Whether a field is a list of numbers or texts, which OmegaConf does not see to."""
    hint = typing.get_type_hints(config_class)[name]
    lists = [kind for kind in (hint, *typing.get_args(hint)) if typing.get_origin(kind) in (list, tuple)]
    return bool(lists) and set(typing.get_args(lists[0])) <= {bool, int, float, str}


def build(config_class: type, values: Mapping[str, Any]) -> Any:
    """Build a configuration from plain data, for example of a file, as the command line does.

    Raises:
        ValueError: If a key is unknown, or a value is not of its type or not allowed.
    """
    from gdyn_reproduce._hydra import to_object

    config = to_object(config_class, values)
    check(config)
    return config


def known_as(name: str, allowed: Iterable[str]) -> str:
    """Return the keys, ``outer.inner`` where nested, that people mean by another name; empty if none.

    >>> known_as("lr", ["learning_rates", "seeds"]), known_as("momentum", ["seeds", "optim.momentum"])
    ("'learning_rates'", "'optim.momentum'")
    """

    def word(key: str) -> str:
        last = key.rpartition(".")[2]
        return OTHER_NAMES.get(last, last).removesuffix("s")

    return " or ".join(repr(key) for key in allowed if word(key) == word(name))
