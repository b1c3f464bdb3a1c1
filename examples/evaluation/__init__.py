"""The parts of evaluate.py."""

import torch


# PyPI has torchvision for Linux with CUDA only. Beside a CPU build of torch its operators do not load, and importing
# it, which diffusers and spandrel do, fails at those it needs to know. No denoiser uses them; declared, it loads.
try:
    import torchvision  # noqa: F401
except ImportError:
    pass
except RuntimeError:
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
