"""Errors a caller may want to catch; everything else is a plain ValueError or TypeError."""


class ConfigError(ValueError):
    """An option or a combination of options that cannot be honoured."""


class NotReady(RuntimeError):  # noqa: N818 - public name
    """An estimator was asked for a direction before the operation that prepares it."""


class UnsupportedLayer(TypeError):  # noqa: N818 - public name
    """A layer whose examples cannot be told apart, for example batch norm in training mode."""


class NonFiniteGradient(ArithmeticError):  # noqa: N818 - public name
    """A loss or gradient is NaN or infinite; the message names the examples."""


class CoupledExamples(ConfigError):  # noqa: N818 - public name
    """The loss or the network mixes examples, so that one example has no gradient of its own."""


class SlowPath(UserWarning):
    """Some parameters took the slow exact path, because the fast one did not fit this model."""
