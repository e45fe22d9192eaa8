"""What leaves of an explanation, and who may ask: a decoder on another server, keys and a rate."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from serving_support import CANDIDATE, JOB, PAIR, Service, StubDecoder, check_error, events, running

from lantern_pl.serving.config import OnUnfounded
from lantern_pl.serving.sentences import SentenceGate
from lantern_pl.tasks import Task

TRUE, FALSE = 'The candidate has "5 years in intensive care".', 'They were "captain of a spaceship".'
KEY = {"authorization": "Bearer first-key"}


def answer(explanation: str) -> str:
    return Task().render_answer("high", explanation)


@pytest.mark.parametrize(
    ("on_unfounded", "left"),
    [("drop", [(TRUE, False)]), ("mark", [(TRUE, False), (FALSE, True)]), ("refuse", [])],
)
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_sentence_with_an_invented_quote(on_unfounded: OnUnfounded, left: list[tuple[str, bool]], step: int) -> None:
    gate = SentenceGate(JOB, CANDIDATE, Task(), on_unfounded)
    whole = answer(f"{TRUE} {FALSE}")
    sentences = [s for at in range(0, len(whole), step) for s in gate.feed(whole[at : at + step])]
    sentences += gate.finish()
    assert [(s.text.strip(), s.unfounded) for s in sentences] == left
    assert gate.dropped == {"drop": 1, "mark": 0, "refuse": 2}[on_unfounded]


def test_no_part_of_an_invented_quote_leaves_early() -> None:
    gate = SentenceGate(JOB, CANDIDATE, Task(), "drop")
    seen = "".join(s.text for char in answer(f"{FALSE} {TRUE} More") for s in gate.feed(char))
    assert "spaceship" not in seen
    assert "5 years" in seen


def test_a_quote_without_an_end_does_not_leave() -> None:
    gate = SentenceGate(JOB, CANDIDATE, Task(), "drop")
    gate.feed(answer(f'{TRUE} They "flew to the moon.'))
    assert [s.text.strip() for s in gate.finish()] in ([], [TRUE])
    assert gate.open_quotes == 1


@pytest.mark.parametrize(
    "marks",
    ['""', "“”", "„“", "«»", "»«", "‹›", "›‹", "「」", "『』", "＂＂", "``", "''", "‘’", "‚‘"],
)
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "open"])
def test_no_kind_of_quotation_marks_hides_an_invention(marks: str, closed: bool) -> None:
    opening, closing = marks
    gate = SentenceGate(JOB, CANDIDATE, Task(), "drop")
    gate.feed(answer(f"They {opening}flew to the moon{closing if closed else ''}."))
    gate.finish()
    assert (gate.sentences, gate.open_quotes) == ([], 0 if closed else 1)
    founded = SentenceGate(JOB, CANDIDATE, Task(), "drop")
    founded.feed(answer(f"They have {opening}5 years in intensive care{closing}."))
    founded.finish()
    assert (len(founded.sentences), founded.dropped) == (1, 0)


@pytest.mark.parametrize(
    "text", ["Nursed in the '90s.", "The nurses' shift.", "It's hers, and it isn't.", "Didn't tell 'em."]
)
def test_an_apostrophe_opens_no_quote(text: str) -> None:
    gate = SentenceGate(JOB, CANDIDATE, Task(), "drop")
    gate.feed(answer(text))
    gate.finish()
    assert [sentence.text for sentence in gate.sentences] == [text]


def test_an_answer_without_the_form_does_not_leave() -> None:
    gate = SentenceGate(JOB, CANDIDATE, Task(), "mark")
    assert gate.feed("I can't do that. Really. ") == []
    assert gate.finish() == []
    assert gate.check is not None
    assert not gate.check.valid_format


@pytest.fixture(scope="module")
def stub() -> Iterator[StubDecoder]:
    with StubDecoder() as stub:
        yield stub


@pytest.fixture(scope="module")
def guarded(students: dict[str, str], stub: StubDecoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The decoder on another server, keys, and a rate that the second key soon meets."""
    options = {
        "decoder": students["decoder"],
        "decoder_url": stub.url,
        "decoder_model": "explainer",
        "decoder_key_env": "DECODER_KEY",
        "api_key_env": "KEYS",
        "rate": 5,
        "burst": 64,
        "timeout": 3,
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    log = tmp_path_factory.mktemp("log") / "guarded.log"
    with running(log, *arguments, DECODER_KEY="theirs", KEYS="first-key, second-key") as service:
        yield service


def ask(service: Service, says: str, does: str = "", **more: object) -> httpx.Response:
    text = f"{CANDIDATE} [say {says}] [do {does}]".replace("\n", "\\n")
    return service.post("/explain", {"job_text": JOB, "candidate_text": text, **more}, headers=KEY)


def test_another_server_writes_and_the_checks_are_ours(guarded: Service, stub: StubDecoder) -> None:
    told = ask(guarded, answer(f"{TRUE} All is well.")).json()
    assert (told["level"], told["explanation"]) == ("high", f"{TRUE} All is well.")
    assert (told["checks"]["format"], told["checks"]["complete"], told["checks"]["quotes_found"]) == (True, True, 1)
    asked = stub.asked[-1]
    assert (asked["path"], asked["authorization"], asked["model"]) == ("/v1/completions", "Bearer theirs", "explainer")
    assert asked["temperature"] == 0


def test_sentences_of_another_server_are_streamed(guarded: Service) -> None:
    streamed = events(ask(guarded, answer(f"{TRUE} All is well."), stream=True))
    assert [name for name, _ in streamed] == ["sentence", "sentence", "answer"]
    assert streamed[0][1]["text"].strip() == TRUE


def test_an_answer_that_ran_into_the_limit_is_said_to(guarded: Service) -> None:
    assert ask(guarded, answer(TRUE), "run on").json()["checks"]["complete"] is False


@pytest.mark.parametrize(("does", "status"), [("error", 503), ("garbage", 503), ("break off", 503), ("hang", 504)])
def test_what_the_other_server_does_wrong_has_its_type(guarded: Service, does: str, status: int) -> None:
    check_error(ask(guarded, answer("Fine."), does), status)
    assert ask(guarded, answer("Fine.")).status_code == 200
    assert CANDIDATE[:30] not in guarded.log.read_text()


def test_keys_are_asked_for(guarded: Service) -> None:
    check_error(guarded.post("/explain", PAIR), 401)
    check_error(guarded.post("/explain", PAIR, headers={"x-api-key": "third-key"}), 401)
    check_error(guarded.get("/metrics"), 401)
    assert guarded.get("/health").status_code == 200
    assert guarded.get("/metrics", headers=KEY).status_code == 200


def test_the_route_of_no_student(guarded: Service) -> None:
    check_error(guarded.post("/fit", PAIR, headers=KEY), 501)


def test_a_flood_meets_the_rate_and_others_are_answered(guarded: Service) -> None:
    flood = {"x-api-key": "second-key", "content-type": "application/json"}
    with ThreadPoolExecutor(8) as clients:
        sent = [clients.submit(guarded.post, "/fit", content=json.dumps(PAIR).encode(), headers=flood) for _ in range(200)]
    answers = [one.result() for one in sent]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    check_error(refused[0], 429)
    assert int(refused[0].headers["retry-after"]) >= 1
    assert ask(guarded, answer("Fine.")).status_code == 200


def test_a_task_with_literal_braces_is_served() -> None:
    task = Task(answer="# {{level}} is {level}\n{explanation}")
    gate = SentenceGate(JOB, CANDIDATE, task, "drop")
    left = [*gate.feed(task.render_answer("high", "Knows their trade. And more.")), *gate.finish()]
    assert " ".join(sentence.text.strip() for sentence in left) == "Knows their trade. And more."
