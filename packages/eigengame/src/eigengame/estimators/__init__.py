"""scikit-learn estimators over the functional core."""
