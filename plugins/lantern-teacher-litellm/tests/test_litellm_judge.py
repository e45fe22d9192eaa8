"""`lantern test` has explanations judged by a model behind a real server, which keeps to the form of the answer."""

from lantern_teacher_litellm.teacher import LiteLLMTeacher

from lantern_pl.data.pair import Pair
from lantern_pl.evaluation.bootstrap import Bootstrap
from lantern_pl.evaluation.judge import judge


def test_a_served_model_judges_in_both_orders(llama_server: str) -> None:
    teacher = LiteLLMTeacher("openai/smollm2-135m", llama_server, max_in_flight=2)
    pairs = [Pair(str(at), "j", "c", "We need Python and SQL.", "I know Python well.") for at in range(3)]
    ours = ["Fit: medium\nMeets Python: 'I know Python well'; SQL is missing."] * 2 + ["the same"]
    theirs = ["Fit: high\nThe candidate has ten years of SQL."] * 2 + ["the same"]
    found = judge(teacher, pairs, ours, theirs, "teacher", Bootstrap(100), lambda rows, what: rows)
    assert sum(found["wins"].values()) + found["unreadable"] == 3
    # It is held to the schema; what such a small model prefers says nothing.
    assert found["unreadable"] == 0
    assert found["wins"]["tie"] >= 1
