"""Stages on a chat teacher: how often it's asked, what counts as a label, and how a run ends and goes on."""

import asyncio
import gc
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rubric_chat import LEVELS, RubricChat

from lantern_pl.data.pair import Pair
from lantern_pl.data.records import read_pairs
from lantern_pl.errors import UserError
from lantern_pl.labelling.account import Budget, Price
from lantern_pl.labelling.config import LabelConfig
from lantern_pl.labelling.labels import NOT_ASKED, Label, NoLabel
from lantern_pl.labelling.preflight import forecast
from lantern_pl.labelling.staged import StagedRun, seed_of
from lantern_pl.labelling.store import LabelStore
from lantern_pl.tasks import Task
from lantern_pl.tasks.guide import Guide
from lantern_pl.teachers.chat import Attempt, ChatFailed, ChatReply, ChatRequest

Label_ = Callable[..., StagedRun]


@pytest.fixture(scope="session")
def pairs(pairs_file: Path) -> list[Pair]:
    return read_pairs(pairs_file, Task())[:24]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "labels"


@pytest.fixture
def run(folder: Path, pairs: list[Pair], pairs_file: Path) -> Iterator[Label_]:
    """Label the pairs in a store of their own; each call is a new run on the same folder."""
    stores: list[LabelStore] = []

    def start(teacher: RubricChat, *, retry: bool = False, budget: float | None = None, go: bool = True, **keys: Any):
        for store in stores:
            store.close()
        stores.append(LabelStore(folder))
        config = LabelConfig(str(folder), str(pairs_file), teacher, **keys)
        price = Price(*teacher.price) if teacher.price else None
        started = StagedRun(config, pairs, stores[-1], Budget(budget, price), retry)
        if go:
            asyncio.run(started.run(lambda stage, tally: None))
        return started

    yield start
    for store in stores:
        store.close()


def counts(pairs: list[Pair]) -> tuple[int, int, int]:
    return len({p.job_id for p in pairs}), len({p.candidate_id for p in pairs}), len(pairs)


def test_texts_that_many_pairs_share_are_read_once(run: Label_, pairs: list[Pair]) -> None:
    teacher = RubricChat()
    done = run(teacher)
    jobs, candidates, count = counts(pairs)
    assert jobs < count
    assert teacher.asked == {
        "requirements": jobs,
        "facts": candidates,
        "requirements,level,confidence": count,
        "explanation": count,
    }
    labels = [done.label(pair) for pair in pairs]
    assert all(isinstance(label, Label) and label.level in LEVELS and label.explanation for label in labels)
    assert teacher.closed == 1


def test_one_stage_asks_once_a_pair(run: Label_, pairs: list[Pair]) -> None:
    teacher = RubricChat()
    done = run(teacher, guide=Guide(stages="single"))
    assert teacher.asked == {"requirements,level,confidence,explanation": len(pairs)}
    label = done.label(pairs[0])
    assert isinstance(label, Label)
    assert (label.confidence, label.explanation) == (0.75, f"Fits by {label.level} as the rubric says.")
    # It has seen the candidate: what it says of the job could give the level away.
    assert label.reduced_job_text is None


def test_the_same_command_again_asks_nothing(run: Label_, pairs: list[Pair]) -> None:
    before = run(RubricChat())
    labels = [before.label(pair) for pair in pairs]
    teacher = RubricChat()
    again = run(teacher)
    assert not teacher.asked
    assert [again.label(pair) for pair in pairs] == labels
    assert all(tally.cached == tally.total and not tally.asked for tally in again.tallies.values())


def test_another_seed_temperature_or_section_is_another_question(run: Label_) -> None:
    run(RubricChat())
    sections = {**Guide().sections, "task": "Be strict."}
    for keys in ({"seed": 1}, {"temperature": 0.5}, {"guide": Guide(sections=sections)}):
        teacher = RubricChat()
        run(teacher, **keys)
        assert teacher.asked["requirements"], keys


