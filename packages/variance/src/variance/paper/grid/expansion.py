"""Expand a grid, a piece of data, into a list of flat configurations.

* mapping: product over its keys; a list of scalars under a key means one run per entry
* list of grids: union
* `product: [grid, grid, ...]`: product of grids
* a value may be a mapping `{value: resnet8, with: {learning_rate: 0.01}}`: the grid under `with` applies only
  with it
* `null` drops the key, so that the default of the experiment applies

Lists that are values themselves (for example `seeds`) are written as nested lists: `seeds: [[0, 1, 2]]`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gdyn_common.errors import unknown
from gdyn_common.storage import read_text, reading
from variance.errors import ConfigError

Grid = Mapping[str, Any] | Sequence[Any]
_DEEPEST = 50
FILE_KEYS = {"figure", "preset", "grid", "exclude_from_name"}


def expand(grid: Grid) -> list[dict[str, Any]]:
    """Return every configuration of a grid, in a stable order.

    Raises:
        ConfigError: The grid is malformed, or two configurations are equal.

    Example:
        >>> expand({"lr": [0.1, 0.2], "arch": ["mlp", {"value": "cnn", "with": {"depth": [2, 3]}}]})[-1]
        {'lr': 0.2, 'arch': 'cnn', 'depth': 3}
        >>> len(expand([{"a": [1, 2]}, {"b": 1}]))
        3
        >>> expand({"product": [{"a": [1, None]}, [{"b": 1}, {"b": 2}]]})
        [{'a': 1, 'b': 1}, {'a': 1, 'b': 2}, {'b': 1}, {'b': 2}]
    """
    found: list[dict[str, Any]] = []
    for configuration in _expand(grid):
        if configuration in found:
            raise ConfigError(f"the grid holds the configuration {configuration} twice; remove one.")
        found.append(configuration)
    return found


def _expand(grid: Grid) -> Iterator[dict[str, Any]]:
    if isinstance(grid, Mapping):
        if "product" in grid and len(grid) == 1:
            yield from _product([list(_expand(part)) for part in grid["product"]])
        else:
            yield from _product([list(_choices(key, value)) for key, value in grid.items()])
    elif isinstance(grid, Sequence) and not isinstance(grid, str):
        for part in grid:
            yield from _expand(part)
    else:
        raise ConfigError(f"a grid is a mapping or a list of grids, got {grid!r}.")


def _choices(key: str, value: Any) -> Iterator[dict[str, Any]]:
    for choice in value if isinstance(value, list) else [value]:
        if isinstance(choice, Mapping):
            if "value" not in choice or set(choice) - {"value", "with"}:
                raise ConfigError(
                    f"choice {dict(choice)!r} of '{key}' must have the keys 'value' and 'with' only."
                )
            own = {} if choice["value"] is None else {key: choice["value"]}
            for rest in _expand(choice.get("with") or {}):
                yield {**own, **rest}
        else:
            yield {} if choice is None else {key: choice}


def _product(parts: list[list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    if not parts:
        yield {}
        return
    for first in parts[0]:
        for rest in _product(parts[1:]):
            clash = {key for key in first.keys() & rest.keys() if first[key] != rest[key]}
            if clash:
                raise ConfigError(f"key(s) {sorted(clash)} are set twice with different values in one run.")
            yield {**first, **rest}


def load_grid(path: str | Path) -> dict[str, Any]:
    """Read a grid file: `figure`, optional `preset` and `exclude_from_name`, and `grid`.

    Raises:
        FileNotFoundError: No such file.
        ConfigError: Unknown or missing keys.
        ValueError: Not YAML, or YAML that refers to its own parts or is nested too deeply.
    """
    import yaml

    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"grid file {file} not found; the shipped ones are in packages/variance/grids."
        )
    text = read_text(file, limit=1 << 20, advice="write it anew")
    with reading(file, "write it anew"):
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            # A reference may stand for a billion others, and every level makes all below it slower to read.
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _DEEPEST:
                raise ConfigError(f"it refers to its own parts, or is nested more than {_DEEPEST} deep")
        body = yaml.safe_load(text)
    if not isinstance(body, dict) or "figure" not in body:
        raise ConfigError(f"grid file {file} must be a mapping with the keys figure and grid.")
    for key in body:
        if key not in FILE_KEYS:
            raise ConfigError(f"grid file {file}: {unknown('key', str(key), sorted(FILE_KEYS))}")
    return {"preset": "quick", "grid": {}, "exclude_from_name": [], **body}


def run_name(configuration: Mapping[str, Any], varied: Sequence[str], number: int) -> str:
    """Spell the varied keys of a run, after its running number.

    Example:
        >>> run_name({"lr": 0.1, "seed": 0}, ["lr"], 3)
        '003_lr=0.1'
    """
    words = [f"{key}={_spell(configuration[key])}" for key in varied if key in configuration]
    return "_".join([f"{number:03d}", *words])


def varied_keys(configurations: Sequence[Mapping[str, Any]], exclude: Sequence[str] = ()) -> list[str]:
    """Return the keys whose value differs between runs, in order of appearance, without the excluded ones."""
    keys = dict.fromkeys(key for configuration in configurations for key in configuration)
    return [
        key
        for key in keys
        if key not in exclude and len({repr(configuration.get(key)) for configuration in configurations}) > 1
    ]


def _spell(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("/", "-").replace(" ", "")
