"""Batches that the student writes itself: which ones, what is trained on them, and what stays as it was."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from support import Ran
from torch import nn

from lantern_pl.causal_lm import complete
from lantern_pl.data.pair import Pair
from lantern_pl.divergences.contract import WeightedDivergence
from lantern_pl.divergences.first_party import KL
from lantern_pl.errors import UserError
from lantern_pl.schedules import Schedule
from lantern_pl.students import DecoderStudent, OnPolicy, ServedStudent
from lantern_pl.students.on_policy import Sampler
from lantern_pl.tasks import Task

Lantern = Callable[..., Ran]
MakeDecoder = Callable[..., DecoderStudent]


def _sampler(student: DecoderStudent, **settings: Any) -> Sampler:
    return Sampler(OnPolicy(**{"max_new_tokens": 6, **settings}), student.featurizer(Task(), 320))


def _batch(student: DecoderStudent, pairs: list[Pair]):
    features = student.featurizer(Task(), 320)
    return features.collate([features.encode(pair) for pair in pairs])


def test_a_rewritten_batch_keeps_its_prompts_and_supervises_what_was_written(
    make_decoder: MakeDecoder, pairs: list[Pair]
) -> None:
    student = make_decoder(mixture=[WeightedDivergence(KL())])
    batch = _batch(student, pairs[:3])
    written = _sampler(student).rewrite(batch, student.lm, (0, 0, 0))
    assert written.generated
    assert written.pairs == batch.pairs
    stops = {student.tokenizer.eos_token_id}
    at = 0
    for row in range(3):
        start = int(batch.tokens.positions[row].int().argmax()) + 1
        assert torch.equal(written.tokens.input_ids[row, :start], batch.tokens.input_ids[row, :start])
        count = int(written.tokens.positions[row].sum())
        assert 1 <= count <= 6
        answer = written.targets[at : at + count].tolist()
        assert not stops & set(answer[:-1])
        assert torch.equal(written.tokens.input_ids[row, start : start + count], written.targets[at : at + count])
        assert int(written.tokens.positions[row].int().argmax()) == start - 1
        at += count
    assert at == len(written.targets)


@pytest.mark.parametrize("served", [False, True])
def test_no_row_gets_longer_than_the_data_may_be(
    make_decoder: MakeDecoder, pairs: list[Pair], request: pytest.FixtureRequest, served: bool
) -> None:
    student = make_decoder(mixture=[WeightedDivergence(KL())])
    batch = _batch(student, pairs[:3])
    longest = max(int(row.int().argmax()) + 1 for row in batch.tokens.positions) + 4
    settings = OnPolicy(max_new_tokens=30)
    if served:
        port = request.getfixturevalue("server").server_port
        settings = OnPolicy(max_new_tokens=30, server=ServedStudent(f"http://127.0.0.1:{port}/v1", "my-student"))
    written = Sampler(settings, student.featurizer(Task(), longest)).rewrite(batch, student.lm, (0, 0, 0))
    assert written.tokens.input_ids.shape[1] <= longest
    assert int(written.tokens.positions.sum(-1).min()) >= 1


def test_greedy_answers_are_the_students_most_probable_tokens(make_decoder: MakeDecoder, pairs: list[Pair]) -> None:
    student = make_decoder(mixture=[WeightedDivergence(KL())])
    written = _sampler(student, temperature=0.0).rewrite(_batch(student, pairs[:2]), student.lm, (0, 0, 0))
    with torch.no_grad():
        logits = student.lm.eval()(input_ids=written.tokens.input_ids, attention_mask=written.tokens.attention_mask).logits
    assert torch.equal(logits[written.tokens.positions].argmax(-1), written.targets)


def test_draws_are_from_the_models_whole_distribution(make_decoder: MakeDecoder) -> None:
    """A model's own generation settings, such as a penalty on repetition, would make them another's."""
    student = make_decoder(mixture=[WeightedDivergence(KL())])
    prompt = student.tokenizer.encode("yes yes yes yes yes yes yes yes")
    draws, most_probable = [], []
    for penalty in (1.0, 5.0):
        student.lm.generation_config.update(repetition_penalty=penalty, top_k=1, top_p=0.1, min_p=0.5)
        torch.manual_seed(0)
        draws.append(complete(student.lm, [prompt] * 40, 1, [], student.tokenizer.pad_token_id, temperature=1.5))
        student.lm.generation_config.update(top_k=None, top_p=None, min_p=None)
        most_probable.append(complete(student.lm, [prompt], 12, [], student.tokenizer.pad_token_id))
    assert draws[0] == draws[1]
    assert most_probable[0] == most_probable[1]
    assert len({tuple(ids) for ids in draws[0]}) > 5


def test_sampling_is_repeatable_and_leaves_the_runs_random_state_alone(make_decoder: MakeDecoder, pairs: list[Pair]) -> None:
    student = make_decoder(mixture=[WeightedDivergence(KL())])
    batch, sampler = _batch(student, pairs[:2]), _sampler(student)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    drawn = [sampler.rewrite(batch, student.lm, place).targets for place in ((3, 1, 0), (3, 1, 0), (3, 1, 1), (4, 1, 0))]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(drawn[0], drawn[1])
    assert not all(len(drawn[0]) == len(other) and torch.equal(drawn[0], other) for other in drawn[2:])


def test_the_student_is_in_training_mode_again(make_decoder: MakeDecoder, pairs: list[Pair]) -> None:
    student = make_decoder(mixture=[WeightedDivergence(KL())])
    seen = []
    handle = student.lm.register_forward_pre_hook(lambda module, inputs: seen.append(module.training))
    _sampler(student).rewrite(_batch(student, pairs[:1]), student.lm, (0, 0, 0))
    handle.remove()
    assert seen
    assert not any(seen)
    assert all(module.training for module in student.lm.modules())


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_the_share_of_batches_is_the_fraction(make_decoder: MakeDecoder, fraction: float) -> None:
    sampler = _sampler(make_decoder(mixture=[WeightedDivergence(KL())]))
    chosen = [sampler.chooses(fraction, step, batch) for step in range(200) for batch in range(5)]
    assert sum(chosen) / 1000 == pytest.approx(fraction, abs=0.05)
    assert chosen == [sampler.chooses(fraction, step, batch) for step in range(200) for batch in range(5)]


def test_the_loss_on_own_texts_is_the_mixture_alone(make_decoder: MakeDecoder, pairs: list[Pair], teacher: Any) -> None:
    student = make_decoder(mixture=[WeightedDivergence(KL(), 0.7)], cross_entropy=0.9, temperature=2.0)
    with torch.no_grad():
        next(iter(student.lm.parameters())).mul_(1.1)
    written = _sampler(student).rewrite(_batch(student, pairs[:2]), student.lm, (0, 0, 0))
    output, rows = student.summed_loss(written)
    tokens = written.tokens
    with torch.no_grad():
        mine, theirs = (
            lm(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).logits[tokens.positions].double() / 2
            for lm in (student.lm, teacher.lm)
        )
    kl = nn.functional.kl_div(mine.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="sum")
    assert rows == len(written.targets)
    assert float(output.loss) == pytest.approx(float(4 * 0.7 * kl), rel=1e-4)
    assert set(output.terms) == {"on_policy_kl"}


def _logged(run: Path) -> list[dict[str, str]]:
    import csv

    with (run / "csv" / "version_0" / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row.get("train/loss")]


def test_a_fit_on_mixed_data_logs_both_kinds_apart(lantern: Lantern, tiny_decoder_config: Path, tmp_path: Path) -> None:
    ran = lantern(
        *("fit", "--config", tiny_decoder_config, "--trainer.max_steps=6", "--trainer.log_every_n_steps=1"),
        *("--model.on_policy.fraction={start: 0, end: 1}", "--model.on_policy.max_new_tokens=4"),
    )
    assert ran.code == 0, ran.err
    rows = _logged(tmp_path / "run")
    assert [float(row["train/on_policy_fraction"]) for row in rows] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    kinds = [
        (row["train/js"] or "nan", row["train/cross_entropy"] or "nan", row["train/on_policy_js"] or "nan") for row in rows
    ]
    known = [tuple(not math.isnan(float(value)) for value in kind) for kind in kinds]
    assert known[0] == (True, True, False)
    assert known[-1] == (False, False, True)
    assert set(known) == {(True, True, False), (False, False, True)}
    manifest = json.loads((tmp_path / "run" / "student" / "manifest.json").read_text())
    assert manifest["student"]["loss"]["on_policy"]["fraction"] == {
        "start": 0.0, "end": 1.0, "shape": "linear", "unit": "step", "length": None,
    }  # fmt: skip


def test_terms_of_both_kinds_in_one_step_are_means_over_their_own_rows(
    lantern: Lantern, tiny_decoder_config: Path, tmp_path: Path
) -> None:
    """With accumulation a step holds batches of both kinds; js of one kind isn't thinned by the rows of the other."""
    step = ("--trainer.max_steps=1", "--trainer.accumulate_grad_batches=4", "--trainer.log_every_n_steps=1")
    ran = lantern(
        *("fit", "--config", tiny_decoder_config, *step, "--model.cross_entropy=0"),
        *("--model.on_policy.fraction=0.5", "--model.on_policy.max_new_tokens=4", "--model.on_policy.seed=1"),
    )
    assert ran.code == 0, ran.err
    row = _logged(tmp_path / "run")[0]
    own, annotated, loss = (float(row[f"train/{name}"]) for name in ("on_policy_js", "js", "loss"))
    # The loss is the mean over all rows, so it lies between the two means.
    assert min(own, annotated) < loss < max(own, annotated)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model.on_policy.fraction=1.5"], "shares of 0 to 1"),
        (["--model.on_policy.fraction={start: -1, end: 1}"], "shares of 0 to 1"),
        (["--model.on_policy={}", "--model.mixture=[]"], "the mixture is empty"),
        (["--model.on_policy={}", "--model.mixture=[]", "--model.teacher=null"], "needs a teacher"),
        (["--model.on_policy.max_new_tokens=0"], "1 or"),
        (["--model.on_policy.temperature=-1"], "finite temperature"),
    ],
)
def test_what_cant_be_is_refused(lantern: Lantern, tiny_decoder_config: Path, arguments: list[str], said: str) -> None:
    ran = lantern("fit", "--config", tiny_decoder_config, *arguments)
    assert ran.code == 2
    assert said in ran.err


