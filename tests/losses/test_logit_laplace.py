"""The dVAE's likelihood and KL against torch.distributions, and their schedules."""

import math

import pytest
import torch
from torch.distributions import Categorical, Laplace, TransformedDistribution, kl_divergence
from torch.distributions.transforms import SigmoidTransform

from zoo.losses.categorical import kl_to_uniform, marginal_entropy_gap
from zoo.losses.logit_laplace import logit_laplace_nll, map_pixels, unmap_pixels
from zoo.optim import Optim, cosine, lr_factor


def test_nll_is_that_of_a_laplace_variable_pushed_through_the_sigmoid():
    torch.manual_seed(0)
    x = torch.rand(500, dtype=torch.double) * 0.8 + 0.1
    mu, log_scale = torch.randn(500, dtype=torch.double), torch.randn(500, dtype=torch.double)
    reference = TransformedDistribution(Laplace(mu, log_scale.exp()), [SigmoidTransform()])
    torch.testing.assert_close(logit_laplace_nll(x, mu, log_scale), -reference.log_prob(x), atol=1e-12, rtol=1e-12)


def test_density_integrates_to_one():
    x = torch.linspace(1e-6, 1 - 1e-6, 400_001, dtype=torch.double)
    density = torch.exp(-logit_laplace_nll(x, torch.full_like(x, 0.4), torch.full_like(x, -0.7)))
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-5)


def test_pixels_are_squeezed_to_the_middle_and_back():
    x = torch.linspace(0, 1, 256)
    assert map_pixels(x).aminmax() == (pytest.approx(0.1), pytest.approx(0.9))
    torch.testing.assert_close(unmap_pixels(map_pixels(x)), x, atol=1e-6, rtol=0)
    # OpenAI's form in 0..255 units: (x + 31.875) / 318.75.
    torch.testing.assert_close(map_pixels(x), (x * 255 + 31.875) / 318.75, atol=1e-6, rtol=0)
    assert unmap_pixels(torch.tensor([0.0, 1.0])).tolist() == [0, 1]


def test_kl_equals_the_library_value_at_each_position():
    logits = 3 * torch.randn(2, 8192, 3, 2)
    q = Categorical(logits=logits.permute(0, 2, 3, 1))
    expected = kl_divergence(q, Categorical(logits=torch.zeros(8192)))
    torch.testing.assert_close(kl_to_uniform(logits), expected, atol=1e-4, rtol=1e-5)


def test_marginal_entropy_gap_by_hand():
    one_code = torch.full((2, 4, 1, 2), -50.0)
    one_code[:, 1] = 50
    assert marginal_entropy_gap(one_code).item() == pytest.approx(math.log(4), abs=1e-5)
    # Four positions, four different codes, each certain: per-position KL is ln 4, the marginal is uniform.
    spread = (100 * torch.eye(4)).reshape(1, 4, 4, 1)  # position p has code p
    assert marginal_entropy_gap(spread).item() == pytest.approx(0, abs=1e-5)
    assert kl_to_uniform(spread).mean().item() == pytest.approx(math.log(4), abs=1e-5)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ((0.0, 6.6, 5_000), {0: 0, 2_500: 3.3, 5_000: 6.6, 75_000: 6.6, 1_200_000: 6.6}),
        ((1.0, 1 / 16, 150_000), {0: 1, 75_000: 0.53125, 150_000: 0.0625, 1_200_000: 0.0625}),
        ((1e-4, 1.25e-6, 1_200_000), {0: 1e-4, 600_000: 5.0625e-5, 1_200_000: 1.25e-6, 3_000_000: 1.25e-6}),
    ],
    ids=["beta", "tau", "lr"],
)
def test_schedules_of_the_paper(schedule, values):
    for step, value in values.items():
        assert cosine(step, *schedule) == pytest.approx(value, rel=1e-6)


def test_learning_rate_of_the_paper_through_optim():
    factor = lr_factor(Optim(lr=1e-4, min_lr=1.25e-6, total_steps=1_200_000), 1_200_000)
    assert [1e-4 * factor(s) for s in (0, 600_000, 1_200_000, 2_000_000)] == pytest.approx(
        [1e-4, 5.0625e-5, 1.25e-6, 1.25e-6]
    )


def test_entropy_terms_have_finite_gradients_where_a_code_has_probability_zero():
    logits = torch.zeros(2, 4, 3)
    logits[:, 0] = -200.0  # underflows to probability 0 everywhere
    for term in (marginal_entropy_gap, kl_to_uniform):
        x = logits.clone().requires_grad_()
        term(x).sum().backward()
        assert x.grad.isfinite().all(), term.__name__
