"""How a server is asked for the log-probabilities of given tokens, and which of the two ways it knows.

- `PromptLogprobs`: vLLM gives those of all places of a prompt at once. One request per sequence.
- `PerPosition`: llama.cpp's server gives those of the token that it generates. One request per supervised position, with
  the tokens up to there as the prompt, most of which is in the server's cache from the position before.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

from lantern_pl.errors import UserError
from lantern_teacher_openai_logprobs.rows import Entries
from lantern_teacher_openai_logprobs.server import Refused, Server

log = logging.getLogger(__name__)

FORCING_BIAS = 1e4
"""Added to a logit: outweighs all others, whatever the model."""

SPARE = 8
"""Tokens asked for beyond top_k where the server allows it: some may be rows of a padded embedding, which are no tokens."""

Q = TypeVar("Q")
R = TypeVar("R")


@dataclass(frozen=True)
class Question:
    """Token ids without padding, and the ascending positions in them that are asked about."""

    ids: list[int]
    positions: list[int]


class UnknownForm(Exception):
    """An answer without what was asked for; the text says what is missing."""


class PromptLogprobs:
    """One request to /v1/completions per sequence, with vLLM's `prompt_logprobs`."""

    def __init__(self, server: Server, model: str, top_k: int, concurrency: int) -> None:
        self.server = server
        self.model = model
        self.top_k = top_k
        self.concurrency = concurrency

    def score(self, questions: Sequence[Question]) -> list[Entries]:
        """The entries of all positions, question by question."""
        scored = _side_by_side(self.score_one, questions, self.concurrency)
        return [entries for rows in scored for entries in rows]

    def score_one(self, question: Question) -> list[Entries]:
        # What the server says at a place of the prompt is about the token there, given those before it; position l of a
        # batch is about token l + 1. After the last position any token will do: it doesn't count for what comes before.
        end = question.positions[-1] + 1
        prompt = [*question.ids[:end], question.ids[end - 1]]
        places = self._ask(prompt)
        return [_prompt_entries(places[position + 1]) for position in question.positions]

    def _ask(self, prompt: list[int]) -> list[Any]:
        answer = self.server.post(
            "/v1/completions",
            {
                "model": self.model,
                "prompt": prompt,
                "prompt_logprobs": self.top_k,
                "max_tokens": 1,  # the least that it generates
                "temperature": 1.0,
                "add_special_tokens": False,
                "stream": False,
            },
        )
        try:
            places = answer["choices"][0]["prompt_logprobs"]
        except (KeyError, IndexError, TypeError):
            places = None
        if not isinstance(places, list):
            raise UnknownForm("its answer has no choices[0].prompt_logprobs")
        # vLLM names the prompt's own token at each place, also where it isn't among the most probable ones.
        if len(places) != len(prompt) or any(
            not isinstance(place, dict) or str(token) not in place
            for token, place in zip(prompt[1:], places[1:], strict=False)
        ):
            raise UnknownForm(
                f"its prompt_logprobs ({len(places)} places) aren't about the {len(prompt)} token ids that were sent: it "
                "added or changed tokens, or left some out (start vLLM with --no-enable-prefix-caching then)"
            )
        return places


