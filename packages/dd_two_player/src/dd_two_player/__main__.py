"""`python -m dd_two_player` is `gdyn-dd-two-player`."""

from dd_two_player.cli import main

main()
