"""What the estimators say when an answer is not what was asked for."""

import sys
import warnings

from sklearn.exceptions import ConvergenceWarning

from eigengame.core.ritz import Quality

__all__ = ["warn_of_angles", "warn_user"]


def warn_user(message: str, category: type[Warning] = ConvergenceWarning) -> None:
    """Warn at the line from which this library was called, directly or through scikit-learn."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and str(frame.f_globals.get("__name__")).split(".")[0] in ("eigengame", "sklearn"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def warn_of_angles(what: str, found: Quality, tol: float, advice: str) -> None:
    """Warn of vectors whose angle to the true one may exceed `tol`, and of those that share their value.

    Args:
        what: Name of the vectors, plural, first word of the sentence.
        found: From `core.ritz.quality`.
        tol: Largest angle in radians that is good enough.
        advice: What to do, a clause.
    """
    pending = found.pending(tol)
    if pending.size:
        worst = found.angles[pending].max()
        warn_user(
            f"{what} {pending.tolist()} have not converged: the angle to the true one may be up to "
            f"{worst:.2g} rad (tol={tol:g}); {advice}.",
        )
    if found.tied.size:
        warn_user(
            f"{what} {found.tied.tolist()} share their value with another to rounding error: only the span "
            "of such vectors is determined, not the single ones.",
        )
