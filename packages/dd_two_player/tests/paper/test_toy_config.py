import pytest

from dd_two_player.paper.toy_config import DalConfig, PrincipalFlowConfig, ToyConfig


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ToyConfig(game="dirak"), "Did you mean 'dirac'"),
        (lambda: ToyConfig(scheme="euler"), "Unknown scheme 'euler'"),
        (lambda: ToyConfig(correct="original"), "Unknown correct 'original'. Allowed: none, paper, joint"),
        (lambda: ToyConfig(scheme="rk4", correct="joint"), "scheme=rk4 has none of that form"),
        (lambda: ToyConfig(start=[1.0]), "start is .*; allowed: two numbers"),
        (lambda: ToyConfig(gen_learning_rate=0.0), "gen_learning_rate is 0.0; allowed: positive and finite"),
        (lambda: ToyConfig(dtype="float32"), "dirac is played in float64; leave out dtype"),
        (lambda: ToyConfig(game="ring8", dtype="half"), "Unknown dtype 'half'"),
        (lambda: DalConfig(dtype="bfloat16"), "Unknown dtype 'bfloat16'. Allowed: float32, float64"),
        (lambda: PrincipalFlowConfig(start=[1.0]), "start is .*; allowed: 2 numbers"),
        (lambda: PrincipalFlowConfig(learning_rate=-1.0), "learning_rate is -1.0; allowed: positive"),
        (lambda: DalConfig(power=-0.5), "power is -0.5; allowed: 0 or more"),
        (lambda: DalConfig(cap=0.0), "cap is 0.0; allowed: positive and finite"),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()
