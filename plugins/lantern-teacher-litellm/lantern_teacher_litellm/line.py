"""Asks one model through litellm: places, rates, attempts."""

import asyncio
import random
import time
from asyncio import sleep
from collections.abc import Mapping
from typing import Any

from lantern_pl.errors import UserError
from lantern_pl.teachers.chat import Attempt, ChatReply, ChatRequest
from lantern_teacher_litellm import reasons
from lantern_teacher_litellm.allowance import Allowance
from lantern_teacher_litellm.failures import Failure, read_failure
from lantern_teacher_litellm.rate import Rate
from lantern_teacher_litellm.settings import Settings

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before the second attempt, doubled for each further one; up to the half of it is left to chance."""
CHARACTERS_PER_TOKEN = 4
"""A rule of thumb, for limits of tokens: what a question takes is known only with its answer."""

_chance = random.Random()


class Line:
    """Asks, in the event loop that it was made in.

    Args:
        litellm: the module.
        settings: what to ask, and how.
        key: what to authorize with; None for what litellm finds itself.

    Raises UserError where litellm doesn't know whose model it is.
    """

    def __init__(self, litellm: Any, settings: Settings, key: str | None) -> None:
        self.litellm = litellm
        self.settings = settings
        self.loop = asyncio.get_running_loop()
        self.known = _known(litellm, settings)
        self.allowance = Allowance(settings.max_in_flight)
        self._requests = None if settings.rpm is None else Rate(settings.rpm)
        self._tokens = None if settings.tpm is None else Rate(settings.tpm)
        self._constant: dict[str, Any] = {
            "model": settings.model,
            "timeout": settings.timeout,
            "num_retries": 0,
            "max_retries": 0,
            # Its cache takes questions to different servers for the same one.
            "caching": False,
            # Callbacks that others in this process have set up would get the texts.
            "no-log": True,
        }
        if settings.base_url is not None:
            self._constant["api_base"] = settings.base_url
        if key is not None:
            self._constant["api_key"] = key

    async def ask(self, request: ChatRequest, schema: Mapping[str, Any] | None) -> ChatReply:
        """The answer, however many attempts it takes. Raises ChatFailed."""
        settings, question = self.settings, self._question(request, schema)
        attempts: list[Attempt] = []
        failures, refusals, first_refusal = 0, 0, 0.0
        while True:
            outcome = await self._attempt(request, question, attempts)
            if isinstance(outcome, ChatReply):
                return outcome
            if outcome.status == 429:
                now = time.monotonic()
                refusals, first_refusal = refusals + 1, first_refusal or now
                wait = _wait(refusals) if outcome.asked_wait is None else outcome.asked_wait
                if outcome.quota or now + wait - first_refusal > settings.patience:
                    raise reasons.refused(outcome, settings, attempts)
            else:
                failures += 1
                if not outcome.again or failures >= settings.attempts:
                    raise reasons.failed(outcome, settings, attempts)
                wait = _wait(failures) if outcome.asked_wait is None else min(outcome.asked_wait, settings.patience)
            await sleep(wait)

    async def _attempt(self, request: ChatRequest, question: dict[str, Any], attempts: list[Attempt]) -> ChatReply | Failure:
        """Ask once, when there is a place for it, and note how it ended."""
        ticket = await self.allowance.enter()
        try:
            await self._wait_for_rates(request)
            while await self.allowance.outlast_hold():
                # What the server wanted left alone meanwhile begins anew, at its rate and not all at once.
                await self._wait_for_rates(request)
            started, clock = time.time(), time.perf_counter()
            outcome = await self._answer(question)
            said = outcome.outcome if isinstance(outcome, Failure) else "ok"
            attempts.append(Attempt(started, time.perf_counter() - clock, said))
            if isinstance(outcome, Failure):
                if outcome.status == 429:
                    hold = min(outcome.asked_wait or 0.0, self.settings.patience)
                    self.allowance.refused(ticket, hold)
                return outcome
            self.allowance.succeeded()
            text, finish_reason, prompt_tokens, completion_tokens = outcome
            cost = self._cost(prompt_tokens, completion_tokens)
            return ChatReply(text, finish_reason, prompt_tokens, completion_tokens, cost, tuple(attempts))
        finally:
            self.allowance.leave()

    async def _answer(self, question: dict[str, Any]) -> tuple[str, str, int, int] | Failure:
        try:
            # litellm's own timeout is for each wait in between: a server that sends a byte now and then would never end.
            async with asyncio.timeout(self.settings.timeout):
                return _read(await self.litellm.acompletion(**question))
        except Exception as error:
            if type(error).__name__ == "ContentPolicyViolationError":
                # The provider's filter has answered in the model's place, and would again.
                return "", "content_filter", 0, 0
            return read_failure(error)

    def _question(self, request: ChatRequest, schema: Mapping[str, Any] | None) -> dict[str, Any]:
        question: dict[str, Any] = {
            **self._constant,
            "messages": [dict(message) for message in request.messages],
            "temperature": request.temperature,
            "max_tokens": request.max_tokens,
        }
        if "seed" in self.known:
            question["seed"] = request.seed
        if schema is not None:
            form = {"name": "answer", "strict": True, "schema": dict(schema)}
            question["response_format"] = {"type": "json_schema", "json_schema": form}
        return question

    async def _wait_for_rates(self, request: ChatRequest) -> None:
        if self._requests is not None:
            await self._requests.take()
        if self._tokens is not None:
            characters = sum(len(message["content"]) for message in request.messages)
            await self._tokens.take(characters / CHARACTERS_PER_TOKEN + request.max_tokens)

    def _cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        price = self.settings.price
        if price is None or not (prompt_tokens and completion_tokens):
            return None
        return (prompt_tokens * price[0] + completion_tokens * price[1]) / 1e6


def _known(litellm: Any, settings: Settings) -> frozenset[str]:
    """The parameters that litellm can give to the model. Raises UserError where it doesn't know whose it is."""
    try:
        name, provider, *_ = litellm.get_llm_provider(model=settings.model, api_base=settings.base_url)
    except Exception:
        provider = None
    if provider is None:
        raise UserError(
            f"litellm doesn't know whose model {settings.model!r} is: give it with its provider, such as "
            "openai/gpt-4o-mini, or openai/NAME with base_url for a server of your own."
        )
    return frozenset(litellm.get_supported_openai_params(model=name, custom_llm_provider=provider) or ())


def _read(answer: Any) -> tuple[str, str, int, int]:
    """Text, finish reason, and tokens of question and answer. Raises what reading something else raises."""
    choice = answer.choices[0]
    # OpenAI's word that the model won't, for which litellm has no field of its own.
    refusal = getattr(choice.message, "refusal", None) or (
        getattr(choice.message, "provider_specific_fields", None) or {}
    ).get("refusal")
    finish_reason = "content_filter" if refusal else str(choice.finish_reason or "unknown")
    usage = getattr(answer, "usage", None)
    prompt_tokens, completion_tokens = (
        int(getattr(usage, name, None) or 0) for name in ("prompt_tokens", "completion_tokens")
    )
    return choice.message.content or "", finish_reason, prompt_tokens, completion_tokens


def _wait(failures: int) -> float:
    """Seconds to wait after so many failures; chance takes apart those that failed together."""
    longest = min(FIRST_WAIT * 2.0 ** min(failures - 1, 16), LONGEST_WAIT)
    return longest * (0.5 + 0.5 * _chance.random())
