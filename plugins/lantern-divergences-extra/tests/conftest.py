"""Triton runs in its interpreter, as there may be no GPU here; no hub is asked for anything."""

import os

import torch

# Read when Triton is imported, which the first test that uses it does.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
