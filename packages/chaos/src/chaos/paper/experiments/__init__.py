"""One module per figure: ``compute(config, run)`` and ``plot(result)``."""
