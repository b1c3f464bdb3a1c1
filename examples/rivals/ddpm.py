"""
DDPM: Ho et al., "Denoising diffusion probabilistic models", NeurIPS 2020, and DDIM: Song et al., ICLR 2021.

Both by the schedulers of diffusers, over the U-Net of gdd-fast.
"""

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler
from skimage.restoration import estimate_sigma

from rivals.denoiser import Denoiser
from rivals.gdd import load_unet


SCHEDULERS = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}


class DDPM(Denoiser):
    """
    A U-Net that predicts the Gaussian noise added to clean images.

    Conditional, it sees the noisy image as well, and makes a clean one out of pure noise. Otherwise it has learned
    from clean images alone, and the noisy image takes the place of the step that has as much noise.
    """

    multiple = 16

    def __init__(self, conditional: bool = True):
        super().__init__()
        self.conditional = conditional
        self.unet, self.pixel_unshuffle = load_unet(inputs=2 if conditional else 1)
        self.scheduler = DDPMScheduler()

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
        """Predict the noise in x_t; all images in [-1, 1]."""
        images = torch.cat([x_t, noisy], 1) if self.conditional else x_t
        return F.pixel_shuffle(
            self.unet(F.pixel_unshuffle(images, self.pixel_unshuffle), t).sample, self.pixel_unshuffle
        )

    def loss(self, clean: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
        clean, noisy = 2 * clean - 1, 2 * noisy - 1
        t = torch.randint(self.scheduler.config.num_train_timesteps, (len(clean),), device=clean.device)
        noise = torch.randn_like(clean)
        return F.mse_loss(self(self.scheduler.add_noise(clean, noise, t), t, noisy).float(), noise)

    @torch.no_grad()
    def denoise(
        self, noisy: torch.Tensor, steps: int = 10, sampler: str = "ddpm", samples: int = 1, seed: int = 0
    ) -> torch.Tensor:
        """Denoise as `Denoiser.denoise` does, by the mean of several samples."""
        height, width = noisy.shape[-2:]
        image = F.pad(noisy, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        image = 2 * image.to(self.unet.device) - 1
        generator = torch.Generator(image.device).manual_seed(seed)
        mean = sum(self.sample(image, steps, sampler, generator) for _ in range(samples)) / samples
        return ((mean + 1) / 2).clamp(0, 1)[..., :height, :width].to(noisy.device)

    def sample(self, noisy: torch.Tensor, steps: int, sampler: str, generator: torch.Generator) -> torch.Tensor:
        """Draw a clean image given a noisy one, both `[1, 3, H, W]` in [-1, 1]."""
        scheduler = SCHEDULERS[sampler].from_config(self.scheduler.config)
        if self.conditional:
            scheduler.set_timesteps(steps)
            timesteps = scheduler.timesteps
            x_t = torch.randn(noisy.shape, generator=generator, device=noisy.device)
        else:
            start = self.matching_timestep(noisy)
            num_timesteps = len(scheduler.alphas_cumprod)
            # so many steps of the whole walk that about `steps` are left from the start on
            scheduler.set_timesteps(min(num_timesteps, round(steps * num_timesteps / (start + 1))))
            timesteps = scheduler.timesteps[scheduler.timesteps <= start]
            x_t = scheduler.alphas_cumprod[timesteps[0]].sqrt() * noisy
        # where x_0 is clipped, the noise that was predicted does not fit it any more and would lead away, even to NaN
        options = {"use_clipped_model_output": True} if sampler == "ddim" else {}
        for t in timesteps:
            x_t = scheduler.step(self(x_t, t, noisy), t, x_t, generator=generator, **options).prev_sample
        return x_t

    def matching_timestep(self, noisy: torch.Tensor) -> int:
        """Return the step at which x_t, scaled to the range of images, has the noise of this image."""
        sigma = float(estimate_sigma(noisy[0].movedim(0, -1).cpu().numpy(), channel_axis=-1, average_sigmas=True))
        alphas = self.scheduler.alphas_cumprod
        return int((((1 - alphas) / alphas).sqrt() - sigma).abs().argmin())
