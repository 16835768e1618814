"""``python -m eigengame``."""

from eigengame.cli import main

if __name__ == "__main__":
    main()
