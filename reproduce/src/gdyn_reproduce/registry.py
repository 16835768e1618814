"""What a paper shows and claims, as data.

One `Paper` per package holds its figures, claims and deviations. Everything that runs is named by
a string, so that listing a paper imports no framework.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from gdyn_common.errors import UnknownNameError, unknown
from gdyn_reproduce.claims import Claim, scale_of
from gdyn_reproduce.unread import Unread

_HOURS = {
    "s": 1 / 3600,
    "seconds": 1 / 3600,
    "min": 1 / 60,
    "minutes": 1 / 60,
    "h": 1.0,
    "core hours": 1.0,
    "hours": 1.0,
    "days": 24.0,
    "weeks": 168.0,
}
_SOME = {"seconds": 10.0, "hours": 6.0, "days": 2.0, "weeks": 2.0}
"""What is meant by a unit without a number."""


@dataclass(frozen=True)
class Preset:
    """One size at which a figure can be run.

    Attributes:
        cost: Time, hardware and memory a user should expect, for example ``"40 s, 2 cores"``.
        scale: ``"paper size"`` only when sizes and data are the paper's own, else ``"scaled"``. A
            ``"smoke"`` run shows that the code works; its claims are never judged.
        overrides: Configuration values that differ from the defaults of the figure's dataclass.
    """

    cost: str
    scale: str
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", scale_of(self.scale))

    @property
    def hours(self) -> float:
        """The stated cost in hours, upper ends of ranges, what is stated per seed or run five times.

        >>> Preset("20 min to 1 h, 1 core", "scaled").hours, Preset("about 3500 core hours", "scaled").hours
        (1.0, 3500.0)
        >>> Preset("days, 1 core", "scaled").hours, Preset("1 h per seed", "scaled").hours
        (48.0, 5.0)
        """
        found = [
            float(number or _SOME[unit]) * _HOURS[unit]
            for number, unit in re.findall(rf"([\d.]+)?\s*(?<![a-z])({'|'.join(_HOURS)})\b", self.cost)
            if number or unit in _SOME
        ]
        return max(found, default=math.inf) * (5 if re.search(r"\bper\b", self.cost) else 1)


@dataclass(frozen=True)
class Figure:
    """A figure or table of the paper, or a study that belongs to it.

    Attributes:
        id: Name on the command line, for example ``"fig4-left"``.
        source: Where it stands, for example ``"Figure 4, left (NeurIPS version)"``.
        shows: One sentence on what a reader should see.
        module: Import path of the experiment, with ``compute`` and ``plot``.
        config: ``"module:DataclassName"`` of its configuration.
        presets: By name; ``quick``, ``paper`` and ``smoke`` are the usual ones.
        in_default: Whether ``run all`` includes it.
        not_run: Why the paper preset has no record, if that is known in advance.
        unread: Options that its computation does not read; they are refused.
    """

    id: str
    source: str
    shows: str
    module: str
    config: str
    presets: Mapping[str, Preset]
    in_default: bool = True
    not_run: str = ""
    unread: tuple[Unread, ...] = ()

    @property
    def default_preset(self) -> str:
        """The preset that runs when none is named: ``quick``, or the first where there is none."""
        return "quick" if "quick" in self.presets else next(iter(self.presets))

    @property
    def largest_preset(self) -> str:
        """``paper``, or where there is none the costliest preset."""
        if "paper" in self.presets:
            return "paper"
        return max(self.presets, key=lambda name: self.presets[name].hours)


def figure(
    experiments: str,
    id: str,
    source: str,
    shows: str,
    experiment: str,
    config: str,
    *,
    in_default: bool = True,
    not_run: str = "",
    unread: Iterable[Unread] = (),
    scales: Mapping[str, str] = MappingProxyType({}),
    **presets: tuple[str, Mapping[str, Any]],
) -> Figure:
    """Return a figure in the short form of a registry.

    Args:
        experiments: Import path of the package that holds the experiments.
        id: As in `Figure`.
        source: As in `Figure`.
        shows: As in `Figure`.
        experiment: Name of the module in there.
        config: Class of that module, or ``"module:DataclassName"`` of another one.
        in_default: As in `Figure`.
        not_run: As in `Figure`.
        unread: As in `Figure`.
        scales: Scale of the presets for which it is not the usual one: ``quick`` and ``long`` are scaled,
            ``smoke`` is a smoke run, and others have the paper's size.
        presets: Cost and overrides by name, an underscore for a dash.

    >>> figure("toy.paper", "fig1", "Figure 1", "A fall.", "fall", "Fall", quick=("2 s", {})).config
    'toy.paper.fall:Fall'
    """
    module = f"{experiments}.{experiment}"
    usual = {"quick": "scaled", "long": "scaled", "smoke": "smoke", **scales}
    named = {name.replace("_", "-"): preset for name, preset in presets.items()}
    return Figure(
        id,
        source,
        shows,
        module,
        config if ":" in config else f"{module}:{config}",
        {name: Preset(cost, usual.get(name, "paper size"), values) for name, (cost, values) in named.items()},
        in_default,
        not_run,
        tuple(unread),
    )


@dataclass(frozen=True)
class Deviation:
    """Something done differently from the paper or its published code.

    Attributes:
        id: Short label such as ``"D1"``.
        what: The quantity or procedure concerned.
        original: What the paper or its code does.
        ours: What is done here.
        effect: What difference it makes to the results.
    """

    id: str
    what: str
    original: str
    ours: str
    effect: str


@dataclass(frozen=True)
class Command:
    """A command beyond those of the house.

    Attributes:
        name: As typed, for example ``"thresholds"``.
        help: One sentence.
        run: ``"module:function"``; takes the configuration, returns an exit code or ``None`` for 0.
        config: ``"module:DataclassName"`` of its configuration.
        positional: Keys that may be given without ``key=``, in order; the last one takes the rest
            of the positional arguments as a list when `variadic`.
        variadic: Whether the last positional key is a list.
        groups: Hydra config groups, by name and option, each the overrides that option stands for.
        default_groups: Option of each group that applies when none is chosen.
        rewrite: ``"module:function"`` that maps the given arguments to overrides before Hydra reads
            them, for packages whose published command lines use other keys.
        options: Those of `gdyn_reproduce.runs.RunOptions` that it reads; the others are no keys of it.
    """

    name: str
    help: str
    run: str
    config: str
    positional: tuple[str, ...] = ()
    variadic: bool = False
    groups: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    default_groups: Mapping[str, str] = field(default_factory=dict)
    rewrite: str = ""
    options: tuple[str, ...] = ("out", "overwrite", "dry_run")


@dataclass(frozen=True)
class Paper:
    """Everything a package knows about its paper.

    Attributes:
        package: Import name of the package.
        title: Title of the paper.
        authors: Authors, in the paper's order.
        venue: Venue and year.
        arxiv: arXiv identifier.
        bibtex: BibTeX entries, the paper's first.
        figures: Every figure and table that can be run.
        claims: Every claim that is judged.
        deviations: Numbered differences from the paper and its code.
        out_of_scope: Figures and tables that cannot be run here, each with the reason.
    """

    package: str
    title: str
    authors: str
    venue: str
    arxiv: str
    bibtex: str
    figures: tuple[Figure, ...]
    claims: tuple[Claim, ...]
    deviations: tuple[Deviation, ...] = ()
    out_of_scope: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        figures = {figure.id: figure for figure in self.figures}
        figure_of: dict[str, str] = {}
        for claim in self.claims:
            if claim.id in figure_of:
                raise ValueError(f"{self.package} registers the claim {claim.id!r} twice")
            figure_of[claim.id] = claim.figure
            if claim.figure not in figures:
                raise ValueError(f"claim {claim.id!r}: {unknown('figure', claim.figure, figures)}")
            for preset in claim.presets:
                if preset not in figures[claim.figure].presets:
                    raise ValueError(
                        f"claim {claim.id!r}: {unknown('preset', preset, figures[claim.figure].presets)}"
                    )
        for claim in self.claims:
            for name in claim.requires:
                if figure_of.get(name, claim.figure) != claim.figure:
                    raise ValueError(f"claim {claim.id!r} requires {name!r} of another figure's run")

    def figure(self, figure_id: str) -> Figure:
        """Return the figure of that id; ``F1``, ``figure 1`` and ``Fig_1`` are other spellings of ``fig1``.

        Raises:
            UnknownNameError: If there is none; the message lists the ids and the nearest match.
        """
        for figure in self.figures:
            if figure.id == figure_id:
                return figure
        alike = [figure for figure in self.figures if _spelled_alike(figure.id) == _spelled_alike(figure_id)]
        if len(alike) == 1:
            return alike[0]
        reason = self.out_of_scope.get(figure_id)
        if reason:
            raise UnknownNameError(f"Figure {figure_id!r} is out of scope here: {reason}")
        raise UnknownNameError(unknown("figure", figure_id, [f.id for f in self.figures]))

    def claims_of(self, figure_id: str) -> tuple[Claim, ...]:
        """Return the claims that this figure decides."""
        return tuple(claim for claim in self.claims if claim.figure == figure_id)


def _spelled_alike(figure_id: str) -> str:
    """Return what all spellings of a figure's id have in common.

    >>> {_spelled_alike(name) for name in ("F1", "fig1", "Figure 1", "fig_1", "fig.1")}
    {'f1'}
    """
    plain = re.sub(r"[\W_]+", "", figure_id.lower())
    return re.sub(r"^(fig(ure)?|tab(le)?)(?=\d)", lambda match: match[0][0], plain)


def program(package: str) -> str:
    """Return the name of a package's console script.

    >>> program("dd_two_player")
    'gdyn-dd-two-player'
    """
    return f"gdyn-{package.replace('_', '-')}"


def resolve(path: str) -> Any:
    """Import ``"module:attribute"`` and return the attribute, or ``"module"`` and return the module.

    >>> resolve("math:pi")
    3.141592653589793
    """
    module, _, attribute = path.partition(":")
    loaded = importlib.import_module(module)
    return getattr(loaded, attribute) if attribute else loaded
