import time

import numpy as np

from gdyn_common.seeding import generator
from gdyn_reproduce.plotting import COLOURS, band, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Estimate, Run
from toy_paper.config import DecayConfig


def compute(config: DecayConfig, run: Run) -> Result:
    if config.fail == "input":
        raise ValueError("fail is 'input'; leave it out.")
    if config.fail == "bug":
        np.zeros(2).reshape(3)
    curves = [
        [
            run.piece(f"rate={rate}/seed={seed}", lambda r=rate, s=seed: _decay(config, r, s))["u"]
            for seed in config.seeds
        ]
        for rate in config.rates
    ]
    ratio = [float(curve[-1] / curve[0]) for curve in curves[-1]]
    still = [float(u[-1] / u[0]) for u in (_decay(config, 0.0, seed)["u"] for seed in config.seeds)]
    run.tracker.rewind(config.num_steps)
    run.tracker.log(config.num_steps, {"ratio": ratio[0]})
    measurements = {
        "decay": ratio,
        "falls": [r < 1 for r in ratio],
        "finite": [bool(np.isfinite(r)) for r in ratio],
        "decay_at_rate_0": still,
    }
    return Result(measurements, {"curves": np.array(curves)})


def _decay(config: DecayConfig, rate: float, seed: int) -> dict[str, np.ndarray]:
    """Return the values; each seed has a rate a little off, so that seeds differ."""
    time.sleep(config.delay_s)
    chance = generator(seed, "start")
    start, off = 1 + chance.random(), 1e-3 * chance.uniform(-1, 1)
    return {"u": start * (1 - (rate + off) / config.num_steps) ** np.arange(config.num_steps + 1)}


def plot(result: Result):
    figure, axes = new_figure()
    for colour, curves in zip(COLOURS, result.arrays["curves"], strict=False):
        band(axes, np.arange(curves.shape[-1]), curves, "rate", colour)
    axes.set(xlabel="step", ylabel="value")
    return figure


def estimate(config: DecayConfig) -> Estimate:
    return Estimate(seconds=90.0, memory_bytes=2.0**20)


def greet(config) -> int:
    print("Hello", *config.names, config.model["width"], *filter(None, [config.data]))
    return 0