def test_a_stopped_run_goes_on(run: Label_, pairs: list[Pair]) -> None:
    started = None

    def stop_after(request: ChatRequest, reply: ChatReply) -> ChatReply:
        started.stopping = sum(first.asked.values()) >= 20
        return reply

    first = RubricChat(spoil=stop_after, max_in_flight=4, latency=0.001)
    started = run(first, go=False)
    asyncio.run(started.run(lambda stage, tally: None))
    asked = sum(first.asked.values())
    assert 20 <= asked < 20 + 4
    assert isinstance(started.label(pairs[-1]), NoLabel)
    second = RubricChat()
    done = run(second)
    jobs, candidates, count = counts(pairs)
    assert asked + sum(second.asked.values()) == jobs + candidates + 2 * count
    assert all(isinstance(done.label(pair), Label) for pair in pairs)


def test_several_samples_become_votes(run: Label_, pairs: list[Pair]) -> None:
    sample_of = {seed_of(0, sample): sample for sample in range(4)}

    def vary(request: ChatRequest, reply: ChatReply) -> ChatReply:
        answer = json.loads(reply.text)
        if "level" in answer:
            answer["level"] = ["medium", "low", "medium", "low"][sample_of[request.seed]]
        return replace(reply, text=json.dumps(answer))

    teacher = RubricChat(spoil=vary)
    done = run(teacher, samples=4, temperature=0.7)
    label = done.label(pairs[0])
    assert isinstance(label, Label)
    # Of equals the lower level, as everywhere; the explanation is of a sample that says so.
    assert (label.level, label.votes) == ("low", (2.0, 2.0, 0.0))
    assert label.explanation == "Fits by low as the rubric says."
    assert teacher.asked["requirements,level,confidence"] == 4 * len(pairs)
    assert teacher.asked["explanation"] == len(pairs)


@pytest.mark.parametrize(("readable", "labelled"), [(2, False), (3, True)])
def test_the_few_samples_that_can_be_read_are_no_votes(
    run: Label_, pairs: list[Pair], readable: int, labelled: bool
) -> None:
    """One of five would be a label of full certainty."""
    good = [seed_of(0, sample) for sample in range(readable)]

    def spoil(request: ChatRequest, reply: ChatReply) -> ChatReply:
        return reply if request.seed in good or "level" not in reply.text else replace(reply, text="no")

    done = run(RubricChat(spoil=spoil), samples=5, temperature=0.7, repair_turns=0)
    for pair in pairs:
        label = done.label(pair)
        if labelled:
            assert isinstance(label, Label)
            assert sum(label.votes or ()) == readable
        else:
            assert label == NoLabel("judge: no more than half of the samples could be read")


def test_another_seed_has_samples_of_its_own(run: Label_, pairs: list[Pair]) -> None:
    asked = {}
    for seed in (0, 1):
        teacher = RubricChat()
        run(teacher, samples=3, temperature=0.7, seed=seed)
        asked[seed] = {request.seed for request in teacher.requests}
        assert teacher.asked["requirements,level,confidence"] == 3 * len(pairs)
    assert not asked[0] & asked[1]


def test_a_bad_answer_is_asked_for_again_and_counted(run: Label_, pairs: list[Pair]) -> None:
    def spoil(request: ChatRequest, reply: ChatReply) -> ChatReply:
        return replace(reply, text="I think so.") if len(request.messages) == 2 else reply

    teacher = RubricChat(spoil=spoil)
    done = run(teacher, repair_turns=1)
    assert all(isinstance(done.label(pair), Label) for pair in pairs)
    assert [message["role"] for message in teacher.requests[-1].messages] == ["system", "user", "assistant", "user"]
    tally = done.tallies["judge"]
    assert tally.repairs == len(pairs)
    # Both turns are paid for.
    assert tally.prompt_tokens == 2 * 100 * len(pairs)
    row = next(iter(done.store.rows("judge")))
    assert (row.repairs, row.prompt_tokens, row.completion_tokens) == (1, 200, 40)
    assert len(done.store.attempts(row.key)) == 2


