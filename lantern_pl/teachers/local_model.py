"""The `hf` teacher: a transformers model in this process."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lantern_pl.causal_lm import (
    Precision,
    check_output_head,
    generate,
    hidden_at_positions,
    layers_at_positions,
    load_causal_lm,
    output_head,
    resolve_dtype,
)
from lantern_pl.data.featurize import DecoderFeaturizer
from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.model_files import adapter_identity, load_config, read_manifest, training_of, weights_identity
from lantern_pl.positions import check_length
from lantern_pl.prefix_sharing import TextsInTurn, check_sharing, shared_hidden_at_positions
from lantern_pl.sharding import shard_frozen, whole_tensor
from lantern_pl.signals import Annotation, Hidden, LevelProbs, TokenBatch
from lantern_pl.tasks import Task
from lantern_pl.teachers.contract import Assignment, Teacher
from lantern_pl.text import fingerprint, level_ids, load_tokenizer, template_hash

_NO_LIMIT = 2**31


class HFTeacher(Teacher):
    """A causal LM that transformers loads: scores tokens with its logits, levels by their names, and writes explanations.

    Args:
        model: an embedded model (embedded:smollm2-135m), a folder (also a student of an earlier stage), or a hub name.
        adapter: folder of a PEFT adapter to put on the model, or null.
        dtype: precision of the weights; auto is bfloat16 on accelerators and float32 on CPU.
        max_new_tokens: length limit of the explanations that it writes; a label whose explanation reaches it is cut off.
        share_prefixes: run what the texts of a batch have in common at their beginning once, such as the task's question
            and a job's text. Answers are the same but for rounding; it takes memory for keys and values.
        shard: spread the weights over the processes of a fit on several devices; false holds all of them on each. A teacher
            that is sharded scores tokens and gives their hidden states, and nothing else: `lantern cache` or a teacher
            without shard do for the rest.
        max_length: longest prompt in tokens; longer texts are cut as in training. null is the data's in a fit, and else what
            a student was trained with, as long as it's asked what it was trained for, or all that the model can read.
    """

    lantern_api = 1
    capabilities = frozenset({"annotate", "level_probs", "pair_hidden_states", "score_tokens", "token_hidden_states"})
    price = (0.0, 0.0)
    max_new_tokens: int
    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        model: str,
        adapter: str | None = None,
        dtype: Precision = "auto",
        max_new_tokens: int = 96,
        share_prefixes: bool = False,
        shard: bool = False,
        max_length: int | None = None,
    ) -> None:
        if shard and share_prefixes:
            raise UserError(
                "The teacher has shard and share_prefixes: with the second, processes run its layers a different number of "
                "times, and those of a sharded model must run alike. Set one of them to false."
            )
        manifest = read_manifest(model)
        if manifest is not None and manifest["kind"] != "decoder":
            raise UserError(f"{model!r} is an {manifest['kind']} student: use the teacher lantern_pl.teachers.encoder.")
        for needed in ("adapter_config.json", "adapter_model.safetensors"):  # no pickled weights
            if adapter is not None and not (Path(adapter) / needed).is_file():
                raise UserError(f"teacher adapter {adapter!r} is not a folder with {needed}.")
        self.model_name = model
        self.adapter = adapter
        self.precision = dtype
        self.max_new_tokens = max_new_tokens
        self.share_prefixes = share_prefixes
        self.shard = shard
        if shard:
            # Of anything else, processes would ask about a different number of tokens, and wait for each other for ever.
            self.capabilities = frozenset({"score_tokens", "token_hidden_states"})
        self.config = load_config(model)
        self.tokenizer = load_tokenizer(model)
        self.tokenizer_fingerprint = fingerprint(self.tokenizer)
        sizes = self.config.get_text_config()
        self.vocab_size = int(sizes.vocab_size)
        self.hidden_size, self.hidden_layers = int(sizes.hidden_size), int(sizes.num_hidden_layers)
        self._context = getattr(sizes, "max_position_embeddings", None)
        self.max_length = max_length
        self._training = training_of(model)
        self._data_length: int | None = None
        self._lm: PreTrainedModel | None = None
        self._run_for_layers: tuple[TokenBatch, Tensor] | None = None

    @property
    def lm(self) -> PreTrainedModel:
        """The loaded model, in eval mode and without gradients."""
        if self._lm is None:
            self.to(torch.device("cpu"))
        assert self._lm is not None
        return self._lm

    def identity(self) -> dict[str, Any]:
        # share_prefixes and shard aren't in it: like the size of a batch and the device they change rounding, not the
        # question, and what was answered without them needn't be asked again.
        return {
            "model": self.model_name,
            "weights": weights_identity(self.model_name),
            "adapter": self.adapter,
            **({} if self.adapter is None else {"adapter_weights": adapter_identity(self.adapter)}),
            "tokenizer": self.tokenizer_fingerprint,
            "dtype": self.precision,
            "max_new_tokens": self.max_new_tokens,
            **({} if self.max_length is None else {"max_length": self.max_length}),
            **({} if self._training is None else {"trained_length": self._training.max_length}),
            **({} if self.tokenizer.chat_template is None else {"chat_template": template_hash(self.tokenizer)}),
        }

    def to(self, device: torch.device) -> Self:
        self._load(device).to(device)
        self._run_for_layers = None
        return self

    def spread(self, device: torch.device) -> Self:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if not (self.shard and several):
            return self.to(device)
        if not self.asked_together:
            shard_frozen(self._load(device), init_device_mesh(device.type, (dist.get_world_size(),)))
            self.to(device)  # what is too small to be sharded
            self.asked_together = True
        return self

    def _load(self, device: torch.device) -> Any:
        """The model, on the CPU if it wasn't loaded before."""
        if self._lm is None:
            lm: Any = load_causal_lm(self.model_name, resolve_dtype(self.precision, device))
            if self.adapter is not None:
                from peft import PeftModel

                lm = PeftModel.from_pretrained(lm, self.adapter).merge_and_unload()
                check_output_head(lm)
            self._lm = lm.requires_grad_(False).eval()
            if self.share_prefixes:
                check_sharing(self._lm)
        return self._lm

    def accept(self, assignment: Assignment) -> None:
        if assignment.capability == "score_tokens":
            check_length(self.lm, self.model_name, "data.init_args.max_length", assignment.max_length)
            # What it writes is shown beside what the student writes, about the same texts.
            self._data_length = assignment.max_length

    @torch.no_grad()
    def score_tokens(self, batch: TokenBatch) -> Hidden:
        known, self._run_for_layers = self._run_for_layers, None
        if known is not None and known[0] is batch:
            hidden = known[1]
        else:
            hidden = (shared_hidden_at_positions if self.share_prefixes else hidden_at_positions)(self.lm, batch)
        head = output_head(self.lm)
        return Hidden(hidden, replace(head, weight=whole_tensor(head.weight), bias=whole_tensor(head.bias)))

    @torch.no_grad()
    def token_hidden_states(self, batch: TokenBatch, layers: Sequence[int]) -> list[Tensor]:
        last, states = layers_at_positions(self.lm, batch, layers)
        # A student that learns from layers asks for the same batch's distributions next: that needs no second run.
        self._run_for_layers = (batch, last)
        return states

    @torch.no_grad()
    def pair_hidden_states(self, pairs: Sequence[Pair], task: Task, layers: Sequence[int]) -> list[Tensor]:
        """Those at the last token of the prompt. One row at a time, for the reason that `level_probs` has."""
        rows = []
        for pair in pairs:
            ids = torch.tensor([self.tokenizer.encode(self._prompts([pair], task)[0], add_special_tokens=False)])
            last = torch.zeros_like(ids, dtype=torch.bool)
            last[:, -1] = True
            batch = TokenBatch(*(tensor.to(self.lm.device) for tensor in (ids, torch.ones_like(ids), last)))
            rows.append(layers_at_positions(self.lm, batch, layers)[1])
        return [torch.cat(layer) for layer in zip(*rows, strict=True)]

    @torch.no_grad()
    def annotate(self, pairs: Sequence[Pair], task: Task) -> list[Annotation]:
        """Level and explanation, held to the task's answer: the most probable of its levels, then free text after it."""
        probs = self.level_probs(pairs, task).probs
        levels = [task.levels[best] for best in probs.argmax(-1).tolist()]
        openings = [task.answer_opening(level) for level in levels]
        prompts = [prompt + opening for prompt, opening in zip(self._prompts(pairs, task), openings, strict=True)]
        written = generate(self.lm, self.tokenizer, prompts, self.max_new_tokens)
        return [
            Annotation(
                text=task.render_answer(level, answer.text),
                level=level,
                explanation=answer.text,
                prompt_tokens=len(self.tokenizer.encode(prompt, add_special_tokens=False)),
                completion_tokens=answer.tokens,
                level_probs=tuple(row),
                finish_reason="stop" if answer.ended else "length",
            )
            for level, answer, prompt, row in zip(levels, written, prompts, probs.tolist(), strict=True)
        ]

    @torch.no_grad()
    def level_probs(self, pairs: Sequence[Pair], task: Task) -> LevelProbs:
        """Probabilities of the answers that name each level, given the prompt, normalised over the levels."""
        prompts = [prompt + task.answer_prefix for prompt in self._prompts(pairs, task)]
        encoded = [self.tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
        run = TextsInTurn(self.lm).run if self.share_prefixes else self._run
        rows: dict[int, Tensor] = {}
        for row in sorted(range(len(pairs)), key=encoded.__getitem__):
            rows[row] = self._level_log_probs(prompts[row], encoded[row], task, run)
        return LevelProbs(torch.stack([rows[row] for row in range(len(pairs))]).softmax(-1))

    def _run(self, ids: list[int]) -> Any:
        """The model's output on a text, with the logits after its last token alone, and its cache."""
        return self.lm(input_ids=torch.tensor([ids], device=self.lm.device), use_cache=True, logits_to_keep=1)

    def _level_log_probs(self, prompt: str, prompt_ids: list[int], task: Task, run: Callable[[list[int]], Any]) -> Tensor:
        """Log-probability [K] of each verbalised level after the prompt. The prompt is run once, on a key-value cache, and
        one row at a time: the answer about a pair then can't depend on its neighbours' padding."""
        device = self.lm.device
        levels = level_ids(lambda text: self._continuation(prompt, prompt_ids, text), task)
        start = run(prompt_ids)
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

    def _prompts(self, pairs: Sequence[Pair], task: Task) -> list[str]:
        """The prompts, their texts cut as a student's are: to what the model can take, with room for its answer."""
        openings = (task.answer_opening(level) for level in task.levels)
        answer = self.max_new_tokens + max(len(self.tokenizer.encode(text, add_special_tokens=False)) for text in openings)
        asked = {"levels": task.levels, "prompt": task.prompt, "answer": task.answer}
        trained = self._training.max_length if self._training is not None and self._training.task == asked else None
        wanted = next((length for length in (self.max_length, self._data_length, trained) if length is not None), None)
        rooms = [wanted, None if self._context is None else self._context - answer]
        limit = min((room for room in rooms if room is not None), default=_NO_LIMIT)
        features = DecoderFeaturizer(self.tokenizer, task, limit)
        return [features.fitted_prompt(pair)[0] for pair in pairs]
