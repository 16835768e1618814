"""Repairs that let every published command line run as it stands, each announced in one line."""

from __future__ import annotations

import sys

#: Group choices, as the keys they stand for.
GROUPS = {
    ("model", "mlp"): ["model.name=mlp"],
    ("model", "cnn"): ["model.name=cnn"],
    ("optim", "sgd"): ["optim.name=sgd"],
    ("optim", "cgd"): ["optim.name=cgd"],
    ("logging", "default"): [],
    ("logging", "preglobal"): [
        "logging.log_eigenthings=False",
        "logging.log_lyapunov=True",
        "logging.log_subsim=False",
        "logging.log_lyapunov_subsim=False",
    ],
}
#: Keys that the published lines write at the top level, and earlier names.
MISPLACED = {
    **{key: f"optim.{key}" for key in ("prune_set", "prune_start", "prune_k", "k", "noise", "noise_fac")},
    "save_eigenthings": "logging.save_eigenthings",
    "max_steps": "num_steps",
    "data.normalize": "normalize",
    "data.root": "data_root",
}
#: Keys of CGD alone, and values that switch nothing on.
PRUNING = {key for key in MISPLACED.values() if key.startswith("optim.")} | {
    "optim.prune_global",
    "optim.prune_global_checkpoint",
}
OFF = ("", "null", "None", "False", "false")


def repair(overrides: list[str]) -> list[str]:
    """Map published overrides to ours.

    Example:
        >>> repair(["model=mlp", "dataset=usps"])
        ['model.name=mlp', 'dataset=usps']

    Raises:
        ValueError: For an unknown choice of a group.
    """
    out: list[str] = []
    pruning: list[str] = []
    for override in overrides:
        key, separator, value = override.partition("=")
        if separator and key in ("model", "optim", "logging"):
            out += _group(key, value)
        elif separator and key == "gpus":
            _announce("gpus= is read as device=")
            out.append(f"device={_device(value)}")
        elif separator and key in MISPLACED:
            _announce(f"{key}= is read as {MISPLACED[key]}=")
            out.append(f"{MISPLACED[key]}={value}")
            pruning += [key] if MISPLACED[key].startswith("optim.") else []
        else:
            out.append(override)
            pruning += [key] if key in PRUNING and value not in OFF else []
    names = [item.partition("=")[2] for item in out if item.startswith("optim.name=")]
    if pruning and not any("cgd" in name for name in names):
        _announce(f"{pruning[0]}= belongs to CGD, so optim.name=cgd (the published row is labelled cgd)")
        out = [item for item in out if not item.startswith("optim.name=")] + ["optim.name=cgd"]
    return out


def _group(key: str, value: str) -> list[str]:
    choices = value.strip("'\"").split(",")
    for choice in choices:
        if (key, choice) not in GROUPS:
            allowed = ", ".join(option for group, option in GROUPS if group == key)
            raise ValueError(f"Unknown {key} {choice!r}. Allowed: {allowed}.")
    if len(choices) > 1 and key != "logging":
        return [f"{key}.name={','.join(choices)}"]
    return [item for choice in choices for item in GROUPS[key, choice]]


def _device(gpus: str) -> str:
    names = [name.strip(" '\"") for name in gpus.strip("[] ").split(",")]
    if len(names) > 1:
        raise ValueError(f"gpus={gpus}: one run uses one device; start one run for each.")
    return names[0] or "cpu"


def _announce(repair: str) -> None:
    print(f"note: {repair}", file=sys.stderr)
