"""A head's matrix products. On a GPU those of bf16 tensors run on the tensor cores, with sums and results in float32.

Products of bf16 numbers are exact in float32, so that logits are as accurate as after a conversion, at a fifteenth of the
time. The gradient of the logits is rounded to bf16 for its own two products: each of its entries gets a relative error of
at most 2⁻⁸, so that a hidden state's gradient is off by at most 2⁻⁸·Σ|gⱼ|·‖Wⱼ‖, and that of Wⱼ by 2⁻⁸·Σ|gᵢ|·‖hᵢ‖. They end
up in bf16 themselves. float16, where small gradients would be 0, and a CPU, where torch has no such products, take float32.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def dtype_of_factors(hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a head's products take their factors, where their results are to be of `dtype`."""
    narrow = hidden.dtype == weight.dtype == torch.bfloat16 and dtype == torch.float32
    return torch.bfloat16 if narrow and has_narrow(weight.device) else dtype


def has_narrow(device: torch.device) -> bool:
    """Whether the device multiplies bf16 factors into a float32 result."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    """``out = left @ right``; `left` is rounded to the dtype of `right`."""
    left = left.to(right.dtype)
    if out.dtype == right.dtype:
        torch.mm(left, right, out=out)
    else:
        _narrow_multiply(left, right, out)


def accumulate(total: Tensor, left: Tensor, right: Tensor, fresh: bool) -> None:
    """``total += left @ right``, or without the sum if it's `fresh`; `left` is rounded to the dtype of `right`."""
    left = left.to(right.dtype)
    if total.dtype == right.dtype:
        total.addmm_(left, right, beta=0.0 if fresh else 1.0)
    elif fresh:
        _narrow_multiply(left, right, total)
    else:
        _narrow_accumulate(total, left, right)


def _narrow_multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    torch.mm(left, right, out_dtype=out.dtype, out=out)


def _narrow_accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    if _adds_narrow(right.device, right.dtype):
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.add_(torch.mm(left, right, out_dtype=total.dtype))


@lru_cache
def _adds_narrow(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this version of torch adds to a float32 sum in the product's own kernel; older ones refuse the arguments."""
    factor = torch.zeros(16, 16, device=device, dtype=dtype)
    total = torch.zeros(16, 16, device=device, dtype=torch.float32)
    try:
        torch.addmm(total, factor, factor, out_dtype=torch.float32, out=total)
    except (NotImplementedError, RuntimeError, TypeError):
        return False
    return True
