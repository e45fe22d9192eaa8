"""The `litellm` teacher: answers from any LLM that litellm can ask."""

import asyncio
import hashlib
import json
import logging
import os
import re
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.signals import Annotation
from lantern_pl.tasks import Task
from lantern_pl.tasks.untrusted import visible, without_turns
from lantern_pl.teachers import Teacher
from lantern_pl.teachers.chat import ChatFailed, ChatReply, ChatRequest
from lantern_teacher_litellm import provider
from lantern_teacher_litellm.line import Line
from lantern_teacher_litellm.settings import Settings, TokenPrice

NO_KEY = "no-key"
"""For servers that want none. Without it litellm would send them what OPENAI_API_KEY holds."""

PROBE = ChatRequest(
    messages=({"role": "user", "content": "Write one sentence about the sea. Use no brackets and no quotation marks."},),
    schema={
        "type": "object",
        "properties": {"colour": {"type": "string", "enum": ["amber", "indigo"]}},
        "required": ["colour"],
        "additionalProperties": False,
    },
    max_tokens=512,
)
"""Only a server that holds answers to the schema answers so."""

log = logging.getLogger(__name__)
T = TypeVar("T")


class LiteLLMTeacher(Teacher):
    """An LLM behind an API, asked through litellm: that of a provider, or of a server of your own.

    Args:
        model: litellm's name of it, with the provider before it: openai/gpt-4o-mini, anthropic/claude-sonnet-4-5,
            hosted_vllm/NAME for a vLLM server, openai/NAME for any other server that speaks as OpenAI does.
        base_url: where the server is, such as http://localhost:8000/v1; null for the provider's own.
        api_key_variable: name of the environment variable that holds the key; never the key itself. null for a server
            without keys, and for the variable that litellm knows of the provider, such as OPENAI_API_KEY.
        timeout: seconds that one attempt may take.
        max_in_flight: how many requests may be open at once, at most; how many are is found out while asking.
        rpm: requests a minute, at most; null for no limit.
        tpm: tokens a minute, at most, those of the questions and of the longest possible answers; null for no limit.
        attempts: how often a question is asked, at most, when its requests fail. What the server refuses as too many at
            once (HTTP 429) doesn't count.
        patience: seconds that a question is asked again after the server has first refused it as too many at once.
        schema: whether the server is given the JSON schema that an answer should follow: "always", "never", or "auto" to
            try first whether it holds answers to it.
        price: money per million tokens; null for what litellm's list says, where it knows the model.
        max_new_tokens: length of an answer about a whole pair, at most; the stages of a guide have their own.
    """

    lantern_api = 1
    capabilities = frozenset({"annotate", "chat"})

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key_variable: str | None = None,
        timeout: float = 120.0,
        max_in_flight: int = 64,
        rpm: float | None = None,
        tpm: float | None = None,
        attempts: int = 6,
        patience: float = 600.0,
        schema: Literal["auto", "always", "never"] = "auto",
        price: TokenPrice | None = None,
        max_new_tokens: int = 1024,
    ) -> None:
        if base_url is not None:
            _check_url(base_url)
            base_url = base_url.rstrip("/")
        # What isn't a name is likely to be the key, and isn't repeated.
        if api_key_variable is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", api_key_variable):
            raise UserError(
                "api_key_variable isn't the name of an environment variable: give a name such as OPENAI_API_KEY, and put "
                "the key into that variable."
            )
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}: give 1 or more.")
        if schema not in ("auto", "always", "never"):
            raise UserError(f"schema is {schema!r}: give auto, always or never.")
        self.price = provider.listed_price(model) if price is None else (price.input, price.output)
        self.settings = Settings(model, base_url, timeout, max_in_flight, rpm, tpm, attempts, patience, price=self.price)
        self.max_in_flight = max_in_flight
        self.most_billed = attempts
        self.max_new_tokens = max_new_tokens
        self.schema = schema
        self.follows_schema = schema == "always"
        self._key_variable = api_key_variable
        self._line: Line | None = None

    def identity(self) -> dict[str, Any]:
        """The model, where it is, and how it's asked apart from what each request says."""
        return {
            "model": self.settings.model,
            "base_url": self.settings.base_url,
            "schema": self.schema,
            "max_new_tokens": self.max_new_tokens,
        }

    def chat_key(self) -> str:
        """Without the length of answers about whole pairs: each question of a chat has its own."""
        about = {name: value for name, value in self.identity().items() if name != "max_new_tokens"}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]

    # Chat

    async def get_ready_to_chat(self) -> Sequence[ChatReply]:
        """Import litellm and, for schema="auto", try the server. Raises UserError where it can't be asked."""
        await self.close()
        self._line = await self._connect()
        replies: list[ChatReply] = []
        if self.schema == "auto":
            try:
                self.follows_schema = await self._holds_to_schemas(self._line, replies)
            except ChatFailed as failed:
                await self.close()
                raise UserError(failed.reason) from None
        return replies

    def questions_to_get_ready(self) -> Sequence[ChatRequest]:
        """A question with a schema, and the same without one where that got no answer."""
        return (PROBE, PROBE) if self.schema == "auto" else ()

    async def chat(self, request: ChatRequest) -> ChatReply:
        if self._line is None or self._line.loop is not asyncio.get_running_loop():
            raise UserError("The litellm teacher was asked before get_ready_to_chat() in this event loop: call that first.")
        return await self._line.ask(request, request.schema if self.follows_schema else None)

    async def close(self) -> None:
        """Close litellm's connections, unless another of these teachers still uses them."""
        line, self._line = self._line, None
        if line is not None:
            await provider.closed(line.litellm)

    async def _connect(self) -> Line:
        # Importing it takes seconds, in which others in this event loop go on.
        line = Line(await asyncio.to_thread(provider.load), self.settings, self._key())
        provider.opened()
        return line

    async def _holds_to_schemas(self, line: Line, replies: list[ChatReply]) -> bool:
        """Whether the answer to a question that asks for a sentence follows the schema anyway. What is answered goes into
        `replies`."""
        holds = False
        if "response_format" in line.known:
            try:
                replies.append(await line.ask(PROBE, PROBE.schema))
                holds = _has_probed_form(replies[0].text)
            except ChatFailed as failed:
                if failed.stop:
                    raise
                # It may not take schemas, or not answer at all.
                reply = await line.ask(PROBE, None)
                replies.append(replace(reply, attempts=(*failed.attempts, *reply.attempts)))
        if not holds:
            log.warning(
                "%s doesn't hold answers to a JSON schema: it's asked without one, and its answers are checked.",
                self.settings.where,
            )
        return holds

    def _key(self) -> str | None:
        if self._key_variable is None:
            return None if self.settings.base_url is None else NO_KEY
        key = os.environ.get(self._key_variable)
        if not key:
            raise UserError(
                "The environment variable that api_key_variable names isn't set: put the key into it, or leave "
                "api_key_variable out for a server without keys."
            )
        if not re.fullmatch(r"[!-~]+", key):
            raise UserError(
                "The environment variable that api_key_variable names holds a blank or another character that no key has: "
                "put the key alone into it."
            )
        return key

    # Whole pairs

    def annotate(self, pairs: Sequence[Pair], task: Task) -> list[Annotation]:
        """The task's own question about each pair, many at once. An answer that the model didn't end by itself, and one
        that isn't in the task's format, has no level. Raises UserError where no pair could be asked about."""
        return _run(self._annotate(pairs, task))

    async def _annotate(self, pairs: Sequence[Pair], task: Task) -> list[Annotation]:
        line = await self._connect()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_annotation(line, pair, task, self.max_new_tokens)) for pair in pairs]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            await provider.closed(line.litellm)
        return [done.result() for done in tasks]


