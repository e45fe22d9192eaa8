"""Another task than job fit, in YAML alone: other levels, guidelines, names and stages."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import rubric_chat
from support import Ran

from lantern_pl.teachers import Teacher
from lantern_pl.teachers.chat import ChatReply, ChatRequest

CONFIG = """\
labels: {folder}/labels
pairs: {folder}/pairs.jsonl
teacher: {{class_path: rubric_chat.Librarian}}
task:
  levels: [off topic, related, answers]
  prompt: "How does the page answer the question ({{levels}})?\\n{{job_text}}\\n{{candidate_text}}"
  answer: "{{level}}: {{explanation}}"
guide:
  names: {{job_text: question, candidate_text: page}}
  sections:
    task: You tell how well a page of a manual answers a question, as one of {{levels}}.
  stages:
    - name: topic
      reads: [job_text]
      sections: [task]
      ask: What is the question about?
      output: {{topic: text}}
    - name: verdict
      reads: [topic, candidate_text]
      sections: [task]
      ask: Judge the page, and quote it.
      output:
        level: level
        quote: quote of candidate_text unless level = off topic
        explanation: text
"""


class Librarian(Teacher):
    """Answers those two stages by whether the page holds the question's last word."""

    lantern_api = 1
    capabilities = frozenset({"chat"})
    follows_schema = True
    seen: list[ChatRequest]

    def __init__(self) -> None:
        Librarian.seen = []

    def identity(self) -> dict[str, str]:
        return {"name": "librarian"}

    async def chat(self, request: ChatRequest) -> ChatReply:
        Librarian.seen.append(request)
        shown = rubric_chat.fenced(request)
        if "question" in shown:
            return ChatReply(json.dumps({"topic": shown["question"].split()[-1].strip("?")}), "stop", cost=0.0)
        topic, page = json.loads(shown["topic"])["topic"], shown["page"]
        found = topic if topic in page else ""
        answer = {"level": "answers" if found else "off topic", "quote": found, "explanation": f"It's about {topic}."}
        return ChatReply(json.dumps(answer), "stop", cost=0.0)


def test_a_task_is_yaml(tmp_path: Path, lantern: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rubric_chat, "Librarian", Librarian, raising=False)
    monkeypatch.setenv("LANTERN_ALLOW_IMPORTS", "rubric_chat,test_own_task")
    questions = ("How do I oil the chain?", "How do I set the brake?")
    pages = ("Take the chain off, then oil it.", "The saddle has a bolt below.")
    rows = [{"job_text": question, "candidate_text": page} for question in questions for page in pages]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tmp_path / "label.yaml"
    config.write_text(CONFIG.format(folder=tmp_path))
    ran = lantern("label", "--config", config, "--yes")
    assert ran.code == 0, ran.err
    labels = pq.read_table(tmp_path / "labels" / "labels.parquet").to_pylist()
    assert [row["level"] for row in labels] == ["answers", "off topic", "off topic", "off topic"]
    assert labels[0]["explanation"] == "It's about chain."
    assert len(Librarian.seen) == 2 + 4
    assert "as one of off topic, related, answers" in Librarian.seen[0].messages[0]["content"]


def test_stages_that_cannot_work_are_said_before_anything_is_asked(
    tmp_path: Path, lantern: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rubric_chat, "Librarian", Librarian, raising=False)
    monkeypatch.setenv("LANTERN_ALLOW_IMPORTS", "rubric_chat,test_own_task")
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"job_text": "A?", "candidate_text": "B."}) + "\n")
    config = tmp_path / "label.yaml"
    for wrong, said in (
        ("reads: [topick, candidate_text]", "Did you mean 'topic'"),
        ("reads: [topic]", "which the stage doesn't read as a text"),
    ):
        config.write_text(CONFIG.format(folder=tmp_path).replace("reads: [topic, candidate_text]", wrong))
        ran = lantern("label", "--config", config, "--yes")
        assert ran.code == 2, wrong
        assert said in ran.err
        assert not Librarian.seen
