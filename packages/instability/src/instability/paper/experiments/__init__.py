"""One module per figure or table: ``compute(config, run)`` and ``plot(result)``."""
