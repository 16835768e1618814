"""`python -m variance` is `gdyn-variance`."""

from variance.cli import main

main()