async def _annotation(line: Line, pair: Pair, task: Task, max_new_tokens: int) -> Annotation:
    texts = (without_turns(visible(text)) for text in (pair.job_text, pair.candidate_text))
    prompt = task.render_prompt(*texts)
    request = ChatRequest(({"role": "user", "content": prompt},), max_tokens=max_new_tokens)
    try:
        reply = await line.ask(request, None)
    except ChatFailed as failed:
        if failed.stop:
            raise UserError(failed.reason) from None
        log.warning("A pair got no answer: %s", failed.reason)
        return Annotation("", None, None)
    answer = task.parse_answer(reply.text) if reply.finish_reason == "stop" else None
    level, explanation = (None, None) if answer is None else (answer.level, answer.explanation)
    return Annotation(reply.text, level, explanation, reply.prompt_tokens, reply.completion_tokens)


def _has_probed_form(text: str) -> bool:
    try:
        answer = json.loads(text)
    except ValueError:
        return False
    return isinstance(answer, dict) and list(answer) == ["colour"] and answer["colour"] in ("amber", "indigo")


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end, also where an event loop is running already, as in notebooks."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _check_url(base_url: str) -> None:
    parts = urlsplit(base_url)
    if parts.username or parts.password or parts.query:
        raise UserError(
            "base_url holds more than an address: leave out the user, the password and what follows a question mark. A key "
            "goes into an environment variable, see api_key_variable."
        )
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UserError(f"base_url is {base_url!r}: give the address of a server, such as http://localhost:8000/v1.")
