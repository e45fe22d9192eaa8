"""Servers that refuse, fail and drop, through litellm's own clients: what is tried again, and what a person is told."""

import asyncio
import json
import logging
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from typing import Any

import pytest
from fault_server import FaultServer, completion, failure, http
from lantern_teacher_litellm.failures import retry_after
from lantern_teacher_litellm.teacher import LiteLLMTeacher

from lantern_pl.errors import UserError
from lantern_pl.teachers.chat import ChatFailed, ChatReply, ChatRequest

Make = Callable[..., LiteLLMTeacher]
QUESTION = ChatRequest(({"role": "user", "content": "CANARY-1 how are you?"},), seed=3, max_tokens=77)
BOTH = pytest.mark.parametrize("model", ["openai/m", "hosted_vllm/m"])
"""litellm asks these two by different clients, whose exceptions differ."""


def ask(teacher: LiteLLMTeacher, *requests: ChatRequest) -> list[ChatReply | BaseException]:
    """The replies, or what was raised, to questions that are asked together."""

    async def main() -> list[ChatReply | BaseException]:
        await teacher.get_ready_to_chat()
        try:
            return await asyncio.gather(*(teacher.chat(r) for r in requests), return_exceptions=True)
        finally:
            await teacher.close()

    return asyncio.run(main())


def reply(teacher: LiteLLMTeacher, request: ChatRequest = QUESTION) -> ChatReply:
    (found,) = ask(teacher, request)
    if isinstance(found, BaseException):
        raise found
    return found


def failed(teacher: LiteLLMTeacher, request: ChatRequest = QUESTION) -> ChatFailed:
    (found,) = ask(teacher, request)
    assert isinstance(found, ChatFailed), found
    return found


def outcomes(found: ChatReply | ChatFailed) -> list[str]:
    return [attempt.outcome for attempt in found.attempts]


@BOTH
def test_an_answer_with_all_that_is_known_of_it(model: str, teacher: Make, server: FaultServer) -> None:
    started = time.time()
    found = reply(teacher(model=model))
    assert (found.text, found.finish_reason, found.prompt_tokens, found.completion_tokens) == ("said", "stop", 30, 12)
    assert found.cost is None
    (attempt,) = found.attempts
    assert attempt.outcome == "ok"
    assert started <= attempt.started <= time.time()
    assert 0 < attempt.seconds < 30


@BOTH
def test_the_server_gets_the_question_and_nothing_else(model: str, teacher: Make, server: FaultServer) -> None:
    reply(teacher(model=model))
    (body,) = server.bodies
    assert body.pop("messages") == [{"role": "user", "content": "CANARY-1 how are you?"}]
    assert body == {"model": "m", "temperature": 0.0, "max_tokens": 77, "seed": 3}


# What is tried again

AGAIN = {
    "http 408": failure(408),
    "http 500": failure(500),
    "http 502": failure(502),
    "http 503": failure(503),
    "http 504": failure(504),
    "http 529": failure(529),
    "connection": b"",
    "timeout": 30.0,
    "unreadable": http(200, b"<html>no</html>"),
}


@BOTH
@pytest.mark.parametrize("outcome", AGAIN)
def test_what_may_pass_is_tried_again(
    outcome: str, model: str, teacher: Make, server: FaultServer, no_waiting: list[float]
) -> None:
    server.script = [AGAIN[outcome], AGAIN[outcome]]
    found = reply(teacher(model=model, timeout=0.5 if outcome == "timeout" else 20.0))
    assert outcomes(found) == [outcome, outcome, "ok"]
    assert found.text == "said"
    assert len(server.bodies) == 3, "litellm has tried again by itself"
    first, second = no_waiting
    assert 0.25 <= first <= 0.5 <= second <= 1.0


@BOTH
@pytest.mark.parametrize(
    "broken",
    [
        http(200, completion())[:-40],
        http(200, b'{"hello": 1}'),
        http(200, completion(choices=[])),
        http(200, completion()[:-30]),
        http(200, b""),
    ],
    ids=["cut off", "other fields", "no choices", "half of a JSON", "empty"],
)
def test_answers_that_are_broken_are_tried_again(
    broken: bytes, model: str, teacher: Make, server: FaultServer, no_waiting: list[float]
) -> None:
    server.script = [broken]
    found = reply(teacher(model=model))
    assert outcomes(found)[0] in ("connection", "unreadable")
    assert outcomes(found)[1:] == ["ok"]
    assert len(server.bodies) == 2


