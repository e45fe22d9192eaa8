"""The `hf` teacher: a transformers model in this process."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lantern_pl.causal_lm import (
    Precision,
    check_output_head,
    generate,
    hidden_at_positions,
    load_causal_lm,
    output_head,
    resolve_dtype,
)
from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.model_files import load_config, read_manifest, weights_identity
from lantern_pl.signals import Annotation, Hidden, LevelProbs, TokenBatch
from lantern_pl.tasks import Task
from lantern_pl.teachers.contract import Teacher
from lantern_pl.text import chat_prompt, fingerprint, load_tokenizer


class HFTeacher(Teacher):
    """A causal LM that transformers loads: scores tokens with its logits, levels by their names, and writes explanations.

    Args:
        model: an embedded model (embedded:smollm2-135m), a folder (also a student of an earlier stage), or a hub name.
        adapter: folder of a PEFT adapter to put on the model, or null.
        dtype: precision of the weights; auto is bfloat16 on accelerators and float32 on CPU.
        max_new_tokens: length limit of the explanations that it writes.
    """

    lantern_api = 1
    capabilities = frozenset({"annotate", "level_probs", "score_tokens"})
    tokenizer: PreTrainedTokenizerBase

    def __init__(self, model: str, adapter: str | None = None, dtype: Precision = "auto", max_new_tokens: int = 96) -> None:
        manifest = read_manifest(model)
        if manifest is not None and manifest["kind"] != "decoder":
            raise UserError(f"{model!r} is an {manifest['kind']} student: use the teacher lantern_pl.teachers.encoder.")
        if adapter is not None and not (Path(adapter) / "adapter_config.json").is_file():
            raise UserError(f"teacher adapter {adapter!r} is not a folder with adapter_config.json.")
        self.model_name = model
        self.adapter = adapter
        self.precision = dtype
        self.max_new_tokens = max_new_tokens
        self.config = load_config(model)
        self.tokenizer = load_tokenizer(model)
        self.tokenizer_fingerprint = fingerprint(self.tokenizer)
        self.vocab_size = int(self.config.get_text_config().vocab_size)
        self._lm: PreTrainedModel | None = None

    @property
    def lm(self) -> PreTrainedModel:
        """The loaded model, in eval mode and without gradients."""
        if self._lm is None:
            self.to(torch.device("cpu"))
        assert self._lm is not None
        return self._lm

    def identity(self) -> dict[str, Any]:
        return {
            "model": self.model_name,
            "weights": weights_identity(self.model_name),
            "adapter": self.adapter,
            "tokenizer": self.tokenizer_fingerprint,
            "dtype": self.precision,
            "max_new_tokens": self.max_new_tokens,
        }

    def to(self, device: torch.device) -> Self:
        if self._lm is None:
            lm: Any = load_causal_lm(self.model_name, resolve_dtype(self.precision, device))
            if self.adapter is not None:
                from peft import PeftModel

                lm = PeftModel.from_pretrained(lm, self.adapter).merge_and_unload()
                check_output_head(lm)
            self._lm = lm.requires_grad_(False).eval()
        self._lm.to(device)  # type: ignore[arg-type]
        return self

    @torch.no_grad()
    def score_tokens(self, batch: TokenBatch) -> Hidden:
        return Hidden(hidden_at_positions(self.lm, batch), output_head(self.lm))

    def annotate(self, pairs: Sequence[Pair], task: Task) -> list[Annotation]:
        prompts = [self._prompt(pair, task) for pair in pairs]
        annotations = []
        for prompt, text in zip(prompts, generate(self.lm, self.tokenizer, prompts, self.max_new_tokens), strict=True):
            answer = task.parse_answer(text)
            annotations.append(
                Annotation(
                    text=text,
                    level=answer.level if answer else None,
                    explanation=answer.explanation if answer else None,
                    prompt_tokens=len(self.tokenizer.encode(prompt, add_special_tokens=False)),
                    completion_tokens=len(self.tokenizer.encode(text, add_special_tokens=False)),
                )
            )
        return annotations

    @torch.no_grad()
    def level_probs(self, pairs: Sequence[Pair], task: Task) -> LevelProbs:
        """Probabilities of the answers that name each level, given the prompt, normalised over the levels."""
        rows = [self._level_log_probs(self._prompt(pair, task) + task.answer_prefix, task) for pair in pairs]
        return LevelProbs(torch.stack(rows).softmax(-1))

    def _level_log_probs(self, prompt: str, task: Task) -> Tensor:
        """Log-probability [K] of each verbalised level after the prompt. The prompt is run once, on its own key-value
        cache, and one row at a time: the answer about a pair then can't depend on its neighbours' padding."""
        device = next(self.lm.parameters()).device
        prompt_ids = self.tokenizer.encode(prompt, add_special_tokens=False)
        levels = [self._continuation(prompt, prompt_ids, name) for name in task.verbalised_levels()]
        start = self.lm(input_ids=torch.tensor([prompt_ids], device=device), use_cache=True, logits_to_keep=1)
        first = start.logits[0, -1].float().log_softmax(-1)
        totals = []
        for ids in levels:
            total = first[ids[0]]
            if len(ids) > 1:
                cache = copy.deepcopy(start.past_key_values)
                rest = self.lm(input_ids=torch.tensor([ids[:-1]], device=device), past_key_values=cache).logits[0]
                total = total + rest.float().log_softmax(-1).gather(-1, torch.tensor(ids[1:], device=device)[:, None]).sum()
            totals.append(total)
        return torch.stack(totals)

    def _continuation(self, prompt: str, prompt_ids: list[int], text: str) -> list[int]:
        """Ids that follow the prompt's when `text` follows the prompt; tokenizers may not split at the same place."""
        whole = self.tokenizer.encode(prompt + text, add_special_tokens=False)
        if whole[: len(prompt_ids)] == prompt_ids:
            return whole[len(prompt_ids) :]
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _prompt(self, pair: Pair, task: Task) -> str:
        return chat_prompt(self.tokenizer, task.render_prompt(pair.job_text, pair.candidate_text))
