"""The general denoising diffusion: a straight line from the clean image to the noisy photograph, and the ways back."""

import numbers
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput


@dataclass
class InterpolationSchedulerOutput(BaseOutput):
    """
    Output of [`InterpolationScheduler.step`], both of the shape of `sample`.

    Args:
        prev_sample (`torch.Tensor`): x_s, the image one step closer to the clean one; the next `sample`.
        pred_original_sample (`torch.Tensor`): x0_hat, the prediction of the clean image.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class InterpolationScheduler(SchedulerMixin, ConfigMixin):
    """
    Walks along x_t = (1 - alpha) x_0 + alpha x_T, alpha = t/T, from the noisy photograph x_T to the clean image x_0.

    The process is the general denoising diffusion of [Real-World Denoising via Diffusion
    Model](https://arxiv.org/abs/2305.04457), re-implemented from its description: x_T is the observed photograph, so
    nothing is drawn at random. A network predicts x_0 from x_t, and a rule takes x_t to x_s, s < t:

    | `step_rule` | x_s | ends on |
    | --- | --- | --- |
    | `"origin"` | (1 - alpha_s) x0_hat + alpha_s x_T | the last prediction |
    | `"improved"` | x_t + (alpha_t - alpha_s) (x0_hat - x_T) | the step-weighted mean of all predictions |

    Both agree for one step, and for a network that is always right. Errors of single predictions average out under
    `"improved"`, where `"origin"` feeds each one back to the network. When x_T is not passed to [`~.step`], it is
    taken from the line through x_t and x0_hat, and both rules become an Euler step of
    [`~diffusers.FlowMatchEulerDiscreteScheduler`]; the observed x_T sets them apart.

    In all methods, samples are tensors of shape `[B, C, H, W]` in [-1, 1], and times are floats in [0, T], one for the
    batch or `[B]`.

    Args:
        num_train_timesteps (`int`, defaults to 1000): T, the time of the noisy photograph.
        step_rule (`"improved"` or `"origin"`, defaults to `"improved"`): How x_s follows from x_t, see the table.
        prediction_type (`"sample"` or `"flow_prediction"`, defaults to `"sample"`):
            What the network returns: x0_hat itself, or the noise v = x_T - x_0, so that x0_hat = x_t - alpha v.
        clip_sample (`bool`, defaults to `True`): Clip x0_hat to [-1, 1], the range of images, in every step.

    Example:
        ```py
        >>> import torch
        >>> from gdd_diffusers import InterpolationScheduler

        >>> scheduler = InterpolationScheduler(step_rule="origin")
        >>> clean, noisy = torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.5)
        >>> scheduler.set_timesteps(4)
        >>> scheduler.timesteps
        tensor([1000.,  750.,  500.,  250.])
        >>> sample = noisy
        >>> for t in scheduler.timesteps:
        ...     sample = scheduler.step(clean, t, sample, noisy).prev_sample  # a network that is always right
        >>> sample.abs().max()
        tensor(0.)

        ```
    """

    _compatibles: list[str] = []
    order = 1
    _step_index: int | None
    _begin_index: int | None

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        step_rule: Literal["improved", "origin"] = "improved",
        prediction_type: Literal["sample", "flow_prediction"] = "sample",
        clip_sample: bool = True,
    ):
        if step_rule not in ("improved", "origin"):
            raise ValueError(f"`step_rule` must be 'improved' or 'origin', not {step_rule!r}.")
        if prediction_type not in ("sample", "flow_prediction"):
            raise ValueError(f"`prediction_type` must be 'sample' or 'flow_prediction', not {prediction_type!r}.")

        if not isinstance(num_train_timesteps, int) or not 1 <= num_train_timesteps <= 1_000_000:
            raise ValueError(f"`num_train_timesteps` must be from 1 to 1,000,000, not {num_train_timesteps!r}.")

        self.init_noise_sigma = 1.0  # x_T is an image in [-1, 1], there is no noise to scale
        self.num_inference_steps: int | None = None
        self._set_nodes(torch.arange(num_train_timesteps, -1, -1, dtype=torch.float32))

    @property
    def step_index(self) -> int | None:
        """Index of the next step, from 0 to `num_inference_steps`; `None` before the first call of [`~.step`]."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first step, as given to [`~.set_begin_index`]."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0):
        """Set the index of the first step, for interchangeability: [`~.step`] finds its place from the timestep."""
        self._begin_index = begin_index
        self._step_index = begin_index

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None) -> torch.Tensor:
        """Return `sample` as it is, for interchangeability with schedulers that scale."""
        return sample

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[float] | torch.Tensor | None = None,
        strength: float = 1.0,
    ):
        """
        Set the times to walk through: T, T (1 - 1/N), ..., T/N, then 0.

        Args:
            num_inference_steps (`int`, *optional*): N, from 1 to T.
            device (`str` or `torch.device`, *optional*): Device of `timesteps`.
            timesteps (`list[float]` or `torch.Tensor`, *optional*):
                Custom times instead of N, strictly descending, in (0, T]. The last step always goes to 0.
            strength (`float`, defaults to 1.0):
                Stop the walk at alpha = 1 - `strength`: 0 takes no step at all, 1 walks to the end.

        Raises:
            `ValueError`: Unless exactly one of `num_inference_steps` and `timesteps` is given and all are in range.
        """
        T = self.config.num_train_timesteps
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("Pass exactly one of `num_inference_steps` and `timesteps`.")
        if not 0 <= strength <= 1:
            raise ValueError(f"`strength` must be in [0, 1], not {strength}.")
        if timesteps is not None:
            times = torch.as_tensor(timesteps, dtype=torch.float32).cpu().flatten()
            if len(times) == 0 or not (0 < times.min() and times.max() <= T):
                raise ValueError(f"`timesteps` must be times in (0, {T}], not {times.tolist()}.")
            if (times.diff() >= 0).any():
                raise ValueError(f"`timesteps` must be strictly descending, not {times.tolist()}.")
        else:
            if not isinstance(num_inference_steps, numbers.Integral) or not 1 <= num_inference_steps <= T:
                raise ValueError(
                    f"`num_inference_steps` must be a whole number from 1 to {T}, not {num_inference_steps}."
                )
            times = T * (1 - torch.arange(num_inference_steps, dtype=torch.float64) / num_inference_steps)

        # compared in the precision they are kept in: a difference in float64 alone would be a step that leads nowhere
        times, end = times.float(), torch.tensor([T * (1 - strength)], dtype=torch.float32)
        self._set_nodes(torch.cat([times[times > end], end]).to(device))
        self.num_inference_steps = len(self.timesteps)

    def _set_nodes(self, nodes: torch.Tensor):
        self._nodes = nodes  # [N + 1], descending; the walk ends at the last one
        self.timesteps = nodes[:-1]
        self._step_index = None
        self._begin_index = None

    def _alpha(self, timestep: float | torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        alpha = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device) / self.config.num_train_timesteps
        return alpha.reshape(-1, *[1] * (sample.ndim - 1))

    def get_pred_original_sample(
        self, model_output: torch.Tensor, timestep: float | torch.Tensor, sample: torch.Tensor
    ) -> torch.Tensor:
        """Return x0_hat from S_theta(x_t, t), t and x_t: unclipped, in float32 and differentiable."""
        if self.config.prediction_type == "sample":
            return model_output.float()
        return sample.float() - self._alpha(timestep, sample) * model_output.float()

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        noisy_sample: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> InterpolationSchedulerOutput | tuple:
        """
        Go from x_t to x_s, s being the next lower time that was set. Computes in float32.

        The place in the walk follows from `timestep` alone, so a step can be made in pieces, tile by tile.

        Args:
            model_output (`torch.Tensor`): S_theta(x_t, t), the network's output.
            timestep (`float` or `torch.Tensor`): t in (0, T], one for the batch.
            sample (`torch.Tensor`): x_t.
            noisy_sample (`torch.Tensor`, *optional*):
                x_T, the observed photograph; the end of the line from x0_hat through x_t if not given.
            generator (`torch.Generator`, *optional*): Accepted for interchangeability; nothing is drawn at random.
            return_dict (`bool`, defaults to `True`): Return a dataclass, or a tuple of the same fields.

        Raises:
            `ValueError`: If `timestep` is not in (0, T] and above the walk's end.
        """
        T = self.config.num_train_timesteps
        lower = (self._nodes < timestep).nonzero()
        if len(lower) == 0 or not timestep <= T:
            raise ValueError(
                f"`timestep` must be one of `timesteps`, above {self._nodes[-1]:g}, not {float(timestep):g}."
            )
        self._step_index = int(lower[0])

        x_t = sample.float()
        alpha_t, alpha_s = float(timestep) / T, float(self._nodes[self._step_index]) / T
        x0_hat = self.get_pred_original_sample(model_output, timestep, x_t)
        if self.config.clip_sample:
            x0_hat = x0_hat.clamp(-1, 1)
        x_T = x0_hat + (x_t - x0_hat) / alpha_t if noisy_sample is None else noisy_sample.float()

        degraded_s = torch.lerp(x0_hat, x_T, alpha_s)
        if self.config.step_rule == "origin":
            x_s = degraded_s
        else:
            # x_t + (alpha_t - alpha_s) (x0_hat - x_T) term by term, so that rounding errors cancel
            x_s = x_t - torch.lerp(x0_hat, x_T, alpha_t) + degraded_s

        # x_t keeps its own precision, whatever that of the network
        prev_sample, pred_original_sample = x_s.to(sample.dtype), x0_hat.to(sample.dtype)
        if not return_dict:
            return (prev_sample, pred_original_sample)
        return InterpolationSchedulerOutput(prev_sample=prev_sample, pred_original_sample=pred_original_sample)

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: float | torch.Tensor
    ) -> torch.Tensor:
        """Return x_t = (1 - alpha) x_0 + alpha x_T, the forward process. `noise` is the whole noisy photograph x_T."""
        alpha = self._alpha(timesteps, original_samples).to(original_samples.dtype)
        return (1 - alpha) * original_samples + alpha * noise

    def __len__(self) -> int:
        return self.config.num_train_timesteps
