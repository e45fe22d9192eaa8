"""Without a GPU, Triton functions run in its interpreter; that's to be chosen ahead of importing triton."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
