"""The task's templates: what is written can be read back, and what can't be is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lantern_pl.errors import UserError
from lantern_pl.tasks import Answer, Task

ANSWERS = [
    "Fit: {level}\n{explanation}",
    '{{"fit": "{level}", "why": "{explanation}"}}',
    "\n# {{level}} is {level} ##\n{explanation}\n##\n",
    "{level}: {explanation}",
]
WORDS = st.text('abcXYZ 019.,-{}\\"', min_size=1).map(str.strip).filter(lambda text: any(map(str.isalnum, text)))


@pytest.mark.parametrize("answer", ANSWERS)
@given(explanation=WORDS, place=st.integers(0, 3))
def test_what_is_rendered_is_read_back(answer: str, explanation: str, place: int) -> None:
    task = Task(levels=["1", "10", "good", "good match"], answer=answer)
    level = task.levels[place]
    rendered = task.render_answer(level, explanation)
    assert task.parse_answer(rendered) == Answer(level, explanation)
    assert rendered.startswith(task.answer_opening(level))
    assert rendered.startswith(task.answer_prefix + task.closed_levels()[place])
    assert task.closed_levels()[place].startswith(task.verbalised_levels()[place])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("{explanation} {level}", "and then"),
        ("{level} {level} {explanation}", "each once"),
        ("{level} {explanation} {explanation}", "each once"),
        ("{level!r} {explanation}", "formats a field"),
        ("{level:>9} {explanation}", "formats a field"),
        ("{level} {why}", "it must hold"),
        ("{level} {explanation} {", "literal brace"),
    ],
)
def test_other_answers_are_refused(answer: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Task(answer=answer)