def test_a_server_that_never_gets_to_an_end_takes_no_longer_than_the_timeout(teacher: Make, server: FaultServer) -> None:
    """It sends its answer byte by byte, each in time."""
    answer = http(200, completion())

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            for byte in answer:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.1)
        except ConnectionError:
            pass
        finally:
            writer.close()

    slow = asyncio.run_coroutine_threadsafe(asyncio.start_server(drip, "127.0.0.1", 0), server.loop).result(10)
    started = time.monotonic()
    found = failed(teacher(base_url=f"http://127.0.0.1:{slow.sockets[0].getsockname()[1]}/v1", timeout=0.7, attempts=1))
    assert outcomes(found) == ["timeout"]
    assert time.monotonic() - started < 10


@BOTH
def test_attempts_end(model: str, teacher: Make, server: FaultServer, no_waiting: list[float]) -> None:
    server.usual = failure(500)
    found = failed(teacher(model=model, attempts=4))
    assert outcomes(found) == ["http 500"] * 4
    assert not found.stop
    assert "gave no answer in 4 attempts; the last one ended with: http 500." in found.reason
    assert len(server.bodies) == 4
    assert len(no_waiting) == 3


def test_waits_grow_and_are_never_alike(teacher: Make, server: FaultServer, no_waiting: list[float]) -> None:
    server.usual = failure(500)
    failed(teacher(attempts=10))
    for at, wait in enumerate(no_waiting):
        longest = min(0.5 * 2**at, 30.0)
        assert longest / 2 <= wait <= longest
    assert len({wait / min(0.5 * 2**at, 30.0) for at, wait in enumerate(no_waiting)}) == 9


# Too many at once


@BOTH
def test_too_many_at_once_is_no_failed_attempt(
    model: str, teacher: Make, server: FaultServer, no_waiting: list[float]
) -> None:
    server.script = [failure(429)] * 5
    found = reply(teacher(model=model, attempts=1))
    assert outcomes(found) == ["http 429"] * 5 + ["ok"]
    assert [0.25 * 2**at <= wait <= 0.5 * 2**at for at, wait in enumerate(no_waiting)] == [True] * 5


@BOTH
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_what_the_server_asks_to_wait_is_waited(form: str, model: str, teacher: Make, server: FaultServer) -> None:
    """Also by others that it hasn't refused."""

    def refuse(body: dict[str, Any], number: int) -> bytes:
        # A date has no fractions: this one is one to two seconds away.
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
        return failure(429, f"Retry-After: {'1' if form == 'seconds' else date}")

    server.script = [refuse]
    able = teacher(model=model, max_in_flight=1)
    started = time.monotonic()
    found = ask(able, QUESTION, ChatRequest(({"role": "user", "content": "other"},)))
    assert all(isinstance(one, ChatReply) for one in found)
    refused, *later = server.times
    assert len(later) == 2
    # What the clock of dates cuts off may be nearly a second.
    assert all(0.95 <= at - refused < 20 for at in later)
    assert time.monotonic() - started < 30


@BOTH
@pytest.mark.parametrize(
    ("headers", "waited"),
    [
        (("Retry-After-Ms: 1500", "Retry-After: 2"), 1.5),
        (("Retry-After-Ms: soon", "Retry-After: 3"), 3.0),
        (("Retry-After: Mon, 01 Jan 2024 00:00:00 +99999999999999",), None),
    ],
)
def test_milliseconds_and_dates_that_are_none(
    headers: tuple[str, ...], waited: float | None, model: str, teacher: Make, server: FaultServer, no_waiting: list[float]
) -> None:
    server.script = [failure(503, *headers)]
    assert outcomes(reply(teacher(model=model))) == ["http 503", "ok"]
    (wait,) = no_waiting
    assert wait == waited or (waited is None and 0.25 <= wait <= 0.5)


@pytest.mark.parametrize("limit", [{"rpm": 60}, {"tpm": 5_100}])
def test_who_waits_for_a_rate_isnt_sent_while_the_server_wants_none(
    limit: dict[str, int], teacher: Make, server: FaultServer
) -> None:
    """The first is refused while the others wait for their turn, which comes before the server wants any."""
    reply(teacher())  # the first question of a process takes litellm longer than a turn
    server.times.clear()
    server.script = [failure(429, "Retry-After: 2")]
    found = ask(teacher(**limit), *(ChatRequest(QUESTION.messages, max_tokens=80, seed=at) for at in range(3)))
    assert all(isinstance(one, ChatReply) for one in found)
    refused, *later = server.times
    assert min(later) - refused >= 1.95
    # And not all at once then.
    assert all(one - before >= 0.5 for before, one in pairwise(later))


def test_a_busy_server_that_names_a_time_is_given_it(teacher: Make, server: FaultServer, no_waiting: list[float]) -> None:
    server.script = [failure(503, "Retry-After: 7")]
    assert outcomes(reply(teacher())) == ["http 503", "ok"]
    assert no_waiting == [7.0]


