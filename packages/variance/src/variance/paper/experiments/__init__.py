"""One module per figure or study, each with `compute(config, run)` and `plot(result)`."""
