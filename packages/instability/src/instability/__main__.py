"""``python -m instability``."""

from instability.cli import main

if __name__ == "__main__":
    main()
