import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_two_player.gans import losses

REAL, FAKE = np.array([[0.5], [-1.0]]), np.array([[2.0], [0.3]])
SIGMOID = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
SOFTPLUS = lambda x: np.log1p(np.exp(x))  # noqa: E731
FORMULAS = {
    "discriminator_goodfellow_loss": lambda r, f: SOFTPLUS(-r).mean() + SOFTPLUS(f).mean(),
    "discriminator_square_loss": lambda r, f: ((r - 1) ** 2).mean() + (f**2).mean(),
    "discriminator_square_loss_with_sigmoid": lambda r, f: (
        ((SIGMOID(r) - 1) ** 2).mean() + (SIGMOID(f) ** 2).mean()
    ),
    "wasserstein_discriminator_loss": lambda r, f: f.mean() - r.mean(),
    "generator_goodfellow_loss": lambda f: SOFTPLUS(-f).mean(),
    "generator_saturating_loss": lambda f: -SOFTPLUS(f).mean(),
    "generator_square_loss": lambda f: -(f**2).mean(),
    "generator_square_loss_with_sigmoid": lambda f: -(SIGMOID(f) ** 2).mean(),
    "wasserstein_generator_loss": lambda f: -f.mean(),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name):
    arguments = (REAL, FAKE) if "discriminator" in name else (FAKE,)
    measured = getattr(losses, name)(*map(jnp.asarray, arguments))
    assert float(measured) == pytest.approx(FORMULAS[name](*arguments), rel=1e-6)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_finite_at_extreme_logits(name, logit):
    arguments = [jnp.full((2, 1), logit)] * (2 if "discriminator" in name else 1)
    value, gradient = jax.value_and_grad(getattr(losses, name))(*arguments)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("shape", [(2,), (2, 2), (2, 1, 1)])
def test_logits_must_be_a_column(shape):
    with pytest.raises(ValueError, match=r"a discriminator must return \(N, 1\)"):
        losses.generator_saturating_loss(jnp.zeros(shape))


def test_gradient_penalty_of_a_linear_discriminator():
    weights = jnp.array([3.0, 4.0])  # slope 5 everywhere
    penalty = losses.wgan_gradient_penalty_loss(
        lambda x: (x @ weights)[:, None], jnp.zeros((3, 2)), jnp.ones((3, 2)), jax.random.key(0)
    )
    assert float(penalty) == pytest.approx((np.sqrt(25 + 1e-5) - 1) ** 2, rel=1e-6)


def test_the_gradient_penalty_needs_a_sample_for_every_example():
    """One sample would be mixed with all data without a word."""
    with pytest.raises(ValueError, match=r"shape \(4, 3\) and samples of shape \(1, 3\)"):
        losses.wgan_gradient_penalty_loss(
            lambda x: x.sum(1, keepdims=True), jnp.ones((4, 3)), jnp.zeros((1, 3)), jax.random.key(0)
        )
