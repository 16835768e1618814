"""How much of a result is rounding error? The probe for your own model, loop and optimiser."""
