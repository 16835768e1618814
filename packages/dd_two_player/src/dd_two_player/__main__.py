"""``python -m dd_two_player``."""

from dd_two_player.cli import main

main()
