"""How results show themselves: as text in a shell, as HTML in a notebook, as a figure when asked."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from typing import Any

# of matplotlib, which a library that only computes does not import
Axes = Any
Figure = Any


class Shown(ABC):
    """A result that shows its summary wherever a shell or a notebook shows the object.

    A frozen dataclass takes ``repr=False`` to leave ``repr`` to this class.

    Example:
        >>> class Spread(Shown):
        ...     def summary(self) -> str:
        ...         return "spread < 0.1"
        >>> Spread()
        spread < 0.1
        >>> Spread()._repr_html_()
        '<pre>spread &lt; 0.1</pre>'
    """

    @abstractmethod
    def summary(self) -> str:
        """Return the result as text."""

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.summary())}</pre>"


def axes_for(axes: Axes | None = None) -> Axes:
    """Return the axes of matplotlib to draw into: those given, or those of a new figure.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; a library that only computes does not need it.
    """
    if axes is not None:
        return axes
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError("Drawing needs matplotlib: pip install matplotlib.") from None
    return Figure(figsize=(6.4, 3.6), layout="constrained").subplots()
