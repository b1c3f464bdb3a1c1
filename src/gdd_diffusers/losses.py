r"""
Losses between x0_hat, the predicted clean image, and the ground truth x_0.

The prediction is what `InterpolationScheduler.get_pred_original_sample` returns for either prediction type, so that
the prediction type does not change what is minimized. `prediction` and `target` have the same shape (anything else is
a `ValueError`) and values in [-1, 1]. `weight`, a number or a tensor of shape `[B, 1, 1, 1]`, says how much each image
counts. A loss is the mean over all elements, in float32 or better.

```py
>>> import torch
>>> from gdd_diffusers.losses import l1, l2, noise_weight

>>> clean, noisy = torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), 0.25)
>>> l1(noisy, clean), l2(noisy, clean), l1(noisy, clean, weight=noise_weight(clean, noisy))
(tensor(0.2500), tensor(0.0625), tensor(0.1250))

```
"""

import torch


def charbonnier(
    prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | float = 1.0, eps: float = 1e-3
) -> torch.Tensor:
    r"""
    Return \(\sqrt{(\hat{x}_0 - x_0)^2 + \epsilon^2}\), an L1 loss that is smooth at zero (Charbonnier et al. 1994).

    Errors well below `eps` count squared. The default is 1/8 of an 8-bit level, and the loss of a perfect prediction.
    """
    return (weight * torch.sqrt(_difference(prediction, target) ** 2 + eps**2)).mean()


def l1(prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Return the mean absolute error."""
    return (weight * _difference(prediction, target).abs()).mean()


def l2(prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Return the mean squared error, which is what PSNR measures."""
    return (weight * _difference(prediction, target) ** 2).mean()


def noise_weight(clean: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
    r"""
    Weight images so that a decibel counts about the same for faint and for strong noise, `[B, 1, 1, 1]`.

    \(0.15 / (n + 0.05)\), where \(n\) is the image's mean \(|x_T - x_0|\): 0.4 for the strongest noise of phones, 3
    without noise. Unweighted, strong noise makes up nearly all of the loss, and clean images come back softened.
    """
    return 0.15 / (_difference(noisy, clean).abs().mean((1, 2, 3), keepdim=True) + 0.05)


def _difference(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    # Broadcasting would turn a forgotten dimension into a plausible number.
    if prediction.shape != target.shape:
        raise ValueError(
            f"A loss needs tensors of one shape, not {tuple(prediction.shape)} and {tuple(target.shape)}."
        )
    # Half precision would lose the small errors that the last decibels are made of.
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    return prediction.to(dtype) - target.to(dtype)
