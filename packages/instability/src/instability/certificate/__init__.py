"""How many digits of a training run's score survive another machine, thread count or batch split?"""