class PerPosition:
    """One request to llama.cpp's own /completion per position, with `n_probs`."""

    def __init__(self, server: Server, model: str, top_k: int, slots: int, filler: int) -> None:
        self.server = server
        self.model = model
        self.top_k = top_k
        self.slots = slots
        self.filler = filler
        self.seconds = 0.0
        """What one request took in the probe, its prefix in the cache."""
        self.seconds_per_token = 0.0
        """What a token took there that had to be read."""
        self._told_cost = False

    def score(self, questions: Sequence[Question]) -> list[Entries]:
        """The entries of all positions, question by question."""
        workers = min(self.slots, len(questions))
        self._tell_cost(questions, workers)
        # A question stays in one slot and goes through it from left to right: each request finds its prefix in that
        # slot's cache, all but one token of it. Sharing slots would have the server read whole prompts again and again.
        rows: list[list[Entries]] = [[] for _ in questions]
        for lane in _side_by_side(lambda slot: self._lane(slot, workers, questions), range(workers), workers):
            for index, entries in lane:
                rows[index].append(entries)
        return [entries for row in rows for entries in row]

    def _lane(self, slot: int, workers: int, questions: Sequence[Question]) -> Iterator[tuple[int, Entries]]:
        for index in range(slot, len(questions), workers):
            ids, positions = questions[index].ids, questions[index].positions
            for position in positions:
                yield index, self.ask(ids[: position + 1], slot, cached=position != positions[0])

    def ask(self, prefix: list[int], slot: int, cached: bool) -> Entries:
        """What the model says after these tokens, all of them read anew or all but the last ones taken from the cache.

        Quantised models round otherwise where they read the same tokens in other portions: by some hundredths in a
        probability. Reading each question's first prefix anew makes the answer independent of what was asked before.
        """
        answer = self.server.post(
            "/completion",
            {
                "model": self.model,
                "prompt": prefix,
                "n_predict": 1,
                "n_probs": self.top_k,
                # Those of the model at temperature 1, before any sampler.
                "post_sampling_probs": False,
                "backend_sampling": False,
                "temperature": 1.0,
                "cache_prompt": cached,
                "id_slot": slot,
                # The generated token is the same everywhere, and a whole character: where it's part of one, the server
                # generates on and leaves out what it said about the first token.
                "logit_bias": [[self.filler, FORCING_BIAS]],
                "stream": False,
                "response_fields": ["completion_probabilities", "tokens_evaluated"],
            },
        )
        try:
            said = answer["completion_probabilities"][0]
            entries = [(int(token["id"]), float(token["logprob"])) for token in said["top_logprobs"]]
            generated, read = int(said["id"]), int(answer["tokens_evaluated"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UnknownForm("its answer has no completion_probabilities with ids and log-probabilities") from error
        if generated != self.filler or read != len(prefix):
            raise UnknownForm(f"it read {read} tokens where {len(prefix)} were sent, or generated another token than asked")
        return entries

    def _tell_cost(self, questions: Sequence[Question], workers: int) -> None:
        if self._told_cost or not questions:
            return
        self._told_cost = True
        requests = sum(len(question.positions) for question in questions)
        read = sum(question.positions[0] for question in questions)
        log.warning(
            "%s gives no log-probabilities of a prompt, as vLLM does: each supervised token costs a request of its own, %d "
            "in this batch. In the probe one took %.3f s; at that pace this batch takes about %.1f s.",
            self.server.url,
            requests,
            self.seconds,
            (requests * self.seconds + read * self.seconds_per_token) / workers,
        )


def find_way(
    server: Server, model: str, top_k: int, concurrency: int, probe: list[int], filler: int
) -> PromptLogprobs | PerPosition:
    """The better way that the server knows, tried on a few tokens. Raises UserError if it knows none, or fewer than top_k.

    Args:
        server: whom to ask.
        model: by what name.
        top_k: how many tokens are to be named at each position.
        concurrency: requests at the same time.
        probe: token ids of a short text, at least 2.
        filler: id of a token that is a whole character.
    """
    tried = []
    question = Question(probe, list(range(len(probe))))
    prompt = PromptLogprobs(server, model, top_k + SPARE, concurrency)
    try:
        try:
            answered = prompt.score_one(question)
        except Refused:  # perhaps because of the spare ones
            prompt = PromptLogprobs(server, model, top_k, concurrency)
            answered = prompt.score_one(question)
    except (Refused, UnknownForm) as reason:
        if isinstance(reason, Refused) and _knows_fewer(server, model, question):
            raise UserError(
                f"The server at {server.url} won't give top_k={top_k} log-probabilities: {reason.said!r}. "
                f"{_limit(reason.said)} or start vLLM with --max-logprobs {top_k}."
            ) from reason
        tried.append(f"POST /v1/completions with token ids and prompt_logprobs (vLLM): {reason}")
    else:
        _check_count(server, min(map(len, answered)), top_k)
        return prompt
    position = PerPosition(server, model, top_k + SPARE, min(concurrency, _slots(server)), filler)
    try:
        start = time.perf_counter()
        position.ask(probe[:-1], slot=0, cached=False)
        read = time.perf_counter()
        named = len(position.ask(probe, slot=0, cached=True))
        position.seconds = time.perf_counter() - read
        position.seconds_per_token = (read - start) / len(probe)
    except (Refused, UnknownForm) as reason:
        tried.append(f"POST /completion with token ids and n_probs (llama.cpp): {reason}")
        raise UserError(
            f"The server at {server.url} gives no log-probabilities of given tokens. Tried: {'; '.join(tried)}. Use a vLLM "
            "or llama.cpp server, or learn from the texts alone: model.teacher null and an empty mixture."
        ) from reason
    _check_count(server, named, top_k)
    return position


def _knows_fewer(server: Server, model: str, question: Question) -> bool:
    """Whether it gives prompt log-probabilities at all."""
    try:
        PromptLogprobs(server, model, 1, 1).score_one(question)
    except (Refused, UnknownForm):
        return False
    return True


def _limit(said: str) -> str:
    """Advice from vLLM's "Requested prompt logprobs of 50, which is greater than max allowed: 20"."""
    found = re.search(r"max allowed: (\d+)", said)
    return f"Set top_k to {found[1]} or less," if found else "Set a smaller top_k,"


def _check_count(server: Server, named: int, top_k: int) -> None:
    if named < top_k:
        raise UserError(
            f"The server at {server.url} names {named} tokens where top_k={top_k} were asked: set top_k to {named}."
        )


def _slots(server: Server) -> int:
    """How many sequences llama.cpp's server keeps in its cache side by side."""
    try:
        return max(1, int(server.get("/props")["total_slots"]))
    except (Refused, KeyError, TypeError, ValueError):
        return 1


def _prompt_entries(place: dict[str, Any]) -> Entries:
    try:
        return [(int(token), float(said["logprob"])) for token, said in place.items()]
    except (KeyError, TypeError, ValueError) as error:
        raise UnknownForm("its prompt_logprobs aren't of the form {token id: {logprob: ...}}") from error


def _side_by_side(work: Callable[[Q], Iterable[R]], items: Sequence[Q], workers: int) -> list[list[R]]:
    """What `work` yields for each of the items, `workers` of them at a time. The first failure ends it all."""
    if not items:
        return []
    stop = threading.Event()

    def drain(item: Q) -> list[R]:
        found = []
        for part in work(item):
            if stop.is_set():
                break
            found.append(part)
        return found

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(drain, item) for item in items]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
        return [future.result() for future in futures]
