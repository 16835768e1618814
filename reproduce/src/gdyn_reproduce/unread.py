"""Options that nothing reads beside the others: declared, and refused where they were given."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any


def _never(config: Any) -> bool:
    return False


@dataclass(frozen=True)
class Unread:
    """Options that a computation does not read, always or beside other options.

    `gdyn_reproduce.testing.every_option_counts` finds those of a figure that are not declared.

    Attributes:
        keys: Their names, ``outer.inner`` where nested.
        otherwise: Ends the sentence that refuses them, for example ``"unless model=resnet"``.
        read: Takes the configuration and tells whether they are read after all.
    """

    keys: tuple[str, ...]
    otherwise: str
    read: Callable[[Any], Any] = _never


def value_of(config: Any, key: str) -> Any:
    """Return the value of an option, ``outer.inner`` where nested."""
    return reduce(getattr, key.split("."), config)


def check_read(config: Any, usual: Any, declared: Iterable[Unread]) -> None:
    """Refuse an option that was given and that nothing reads.

    Args:
        config: The configuration of a figure or a command.
        usual: The same where nothing was given; what is as there was not given.
        declared: Options that are not read.

    Raises:
        ValueError: If there is such an option.

    >>> from types import SimpleNamespace as Config
    >>> deep = Unread(("depth",), "unless model=resnet", lambda config: config.model == "resnet")
    >>> check_read(Config(model="resnet", depth=8), Config(model="tiny", depth=56), [deep])
    >>> check_read(Config(model="tiny", depth=8), Config(model="tiny", depth=56), [deep])
    Traceback (most recent call last):
    ValueError: depth=8 has no effect unless model=resnet; leave it out.
    """
    for rule in declared:
        for key in rule.keys:
            value = value_of(config, key)
            if value != value_of(usual, key) and not rule.read(config):
                raise ValueError(f"{key}={value} has no effect {rule.otherwise}; leave it out.")


def on_disk(*names: str) -> bool:
    """Whether any of the data sets is looked for in a folder; a name that is unknown here is.

    >>> on_disk("digits", "teacher"), on_disk("digits", "mnist"), on_disk("imagenet")
    (False, True, True)
    """
    from gdyn_reproduce.data import catalogue

    return not set(names) <= set(catalogue.names()) - catalogue.ON_DISK.keys()


OF_FILES = Unread(
    ("data_root", "download"),
    "on a dataset that is always there",
    lambda config: on_disk(config.dataset),
)
