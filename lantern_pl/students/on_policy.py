"""Learning on what the student itself writes: generalised knowledge distillation (arXiv 2306.13649).

A share of the batches keeps its prompts and gets answers that the student has just sampled. The teacher says at each of
their tokens how it would have gone on; there is no annotation to compare with, so only the divergences count there.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch

from lantern_pl.causal_lm import complete, stop_tokens
from lantern_pl.data.featurize import DecoderBatch, DecoderFeaturizer, Example
from lantern_pl.errors import UserError
from lantern_pl.schedules import Scheduled, extremes

if TYPE_CHECKING:
    import httpx

FRACTION = "on_policy_fraction"
WAITS = (0.5, 1.0, 2.0)
"""Seconds between attempts at a server that is busy, or away for a moment."""


@dataclass(frozen=True)
class ServedStudent:
    """An OpenAI-compatible server that writes the answers in the student's place: vLLM, or llama.cpp's.

    It serves the weights that it was started with, so the answers are as many steps old as the server. Their texts are
    tokenized anew here.
    """

    url: str
    """Where it is, such as http://localhost:8000/v1."""
    model: str
    """Name of the served model."""
    timeout: float = 120.0
    """Seconds to wait for an answer."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.username or parts.password or parts.query:
            raise UserError(
                "model.on_policy.server.url holds more than an address: leave out the user, the password and what follows a "
                "question mark. The server has to be one that asks for no key."
            )


@dataclass(frozen=True)
class OnPolicy:
    """How much of the training is on the student's own answers."""

    fraction: Scheduled = 0.5
    """Share of the batches, 0 to 1, or a schedule of it."""
    max_new_tokens: int = 64
    """Length limit of the sampled answers; what data.max_length leaves beside the prompt is another."""
    temperature: float = 1.0
    """Of the sampling; 0 takes the most probable token each time."""
    seed: int = 0
    """Of which batches, and of the sampling."""
    server: ServedStudent | None = None
    """Let a server generate; null generates in this process."""

    def __post_init__(self) -> None:
        least, most = extremes(self.fraction)
        if not (least >= 0 and most <= 1):
            raise UserError(f"model.on_policy.fraction goes from {least} to {most}: give shares of 0 to 1.")
        if self.max_new_tokens < 1 or not 0 <= self.temperature < float("inf"):
            raise UserError(
                f"model.on_policy has max_new_tokens {self.max_new_tokens} and temperature {self.temperature}: give 1 or "
                "more tokens, and a finite temperature of 0 or more."
            )


class Sampler:
    """Puts the student's own answers into batches.

    Args:
        settings: what the config says.
        featurizer: of the student's batches.
    """

    def __init__(self, settings: OnPolicy, featurizer: DecoderFeaturizer) -> None:
        self.settings = settings
        self._featurizer = featurizer

    def chooses(self, fraction: float, step: int, batch: int) -> bool:
        """Whether this batch is one of the share. The same on all ranks, and again after a resume."""
        return Random(f"{self.settings.seed}/{step}/{batch}").random() < fraction

    def rewrite(self, batch: DecoderBatch, lm: Any, place: Sequence[int]) -> DecoderBatch:
        """The batch with answers that the student writes. `place`: step, batch and rank, which seed them."""
        tokens = batch.tokens
        # The first supervised position is the prompt's last token.
        ends = (tokens.positions.int().argmax(-1) + 1).tolist()
        prompts = [ids[:end] for ids, end in zip(tokens.input_ids.tolist(), ends, strict=True)]
        # No row gets longer than the data's max_length: memory was planned for that.
        limits = [min(self.settings.max_new_tokens, self._featurizer.max_length - len(prompt)) for prompt in prompts]
        seed = Random(f"{self.settings.seed}/{'/'.join(map(str, place))}/answers").getrandbits(31)
        if self.settings.server:
            answers = self._served(prompts, limits, seed)
        else:
            answers = self._sampled(prompts, max(limits), lm, seed)
        examples = [
            Example(pair, [*prompt, *answer[:limit]], len(prompt))
            for pair, prompt, answer, limit in zip(batch.pairs, prompts, answers, limits, strict=True)
        ]
        written = self._featurizer.collate(examples).to(batch.targets.device)
        return replace(written, generated=True)

    def _sampled(self, prompts: Sequence[list[int]], limit: int, lm: Any, seed: int) -> list[list[int]]:
        tokenizer = self._featurizer.tokenizer
        was_training = lm.training
        device = next(lm.parameters()).device
        lm.eval()
        try:
            # The run's own random state stays as it was: a run with other fractions has the same dropout.
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(seed)
                return complete(
                    lm,
                    prompts,
                    limit,
                    stop_tokens(lm, tokenizer),
                    tokenizer.pad_token_id,
                    self.settings.temperature,
                )
        finally:
            lm.train(was_training)

    def _served(self, prompts: Sequence[list[int]], limits: Sequence[int], seed: int) -> list[list[int]]:
        with ThreadPoolExecutor(max_workers=len(prompts)) as pool:
            return list(pool.map(self._ask, prompts, limits, range(seed, seed + len(prompts))))

    def _ask(self, prompt: list[int], limit: int, seed: int) -> list[int]:
        """Ids of one served answer, at least one."""
        import httpx

        server, tokenizer = self.settings.server, self._featurizer.tokenizer
        assert server is not None
        body = {
            "model": server.model,
            "prompt": prompt,
            "max_tokens": limit,
            "temperature": self.settings.temperature,
            "seed": seed,
        }
        url = server.url.rstrip("/") + "/completions"
        try:
            response = _post(url, body, server.timeout)
            if response.is_error:  # its body isn't shown: a server may repeat the prompt there
                raise _no_answer(server, f"HTTP {response.status_code}")
            choice = response.json()["choices"][0]
            text, ended = str(choice["text"]), choice.get("finish_reason") == "stop"
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
            raise _no_answer(server, type(error).__name__) from error
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)[:limit]
        return [*ids, tokenizer.eos_token_id] if ended or not ids else ids


def _post(url: str, body: dict[str, Any], timeout: float) -> "httpx.Response":
    """The server's answer. What may pass is tried again: one lost connection is to end no fit."""
    import httpx

    for wait in WAITS:
        try:
            response = httpx.post(url, json=body, timeout=timeout)
            if response.status_code != 429 and response.status_code < 500:
                return response
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            pass  # the last attempt says what it is
        time.sleep(wait)
    return httpx.post(url, json=body, timeout=timeout)


def _no_answer(server: ServedStudent, reason: str) -> UserError:
    return UserError(
        f"The server of model.on_policy at {server.url} gives no answer ({reason}). Is it up, does it serve "
        f"{server.model!r}, and does it take prompts as token ids, as vLLM and llama.cpp do?"
    )
