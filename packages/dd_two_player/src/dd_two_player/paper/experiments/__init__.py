"""One module per figure: ``compute`` measures, ``plot`` draws what was stored."""
