"""What the two contracts share: comparing numbers with a message, and running a contract outside of pytest."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


def same(found: Tensor, expected: Tensor, what: str, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    """Raise AssertionError, beginning with `what`, unless the two are equal up to rounding."""
    if found.shape != expected.shape:
        raise AssertionError(f"{what} (shape {list(found.shape)} instead of {list(expected.shape)})")
    if not torch.allclose(found, expected, rtol=rtol, atol=atol):
        error = (found - expected).abs().nan_to_num(nan=torch.inf)
        worst = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
        raise AssertionError(f"{what} (at {list(worst)}: {found[worst].item():.6g} instead of {expected[worst].item():.6g})")


def failures(contract: type, only: Callable[[str], bool] = lambda name: True) -> dict[str, str]:
    """Run a contract's checks outside of pytest: the message of each that fails, by the check's name.

    A check that doesn't apply is skipped, and doesn't count.
    """
    found: dict[str, str] = {}
    for name in dir(contract):
        if not name.startswith("test_") or not only(name):
            continue
        check: Callable[[], Any] = getattr(contract(), name)
        try:
            check()
        except pytest.skip.Exception:
            continue
        except Exception as error:  # whatever a plugin raises is its failure
            found[name] = f"{type(error).__name__}: {error}"
    return found
