"""TeacherContract: what the framework relies on in a teacher, as checks that its author runs."""

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from lantern_kernels.heads import Bend
from torch import Tensor

from lantern_pl.data.pair import Pair
from lantern_pl.data.sample import make_pairs
from lantern_pl.errors import UserError
from lantern_pl.plugins import API_VERSION
from lantern_pl.signals import Hidden, Logits, TokenBatch, TopK
from lantern_pl.tasks import Task
from lantern_pl.teachers.chat import ChatReply, ChatRequest
from lantern_pl.teachers.contract import CAPABILITIES, Teacher
from lantern_pl.testing.checking import same


class TeacherContract:
    """Derive from it in a test module, implement `make`, and pytest runs the checks.

    Checks of what the teacher doesn't declare are skipped, but for the one that it refuses it.
    """

    tolerance = 1e-3
    """How far two answers to one question may be apart: batches change rounding. In probability for levels; in total
    variation, half the sum of the differences of all tokens' probabilities, for tokens; for hidden states the length of the
    difference as a share of the vector's own."""

    def make(self) -> Teacher:
        """The teacher, made anew or shared, always with the same arguments."""
        raise NotImplementedError("implement make(self): return your teacher")

    def pairs(self) -> Sequence[Pair]:
        """The pairs to ask about: three that the sample generator makes, of different lengths."""
        return [
            Pair(row["pair_id"], row["job_id"], row["candidate_id"], row["job_text"], row["candidate_text"])
            for row in make_pairs(3, seed=0)
        ]

    def task(self) -> Task:
        """The task that the pairs are of."""
        return Task()

    def batch(self) -> TokenBatch:
        """Token ids to score: three rows of different lengths, the last two tokens of each supervised."""
        vocabulary = self.make().vocab_size or 100
        lengths, generator = (9, 6, 4), torch.Generator().manual_seed(0)
        ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
        mask, positions = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for row, length in enumerate(lengths):
            # Special tokens are at either end of most vocabularies.
            ids[row, :length] = torch.randint(vocabulary // 4, vocabulary // 2, (length,), generator=generator)
            mask[row, :length] = 1
            positions[row, length - 3 : length - 1] = True
        return TokenBatch(ids, mask, positions)

    # What it is

    def test_is_a_teacher_of_this_api(self) -> None:
        teacher = self.make()
        assert isinstance(teacher, Teacher), f"{type(teacher).__name__} isn't a lantern_pl.teachers.Teacher: derive from it"
        version = getattr(teacher, "lantern_api", None)
        assert version == API_VERSION, (
            f"lantern_api is {version!r}, expected {API_VERSION}: the version that you wrote it for"
        )

    def test_declares_what_it_can(self) -> None:
        declared = self.make().capabilities
        known = ", ".join(CAPABILITIES)
        assert declared, f"capabilities is empty: declare those of {known} that it implements"
        assert set(declared) <= set(CAPABILITIES), f"capabilities holds {set(declared) - set(CAPABILITIES)}; known: {known}"

    def test_does_what_it_declares_and_refuses_the_rest(self) -> None:
        teacher = self._ready()
        for capability, ask in self._questions(teacher).items():
            if capability in teacher.capabilities:
                try:
                    ask()
                except (UserError, NotImplementedError) as error:
                    raise AssertionError(f"it declares {capability!r} but refuses it: {error}") from error
            else:
                assert _refused(ask), f"it does {capability!r} without declaring it: add it to its capabilities"

    def test_its_identity_is_plain_and_stable(self) -> None:
        one, other = self.make(), self.make()
        text = json.dumps(one.identity(), sort_keys=True)
        assert text == json.dumps(other.identity(), sort_keys=True), (
            "two teachers made alike have different identities: leave out what changes from object to object, such as times"
        )
        address = re.search(r"\bat 0x[0-9a-f]+", text)
        assert not address, f"identity() holds the address of an object ({address and address[0]}): give plain values"
        assert one.cache_key() == other.cache_key(), "two teachers made alike have different cache keys"

    def test_leaves_no_trace(self) -> None:
        teacher = self._ready()
        for capability, ask in self._questions(teacher).items():
            if capability not in teacher.capabilities:
                continue
            before = torch.get_rng_state(), torch.is_grad_enabled(), torch.get_default_dtype()
            ask()
            same(
                torch.get_rng_state().double(),
                before[0].double(),
                f"{capability} draws from torch's global random numbers, which changes what a student does: use a "
                "torch.Generator of its own",
            )
            assert torch.is_grad_enabled() == before[1], (
                f"{capability} leaves gradients switched: use `with torch.no_grad()`"
            )
            assert torch.get_default_dtype() == before[2], f"{capability} changes torch's default dtype"

    # About pairs

    def test_level_probs_are_distributions(self) -> None:
        teacher, pairs, task = self._able("level_probs"), self.pairs(), self.task()
        probs = teacher.level_probs(pairs, task).probs
        shape = [len(pairs), len(task.levels)]
        assert list(probs.shape) == shape, f"level_probs has shape {list(probs.shape)}, expected {shape}: pairs x levels"
        assert (probs >= 0).all(), "level_probs holds numbers below 0 or NaN: give probabilities, not logits or logarithms"
        ones = torch.ones(len(pairs), dtype=probs.dtype)
        same(probs.sum(-1).cpu(), ones, "level_probs aren't normalised: each pair's must sum to 1", 1e-4)
        assert not probs.requires_grad, "level_probs carries a gradient into the teacher: compute it under torch.no_grad()"

    def test_level_probs_depend_on_their_pair_alone(self) -> None:
        teacher, pairs, task = self._able("level_probs"), self.pairs(), self.task()
        together = teacher.level_probs(pairs, task).probs
        again = teacher.level_probs(pairs, task).probs
        same(again, together, "asked twice, level_probs differ: switch dropout off and draw nothing", 0, self.tolerance)
        alone = torch.cat([teacher.level_probs([pair], task).probs for pair in pairs])
        message = (
            "a pair's level_probs differ when it's asked alone: look at padding, order, and normalisation over the batch"
        )
        same(alone, together, message, 0, self.tolerance)

    def test_annotations_belong_to_their_pairs(self) -> None:
        teacher, pairs, task = self._able("annotate"), self.pairs(), self.task()
        annotations = teacher.annotate(pairs, task)
        assert len(annotations) == len(pairs), f"annotate gives {len(annotations)} annotations for {len(pairs)} pairs"
        for annotation in annotations:
            assert annotation.level is None or annotation.level in task.levels, (
                f"annotate gives level {annotation.level!r}; expected one of {', '.join(task.levels)}, or None where the "
                "answer can't be read"
            )

    # About tokens

    def test_says_what_its_tokens_are(self) -> None:
        teacher = self._ready()
        if not {"score_tokens", "token_hidden_states"} & set(teacher.capabilities):
            pytest.skip("it declares nothing about tokens")
        assert teacher.tokenizer_fingerprint, "tokenizer_fingerprint isn't set: see lantern_pl.text.fingerprint"
        assert "score_tokens" not in teacher.capabilities or teacher.vocab_size, (
            "vocab_size isn't set: the number of columns of its token signals"
        )

    def test_a_token_signal_has_a_row_per_position(self) -> None:
        teacher, batch = self._able("score_tokens"), self.batch()
        signal = teacher.score_tokens(batch)
        rows = int(batch.positions.sum())
        if isinstance(signal, TopK):
            sizes = {"ids": (rows, signal.ids.shape[-1]), "log_probs": tuple(signal.ids.shape), "tail_log_mass": (rows,)}
            for name, shape in sizes.items():
                found = tuple(getattr(signal, name).shape)
                assert found == shape, f"{name} has shape {list(found)}, expected {list(shape)}: a row per position"
            assert teacher.top_k == signal.ids.shape[1], (
                f"top_k is {teacher.top_k!r}, but {signal.ids.shape[1]} tokens come per position: declare as many"
            )
        else:
            assert isinstance(signal, Hidden | Logits), f"score_tokens gives a {type(signal).__name__}"
            assert teacher.top_k is None, (
                f"top_k is {teacher.top_k!r}, but the signal is over the whole vocabulary: leave it"
            )
            shape = tuple(_log_probs(signal, 0).shape)
            assert shape == (rows, teacher.vocab_size), (
                f"the token signal is {list(shape)}, expected {[rows, teacher.vocab_size]}: a row per position of "
                "batch.positions, vocab_size columns"
            )

    def test_token_signals_are_distributions(self) -> None:
        teacher = self._able("score_tokens")
        signal = teacher.score_tokens(self.batch())
        if isinstance(signal, TopK):
            ids, size = signal.ids, teacher.vocab_size or 0
            assert ((ids >= 0) & (ids < size)).all(), f"ids lie outside 0 to {size - 1}"
            ordered = ids.sort(-1).values
            assert (ordered[:, 1:] != ordered[:, :-1]).all(), "a row names a token twice: each may come once"
            mass = signal.log_probs.double().exp().sum(-1) + signal.tail_log_mass.double().exp()
            message = (
                "log_probs aren't normalised: those of the tokens and tail_log_mass must make up a mass of 1; give "
                "logarithms at temperature 1 over the whole vocabulary"
            )
            same(mass, torch.ones_like(mass), message, 0, 1e-2)
        else:
            found = _log_probs(signal, 0)
            assert not found.isnan().any(), "the token signal holds NaN: give −inf for tokens that can't be"

    def test_token_signals_carry_no_gradient(self) -> None:
        signal = self._able("score_tokens").score_tokens(self.batch())
        tensors = {
            "hidden": signal.hidden if isinstance(signal, Hidden) else None,
            "logits": signal.logits if isinstance(signal, Logits) else None,
            "log_probs": signal.log_probs if isinstance(signal, TopK) else None,
        }
        for name, tensor in tensors.items():
            assert tensor is None or not tensor.requires_grad, (
                f"{name} carries a gradient into the teacher: compute it under torch.no_grad()"
            )

    def test_token_signals_depend_on_their_row_alone(self) -> None:
        teacher, batch = self._able("score_tokens"), self.batch()
        together = self._score(teacher, batch)
        again = self._score(teacher, batch)
        self._close(again, together, "asked twice, the token signal differs: switch dropout off, draw nothing")
        alone = [self._score(teacher, row) for row in _one_by_one(batch)]
        message = "a row's token signal differs when it's asked alone, without padding: look at the mask and the positions"
        self._close(torch.cat(alone), together, message)

    def test_a_position_sees_its_own_token_and_none_after_it(self) -> None:
        teacher, batch = self._able("score_tokens"), self.batch()
        if teacher.recorded:
            pytest.skip("it knows recorded examples alone, and not the changed ones that would show it")
        first = [(row, int(batch.positions[row].nonzero()[0, 0])) for row in range(len(batch.input_ids))]
        index = torch.cat([torch.zeros(1, dtype=torch.long), batch.positions.sum(-1).cumsum(0)[:-1]])
        before, again = (self._score(teacher, batch)[index] for _ in range(2))
        after = self._score(teacher, _changed(batch, [(row, at + 1) for row, at in first]))[index]
        message = (
            "the signal at position l depends on the token at l + 1, which it's to predict: it's shifted. Position l holds "
            "what the model says after having read token l"
        )
        self._close(after, before, message)
        now = self._score(teacher, _changed(batch, first))[index]
        noise = _total_variation(again, before).max()
        assert (_total_variation(now, before) > 2 * noise).all(), (
            "the signal at position l doesn't depend on the token at l: it's shifted. Position l holds what the model says "
            "after having read token l"
        )

    # Hidden states

    def test_hidden_states_have_a_row_each(self) -> None:
        teacher, declared = self._able_to_show_hidden_states()
        for capability in declared:
            count, width = teacher.hidden_layers or 0, teacher.hidden_size or 0
            assert count > 0, "hidden_layers isn't set: how many layers it has, the embeddings not counted"
            assert width > 0, "hidden_size isn't set: the width of its hidden states"
            rows = int(self.batch().positions.sum()) if capability == "token_hidden_states" else len(self.pairs())
            states = self._states(teacher, capability, [0, count, -1])
            shapes = [list(layer.shape) for layer in states]
            assert shapes == [[rows, width]] * 3, (
                f"{capability} gives shapes {shapes} for three layers, expected {[rows, width]} for each: rows x hidden_size"
            )
            assert not any(layer.isnan().any() for layer in states), f"{capability} holds NaN"
            self._near(states[2], states[1], f"{capability} has another layer at -1 than at {count}: both mean the last")

    def test_hidden_states_carry_no_gradient(self) -> None:
        teacher, declared = self._able_to_show_hidden_states()
        for capability in declared:
            assert not any(layer.requires_grad for layer in self._states(teacher, capability, [0, -1])), (
                f"{capability} carries a gradient into the teacher: compute it under torch.no_grad()"
            )

    def test_hidden_states_depend_on_their_row_alone(self) -> None:
        teacher, declared = self._able_to_show_hidden_states()
        for capability in declared:
            together, again = (self._states(teacher, capability, [0, -1]) for _ in range(2))
            alone = zip(*self._states_one_by_one(teacher, capability), strict=True)
            for expected, other, rows in zip(together, again, alone, strict=True):
                self._near(other, expected, f"asked twice, {capability} differ: switch dropout off and draw nothing")
                message = f"a row's {capability} differ when it's asked alone, without padding: look at masks and order"
                self._near(torch.cat(rows), expected, message)

    def test_hidden_states_are_those_of_their_position(self) -> None:
        teacher, batch = self._able("token_hidden_states"), self.batch()
        first = [(row, int(batch.positions[row].nonzero()[0, 0])) for row in range(len(batch.input_ids))]
        index = torch.cat([torch.zeros(1, dtype=torch.long), batch.positions.sum(-1).cumsum(0)[:-1]])
        following = [(row, at + 1) for row, at in first]
        before, now, after = (
            teacher.token_hidden_states(asked, [-1])[0][index]
            for asked in (batch, _changed(batch, first), _changed(batch, following))
        )
        message = "token_hidden_states at position l depend on the token at l + 1: they are shifted"
        self._near(after, before, message)
        assert (_apart(now, before) > self.tolerance).all(), (
            "token_hidden_states at position l don't depend on the token at l: they are shifted"
        )

    # In messages

    def test_chat_answers_with_a_reply(self) -> None:
        reply = asyncio.run(_chat(self._able("chat")))
        assert isinstance(reply, ChatReply), f"chat gives a {type(reply).__name__}, expected a ChatReply"
        assert isinstance(reply.text, str), f"the reply's text is a {type(reply.text).__name__}, expected str"
        assert reply.finish_reason, 'the reply has no finish_reason: say "stop" where the model has ended it by itself'
        assert min(reply.prompt_tokens, reply.completion_tokens) >= 0, "a reply's counts of tokens are 0 or more"

    # How the checks ask

    def _ready(self) -> Teacher:
        return self.make().to(torch.device("cpu"))

    def _able(self, capability: str) -> Teacher:
        teacher = self._ready()
        if capability not in teacher.capabilities:
            pytest.skip(f"it doesn't declare {capability}")
        return teacher

    def _able_to_show_hidden_states(self) -> tuple[Teacher, list[str]]:
        """The teacher and which of the two capabilities it declares."""
        teacher = self._ready()
        declared = sorted({"pair_hidden_states", "token_hidden_states"} & set(teacher.capabilities))
        if not declared:
            pytest.skip("it declares no hidden states")
        return teacher, declared

    def _questions(self, teacher: Teacher) -> dict[str, Callable[[], Any]]:
        pairs, task = self.pairs(), self.task()
        return {
            "annotate": partial(teacher.annotate, pairs[:1], task),
            "level_probs": partial(teacher.level_probs, pairs[:1], task),
            "score_tokens": lambda: teacher.score_tokens(self.batch()),
            "chat": lambda: asyncio.run(_chat(teacher)),
            "pair_hidden_states": lambda: teacher.pair_hidden_states(pairs[:1], task, [-1]),
            "token_hidden_states": lambda: teacher.token_hidden_states(self.batch(), [-1]),
        }

    def _states(self, teacher: Teacher, capability: str, layers: Sequence[int]) -> Sequence[Tensor]:
        if capability == "token_hidden_states":
            return teacher.token_hidden_states(self.batch(), layers)
        return teacher.pair_hidden_states(self.pairs(), self.task(), layers)

    def _states_one_by_one(self, teacher: Teacher, capability: str) -> list[Sequence[Tensor]]:
        if capability == "token_hidden_states":
            return [teacher.token_hidden_states(row, [0, -1]) for row in _one_by_one(self.batch())]
        return [teacher.pair_hidden_states([pair], self.task(), [0, -1]) for pair in self.pairs()]

    def _near(self, found: Tensor, expected: Tensor, what: str) -> None:
        apart = _apart(found, expected)
        if not (apart <= self.tolerance).all():
            row = int(apart.nan_to_num(nan=torch.inf).argmax())
            raise AssertionError(f"{what} (row {row}: {apart[row].item():.3g} of its length)")

    def _close(self, found: Tensor, expected: Tensor, what: str) -> None:
        apart = _total_variation(found, expected)
        if not (apart <= self.tolerance).all():
            row = int(apart.nan_to_num(nan=torch.inf).argmax())
            raise AssertionError(f"{what} (row {row}: total variation {apart[row].item():.3g})")

    def _score(self, teacher: Teacher, batch: TokenBatch) -> Tensor:
        """Probabilities of every token, [N, V]; 0 for those that a top-k signal doesn't name."""
        return _log_probs(teacher.score_tokens(batch), teacher.vocab_size or 0).exp()


async def _chat(teacher: Teacher) -> ChatReply:
    await teacher.get_ready_to_chat()
    try:
        return await teacher.chat(ChatRequest(({"role": "user", "content": "Say yes."},), max_tokens=16))
    finally:
        await teacher.close()


def _refused(ask: Callable[[], Any]) -> bool:
    try:
        ask()
    except UserError:
        return True
    return False


def _total_variation(found: Tensor, expected: Tensor) -> Tensor:
    """Between distributions [N, V], of each row."""
    return 0.5 * (found - expected).abs().sum(-1)


def _one_by_one(batch: TokenBatch) -> list[TokenBatch]:
    """Each row of the batch as a batch without padding."""
    rows = []
    for row in range(len(batch.input_ids)):
        part = (slice(row, row + 1), slice(int(batch.attention_mask[row].sum())))
        rows.append(TokenBatch(batch.input_ids[part], batch.attention_mask[part], batch.positions[part]))
    return rows


def _apart(found: Tensor, expected: Tensor) -> Tensor:
    """Lengths of the differences of vectors [N, d], as shares of the expected ones'."""
    return (found - expected).double().norm(dim=-1) / expected.double().norm(dim=-1).clamp_min(1e-12)


def _changed(batch: TokenBatch, places: Sequence[tuple[int, int]]) -> TokenBatch:
    """The batch with another token at each of the places (row, position)."""
    ids = batch.input_ids.clone()
    for row, at in places:
        ids[row, at] += 7
    return TokenBatch(ids, batch.attention_mask, batch.positions)


def _log_probs(signal: Hidden | Logits | TopK, vocabulary: int) -> Tensor:
    if isinstance(signal, TopK):
        full = torch.full((len(signal.ids), vocabulary), -torch.inf, device=signal.ids.device)
        return full.scatter(-1, signal.ids.long(), signal.log_probs.float())
    if isinstance(signal, Logits):
        return signal.logits.float().log_softmax(-1)
    head = signal.head
    bias = None if head.bias is None else head.bias.float()
    products = torch.nn.functional.linear(signal.hidden.float(), head.weight.float(), bias)
    return Bend(head.scale, head.softcap)(products).log_softmax(-1)
