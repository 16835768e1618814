"""Checks that the configurations of experiments and commands share."""


def check_seeds(seeds: list[int]) -> None:
    """Refuse a list of seeds that is empty or has repeats."""
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds={seeds} must be one or more different integers.")


def check_positive(**values: float) -> None:
    """Refuse values that are not positive, by name."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}={value} must be positive.")
