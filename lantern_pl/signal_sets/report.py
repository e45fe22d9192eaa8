"""How far divergences on stored signals are from those on the whole distributions, measured on a sample."""

from collections.abc import Callable, Sequence
from typing import Any

import lantern_kernels
import torch
from lantern_kernels import Logits, Term
from rich.console import Console
from rich.table import Table
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from lantern_pl.causal_lm import hidden_at_positions, load_causal_lm, output_head
from lantern_pl.data.featurize import DecoderFeaturizer, Example
from lantern_pl.errors import UserError
from lantern_pl.model_files import load_config
from lantern_pl.plugin_checks import checked_signal
from lantern_pl.signal_sets.formats import TopKFormat, logits_of, top_k_of
from lantern_pl.signals import Hidden, TokenBatch, TopK
from lantern_pl.signals import Logits as LogitsSignal
from lantern_pl.teachers import Teacher
from lantern_pl.text import fingerprint, load_tokenizer

DIVERGENCES = ("kl", "reverse_kl", "js", "tvd")
_BATCH = 4
_CPU = torch.device("cpu")


@torch.no_grad()
def measure(
    teacher: Teacher,
    featurizer: DecoderFeaturizer,
    form: TopKFormat,
    examples: Sequence[Example],
    compare_with: str | None,
    device: torch.device = _CPU,
) -> dict[str, Any]:
    """The tail's mass, and each divergence on whole distributions, on the top k, and on the top k as stored.

    compare_with: a model that was checked, see `check_compared`, or None.
    """
    student = None if compare_with is None else _student(compare_with)
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in DIVERGENCES}
    tails: list[torch.Tensor] = []
    for start in range(0, len(examples), _BATCH):
        batch = featurizer.collate(examples[start : start + _BATCH])
        signal = checked_signal(teacher, batch.to(device).tokens, len(batch.targets), look_at_values=False)
        exact = _on_cpu(top_k_of(signal, form.k, form.temperature, form.vocab_size))
        tails.append(exact.tail_log_mass.float().exp())
        if not isinstance(signal, Hidden | LogitsSignal):
            continue  # of which nobody knows more
        whole = torch.cat(list(logits_of(signal))).cpu()
        other = student(batch.tokens) if student else whole / 2
        stored = form.decode(form.encode(signal, seed=0))
        for column, about in enumerate((whole, exact.for_loss(), stored.for_loss())):
            for name, value in _sums(other, about, form.temperature).items():
                sums[name][column] += value
    tail = torch.cat(tails)
    report: dict[str, Any] = {
        "positions": len(tail),
        "tail_mass": {"mean": float(tail.mean()), "median": float(tail.median()), "largest": float(tail.max())},
    }
    if any(bool(values.any()) for values in sums.values()):
        means = {name: (values / len(tail)).tolist() for name, values in sums.items()}
        report["compared_with"] = compare_with or "the teacher at twice the temperature"
        report["divergences"] = {
            name: {"whole": whole, "top_k": top, "stored": stored} for name, (whole, top, stored) in means.items()
        }
    return report


def _on_cpu(signal: TopK) -> TopK:
    return TopK(signal.ids.cpu(), signal.log_probs.cpu(), signal.tail_log_mass.cpu())


def check_compared(model: str, teacher: Teacher) -> None:
    """Raise UserError where there's no such causal LM, or where it has another tokenizer; no weights are loaded."""
    if type(load_config(model)) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"compare_with is {model!r}, which is no causal LM: give a decoder's model, or null.")
    own = fingerprint(load_tokenizer(model))
    if own != teacher.tokenizer_fingerprint:
        raise UserError(
            f"compare_with is {model!r}, whose tokenizer has the fingerprint {own}, the teacher's has "
            f"{teacher.tokenizer_fingerprint}: give a model of the teacher's family, or null."
        )


def _student(model: str) -> Callable[[TokenBatch], torch.Tensor]:
    lm = load_causal_lm(model, torch.float32)
    head = output_head(lm)

    def logits(batch: TokenBatch) -> torch.Tensor:
        return torch.cat(list(logits_of(Hidden(hidden_at_positions(lm, batch), head))))

    return logits


def _sums(student: torch.Tensor, teacher: Any, temperature: float) -> dict[str, float]:
    about = Logits(teacher) if isinstance(teacher, torch.Tensor) else teacher
    terms = [Term(name) for name in DIVERGENCES]
    output = lantern_kernels.mixture_loss(student, about, terms, temperature=temperature, backend="torch")
    return {name: float(values.double().sum()) for name, values in output.terms.items()}


def show(report: dict[str, Any], console: Console) -> None:
    """The report as a person reads it."""
    tail = report["tail_mass"]
    console.print(
        f"On a sample of {report['positions']:,} positions the tail holds {tail['mean']:.2%} of the probability on average, "
        f"{tail['median']:.2%} in the median, {tail['largest']:.0%} at most.",
        soft_wrap=True,
        highlight=False,
    )
    if "divergences" not in report:
        return
    table = Table(title=f"Divergences to {report['compared_with']}, nats a token", title_justify="left")
    table.add_column("divergence")
    for heading in ("whole", "top k and tail", "gap", "by rounding"):
        table.add_column(heading, justify="right")
    for name, row in report["divergences"].items():
        gap, off = row["top_k"] - row["whole"], row["stored"] - row["top_k"]
        table.add_row(name, *(f"{value:.5f}" for value in (row["whole"], row["top_k"])), f"{gap:+.5f}", f"{off:+.5f}")
    console.print(table)
