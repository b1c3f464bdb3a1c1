import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import save_image
from torch.autograd import gradcheck


EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import rivals  # noqa: E402
from evaluation.peers import load_peer  # noqa: E402


CPU = torch.device("cpu")


def train(*args, **kwargs):
    command = [sys.executable, EXAMPLES / "rivals" / "train.py", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, **kwargs)