@pytest.mark.parametrize("turns", [0, 2])
def test_no_more_than_the_turns_that_were_allowed(run: Label_, pairs: list[Pair], turns: int) -> None:
    teacher = RubricChat(spoil=lambda request, reply: replace(reply, text="no"))
    done = run(teacher, repair_turns=turns)
    jobs, candidates, _ = counts(pairs)
    assert sum(teacher.asked.values()) == (jobs + candidates) * (1 + turns)
    assert done.tallies["judge"].blocked == done.tallies["explain"].blocked == len(pairs)
    assert done.label(pairs[0]) == NoLabel("requirements: no JSON object")


def test_a_truncated_answer_is_no_label_and_is_not_asked_again(run: Label_, pairs: list[Pair]) -> None:
    def cut(request: ChatRequest, reply: ChatReply) -> ChatReply:
        return replace(reply, finish_reason="length") if "explanation" in reply.text else reply

    teacher = RubricChat(spoil=cut)
    done = run(teacher, repair_turns=3)
    assert teacher.asked["explanation"] == len(pairs)
    assert done.tallies["explain"].quarantined == {"truncated": len(pairs)}
    assert done.label(pairs[0]) == NoLabel("explain: truncated")

    kept = RubricChat()
    run(kept)
    assert not kept.asked
    retried = RubricChat()
    done = run(retried, retry=True)
    assert retried.asked == {"explanation": len(pairs)}
    assert isinstance(done.label(pairs[0]), Label)


def test_invented_evidence_is_no_label(run: Label_, pairs: list[Pair]) -> None:
    def invent(request: ChatRequest, reply: ChatReply) -> ChatReply:
        answer = json.loads(reply.text)
        if "level" in answer:
            answer["requirements"][0] |= {"verdict": "met", "evidence": "ten years on the moon"}
        return replace(reply, text=json.dumps(answer))

    done = run(RubricChat(spoil=invent), repair_turns=0)
    assert done.tallies["judge"].quarantined == {"evidence isn't in the text": len(pairs)}
    assert not any(isinstance(done.label(pair), Label) for pair in pairs)


def test_what_got_no_answer_is_asked_again_by_itself(run: Label_, pairs: list[Pair]) -> None:
    attempts = tuple(Attempt(0.0, 0.1, "http 500") for _ in range(3))

    def fail(request: ChatRequest, reply: ChatReply) -> ChatReply:
        if "explanation" in reply.text:
            raise ChatFailed("no answer: http 500", attempts)
        return reply

    done = run(RubricChat(spoil=fail))
    assert done.tallies["explain"].quarantined == {"no answer: http 500": len(pairs)}
    assert done.tallies["explain"].attempts == {"http 500": 3 * len(pairs)}
    assert done.label(pairs[0]) == NoLabel("explain: no answer: http 500")
    row = next(iter(done.store.rows("explain")))
    again = RubricChat()
    done = run(again)
    assert again.asked == {"explanation": len(pairs)}
    assert isinstance(done.label(pairs[0]), Label)
    # Every attempt stays on record.
    assert [a.outcome for a in done.store.attempts(row.key)] == ["http 500"] * 3 + ["ok"]


def test_a_teacher_that_cannot_be_used_ends_the_run_and_loses_nothing(run: Label_, folder: Path) -> None:
    teacher: RubricChat

    def fail(request: ChatRequest, reply: ChatReply) -> ChatReply:
        if sum(teacher.asked.values()) > 10:
            raise ChatFailed("The server doesn't accept the key.", stop=True)
        return reply

    teacher = RubricChat(spoil=fail, max_in_flight=2)
    with pytest.raises(UserError, match=r"doesn't accept the key\. What was answered is kept"):
        run(teacher)
    assert sum(teacher.asked.values()) <= 12
    assert teacher.closed == 1
    again = RubricChat()
    run(again)
    assert again.asked["requirements"] < teacher.asked["requirements"] + teacher.asked["facts"]


def test_what_a_plugin_raises_is_not_repeated(run: Label_, caplog: pytest.LogCaptureFixture) -> None:
    def fail(request: ChatRequest, reply: ChatReply) -> ChatReply:
        raise RuntimeError(f"can't handle {request.messages[1]['content']}")

    with caplog.at_level(logging.DEBUG), pytest.raises(UserError) as raised:
        run(RubricChat(spoil=fail))
    shown = str(raised.value) + caplog.text
    assert "RubricChat has failed with RuntimeError" in shown
    assert raised.value.__cause__ is None
    assert "can't handle" not in shown


