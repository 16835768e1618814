"""One module per experiment: ``compute(config, run)`` and ``plot(result)``."""
