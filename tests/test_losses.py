import math

import pytest
import torch

from gdd_diffusers import InterpolationScheduler
from gdd_diffusers.losses import charbonnier, l1, l2, noise_weight


@pytest.mark.parametrize("loss", [charbonnier, l1, l2])
def test_least_where_prediction_is_the_target(loss):
    target = torch.rand(2, 3, 8, 8)
    least = loss(target, target)
    torch.testing.assert_close(least, torch.tensor(1e-3 if loss is charbonnier else 0.0))
    assert loss(target + 0.1, target) > least
    assert loss(target - 0.1, target) > least


def test_charbonnier_is_l1_far_from_zero_and_l2_near_it():
    zero = torch.zeros(1)
    torch.testing.assert_close(charbonnier(zero + 0.5, zero, eps=1e-3), torch.tensor(0.5), atol=2e-6, rtol=0)
    near = charbonnier((zero + 1e-4).double(), zero, eps=1e-2) - 1e-2
    torch.testing.assert_close(near.item(), 1e-8 / (2 * 1e-2), rtol=1e-3, atol=0)
    torch.testing.assert_close(charbonnier(zero + 3.0, zero, eps=4.0).item(), 5.0)


def test_charbonnier_has_a_gradient_at_zero():
    prediction = torch.zeros(4, requires_grad=True)
    charbonnier(prediction, torch.zeros(4)).backward()
    torch.testing.assert_close(prediction.grad, torch.zeros(4))


def test_means_over_all_elements():
    prediction, target = torch.rand(2, 3, 5, 7), torch.rand(2, 3, 5, 7)
    difference = (prediction - target).double().numpy()
    assert math.isclose(l1(prediction, target), abs(difference).mean(), rel_tol=1e-5)
    assert math.isclose(l2(prediction, target), (difference**2).mean(), rel_tol=1e-5)


@pytest.mark.parametrize("loss", [charbonnier, l1, l2])
def test_half_precision_is_summed_in_float32(loss):
    prediction = torch.rand(1, 3, 64, 64).bfloat16()
    result = loss(prediction, torch.zeros_like(prediction))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, loss(prediction.float(), torch.zeros(1, 3, 64, 64)))


@pytest.mark.parametrize("loss", [charbonnier, l1, l2])
def test_shapes_that_would_broadcast_are_refused(loss):
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 8\) and \(1, 3, 8, 8\)"):
        loss(torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("loss", [charbonnier, l1, l2])
def test_the_same_for_either_prediction_type(loss):
    clean, noisy, t = torch.rand(3, 3, 8, 8), torch.rand(3, 3, 8, 8), torch.tensor([1000.0, 400.0, 1.0])
    guess = torch.rand(3, 3, 8, 8, dtype=torch.float64).float()
    losses = []
    for prediction_type in ("sample", "flow_prediction"):
        scheduler = InterpolationScheduler(prediction_type=prediction_type)
        x_t = scheduler.add_noise(clean, noisy, t)
        alpha = t.view(-1, 1, 1, 1) / 1000
        output = guess if prediction_type == "sample" else (x_t - guess) / alpha
        losses.append(loss(scheduler.get_pred_original_sample(output, t, x_t), clean))
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("loss", [charbonnier, l1, l2])
def test_a_weight_says_how_much_each_image_counts(loss):
    prediction, target = torch.rand(3, 3, 8, 8), torch.rand(3, 3, 8, 8)
    weight = torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1, 1)
    expected = (loss(prediction[1], target[1]) + 2 * loss(prediction[2], target[2])) / 3
    torch.testing.assert_close(loss(prediction, target, weight=weight), expected)


def test_fainter_noise_weighs_more():
    clean = torch.zeros(4, 3, 8, 8)
    noisy = torch.tensor([0.3, 0.1, 0.02, 0.0]).view(4, 1, 1, 1) * torch.randn(4, 3, 8, 8).sign()
    weights = noise_weight(clean, noisy)
    assert weights.shape == (4, 1, 1, 1)
    torch.testing.assert_close(weights.flatten(), torch.tensor([0.15 / 0.35, 1.0, 0.15 / 0.07, 3.0]))
    with pytest.raises(ValueError, match="one shape"):
        noise_weight(clean, noisy[:1])
