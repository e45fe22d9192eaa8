"""The `openai_logprobs` teacher: token scores from a model that is served elsewhere."""

import logging
import os
import re
from typing import Any, Self
from urllib.parse import urlsplit

import torch
from transformers import PreTrainedTokenizerBase

from lantern_pl.errors import UserError, did_you_mean
from lantern_pl.signals import TokenBatch, TopK
from lantern_pl.teachers import Teacher
from lantern_pl.text import fingerprint, load_tokenizer
from lantern_teacher_openai_logprobs.rows import top_k_signal
from lantern_teacher_openai_logprobs.scoring import PerPosition, PromptLogprobs, Question, UnknownForm, find_way
from lantern_teacher_openai_logprobs.server import Refused, Server

log = logging.getLogger(__name__)

PROBES = (
    "Senior data engineer, 12 years of Python and C++.\n\nMust have: SQL;  nice to have: Kubernetes?",
    "naïve Straße 東京 😀 1234567.89",
)
"""Texts that other tokenizers split otherwise. The first is also what the server is asked to score."""


class OpenAILogprobsTeacher(Teacher):
    """A vLLM or llama.cpp server that says which next tokens are the most probable ones, and how probable.

    With vLLM a batch takes one request per pair. llama.cpp's server takes one per supervised token.

    Args:
        base_url: where the server is, such as http://localhost:8000/v1.
        tokenizer: a model with the served model's tokenizer, which must be the student's: embedded:smollm2-135m, a folder,
            or a name on the model hub. Only its tokenizer is loaded.
        model: the served model's name; null for the only one that the server lists.
        top_k: how many tokens to ask for at each position; all others count as one event. vLLM gives up to its
            --max-logprobs, 20 by default.
        timeout: seconds to wait for an answer.
        max_concurrency: how many requests to send at the same time.
        api_key_variable: name of the environment variable that holds the server's key; never the key itself. null for a
            server without keys.
    """

    lantern_api = 1
    capabilities = frozenset({"score_tokens"})

    def __init__(
        self,
        base_url: str,
        tokenizer: str,
        model: str | None = None,
        top_k: int = 20,
        timeout: float = 120.0,
        max_concurrency: int = 8,
        api_key_variable: str | None = None,
    ) -> None:
        _check_url(base_url)
        # What isn't a name is likely to be the key, and isn't repeated.
        if api_key_variable is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", api_key_variable):
            raise UserError(
                "api_key_variable isn't the name of an environment variable: give a name such as VLLM_API_KEY, and put the "
                "key into that variable."
            )
        if timeout <= 0 or max_concurrency < 1:
            raise UserError(
                f"timeout is {timeout} and max_concurrency {max_concurrency}: give seconds above 0, and 1 or more requests."
            )
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(tokenizer)
        self.tokenizer_fingerprint = fingerprint(self.tokenizer)
        self.vocab_size: int = len(self.tokenizer)
        if not 1 <= top_k <= self.vocab_size:
            raise UserError(f"top_k is {top_k}: give 1 to {self.vocab_size}, the tokenizer's vocabulary.")
        self.top_k: int = top_k
        self.model_name = model
        self._connection = (base_url, timeout, max_concurrency, api_key_variable)
        self._server: Server | None = None
        self._served_model: str | None = None
        self._way: PromptLogprobs | PerPosition | None = None

    def identity(self) -> dict[str, Any]:
        """Where the server is doesn't count, what it serves does. Without `model` this asks the server for the name."""
        return {
            "model": self.model_name or self._model(),
            "tokenizer": self.tokenizer_fingerprint,
            "top_k": self.top_k,
        }

    def to(self, device: torch.device) -> Self:
        """Find out what the server can do, on first use. Raises UserError where it can't be used."""
        self._ready()
        return self

    def score_tokens(self, batch: TokenBatch) -> TopK:
        questions = [
            Question(ids.tolist(), positions.nonzero()[:, 0].tolist())
            for ids, positions in zip(batch.input_ids, batch.positions, strict=True)
            if positions.any()
        ]
        way = self._ready()
        try:
            entries = way.score(questions)
        except Refused as error:
            longest = max(len(question.ids) for question in questions)
            raise UserError(
                f"The server at {way.server.url} refuses to score a batch whose longest row has {longest} tokens: {error}. "
                "If that is too long for it, give it more context (vLLM: --max-model-len, llama.cpp: -c), or lower "
                "data.max_length."
            ) from error
        except UnknownForm as error:
            raise UserError(
                f"The server at {way.server.url} doesn't answer as it did when it was tried: {error}."
            ) from error
        signal = top_k_signal(entries, self.top_k, self.vocab_size)
        device = batch.input_ids.device
        return TopK(signal.ids.to(device), signal.log_probs.to(device), signal.tail_log_mass.to(device))

    def _ready(self) -> PromptLogprobs | PerPosition:
        if self._way is None:
            model = self._model()
            server = self._connected()
            self._check_tokenizer(server, model)
            probe, filler = (self.tokenizer.encode(text, add_special_tokens=False) for text in (PROBES[0], "a"))
            self._way = find_way(server, model, self.top_k, self._connection[2], probe, filler[-1])
        return self._way

    def _connected(self) -> Server:
        if self._server is None:
            base_url, timeout, max_concurrency, variable = self._connection
            key = os.environ.get(variable) if variable else None
            if variable and not key:
                raise UserError(
                    "The environment variable that api_key_variable names isn't set: put the server's key into it, or leave "
                    "api_key_variable out for a server without keys."
                )
            if key and not re.fullmatch(r"[!-~]+", key):
                raise UserError(
                    "The environment variable that api_key_variable names holds a blank or another character that no key "
                    "has: put the key alone into it."
                )
            self._server = Server(base_url, timeout, max_concurrency, key)
        return self._server

    def _model(self) -> str:
        """The name by which the server knows the model."""
        if self._served_model is None:
            server = self._connected()
            try:
                names = [str(model["id"]) for model in server.get("/v1/models")["data"]]
            except (Refused, KeyError, TypeError) as error:
                raise UserError(
                    f"The server at {server.url} doesn't list its models at /v1/models ({error}). Is base_url that of an "
                    "OpenAI-compatible server?"
                ) from error
            if self.model_name is None and len(names) != 1:
                raise UserError(
                    f"The server at {server.url} has {len(names)} models: give one of them as model. "
                    f"{did_you_mean('', names)}"
                )
            if self.model_name is not None and self.model_name not in names:
                raise UserError(
                    f"The server at {server.url} has no model {self.model_name!r}. {did_you_mean(self.model_name, names)}"
                )
            self._served_model = self.model_name or names[0]
        return self._served_model

    def _check_tokenizer(self, server: Server, model: str) -> None:
        """Raise UserError unless the served model splits texts as the tokenizer does, where the server says how it does."""
        for text in PROBES:
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            try:
                # vLLM reads prompt and add_special_tokens, llama.cpp content and add_special.
                body = {"model": model, "prompt": text, "add_special_tokens": False, "content": text, "add_special": False}
                theirs = server.post("/tokenize", body)["tokens"]
            except (Refused, KeyError, TypeError) as error:
                log.warning(
                    "%s doesn't say how it splits a text (POST /tokenize: %s): whether its tokenizer is the student's can't "
                    "be checked here.",
                    server.url,
                    error,
                )
                return
            if theirs != ids:
                raise UserError(
                    f"The model {model!r} at {server.url} has another tokenizer than the student: it splits {text[:20]!r}"
                    f"... into {str(theirs)[:40]}... where the student has {str(ids)[:40]}... Serve a model of the "
                    "student's family, or correct tokenizer."
                )


def _check_url(base_url: str) -> None:
    parts = urlsplit(base_url)
    if parts.username or parts.password or parts.query:
        raise UserError(
            "base_url holds more than an address: leave out the user, the password and what follows a question mark. A key "
            "goes into an environment variable, see api_key_variable."
        )
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UserError(f"base_url is {base_url!r}: give the address of a server, such as http://localhost:8000/v1.")
