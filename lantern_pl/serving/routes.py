"""The routes: from a checked body to an answer."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import JSONResponse, Response, StreamingResponse

from lantern_pl.data.featurize import Example
from lantern_pl.data.pair import Pair
from lantern_pl.serving.admission import as_event, check_rate, current
from lantern_pl.serving.config import ServeConfig
from lantern_pl.serving.decoder_worker import TIMEOUT, UNAVAILABLE, Event
from lantern_pl.serving.encoder_worker import FAILED
from lantern_pl.serving.errors import ServiceError
from lantern_pl.serving.line import Line
from lantern_pl.serving.messages import ExplainIn, PairIn, PairsIn
from lantern_pl.serving.metrics import Metrics
from lantern_pl.serving.rate import RateLimit
from lantern_pl.serving.sentences import SentenceGate
from lantern_pl.serving.students import DecoderInput, EncoderInput, Prompt, Student
from lantern_pl.tasks.untrusted import flags, visible

T = TypeVar("T")
# Longer texts take longer to look at than others shall wait: they are looked at in a thread.
_LONG = 8_000
_THREADS = ThreadPoolExecutor(2, thread_name_prefix="texts")


class Routes:
    """/fit and /explain.

    Args:
        encoder, decoder: the students with their lines to the workers, or None where one isn't served.
    """

    def __init__(
        self,
        config: ServeConfig,
        metrics: Metrics,
        rate: RateLimit | None,
        encoder: tuple[Student, Line] | None,
        decoder: tuple[Student, Line] | None,
    ) -> None:
        self.config = config
        self.metrics = metrics
        self.rate = rate
        self.encoder = encoder
        self.decoder = decoder
        self._encoder_input = EncoderInput(encoder[0]) if encoder else None
        self._decoder_input = DecoderInput(decoder[0]) if decoder else None

    async def fit(self, body: PairIn | PairsIn) -> Response:
        about = current.get()
        student, line = self._served(self.encoder, "/fit", "encoder")
        asked = body.pairs if isinstance(body, PairsIn) else [body]
        if len(asked) > self.config.max_pairs:
            raise ServiceError(413, "too_large", f"A request may have up to {self.config.max_pairs} pairs.")
        if self.rate is not None and len(asked) > 1:
            check_rate(self.rate, about.client, len(asked) - 1)  # the first was taken when the request came
        line.check_room(len(asked))
        about.pairs = len(asked)
        for number, pair in enumerate(asked):
            self._check_texts(pair, f"pairs[{number}]." if isinstance(body, PairsIn) else "")
        fits = await self._fits(asked, student, line)
        answer: dict[str, Any] = {"answers": fits} if isinstance(body, PairsIn) else fits[0]
        return JSONResponse({**answer, **self._about(student)})

    async def explain(self, body: ExplainIn) -> Response:
        student, line = self._served(self.decoder, "/explain", "decoder")
        line.check_room(1)
        self._check_texts(body, "")
        assert self._decoder_input is not None
        prompt, found = await _look_at(body, self._decoder_input)
        events = self._explanation(body, student, line, prompt, found)
        # The first event decides of the status: it comes once the decoder has begun, or not at all.
        first = await anext(events)
        if body.stream:
            return StreamingResponse(_stream(first, events), media_type="text/event-stream", headers=_UNCACHED)
        last = [first, *[event async for event in events]][-1]
        return JSONResponse(last[1])

    # The encoder

    async def _fits(self, asked: list[PairIn], student: Student, line: Line) -> list[dict[str, Any]]:
        assert self._encoder_input is not None
        looked_at = [await _look_at(pair, self._encoder_input) for pair in asked]
        answers = await line.ask([(example.input_ids, example.token_type_ids) for example, _ in looked_at])
        current.get().batch = max(batch for _, batch in answers)
        fits = []
        for pair, (example, found), (probs, batch) in zip(asked, looked_at, answers, strict=True):
            if probs == FAILED:
                raise ServiceError(500, "internal", "The encoder failed on this request.")
            fit = _fit(pair, student, example, probs, found)
            self.metrics.fit(fit["level"], fit["score"], batch, bool(found))
            fits.append(fit)
        return fits

    async def _level_of_encoder(self, pair: PairIn) -> str | None:
        """What the encoder says of a pair that the decoder explains, or None where it can't say."""
        if self.encoder is None or self._encoder_input is None:
            return None
        student, line = self.encoder
        try:
            example, _ = await _look_at(pair, self._encoder_input)
            ((probs, _),) = await line.ask([(example.input_ids, example.token_type_ids)])
        except ServiceError:
            return None
        return None if probs == FAILED else student.task.levels[probs.index(max(probs))]

    # The decoder

    async def _explanation(
        self, body: ExplainIn, student: Student, line: Line, prompt: Prompt, found: list[str]
    ) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """What leaves, as it may: ("level", ...), ("sentence", ...) and, last, ("answer", all of it)."""
        gate = SentenceGate(body.job_text, body.candidate_text, student.task, self.config.on_unfounded)
        until = time.monotonic() + self.config.timeout
        began = current.get().began
        encoder_level = asyncio.create_task(self._level_of_encoder(body))
        level_probs: dict[str, float] | None = None
        done: Event = {}
        left = False
        try:
            async with aclosing(line.listen((prompt, until), until)) as events:
                async for event in events:
                    if "failed" in event:
                        raise _failure(event["failed"], self.config.timeout)
                    if "level_probs" in event:
                        level_probs = dict(zip(student.task.levels, event["level_probs"], strict=True))
                        best = max(level_probs, key=level_probs.__getitem__)
                        yield "level", {"level": best, "level_probs": level_probs}
                    sentences = gate.feed(event.get("text", ""))
                    if event.get("done"):
                        done = event
                        sentences += gate.finish()
                    for sentence in sentences:
                        if not left:
                            self.metrics.first_sentence(time.perf_counter() - began)
                            left = True
                        yield "sentence", {"text": sentence.text, "unfounded": sentence.unfounded}
            yield "answer", self._explained(body, student, gate, level_probs, done, found, await encoder_level, prompt)
        finally:
            encoder_level.cancel()

    def _explained(
        self,
        body: ExplainIn,
        student: Student,
        gate: SentenceGate,
        level_probs: dict[str, float] | None,
        done: Event,
        found: list[str],
        encoder_level: str | None,
        prompt: Prompt,
    ) -> dict[str, Any]:
        check = gate.check
        assert check is not None
        # Known of an explanation that isn't readable too, where the decoder runs here.
        level = max(level_probs, key=level_probs.__getitem__) if level_probs else check.level
        quotes = len(check.quotes) if check.valid_format else 0
        in_texts = sum(quote.found_in is not None for quote in check.quotes) if check.valid_format else 0
        checks = {
            "format": check.valid_format,
            "complete": bool(done["complete"]),
            "quotes": quotes,
            "quotes_found": in_texts,
            "open_quotes": gate.open_quotes,
            "dropped_sentences": gate.dropped,
            "encoder_level": encoder_level,
            "levels_agree": None if encoder_level is None or level is None else encoder_level == level,
        }
        failed = [
            name
            for name, fails in (
                ("format", not checks["format"]),
                ("complete", not checks["complete"]),
                ("evidence", in_texts < quotes or gate.open_quotes > 0),
                ("level", checks["levels_agree"] is False),
            )
            if fails
        ]
        self.metrics.explained(level, done["tokens"], quotes, in_texts, failed, bool(found))
        return {
            "pair_id": body.pair_id,
            "level": level,
            "level_probs": level_probs,
            "explanation": "".join(sentence.text for sentence in gate.sentences).strip() or None,
            "unfounded_sentences": [sentence.text.strip() for sentence in gate.sentences if sentence.unfounded],
            "checks": checks,
            "flags": found,
            "texts_cut": prompt.texts_cut,
            **self._about(student),
        }

    # Both

    def _served(self, served: tuple[Student, Line] | None, route: str, kind: str) -> tuple[Student, Line]:
        if served is None:
            raise ServiceError(501, "not_served", f"{route} isn't served here: the service was started without an {kind}.")
        return served

    def _about(self, student: Student) -> dict[str, str]:
        return {"model": student.name, "variant": self.config.variant, "request_id": current.get().id}

    def _check_texts(self, pair: PairIn, where: str) -> None:
        """Raise ServiceError for texts that no model can judge; the message says which and why, and quotes nothing."""
        for name in ("job_text", "candidate_text"):
            text: str = getattr(pair, name)
            reason = None
            # Only a long one need be encoded to tell.
            if len(text) * 4 > self.config.max_text_bytes and len(text.encode()) > self.config.max_text_bytes:
                reason = f"has more than {self.config.max_text_bytes} bytes"
            elif "\0" in text:
                reason = "holds a NUL character: send text, not the bytes of a file"
            elif not visible(text).strip():
                reason = "is blank"
            if reason:
                raise ServiceError(422, "invalid", f"{where}{name} {reason}.")


