from gdyn_reproduce.claims import Between, Claim, Control, Holds, Within
from gdyn_reproduce.registry import Deviation, Figure, Paper, Preset

STILL = Control("decay_at_rate_0", removes="rate set to 0")

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
                "quick": Preset("1 s", "scaled"),
                "paper": Preset("2 s", "paper size", {"num_steps": 1000}),
                "smoke": Preset("0 s", "smoke", {"num_steps": 2, "seeds": [0]}),
            },
        ),
        Figure(
            id="fig2",
            source="Figure 2",
            shows="The same, long.",
            module="toy_paper.decay",
            config="toy_paper.config:DecayConfig",
            presets={"quick": Preset("1 s", "scaled"), "paper": Preset("1 s", "paper size")},
            in_default=False,
            not_run="nobody has the time",
        ),
    ),
    claims=(
        Claim(
            "fig1.rate",
            "The value falls to 1/e.",
            "Eq. 1",
            "decay",
            Within(relative=0.02),
            "Euler error",
            0.3679,
            control=STILL,
            requires=("finite",),
        ),
        Claim(
            "fig1.falls",
            "The value falls.",
            "Eq. 1",
            "falls",
            Holds(),
            "sign",
            kind="check",
            deterministic=True,
        ),
        Claim(
            "fig1.rises",
            "The value doubles.",
            "Sec. 9",
            "decay",
            Between(1.9, 2.1),
            "a wrong claim",
            expected="fails",
            expected_because="Euler's scheme cannot make it rise.",
            registered_because="a first run gave 0.37",
            no_control="nothing makes it rise",
        ),
        Claim(
            "fig1.paper",
            "At 1000 steps.",
            "Sec. 2",
            "decay",
            Between(0.367, 0.3685),
            "Euler",
            presets=("paper",),
            control=STILL,
        ),
    ),
    deviations=(Deviation("D1", "scheme", "exact", "Euler", "first order"),),
    out_of_scope={"fig9": "needs a telescope"},
)
