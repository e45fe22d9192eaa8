"""A chat teacher in this process that answers a guide's stages by the rubric: right answers without a model."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lantern_pl.tasks.reading import read_candidate, read_job
from lantern_pl.tasks.rubric import Rubric
from lantern_pl.teachers import Teacher
from lantern_pl.teachers.chat import Attempt, ChatReply, ChatRequest

RUBRIC = Rubric()
LEVELS = ["low", "medium", "high"]


def fenced(request: ChatRequest) -> dict[str, str]:
    """What a question shows, by name."""
    shown = request.messages[1]["content"]
    return dict(re.findall(r"<<<begin ([^>]+)>>>\n(.*?)\n<<<end \1>>>", shown, flags=re.DOTALL))


def answer_of(request: ChatRequest) -> dict[str, Any]:
    """The rubric's answer, of the form that the question's schema asks."""
    shown, asked = fenced(request), set(dict(request.schema or {})["properties"])
    if asked == {"facts"}:
        return {"facts": [{"fact": "what it begins with", "evidence": " ".join(shown["candidate"].split()[:2])}]}
    if asked == {"explanation"}:
        return {"explanation": _explained(json.loads(shown["judge"])["level"])}
    if "level" not in asked:
        return {"requirements": _asked_for(shown["job"])}
    single = "explanation" in asked
    requirements = _asked_for(shown["job"]) if single else json.loads(shown["requirements"])["requirements"]
    claims = read_candidate(shown["candidate"], RUBRIC.vocabulary)
    judged = []
    for item in requirements:
        evidence = claims.evidence(item["requirement"])
        kind = {"kind": item["kind"]} if single else {}
        verdict = "met" if evidence else "unmet"
        judged.append({"requirement": item["requirement"], **kind, "verdict": verdict, "evidence": evidence or ""})
    level = LEVELS[min(2, 3 * sum(item["verdict"] == "met" for item in judged) // len(judged))]
    explanation = {"explanation": _explained(level)} if single else {}
    return {"requirements": judged, "level": level, "confidence": 0.75, **explanation}


def _asked_for(job: str) -> list[dict[str, str]]:
    found = read_job(job, RUBRIC.vocabulary)
    kinds = [{"requirement": r.name, "kind": "nice" if r.kind == "nice" else "must"} for r in found]
    return kinds or [{"requirement": "none stated", "kind": "nice"}]


def _explained(level: str) -> str:
    return f"Fits by {level} as the rubric says."


Spoil = Callable[[ChatRequest, ChatReply], ChatReply]


@dataclass
class RubricChat(Teacher):
    """Answers after `latency` seconds; `spoil` may change or refuse an answer.

    `asked` counts what was asked, by the fields of the answer; `most` is how many questions were open at once.
    """

    lantern_api = 1
    capabilities = frozenset({"chat"})
    latency: float = 0.0
    spoil: Spoil | None = None
    max_in_flight: int = 16
    follows_schema: bool = True
    price: tuple[float, float] | None = None
    most_billed: int = 1
    asked: Counter[str] = field(default_factory=Counter)
    requests: list[ChatRequest] = field(default_factory=list)
    open: int = 0
    most: int = 0
    closed: int = 0

    def identity(self) -> dict[str, Any]:
        return {"rubric": 1}

    async def chat(self, request: ChatRequest) -> ChatReply:
        self.asked[",".join(dict(request.schema or {})["properties"])] += 1
        self.requests.append(request)
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await asyncio.sleep(self.latency)
            text = json.dumps(answer_of(request))
            reply = ChatReply(text, "stop", 100, 20, attempts=(Attempt(0.0, self.latency, "ok"),))
            return self.spoil(request, reply) if self.spoil else reply
        finally:
            self.open -= 1

    async def close(self) -> None:
        self.closed += 1


class PricedRubricChat(RubricChat):
    """As a config names it."""

    def __init__(self) -> None:
        super().__init__(price=(20.0, 20.0))
