"""The `cached` teacher: what another teacher said about the same pairs, from disk."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.signal_sets.formats import SampledFormat, TopKFormat
from lantern_pl.signal_sets.keys import as_numbers, batch_keys, example_key, pair_key
from lantern_pl.signal_sets.manifest import MANIFEST
from lantern_pl.signal_sets.reader import SignalSet
from lantern_pl.signal_sets.writer import differences
from lantern_pl.signals import Hidden, LevelProbs, OutputHead, TokenBatch, TopK
from lantern_pl.tasks import Task
from lantern_pl.teachers.contract import Assignment, Teacher


class CachedTeacher(Teacher):
    """A signal set of `lantern cache` in a teacher's place: it needs no model in memory.

    It knows the examples that were recorded, and refuses all others: another tokenizer, chat template, task, max_length or
    temperature, changed texts.

    Args:
        signals: folder of the signal set.
        verify: read all of it and compare checksums before it is used; false trusts the disk.
    """

    lantern_api = 1
    price = (0.0, 0.0)

    def __init__(self, signals: str, verify: bool = True) -> None:
        self.folder = signals
        self.set = SignalSet(signals, verify)
        tokens = self.set.manifest.tokens
        self.capabilities = frozenset(
            name for name, there in (("score_tokens", tokens), ("level_probs", self.set.manifest.levels)) if there
        )
        self.recorded = True
        if tokens is not None:
            self.tokenizer_fingerprint = tokens.tokenizer
            self.vocab_size = tokens.vocab_size
            self.temperature = tokens.temperature
            form = self.set.form
            self.sampled = isinstance(form, SampledFormat)
            self.top_k = form.k if isinstance(form, TopKFormat) else form.widest if isinstance(form, SampledFormat) else None
        self._head: OutputHead | None = None

    def identity(self) -> dict[str, Any]:
        manifest = Path(self.folder) / MANIFEST
        return {
            "signals": self.folder,
            "sha256": hashlib.sha256(manifest.read_bytes()).hexdigest()[:16],
            "teacher": self.set.manifest.teacher,
        }

    def accept(self, assignment: Assignment) -> None:
        """Raises UserError, naming both sides, unless all of it was recorded."""
        manifest, examples = self.set.manifest, assignment.examples
        # Levels are known by the two texts alone, so nothing else tells another question.
        other = "; ".join(differences(manifest.task, vars(assignment.task)))
        if assignment.capability == "level_probs" and other:
            raise UserError(
                f"The {self._name} holds answers to another task: {other}. "
                "Give data.init_args.task as it was, or record the signals anew."
            )
        tokens = manifest.tokens
        if tokens and assignment.capability == "score_tokens" and tokens.chat_template != assignment.chat_template:
            raise UserError(
                f"The {self._name} was recorded with a chat template of the hash {tokens.chat_template}, the student's has "
                f"{assignment.chat_template}: the same question becomes other tokens. Give the student the teacher's, or "
                "record the signals anew."
            )
        if assignment.capability == "score_tokens":
            keys = [example_key(example.input_ids, example.answer_start) for example in examples]
            found = self.set.find_examples(as_numbers(keys))
        else:
            found = self.set.find_pairs(as_numbers([pair_key(example.pair) for example in examples]))
        missing = np.flatnonzero(found < 0)
        if len(missing):
            raise UserError(self._missing(assignment, len(missing), examples[int(missing[0])].pair))

    def _missing(self, assignment: Assignment, count: int, first: Pair) -> str:
        data = self.set.manifest.data
        here = {"task": vars(assignment.task), "max_length": assignment.max_length}
        there = {"task": self.set.manifest.task, "max_length": data.get("max_length")}
        causes = [
            f"{name} there is {there[name]!r}, here {here[name]!r}"
            for name in here
            if here[name] != there[name] and (name == "task" or assignment.capability == "score_tokens")
        ]
        causes = causes or ["their texts, levels or explanations were changed or added since"]
        recorded = (
            f"{data.get('pairs')} pairs of {', '.join(data.get('paths', []))} (sha256 {str(data.get('sha256'))[:16]}...)"
        )
        return (
            f"{count} of {len(assignment.examples)} examples of this run aren't in the {self._name}, which was recorded of "
            f"{recorded}; the first is pair {first.pair_id!r} of {assignment.path}. Perhaps: {'; '.join(causes)}. Record "
            "the signals of this run's data: lantern cache."
        )

    @property
    def _name(self) -> str:
        return f"signal set {self.folder!r}"

    def score_tokens(self, batch: TokenBatch) -> Hidden | TopK:
        keys, counts = batch_keys(batch)
        found = self.set.find_examples(as_numbers(keys))
        if (found < 0).any():
            raise UserError(f"A batch has an example that isn't in the {self._name}: record the signals of this run's data.")
        signal = self.set.tokens(found)
        rows = len(signal.hidden) if isinstance(signal, Hidden) else len(signal.ids)
        if rows != sum(counts):
            raise UserError(f"A batch has {sum(counts)} supervised positions, in the {self._name} its examples have {rows}.")
        device = batch.input_ids.device
        if isinstance(signal, Hidden):
            return Hidden(signal.hidden.to(device), self._head_on(device, signal.head))
        return TopK(signal.ids.to(device), signal.log_probs.to(device), signal.tail_log_mass.to(device))

    def _head_on(self, device: torch.device, head: OutputHead) -> OutputHead:
        if self._head is None or self._head.weight.device != device:
            bias = None if head.bias is None else head.bias.to(device)
            self._head = OutputHead(head.weight.to(device), bias, head.softcap, head.scale)
        return self._head

    def level_probs(self, pairs: Sequence[Pair], task: Task) -> LevelProbs:
        found = self.set.find_pairs(as_numbers([pair_key(pair) for pair in pairs]))
        if (found < 0).any():
            missing = pairs[int(np.flatnonzero(found < 0)[0])]
            raise UserError(f"Pair {missing.pair_id!r} isn't in the {self._name}: record the signals of this run's data.")
        return self.set.level_probs(found)
