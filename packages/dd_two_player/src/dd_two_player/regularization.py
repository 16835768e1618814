"""Recipes: which regularisation terms each player adds to its gradient.

The total coefficient of a term is ``dd_coeffs_multiplier * drift + explicit_non_dd_coeffs``: a multiplier of
-1 cancels the drift of gradient descent, +1 doubles it, 0 leaves it. The key names are those of the
published configuration files.

Source: explicit regularisation in Rosca et al. 2021 and its released configurations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dd_two_player.drift import Coefficients, PlayerTerms, concrete

__all__ = ["Regularization", "active_terms", "combine"]

NONE = Coefficients()


@dataclass(frozen=True)
class Regularization:
    """Multipliers of the drift terms and explicit coefficients, for both players.

    Attributes:
        dd_coeffs_multiplier: Factor of each drift coefficient.
        explicit_non_dd_coeffs: Coefficients that do not depend on learning rates.
        rk_after_explicit_coeffs: Runge-Kutta only: explicit terms added once, after the stages were combined.

    Example:
        >>> from dd_two_player.drift import drift_coefficients
        >>> recipe = Regularization.cancel_interaction()
        >>> recipe.coefficients(drift_coefficients((0.1, 0.2))).gen
        PlayerTerms(self_norm=0.0, other_norm=0.0, other_dot_prod=-0.1)
        >>> recipe.mask().disc
        PlayerTerms(self_norm=False, other_norm=False, other_dot_prod=True)
    """

    dd_coeffs_multiplier: Coefficients = NONE
    explicit_non_dd_coeffs: Coefficients = NONE
    rk_after_explicit_coeffs: Coefficients = NONE

    def __post_init__(self) -> None:
        """Refuse coefficients that are not finite numbers, and multipliers of a drift that is none."""
        for group in ("dd_coeffs_multiplier", "explicit_non_dd_coeffs", "rk_after_explicit_coeffs"):
            active_terms(getattr(self, group))
            for player, terms in zip(("disc", "gen"), getattr(self, group), strict=True):
                for term, value in zip(PlayerTerms._fields, terms, strict=True):
                    known = concrete(value)
                    if known is not None and not np.all(np.isfinite(known)):
                        raise ValueError(f"{group}.{player}.{term} is {value!r}; it must be a finite number.")
        for player, terms in zip(("disc", "gen"), self.dd_coeffs_multiplier, strict=True):
            if active_terms(Coefficients(terms)).disc.other_norm:
                raise ValueError(
                    f"dd_coeffs_multiplier.{player}.other_norm is {terms.other_norm}, but no drift has "
                    f"that term; use explicit_non_dd_coeffs.{player}.other_norm."
                )

    @classmethod
    def leave(cls) -> Regularization:
        """Plain gradient descent: leave the drift as it is."""
        return cls()

    @classmethod
    def cancel_interaction(cls) -> Regularization:
        """Cancel the interaction terms of the drift."""
        terms = PlayerTerms(other_dot_prod=-1.0)
        return cls(dd_coeffs_multiplier=Coefficients(terms, terms))

    @classmethod
    def cancel_and_strengthen(cls) -> Regularization:
        """Cancel the interaction terms and double the self terms."""
        terms = PlayerTerms(self_norm=1.0, other_dot_prod=-1.0)
        return cls(dd_coeffs_multiplier=Coefficients(terms, terms))

    @classmethod
    def consensus(cls, strength: float) -> Regularization:
        """Consensus optimisation: both players descend both gradient norms (Mescheder et al. 2017)."""
        terms = PlayerTerms(self_norm=strength, other_norm=strength)
        return cls(explicit_non_dd_coeffs=Coefficients(terms, terms))

    @classmethod
    def sga(cls, strength: float) -> Regularization:
        """Symplectic gradient adjustment for zero-sum games: descend the opponent's gradient norm.

        For ``L_G = -L_D`` this is the adjustment by the antisymmetric part of the game's Jacobian (Balduzzi
        et al. 2018).
        """
        terms = PlayerTerms(other_norm=strength)
        return cls(explicit_non_dd_coeffs=Coefficients(terms, terms))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Regularization:
        """Read a ``grad_regularizes`` mapping with the published key names.

        Raises:
            ValueError: For an unknown group, player or term, naming its path.
        """
        groups = {}
        for group, players in mapping.items():
            if group not in cls.__dataclass_fields__:
                raise ValueError(
                    f"Unknown key grad_regularizes.{group}; allowed: {', '.join(cls.__dataclass_fields__)}."
                )
            for player, terms in players.items():
                if player not in Coefficients._fields:
                    raise ValueError(f"Unknown player grad_regularizes.{group}.{player}; allowed: disc, gen.")
                for term in terms:
                    if term not in PlayerTerms._fields:
                        raise ValueError(
                            f"Unknown term grad_regularizes.{group}.{player}.{term}; "
                            f"allowed: {', '.join(PlayerTerms._fields)}."
                        )
            groups[group] = Coefficients(
                **{player: PlayerTerms(**terms) for player, terms in players.items()}
            )
        return cls(**groups)

    def coefficients(self, drift: Coefficients) -> Coefficients:
        """Return ``multiplier * drift + explicit``, term by term; ``drift`` may hold traced values."""
        return combine(self.dd_coeffs_multiplier, drift, self.explicit_non_dd_coeffs)

    def mask(self) -> Coefficients:
        """Return which terms can be non-zero: a static structure, so that absent terms are never computed.

        A multiplier of ``other_norm`` acts on a drift coefficient that is zero and therefore never activates
        it.
        """
        dd = active_terms(self.dd_coeffs_multiplier)
        explicit = active_terms(self.explicit_non_dd_coeffs)
        return Coefficients(
            *(
                PlayerTerms(d.self_norm or e.self_norm, e.other_norm, d.other_dot_prod or e.other_dot_prod)
                for d, e in zip(dd, explicit, strict=True)
            )
        )


def active_terms(coefficients: Coefficients) -> Coefficients:
    """Return false for terms that are the Python number zero, true for anything else.

    >>> active_terms(Coefficients(disc=PlayerTerms(other_norm=0.5))).disc
    PlayerTerms(self_norm=False, other_norm=True, other_dot_prod=False)
    """
    if not isinstance(coefficients, Coefficients) or not all(
        isinstance(terms, PlayerTerms) for terms in coefficients
    ):
        raise ValueError(
            f"coefficients is a {type(coefficients).__name__}; pass Coefficients(PlayerTerms(...), "
            "PlayerTerms(...)), as from drift_coefficients, drift.coefficients or recipe.coefficients(...)."
        )
    return Coefficients(
        *(PlayerTerms(*(not isinstance(c, int | float) or c != 0 for c in terms)) for terms in coefficients)
    )


def combine(multiplier: Coefficients, drift: Coefficients, explicit: Coefficients) -> Coefficients:
    """Return ``multiplier * drift + explicit``, term by term; any of them may hold traced values."""
    active_terms(drift)
    return Coefficients(
        *(
            PlayerTerms(*(m * d + e for m, d, e in zip(*rows, strict=True)))
            for rows in zip(multiplier, drift, explicit, strict=True)
        )
    )
