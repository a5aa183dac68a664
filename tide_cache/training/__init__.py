"""Stage 2: the one place that composes data, student, objectives and DeepSpeed."""

import os

import torch

if not torch.accelerator.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, as it is imported, warns that it had to guess
