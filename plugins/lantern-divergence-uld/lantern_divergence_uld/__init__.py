"""Universal logit distillation: what two models with different tokenizers have in common."""

from torch import Tensor

from lantern_pl.divergences import Divergence


class ULD(Divergence):
    """Σ |p₍ᵢ₎ − q₍ᵢ₎| of the probabilities sorted from the largest to the smallest, whichever tokens they belong to.

    It's the 1-Wasserstein distance of the two next-token distributions where any two different tokens are equally far
    apart, and it's at most 2. It compares how sure the models are and how they spread the rest, not which tokens they
    mean; so give it a cross entropy beside it. lantern-pl calls it at the positions where a token of both tokenizers starts
    at the same byte of the text.

    Source: Boizard et al., Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs,
    arXiv 2402.12030, equation 5.
    """

    lantern_api = 1
    name = "uld"
    upper_bound = 2.0
    same_tokenizer = False

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        # Both are as wide as the larger vocabulary; the tokens that a model lacks have probability 0 and are sorted last.
        p, q = (logits.softmax(-1).sort(-1, descending=True).values for logits in (teacher_logits, student_logits))
        return (p - q).abs().sum(-1)


__all__ = ["ULD"]
