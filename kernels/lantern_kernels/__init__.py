"""Distillation losses with their gradients: mixtures of divergences, from logits or straight from hidden states."""

from lantern_kernels.divergences import JS, KL, TVD, General, Pointwise, ReverseKL
from lantern_kernels.heads import Head, Logits
from lantern_kernels.loss import MixtureOutput, linear_mixture_loss, mixture_loss
from lantern_kernels.terms import Term
from lantern_kernels.top_k import TopK

__all__ = [
    "JS",
    "KL",
    "TVD",
    "General",
    "Head",
    "Logits",
    "MixtureOutput",
    "Pointwise",
    "ReverseKL",
    "Term",
    "TopK",
    "linear_mixture_loss",
    "mixture_loss",
]
