"""A real OpenAI-compatible server: llama.cpp with a small model, whose answers have structure but no wisdom."""

import asyncio
import json

import pytest
from lantern_teacher_litellm.teacher import LiteLLMTeacher

from lantern_pl.teachers import Teacher
from lantern_pl.teachers.chat import ChatFailed, ChatReply, ChatRequest
from lantern_pl.testing import TeacherContract

SCHEMA = {
    "type": "object",
    "properties": {
        "level": {"type": "string", "enum": ["low", "medium", "high"]},
        "sure": {"type": "boolean"},
    },
    "required": ["level", "sure"],
    "additionalProperties": False,
}
SAID = "The job wants Python. The candidate has six years of Python. How well does the candidate fit?"


async def replies(teacher: LiteLLMTeacher, *requests: ChatRequest) -> list[ChatReply]:
    await teacher.get_ready_to_chat()
    try:
        return list(await asyncio.gather(*(teacher.chat(request) for request in requests)))
    finally:
        await teacher.close()


@pytest.mark.parametrize("model", ["openai/smollm2-135m", "hosted_vllm/smollm2-135m"])
def test_the_probe_finds_that_it_holds_to_schemas_and_answers_have_their_form(model: str, llama_server: str) -> None:
    teacher = LiteLLMTeacher(model, llama_server, max_in_flight=2)
    requests = [
        ChatRequest(({"role": "user", "content": f"{SAID} ({at})"},), SCHEMA, temperature=1.0, max_tokens=60, seed=at)
        for at in range(4)
    ]
    found = asyncio.run(replies(teacher, *requests))
    assert teacher.follows_schema
    for reply in found:
        answer = json.loads(reply.text)
        assert set(answer) == {"level", "sure"}
        assert answer["level"] in ("low", "medium", "high")
        assert isinstance(answer["sure"], bool)
        assert reply.finish_reason == "stop"
        assert reply.prompt_tokens > 20
        assert reply.completion_tokens > 5
        assert reply.cost is None


def test_free_text_a_cut_answer_and_seeds(llama_server: str) -> None:
    teacher = LiteLLMTeacher("openai/smollm2-135m", llama_server, schema="never")
    messages = ({"role": "system", "content": "You are brief."}, {"role": "user", "content": "Write about the sea."})
    one, again, other = (
        asyncio.run(replies(teacher, ChatRequest(messages, SCHEMA, temperature=1.0, max_tokens=12, seed=seed)))[0]
        for seed in (1, 1, 2)
    )
    assert one.finish_reason == "length"
    assert one.completion_tokens == 12
    assert one.text == again.text != other.text


def test_a_question_that_is_too_long_fails_alone(llama_server: str) -> None:
    teacher = LiteLLMTeacher("openai/smollm2-135m", llama_server, schema="never")
    long = ChatRequest(({"role": "user", "content": "word " * 5000},), max_tokens=4)
    with pytest.raises(ChatFailed) as failed:
        asyncio.run(replies(teacher, long))
    assert not failed.value.stop
    assert "word word" not in str(failed.value)


class TestLiteLLM(TeacherContract):
    @pytest.fixture(autouse=True)
    def _server(self, llama_server: str) -> None:
        self.url = llama_server

    def make(self) -> Teacher:
        return LiteLLMTeacher("openai/smollm2-135m", self.url, max_in_flight=2, max_new_tokens=8)
