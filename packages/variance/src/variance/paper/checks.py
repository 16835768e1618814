"""What every configuration here checks with."""


def require(condition: bool, message: str) -> None:
    """Refuse a setting with one line.

    Raises:
        ValueError: The condition does not hold.
    """
    if not condition:
        raise ValueError(message)
