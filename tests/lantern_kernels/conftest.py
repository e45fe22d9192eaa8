"""Settings for the tests of the kernels."""

import os

import pytest
import torch

# Read when the kernels are imported, which the first test that uses them does: they run on the CPU then.
os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def one_thread():
    """The tensors here are tiny: threads that wait for each other would take most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
