from gdyn_common.claims import Between, Holds, Within
from gdyn_common.registry import Claim, Deviation, Figure, Paper, Preset

PAPER = Paper(
    package="toy_paper",
    title="Things decay",
    authors="A. Author",
    venue="Nowhere 2020",
    arxiv="0000.00000",
    bibtex="@article{toy}",
    figures=(
        Figure(
            id="fig1",
            source="Figure 1",
            shows="Values fall exponentially.",
            module="toy_paper.decay",
            config="toy_paper.config:DecayConfig",
            presets={
                "quick": Preset("1 s", "scaled down"),
                "paper": Preset("2 s", "paper", {"num_steps": 1000}),
                "smoke": Preset("0 s", "smoke", {"num_steps": 2, "seeds": [0]}),
            },
        ),
        Figure(
            id="fig2",
            source="Figure 2",
            shows="The same, long.",
            module="toy_paper.decay",
            config="toy_paper.config:DecayConfig",
            presets={"quick": Preset("1 s", "scaled down"), "paper": Preset("1 s", "paper")},
            in_default=False,
            not_run="nobody has the time",
        ),
    ),
    claims=(
        Claim("fig1.rate", "fig1", "The value falls to 1/e.", "Eq. 1", "decay", Within(relative=0.02), "Euler error", 0.3679),
        Claim("fig1.falls", "fig1", "The value falls.", "Eq. 1", "falls", Holds(), "sign"),
        Claim(
            "fig1.rises", "fig1", "The value doubles.", "Sec. 9", "decay", Between(1.9, 2.1), "a wrong claim",
            expected="fails", expected_because="Euler's scheme cannot make it rise.",
        ),
        Claim("fig1.paper", "fig1", "At 1000 steps.", "Sec. 2", "decay", Between(0.367, 0.3685), "Euler", presets=("paper",)),
    ),
    deviations=(Deviation("D1", "scheme", "exact", "Euler", "first order"),),
    out_of_scope={"fig9": "needs a telescope"},
)
