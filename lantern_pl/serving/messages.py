"""What clients send and get, as the OpenAPI description shows it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from lantern_pl.serving.errors import ErrorType

_JOB = "Nurse for our intensive care unit. Must have: a nursing degree, 3 years in intensive care. Nice to have: Spanish."
_CANDIDATE = "Registered nurse with a degree from Utrecht. 5 years in intensive care, now leading a shift. Speaks Dutch."


class PairIn(BaseModel):
    """A candidate and a job."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"job_text": _JOB, "candidate_text": _CANDIDATE, "pair_id": "17"}]},
    )
    job_text: str = Field(description="The job advert.")
    candidate_text: str = Field(description="The candidate's CV or profile.")
    pair_id: str | None = Field(None, max_length=128, description="Comes back in the answer.")


class PairsIn(BaseModel):
    """Several pairs in one request."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"pairs": [{"job_text": _JOB, "candidate_text": _CANDIDATE, "pair_id": "17"}]}]},
    )
    pairs: list[PairIn] = Field(min_length=1)


class ExplainIn(PairIn):
    """A candidate and a job to explain."""

    stream: bool = Field(False, description="Send the explanation sentence by sentence, as server-sent events.")


def _form(value: Any) -> str:
    return "pairs" if isinstance(value, PairsIn) or (isinstance(value, dict) and "pairs" in value) else "pair"


FitIn = Annotated[Annotated[PairIn, Tag("pair")] | Annotated[PairsIn, Tag("pairs")], Discriminator(_form)]
"""Body of /fit: one pair, or a list of them."""


class Fit(BaseModel):
    """How well a candidate fits a job."""

    pair_id: str | None = None
    level: str = Field(description="The most probable level.")
    level_probs: dict[str, float] = Field(description="Probability of each level, worst first.")
    score: float = Field(description="The expected level, from 0 (the worst) to 1 (the best).")
    flags: list[str] = Field(description="What in the texts may be meant to mislead a model; a reason for a look.")
    texts_cut: bool = Field(description="Whether the texts were cut to the encoder's length.")


class About(BaseModel):
    """Which model answered whom."""

    model: str = Field(description="What tells the weights from others.")
    variant: str = Field(description="The side of an experiment.")
    request_id: str


class FitOut(Fit, About):
    """The answer about one pair."""


class FitsOut(About):
    """The answers about several pairs, in their order."""

    answers: list[Fit]


class Checks(BaseModel):
    """What was checked of an explanation."""

    format: bool = Field(description="Whether the decoder's answer had the task's form.")
    complete: bool = Field(description="Whether it came to its end before the length limit.")
    quotes: int = Field(description="Passages in quotation marks.")
    quotes_found: int = Field(description="Those that stand in the job's or the candidate's text, word for word.")
    open_quotes: int = Field(description="Quotes that don't end, so that they can't be looked up.")
    dropped_sentences: int = Field(
        description="Sentences left out, since they quote what neither text says, or don't end a quote."
    )
    encoder_level: str | None = Field(None, description="What /fit says of the pair, where an encoder is served.")
    levels_agree: bool | None = Field(None, description="Whether both students name the same level.")


class ExplainOut(About):
    """An explanation, checked."""

    pair_id: str | None = None
    level: str | None = Field(description="null where the decoder's answer had not the task's form.")
    level_probs: dict[str, float] | None = Field(None, description="null where a server runs the decoder.")
    explanation: str | None = Field(description="null where nothing of it passed the checks.")
    unfounded_sentences: list[str] = Field(description="With on_unfounded: mark, the sentences that failed their check.")
    checks: Checks
    flags: list[str]
    texts_cut: bool


class ErrorIn(BaseModel):
    type: ErrorType
    message: str
    request_id: str


class ErrorOut(BaseModel):
    """Every answer other than 200."""

    error: ErrorIn


class Health(BaseModel):
    """Which models are ready to answer."""

    status: Literal["ok", "loading"]
    variant: str
    encoder: str | None
    decoder: str | None
