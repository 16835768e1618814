"""What the estimators say when an answer is not what was asked for."""

import warnings

from sklearn.exceptions import ConvergenceWarning

from eigengame.core.ritz import Quality

__all__ = ["warn_of_angles"]


def warn_of_angles(what: str, found: Quality, tol: float, advice: str, *, level: int = 3) -> None:
    """Warn of vectors whose angle to the true one may exceed `tol`, and of those that share their value.

    Args:
        what: Name of the vectors, plural, first word of the sentence.
        found: From `core.ritz.quality`.
        tol: Largest angle in radians that is good enough.
        advice: What to do, a clause.
        level: Frames between the user's call and this one.
    """
    pending = found.pending(tol)
    if pending.size:
        worst = found.angles[pending].max()
        warnings.warn(
            f"{what} {pending.tolist()} have not converged: the angle to the true one may be up to "
            f"{worst:.2g} rad (tol={tol:g}); {advice}.",
            ConvergenceWarning,
            stacklevel=level,
        )
    if found.tied.size:
        warnings.warn(
            f"{what} {found.tied.tolist()} share their value with another to rounding error: only the span "
            "of such vectors is determined, not the single ones.",
            ConvergenceWarning,
            stacklevel=level,
        )
