"""What the framework relies on in any teacher."""

import pytest
from lantern_teacher_openai_logprobs.teacher import OpenAILogprobsTeacher

from lantern_pl.teachers import Teacher
from lantern_pl.testing import TeacherContract


class TestOpenAILogprobs(TeacherContract):
    @pytest.fixture(autouse=True)
    def _server(self, llama_server: str) -> None:
        self.url = llama_server

    def make(self) -> Teacher:
        # One at a time: side by side, llama.cpp rounds otherwise.
        return OpenAILogprobsTeacher(self.url, "embedded:smollm2-135m", top_k=5, max_concurrency=1)
