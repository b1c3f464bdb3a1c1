"""Losses on the clean picture that the network predicts.

All of them compare x0_hat, the estimate that `InterpolationScheduler.get_pred_original_sample` gives for either
prediction type, with x_0, so that changing the prediction type does not change what is minimised.
"""

import torch


def charbonnier(
    prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | float = 1.0, eps: float = 1e-3
) -> torch.Tensor:
    r"""
    Charbonnier loss: an L1 that is smooth at zero, the mean of \(\sqrt{(\hat{x}_0 - x_0)^2 + \epsilon^2}\).

    Source: Charbonnier et al., "Two deterministic half-quadratic regularization algorithms for computed imaging",
    1994.

    Args:
        prediction (`torch.Tensor`): x0_hat of any shape, in [-1, 1], where the default `eps` is 1/8 of an 8-bit step.
        target (`torch.Tensor`): x_0 of the same shape.
        weight (`torch.Tensor` or `float`, defaults to 1): How much each picture counts, [B, 1, 1, 1]; see
            [`noise_weight`].
        eps (`float`, defaults to 1e-3): Errors well below it are squared, errors well above it count as they are. It
            is also the loss of a perfect prediction.

    Returns:
        `torch.Tensor`: the mean over all elements, a scalar in float32 or better.

    Raises:
        ValueError: If the shapes differ.

    Example:

    ```py
    >>> import torch
    >>> from gdd_diffusers.losses import charbonnier
    >>> round(charbonnier(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.5)).item(), 4)
    0.5

    ```
    """
    return (weight * torch.sqrt(_difference(prediction, target) ** 2 + eps**2)).mean()


def l1(prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | float = 1.0) -> torch.Tensor:
    """
    Mean absolute error between x0_hat and x_0, any shape, a scalar; `weight` as for [`charbonnier`].

    Raises:
        ValueError: If the shapes differ.

    Example:

    ```py
    >>> import torch
    >>> from gdd_diffusers.losses import l1
    >>> l1(torch.zeros(2, 2), torch.full((2, 2), -0.5)).item()
    0.5

    ```
    """
    return (weight * _difference(prediction, target).abs()).mean()


def l2(prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | float = 1.0) -> torch.Tensor:
    """
    Mean squared error between x0_hat and x_0, any shape, a scalar: what PSNR measures; `weight` as for
    [`charbonnier`].

    Raises:
        ValueError: If the shapes differ.

    Example:

    ```py
    >>> import torch
    >>> from gdd_diffusers.losses import l2
    >>> l2(torch.zeros(2, 2), torch.full((2, 2), -0.5)).item()
    0.25

    ```
    """
    return (weight * _difference(prediction, target) ** 2).mean()


def noise_weight(clean: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
    r"""
    Weigh pictures against their noise, so that a decibel of faint noise counts about as much as one of strong noise.

    \(0.15 / (n + 0.05)\) with \(n\) the picture's mean \(|x_T - x_0|\): from 0.4 at the strongest noise of phones
    to 3 without noise. Unweighted, strong noise makes nearly all of the loss, and clean pictures come back softened.

    Args:
        clean (`torch.Tensor`): x_0, [B, C, H, W] in [-1, 1].
        noisy (`torch.Tensor`): x_T of the same shape.

    Returns:
        `torch.Tensor`: [B, 1, 1, 1].

    Raises:
        ValueError: If the shapes differ.

    Example:

    ```py
    >>> import torch
    >>> from gdd_diffusers.losses import noise_weight
    >>> noise_weight(torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), 0.25)).flatten()
    tensor([0.5000, 0.5000])

    ```
    """
    return 0.15 / (_difference(noisy, clean).abs().mean((1, 2, 3), keepdim=True) + 0.05)


def _difference(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    # Broadcasting would turn a forgotten dimension into a plausible number.
    if prediction.shape != target.shape:
        raise ValueError(
            f"A loss needs a prediction and a target of one shape, not {tuple(prediction.shape)} and "
            f"{tuple(target.shape)}."
        )
    # Half precision would lose the small errors that the last decibels are made of.
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    return prediction.to(dtype) - target.to(dtype)
