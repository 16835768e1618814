from gdyn_reproduce.cli import main

main("toy_paper.paper:PAPER")