class _Server(ThreadingHTTPServer):
    """An OpenAI-compatible server's end of /v1/completions, which keeps the questions."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.status = 200
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        choice = {"text": "Fit: low\nNo SQL.", "finish_reason": "stop"}
        body = json.dumps({"choices": [choice]} if self.path == "/v1/completions" else {"error": "SECRET"}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def test_a_served_student_writes_the_answers(make_decoder: MakeDecoder, pairs: list[Pair], server: _Server) -> None:
    student = make_decoder(mixture=[WeightedDivergence(KL())])
    served = ServedStudent(f"http://127.0.0.1:{server.server_port}/v1", "my-student")
    sampler = _sampler(student, server=served, max_new_tokens=30, temperature=0.7)
    batch = _batch(student, pairs[:2])
    written = sampler.rewrite(batch, student.lm, (0, 0, 0))
    answer = [*student.tokenizer.encode("Fit: low\nNo SQL."), student.tokenizer.eos_token_id]
    assert written.targets.tolist() == answer * 2
    assert {body["model"] for body in server.asked} == {"my-student"}
    assert {body["temperature"] for body in server.asked} == {0.7}
    assert len({body["seed"] for body in server.asked}) == 2
    start = int(batch.tokens.positions[0].int().argmax()) + 1
    assert batch.tokens.input_ids[0, :start].tolist() in [body["prompt"] for body in server.asked]
    server.status = 400
    with pytest.raises(UserError, match="HTTP 400"):
        sampler.rewrite(batch, student.lm, (0, 0, 0))


@pytest.mark.parametrize("status", [429, 503])
def test_what_may_pass_is_tried_again(
    make_decoder: MakeDecoder, pairs: list[Pair], server: _Server, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    student = make_decoder(mixture=[WeightedDivergence(KL())])
    served = ServedStudent(f"http://127.0.0.1:{server.server_port}/v1", "my-student")
    sampler, batch = _sampler(student, server=served, max_new_tokens=30), _batch(student, pairs[:1])
    server.status = status

    def recover(seconds: float) -> None:
        server.status = 200 if len(server.asked) == 2 else status

    monkeypatch.setattr("lantern_pl.students.on_policy.time.sleep", recover)
    sampler.rewrite(batch, student.lm, (0, 0, 0))
    assert len(server.asked) == 3
    server.status = status
    monkeypatch.setattr("lantern_pl.students.on_policy.time.sleep", lambda seconds: None)
    with pytest.raises(UserError, match=f"HTTP {status}"):
        sampler.rewrite(batch, student.lm, (0, 0, 0))
    assert len(server.asked) == 3 + 4


def test_no_server_is_said(make_decoder: MakeDecoder, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lantern_pl.students.on_policy.WAITS", (0.01,))
    student = make_decoder(mixture=[WeightedDivergence(KL())])
    sampler = _sampler(student, server=ServedStudent("http://127.0.0.1:9/v1", "m"))
    with pytest.raises(UserError, match="gives no answer"):
        sampler.rewrite(_batch(student, pairs[:1]), student.lm, (0, 0, 0))


def test_a_schedule_starts_at_its_start(make_decoder: MakeDecoder) -> None:
    student = make_decoder(mixture=[WeightedDivergence(KL())], on_policy=OnPolicy(Schedule(0.2, 0.8)))
    assert student.current["on_policy_fraction"] == 0.2
