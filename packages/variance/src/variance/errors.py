"""Errors a caller may want to catch; everything else is a plain ValueError or TypeError."""


class ConfigError(ValueError):
    """An option or a combination of options that cannot be honoured."""


class NotReady(RuntimeError):  # noqa: N818 - public name
    """An estimator was asked for a direction before the operation that prepares it."""


class UnsupportedLayer(TypeError):  # noqa: N818 - public name
    """A layer whose examples cannot be told apart, for example batch norm in training mode."""


class NonFiniteGradient(ArithmeticError):  # noqa: N818 - public name
    """A loss or gradient is NaN or infinite; the message names the examples."""