_UNCACHED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def _look_at(pair: PairIn, read: Callable[[Pair], T]) -> tuple[T, list[str]]:
    """A pair as a model takes it, and the flags of its texts."""

    def look() -> tuple[T, list[str]]:
        found = sorted({*flags(pair.job_text), *flags(pair.candidate_text)})
        return read(Pair("", "", "", pair.job_text, pair.candidate_text)), found

    if len(pair.job_text) + len(pair.candidate_text) < _LONG:
        return look()
    return await asyncio.get_running_loop().run_in_executor(_THREADS, look)


def _fit(pair: PairIn, student: Student, example: Example, probs: list[float], found: list[str]) -> dict[str, Any]:
    levels = student.task.levels
    fit: dict[str, Any] = {
        "level": levels[probs.index(max(probs))],
        "level_probs": dict(zip(levels, probs, strict=True)),
        "score": sum(number * p for number, p in enumerate(probs)) / (len(levels) - 1),
        "flags": found,
        "texts_cut": example.texts_cut,
    }
    return fit if pair.pair_id is None else {"pair_id": pair.pair_id, **fit}


def _failure(reason: str, timeout: float) -> ServiceError:
    if reason == TIMEOUT:
        return ServiceError(504, "timeout", f"No answer within {timeout:g} seconds.", 1.0)
    if reason == UNAVAILABLE:
        return ServiceError(503, "decoder_unavailable", "The server that runs the decoder gives no answer.", 5.0)
    return ServiceError(500, "internal", "The decoder failed on this request.")


async def _stream(
    first: tuple[str, dict[str, Any]], events: AsyncGenerator[tuple[str, dict[str, Any]], None]
) -> AsyncIterator[str]:
    """Server-sent events. What fails now can't have a status any more, and becomes an event of its own."""
    try:
        async with aclosing(events):
            yield as_event(*first)
            async for event in events:
                yield as_event(*event)
    except ServiceError as error:
        about = current.get()
        about.error = error.type
        yield as_event("error", {"error": {"type": error.type, "message": error.message, "request_id": about.id}})