def test_no_more_questions_are_open_than_the_teacher_allows(run: Label_) -> None:
    teacher = RubricChat(max_in_flight=5, latency=0.002)
    run(teacher)
    assert teacher.most == 5


# Money


def test_a_budget_is_never_passed_and_is_used_up(run: Label_, pairs: list[Pair]) -> None:
    price = (20.0, 20.0)
    cost = Price(*price).of(100, 20)
    whole = RubricChat(price=price)
    total = run(whole, budget=1e3).budget.spent
    jobs, candidates, count = counts(pairs)
    assert total == pytest.approx((jobs + candidates + 2 * count) * cost)

    teacher = RubricChat(price=price, latency=0.001)
    short = run(teacher, budget=0.12, seed=1)
    assert short.ended_by_budget
    assert 0.02 < short.budget.spent <= 0.12
    assert short.budget.spent == pytest.approx(sum(teacher.asked.values()) * cost)
    assert short.label(pairs[-1]) == NOT_ASKED
    # With what a second run may spend it goes on, and never pays twice.
    rest = RubricChat(price=price)
    done = run(rest, budget=1e3, seed=1)
    assert sum(rest.asked.values()) + sum(teacher.asked.values()) == jobs + candidates + 2 * count
    assert isinstance(done.label(pairs[-1]), Label)


def test_a_budget_holds_for_the_longest_answers_too(run: Label_) -> None:
    """Nothing may be asked that could cost more than what is left, whatever it then does cost."""

    def longest(request: ChatRequest, reply: ChatReply) -> ChatReply:
        longest_prompt = sum(len(message["content"].encode()) for message in request.messages)
        return replace(reply, prompt_tokens=longest_prompt, completion_tokens=request.max_tokens)

    for limit in (0.05, 0.2, 0.7):
        teacher = RubricChat(price=(10.0, 30.0), spoil=longest, latency=0.001)
        spent = run(teacher, budget=limit, seed=int(limit * 100)).budget.spent
        assert limit - 0.1 < spent <= limit


@pytest.mark.parametrize("told", [(0, 0), (100, 0), (0, 20)])
def test_answers_without_their_tokens_count_with_the_most_they_can_cost(run: Label_, told: tuple[int, int]) -> None:
    def silent(request: ChatRequest, reply: ChatReply) -> ChatReply:
        return replace(reply, prompt_tokens=told[0], completion_tokens=told[1])

    teacher = RubricChat(price=(20.0, 20.0), spoil=silent, latency=0.001)
    done = run(teacher, budget=0.3)
    assert done.ended_by_budget
    assert 0.2 < done.budget.spent <= 0.3
    assert {row.cost for row in done.store.rows()} == {None}
    assert done.tallies["requirements"].cost is None
    assert done.store.totals().unpriced == sum(teacher.asked.values())


class Probing(RubricChat):
    """Asks for itself first."""

    own = ChatRequest(({"role": "user", "content": "x" * 936},), max_tokens=500)
    said = ChatReply("", "stop", 1000, 500, attempts=(Attempt(0.0, 0.1, "ok"),))
    probed = 0

    def questions_to_get_ready(self) -> list[ChatRequest]:
        return [self.own]

    async def get_ready_to_chat(self) -> list[ChatReply]:
        self.probed += 1
        return [self.said]


def test_what_a_teacher_asks_for_itself_is_within_the_budget(run: Label_) -> None:
    teacher = Probing(price=(20.0, 20.0))
    done = run(teacher, budget=0.0299)
    assert done.ended_by_budget
    assert (teacher.probed, teacher.asked.total(), done.budget.spent) == (0, 0, 0)
    # Without its tokens, and after an attempt that may be billed, an answer counts as the longest possible ones.
    teacher.said = ChatReply("", "stop", 0, 0, attempts=(Attempt(0.0, 0.1, "timeout"), Attempt(0.0, 0.1, "ok")))
    teacher.most_billed = 2
    assert run(teacher, budget=0.061).budget.spent == pytest.approx(0.06)
    assert teacher.probed == 1


