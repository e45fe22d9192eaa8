"""Token ids and log-probabilities in few bytes.

Ids are stored as u32, or packed: their low 16 bits as u16, and the bits above in a plane of 1, 2, 4 or 8 bits each. A
vocabulary of up to 65,536 takes 16 bits an id, 131,072 take 17, 262,144 take 18, a million 20.

Log-probabilities are stored as f32, or as u8: code c stands for −20·(c/254)² nats, up to the normalisation. The steps
are fine where the probability is, 0.003 nats wide at 0.99 and 0.08 at 0.02; what is below e⁻²⁰ is taken for that. Code
255 is −inf. The exact mass of the tokens is known from that of the tail, so when they are read they are scaled to it:
their probabilities are off by some per cent each, their sum isn't, and no divergence can become negative.
"""

import math

import torch
from torch import Tensor

_RANGE = 20.0
"""Nats; what is less probable than e^−20 changes no divergence that anyone could measure."""
_LAST = 254
_EXCLUDED = 255
_LOW_BITS = 16


def high_bits(vocabulary: int) -> int:
    """Width of the plane above the low 16 bits: 0, 1, 2, 4 or 8."""
    needed = max((vocabulary - 1).bit_length() - _LOW_BITS, 0)
    return 0 if needed == 0 else 1 << (needed - 1).bit_length()


def id_bytes(k: int, vocabulary: int, packed: bool) -> int:
    """Bytes that the k ids of one position take."""
    return 2 * k + _high_bytes(k, high_bits(vocabulary)) if packed else 4 * k


def pack_ids(ids: Tensor, vocabulary: int) -> dict[str, Tensor]:
    """Ids [N, k] as `ids_low` u16 [N, k] and, for vocabularies above 65,536, `ids_high` u8 [N, bytes]."""
    arrays = {"ids_low": (ids & 0xFFFF).to(torch.uint16)}
    if bits := high_bits(vocabulary):
        per_byte = 8 // bits
        width = _high_bytes(ids.shape[1], bits)
        high = torch.zeros(len(ids), width * per_byte, dtype=torch.int64)
        high[:, : ids.shape[1]] = ids >> _LOW_BITS
        shifts = torch.arange(per_byte) * bits
        arrays["ids_high"] = (high.view(len(ids), width, per_byte) << shifts).sum(-1).to(torch.uint8)
    return arrays


def unpack_ids(low: Tensor, high: Tensor | None, vocabulary: int) -> Tensor:
    """Ids [N, k] int32 from what `pack_ids` made."""
    ids = low.to(torch.int32)
    if high is None:
        return ids
    bits = high_bits(vocabulary)
    shifts = torch.arange(8 // bits, dtype=torch.uint8) * bits
    planes = (high[..., None] >> shifts) & ((1 << bits) - 1)
    return ids | (planes.flatten(1)[:, : ids.shape[1]].int() << _LOW_BITS)


def encode_log_probs(log_probs: Tensor) -> Tensor:
    """Codes u8 of log-probabilities ≤ 0 of any shape, −inf included."""
    codes = (log_probs.clamp(-_RANGE, 0).neg() / _RANGE).sqrt().mul(_LAST).round()
    return torch.where(log_probs == -math.inf, float(_EXCLUDED), codes).to(torch.uint8)


def decode_log_probs(codes: Tensor, tail_log_mass: Tensor) -> Tensor:
    """Log-probabilities f32 [N, k] whose mass is 1 − exp(tail_log_mass); NaN where a row has no token."""
    log_probs = codes.float().square_().mul_(-_RANGE / _LAST**2)
    if codes.numel() and int(codes.max()) == _EXCLUDED:
        log_probs.masked_fill_(codes == _EXCLUDED, -math.inf)
    mass = torch.log(-torch.expm1(tail_log_mass))
    return log_probs.log_softmax(-1).add_(mass[:, None])


def _high_bytes(k: int, bits: int) -> int:
    return -(-k * bits // 8)