def test_patience_ends(teacher: Make, server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted from the first refusal, however short the waits are."""
    monkeypatch.setattr("lantern_teacher_litellm.line.FIRST_WAIT", 0.1)
    monkeypatch.setattr("lantern_teacher_litellm.line.LONGEST_WAIT", 0.1)
    server.script = [failure(429)] * 200
    found = failed(teacher(patience=1.2))
    first = found.attempts[0]
    assert found.attempts[-1].started - (first.started + first.seconds) < 1.3
    assert len(found.attempts) >= 3
    assert not found.stop
    assert "(HTTP 429) for the 1.2 seconds of patience" in found.reason


def test_a_longer_time_than_the_patience_ends_all_at_once(teacher: Make, server: FaultServer) -> None:
    server.usual = failure(429, "Retry-After: 86400")
    found = failed(teacher())
    assert outcomes(found) == ["http 429"]
    assert found.stop
    assert "wants no question for longer than the 600 seconds of patience" in found.reason


@BOTH
def test_a_used_up_quota_ends_all_at_once(model: str, teacher: Make, server: FaultServer) -> None:
    server.usual = failure(429, code="insufficient_quota")
    found = failed(teacher(model=model))
    assert outcomes(found) == ["http 429"]
    assert found.stop
    assert "has used up its quota" in found.reason


def test_concurrency_comes_down_to_what_the_server_takes(teacher: Make, server: FaultServer, monkeypatch: Any) -> None:
    """A server that takes 6 at once, and refuses any further one."""
    monkeypatch.setattr("lantern_teacher_litellm.line.FIRST_WAIT", 0.02)
    refusals: list[int] = []

    def answer(body: dict[str, Any], number: int) -> tuple[float, bytes]:
        if server.open > 6:
            refusals.append(number)
            return 0.0, failure(429)
        return 0.02, http(200, completion())

    server.usual = answer
    requests = [ChatRequest(({"role": "user", "content": f"question {at}"},)) for at in range(300)]
    found = ask(teacher(max_in_flight=64), *requests)
    assert all(isinstance(one, ChatReply) for one in found)
    # All at once would be refused over and over.
    assert len(server.bodies) - 300 == len(refusals)
    assert 1 <= len(refusals) < 150
    assert len([number for number in refusals if number > len(server.bodies) // 2]) < 75
    assert server.most_open < 64


# What isn't

FINAL = {400: False, 401: True, 403: True, 404: True, 422: False}
WORDS = {
    400: r"refuses the question \(http 400\)",
    401: r"doesn't accept the key \(http 401\)",
    403: r"doesn't accept the key \(http 403\)",
    404: r"There is no (openai|hosted_vllm)/m at http://127\.0\.0\.1:\d+/v1 \(HTTP 404\)",
    422: r"refuses the question \(http 422\)",
}


@BOTH
@pytest.mark.parametrize("status", FINAL)
def test_what_wont_pass_isnt_tried_again(status: int, model: str, teacher: Make, server: FaultServer) -> None:
    server.usual = failure(status)
    found = failed(teacher(model=model))
    assert outcomes(found) == [f"http {status}"]
    assert found.stop is FINAL[status]
    with pytest.raises(ChatFailed, match=WORDS[status]):
        raise found
    assert len(server.bodies) == 1


@BOTH
def test_no_server_ends_all(model: str, teacher: Make, no_waiting: list[float]) -> None:
    found = failed(teacher(model=model, base_url="http://127.0.0.1:9/v1", attempts=3))
    assert outcomes(found) == ["no server"] * 3
    assert found.stop
    assert found.reason == f"No server answers for {model} at http://127.0.0.1:9/v1: start it, or correct base_url."


def test_a_question_at_which_the_server_drops_doesnt_end_the_others(
    teacher: Make, server: FaultServer, no_waiting: list[float]
) -> None:
    server.usual = b""
    found = failed(teacher(attempts=3))
    assert outcomes(found) == ["connection"] * 3
    assert not found.stop


def test_a_question_that_is_too_long(teacher: Make, server: FaultServer) -> None:
    said = {"error": {"message": "This model's maximum context length is 10 tokens", "code": "context_length_exceeded"}}
    server.usual = http(400, json.dumps(said).encode())
    found = failed(teacher())
    assert not found.stop
    assert "The question is longer than openai/m at " in found.reason


@BOTH
def test_how_an_answer_ended(model: str, teacher: Make, server: FaultServer) -> None:
    message = {"role": "assistant", "content": None, "refusal": "I can't"}
    refusal = [{"index": 0, "finish_reason": "stop", "message": message}]
    server.script = [
        http(200, completion("cut", "length")),
        http(200, completion(None, "content_filter")),
        http(200, completion(choices=refusal)),
        http(200, completion(usage=None)),
    ]
    replies = [reply(teacher(model=model, price=None)) for _ in range(4)]
    assert [(r.text, r.finish_reason) for r in replies] == [
        ("cut", "length"),
        ("", "content_filter"),
        ("", "content_filter"),
        ("said", "stop"),
    ]
    assert [len(r.attempts) for r in replies] == [1] * 4


def test_an_exception_that_asks_again_is_cancelled_with_its_task(teacher: Make, server: FaultServer) -> None:
    """And leaves its place to others."""
    server.script = [30.0]

    async def main() -> ChatReply:
        able = teacher(max_in_flight=1)
        await able.get_ready_to_chat()
        first = asyncio.create_task(able.chat(QUESTION))
        while not server.bodies:
            await asyncio.sleep(0.01)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        async with asyncio.timeout(20):
            found = await able.chat(QUESTION)
        await able.close()
        return found

    assert asyncio.run(main()).text == "said"


# Texts and keys stay where they are


class Everything(logging.Handler):
    def __init__(self) -> None:
        super().__init__(0)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(logging.Formatter().format(record))


@BOTH
def test_no_word_of_a_text_is_in_logs_and_exceptions(
    model: str,
    teacher: Make,
    server: FaultServer,
    no_waiting: list[float],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even where the program logs everything, and a server quotes what it was asked."""
    monkeypatch.setenv("SOME_KEY", "sk-CANARY-2")
    everything, root = Everything(), logging.getLogger()
    monkeypatch.setattr(root, "level", logging.DEBUG)
    root.addHandler(everything)
    texts = [completion("CANARY-3"), b"CANARY-3 garbage", completion("CANARY-3")[:60]]
    server.script = [
        *(failure(status).replace(b"QUOTED", b"CANARY") for status in (500, 429, 503)),
        *(http(200, text) for text in texts[1:]),
        http(200, texts[0])[:-30],
        b"",
        http(200, texts[0]),
        *(failure(status).replace(b"QUOTED", b"CANARY") for status in (400, 401, 404, 422)),
    ]
    told: list[str] = []
    try:
        able = teacher(model=model, api_key_variable="SOME_KEY", attempts=9)
        found: Sequence[Any] = [ask(able, QUESTION)[0] for _ in range(5)]
    finally:
        root.removeHandler(everything)
    assert [type(one) for one in found] == [ChatReply] + [ChatFailed] * 4
    for one in found[1:]:
        assert one.__cause__ is None
        assert one.__context__ is None
        told += traceback.format_exception(one)
        told += [repr(one), repr(one.args), repr(vars(one))]
    printed = capfd.readouterr()
    assert printed.out == ""
    told += [repr(found[0].attempts), repr(able.identity()), *everything.records, printed.err]
    assert everything.records
    assert [line for line in told if "CANARY" in line] == []
    assert all("Bearer sk-CANARY-2" in head for head in server.heads)


def test_nobody_is_called_back_with_the_texts(teacher: Make, server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As tracing tools ask litellm to."""
    import litellm

    seen: list[Any] = []
    monkeypatch.setattr(litellm, "success_callback", [lambda *told: seen.append(told)])
    monkeypatch.setattr(litellm, "failure_callback", [lambda *told: seen.append(told)])
    server.script = [http(200, completion()), failure(400)]
    ask(teacher(), QUESTION)
    ask(teacher(), QUESTION)
    time.sleep(0.2)
    assert seen == []


@pytest.mark.parametrize("name", ["LITELLM_LOG", "OPENAI_LOG"])
def test_debug_output_is_refused(name: str, teacher: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "DEBUG")
    with pytest.raises(UserError, match=f"{name}=debug writes every text that is sent into the log: unset it"):
        ask(teacher(), QUESTION)


def test_litellms_own_debug_output_is_refused(teacher: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import litellm

    monkeypatch.setattr(litellm, "set_verbose", True)
    with pytest.raises(UserError, match="set_verbose prints every text"):
        ask(teacher(), QUESTION)


def test_litellms_cache_is_never_asked(teacher: Make, server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its key leaves out whose server is asked."""
    import litellm

    monkeypatch.setattr(litellm, "cache", litellm.Cache())
    server.script = [http(200, completion("first")), http(200, completion("second"))]
    assert [reply(teacher()).text for _ in range(2)] == ["first", "second"]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3", 3.0),
        ("0.5", 0.5),
        ("-4", 0.0),
        ("soon", None),
        (None, None),
        ("", None),
        ("nan", None),
        ("inf", None),
        ("Mon, 01 Jan 2024 00:00:00 +99999999999999", None),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0.0),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after(value) == seconds


def test_retry_after_a_date() -> None:
    later, earlier = (format_datetime(datetime.now(UTC) + timedelta(seconds=s), usegmt=True) for s in (90, -90))
    assert retry_after(later) == pytest.approx(90, abs=3)
    assert retry_after(earlier) == 0.0
