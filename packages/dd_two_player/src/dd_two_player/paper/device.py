"""Where and in which floating type a command or a figure computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

__all__ = ["computing", "devices_of"]


def devices_of(device: str | None) -> list[jax.Device]:
    """Return the devices that a key ``device`` means, the one that computes first.

    >>> [d.platform for d in devices_of("cpu:0")]
    ['cpu']

    Raises:
        ValueError: If JAX does not see it.
    """
    platform, _, number = (device or "").partition(":")
    try:
        found = jax.devices(platform or None)[int(number or 0) :]
    except RuntimeError:
        found = []
    if not found:
        seen = ", ".join(map(str, jax.devices()))
        raise ValueError(f"device is {device!r}; JAX sees {seen} here. Leave out device= to use them.")
    return found


@contextlib.contextmanager
def computing(device: str | None, dtype: str) -> Iterator[None]:
    """Compute on a device and in a floating type, ``float32`` or ``float64``, while the context lasts."""
    with jax.default_device(devices_of(device)[0]), jax.enable_x64(dtype == "float64"):
        yield
