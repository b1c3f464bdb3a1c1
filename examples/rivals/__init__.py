"""Published denoisers, one in each file, to train and to measure on equal terms."""

import importlib
import json
from pathlib import Path

from safetensors.torch import load_file, save_file


# name: (file, class, arguments); the files are imported when needed
RIVALS = {
    "gdd": ("gdd", "GDD", {"loss_name": "charbonnier"}),
    "gdd-l1": ("gdd", "GDD", {"loss_name": "l1"}),
    "gdd-l2": ("gdd", "GDD", {"loss_name": "l2"}),
    "dncnn": ("dncnn", "DnCNN", {}),
    "nlrn": ("nlrn", "NLRN", {}),
    "ddpm": ("ddpm", "DDPM", {"conditional": True}),
    "ddpm-unconditional": ("ddpm", "DDPM", {"conditional": False}),
    "swin2sr": ("image_transformer", "ImageTransformer", {}),
    "fc-aide": ("fc_aide", "FCAIDE", {}),
    "gcbd": ("gcbd", "GCBD", {}),
    "tnrd": ("tnrd", "TNRD", {}),
    "mlp": ("mlp", "MLP", {}),
    "dncnn-64": ("dncnn", "DnCNN", {"depth": 20, "channels": 64}),
}


def build(name: str):
    """Make a rival with random weights."""
    if name not in RIVALS:
        raise ValueError(f"There is no rival {name}; there are {', '.join(RIVALS)}.")
    file, class_name, arguments = RIVALS[name]
    return getattr(importlib.import_module(f"rivals.{file}"), class_name)(**arguments)


def save(model, name: str, folder: Path):
    """Save the weights of a rival, and how to make it."""
    folder.mkdir(parents=True, exist_ok=True)
    file, class_name, arguments = RIVALS[name]
    config = {"rival": name, "file": f"{file}.py", "class": class_name, "arguments": arguments}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")


def load(folder: str | Path):
    """Load a rival that `save` saved, in evaluation mode."""
    config = json.loads((Path(folder) / "config.json").read_text())
    model = build(config["rival"])
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return model.eval()