def test_a_finished_run_needs_no_teacher(run: Label_) -> None:
    run(Probing())
    teacher = Probing()
    run(teacher)
    assert (teacher.probed, teacher.closed) == (0, 0)


def test_a_store_that_fails_under_many_is_said_once(run: Label_, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first commit says ends those who wait for the second one, of which nothing else is to be heard."""

    class FirstAtOnce(RubricChat):
        async def chat(self, request: ChatRequest) -> ChatReply:
            self.latency = 0.1 if self.requests else 0.0
            return await super().chat(request)

        async def close(self) -> None:
            await asyncio.sleep(0.3)

    def write(self: LabelStore, entries: Any) -> None:
        time.sleep(0.2)  # in which the others are answered
        raise UserError("the disk is full")

    monkeypatch.setattr(LabelStore, "_write", write)
    with pytest.raises(UserError, match="the disk is full"):
        run(FirstAtOnce())
    futures = [found for found in gc.get_objects() if issubclass(type(found), asyncio.Future)]
    # asyncio's mark of those that it will tell of, in its own words, once nobody has them any more.
    assert not any(future._log_traceback for future in futures)


def test_what_a_teacher_asks_for_itself_is_accounted_for(run: Label_) -> None:
    done = run(Probing(price=(20.0, 20.0)), budget=100.0)
    tally = done.tallies["getting ready"]
    assert (tally.asked, tally.prompt_tokens, tally.completion_tokens, tally.attempts) == (1, 1000, 500, {"ok": 1})
    assert tally.cost == pytest.approx(0.03)
    assert done.budget.spent == pytest.approx(sum(one.cost or 0.0 for one in done.tallies.values()))


@pytest.mark.parametrize("answered", [True, False])
def test_attempts_that_may_be_billed_are_charged(run: Label_, answered: bool) -> None:
    """Timeouts and answers that nobody could read were made by a model all the same; a refused connection wasn't."""
    tried = ("timeout", "unreadable", "no server", "http 429", "http 500", "http 504")
    lost = tuple(Attempt(0.0, 0.1, outcome) for outcome in tried)

    def fail(request: ChatRequest, reply: ChatReply) -> ChatReply:
        if answered:
            return replace(reply, attempts=(*lost, *reply.attempts))
        raise ChatFailed("no answer: timeout", lost)

    teacher = RubricChat(price=(20.0, 20.0), spoil=fail, latency=0.001, most_billed=4)
    done = run(teacher, budget=0.5)
    assert done.ended_by_budget
    assert 0.2 < done.budget.spent <= 0.5
    request = teacher.requests[0]
    most = Price(20.0, 20.0).of(sum(len(m["content"].encode()) + 64 for m in request.messages), request.max_tokens)
    # Three of the six, for questions that are more or less as long.
    assert done.budget.spent > 2.5 * most * len(teacher.requests)
    if not answered:
        assert {row.cost for row in done.store.rows()} == {None}


@pytest.mark.parametrize("end", ["budget", "key", "fault", "timeout"])
def test_an_answer_whose_correction_is_not_to_be_had_is_kept_and_goes_on_there(
    run: Label_, pairs: list[Pair], end: str
) -> None:
    """What was paid for stays on record, and isn't paid for again."""

    def spoil(request: ChatRequest, reply: ChatReply) -> ChatReply:
        if len(request.messages) == 2:
            return replace(reply, text="I think so.")
        if end == "key":
            raise ChatFailed("The server doesn't accept the key.", (Attempt(0.0, 0.1, "http 401"),), stop=True)
        if end == "timeout":
            raise ChatFailed("no answer: timeout", (Attempt(0.0, 0.1, "timeout"),))
        raise RuntimeError("a fault of the plugin")

    price = (20.0, 20.0)
    first = RubricChat(spoil=spoil, max_in_flight=1, price=price)
    if end == "budget":
        # Enough for one question, and for none with an answer and its correction beside it.
        first.spoil = lambda request, reply: replace(spoil(request, reply), prompt_tokens=3000)
        begun = run(first, budget=0.12)
        assert begun.ended_by_budget
    elif end == "timeout":
        begun = run(first)
    else:
        with pytest.raises(UserError):
            run(first)
        begun = run(RubricChat(price=price), go=False)
    row = next(iter(begun.store.rows("requirements")))
    assert (row.state, row.reason, row.raw, row.repairs) == ("quarantined", "no JSON object", "I think so.", 0)
    assert row.completion_tokens == 20
    assert begun.store.totals().answers == sum(begun.store.counts().values())
    if end == "key":
        assert [attempt.outcome for attempt in begun.store.attempts(row.key)] == ["ok", "http 401"]

    second = RubricChat(price=price)
    done = run(second)
    assert [message["role"] for message in second.requests[0].messages] == ["system", "user", "assistant", "user"]
    assert second.requests[0].messages[2]["content"] == "I think so."
    assert all(isinstance(done.label(pair), Label) for pair in pairs)
    again = next(kept for kept in done.store.rows("requirements") if kept.key == row.key)
    assert (again.state, again.repairs, again.completion_tokens) == ("ok", 1, 20)
    assert done.tallies["requirements"].repairs >= 1


def test_an_answer_that_is_corrected_often_enough_stays_in_quarantine(run: Label_) -> None:
    def fail(request: ChatRequest, reply: ChatReply) -> ChatReply:
        if len(request.messages) > 2:
            raise ChatFailed("no answer: timeout")
        return replace(reply, text="no")

    run(RubricChat(spoil=fail), repair_turns=1)
    without = RubricChat()
    run(without, repair_turns=0)
    assert not without.asked


def test_a_budget_needs_a_price(run: Label_) -> None:
    with pytest.raises(UserError, match="price isn't known"):
        run(RubricChat(), budget=1.0)


def test_the_forecast_counts_what_is_left_to_ask(run: Label_, pairs: list[Pair]) -> None:
    jobs, candidates, count = counts(pairs)
    teacher = RubricChat()
    before = forecast(run(teacher, go=False))
    assert not teacher.asked
    assert [(row.stage, row.per, row.questions, row.answered) for row in before] == [
        ("requirements", "job", jobs, 0),
        ("facts", "candidate", candidates, 0),
        ("judge", "pair", count, 0),
        ("explain", "pair", count, 0),
    ]
    assert all(row.prompt_tokens > 100 * row.questions for row in before)
    run(teacher)
    after = forecast(run(teacher, go=False))
    assert [row.answered for row in after] == [jobs, candidates, count, count]
    assert sum(row.prompt_tokens for row in after) == 0
    # What the questions really take is of the order that was said.
    size = sum(len(m["content"]) for request in teacher.requests for m in request.messages)
    size += sum(len(json.dumps(request.schema)) for request in teacher.requests)
    assert 0.5 < sum(row.prompt_tokens for row in before) / (size / 4) < 2


def test_the_reduced_job_text_is_made_of_the_job_alone(run: Label_, pairs: list[Pair]) -> None:
    done = run(RubricChat())
    labels = {pair.pair_id: done.label(pair) for pair in pairs}
    by_job: dict[str, set[str]] = {}
    for pair in pairs:
        label = labels[pair.pair_id]
        assert isinstance(label, Label)
        assert label.reduced_job_text
        by_job.setdefault(pair.job_id, set()).add(label.reduced_job_text)
    assert all(len(texts) == 1 for texts in by_job.values())
    label = labels[pairs[0].pair_id]
    assert isinstance(label, Label)
    # The judge's verdicts keep what the job's own stage said of each requirement.
    assert {item["kind"] for item in label.requirements} <= {"must", "nice"}


def test_two_persons_with_the_same_text_are_asked_about_apart(folder: Path, pairs: list[Pair], pairs_file: Path) -> None:
    twin = replace(pairs[0], pair_id="twin", candidate_id="twin")
    with LabelStore(folder) as store:
        teacher = RubricChat()
        run = StagedRun(LabelConfig(str(folder), str(pairs_file), teacher), [pairs[0], twin], store, Budget(None, None))
        asyncio.run(run.run(lambda stage, tally: None))
        assert teacher.asked["facts"] == 2
        store.purge("twin", "candidate")
        assert {row.candidate_id for row in store.rows()} == {None, pairs[0].candidate_id}
