"""GCBD: Chen et al., "Image blind denoising with generative adversarial network based noise modeling", CVPR 2018."""

import torch
import torch.nn.functional as F
from torch import nn

from rivals.denoiser import Denoiser
from rivals.dncnn import DnCNN


BLOCK = 64  # sides of blocks of noise, and of the smaller blocks in them that must be alike
SMALL = 16
MEAN_TOLERANCE, VARIANCE_TOLERANCE = 0.1, 0.25  # mu and gamma of the paper
POOL_SIZE = 512
NOISE_UNIT = 0.1  # in which the generative network and its critic see noise


class GCBD(Denoiser):
    """
    Learn to denoise from noisy images and unrelated clean ones: take the noise of even areas, train a generative
    network to make more such noise, and a DnCNN to remove both from the clean images.

    `loss` gets pairs as other rivals do, but uses the noisy images for nothing but their noise in even areas.
    """

    def __init__(self, depth: int = 17, channels: int = 16, width: int = 32, latent: int = 100):
        super().__init__()
        self.denoiser = DnCNN(depth, channels)
        self.latent = latent
        layers = [nn.ConvTranspose2d(latent, 8 * width, 4), nn.BatchNorm2d(8 * width), nn.ReLU()]  # 4x4
        for i in (4, 2, 1):  # 8x8, 16x16, 32x32
            layers += [nn.ConvTranspose2d(2 * i * width, i * width, 4, 2, 1), nn.BatchNorm2d(i * width), nn.ReLU()]
        self.generator = nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1))
        layers = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i in (1, 2, 4):
            layers += [nn.Conv2d(i * width, 2 * i * width, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.critic = nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4))
        self.register_buffer("pool", torch.empty(0, 3, BLOCK, BLOCK), persistent=False)  # of blocks of noise

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        return self.denoiser(noisy)

    def parameter_groups(self) -> list[dict]:
        adversarial = {"lr": 2e-4, "betas": (0.0, 0.9)}
        return [
            {"params": list(self.denoiser.parameters()), "lr": self.learning_rate},
            {"params": list(self.generator.parameters()), **adversarial},
            {"params": list(self.critic.parameters()), **adversarial},
        ]

    def loss(self, clean: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
        """
        Return the sum of the losses of the three networks, each of which gives gradients to its own network only.

        The paper trains the generative network first, and then the denoiser.
        """
        self.pool = torch.cat([self.pool, even_noise(noisy)])[-POOL_SIZE:]
        made = NOISE_UNIT * self.generator(torch.randn(len(clean), self.latent, 1, 1, device=clean.device)).float()
        noise = made.detach().clone()
        if len(self.pool):
            real = self.pool[torch.randint(len(self.pool), (len(clean),), device=clean.device)]
            noise[::2] = real[::2]
        clean = clean[..., :BLOCK, :BLOCK]
        loss = F.mse_loss(self.denoiser((clean + noise).clamp(0, 1)).float(), clean)
        if len(self.pool) == 0:
            return loss
        with torch.autocast(clean.device.type, enabled=False):
            return loss + self.critic_loss(real, made.detach()) + self.generator_loss(made)

    def generator_loss(self, made: torch.Tensor) -> torch.Tensor:
        fixed = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        return -torch.func.functional_call(self.critic, fixed, made / NOISE_UNIT).mean()

    def critic_loss(self, real: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        """Wasserstein distance, and the gradient penalty (Gulrajani et al., 2017)."""
        real, made = real / NOISE_UNIT, made / NOISE_UNIT
        share = torch.rand(len(real), 1, 1, 1, device=real.device)
        between = (share * real + (1 - share) * made).requires_grad_()
        (gradient,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
        return self.critic(made).mean() - self.critic(real).mean() + 10 * penalty


def even_noise(noisy: torch.Tensor) -> torch.Tensor:
    """Return the noise of the blocks whose smaller blocks all have about the same mean and variance."""
    blocks = noisy.unfold(-2, BLOCK, BLOCK // 2).unfold(-2, BLOCK, BLOCK // 2)  # [B, 3, rows, columns, BLOCK, BLOCK]
    blocks = blocks.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    parts = blocks.unfold(-2, SMALL, SMALL).unfold(-2, SMALL, SMALL)
    mean, means = blocks.mean((1, 2, 3))[:, None, None], parts.mean((1, 4, 5))
    variance = blocks.var((2, 3)).mean(1)[:, None, None]
    variances = parts.var((4, 5)).mean(1)
    even = ((means - mean).abs() <= MEAN_TOLERANCE * mean) & (
        (variances - variance).abs() <= VARIANCE_TOLERANCE * variance
    )
    chosen = blocks[even.all((1, 2)) & (variance[:, 0, 0] > 0)]
    return chosen - chosen.mean((2, 3), keepdim=True)
