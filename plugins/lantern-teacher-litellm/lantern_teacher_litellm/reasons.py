"""What a person is told about a question without an answer, and whether any other would have one."""

from collections.abc import Sequence

from lantern_pl.teachers.chat import Attempt, ChatFailed
from lantern_teacher_litellm.failures import Failure
from lantern_teacher_litellm.settings import Settings


def refused(failure: Failure, settings: Settings, attempts: Sequence[Attempt]) -> ChatFailed:
    """Of a question that was too many at once (HTTP 429), too often."""
    where, patience = settings.where, f"the {settings.patience:g} seconds of patience"
    stop = True
    if failure.quota:
        reason = f"The account that asks {where} has used up its quota (HTTP 429, insufficient_quota): see its billing."
    elif failure.asked_wait is not None and failure.asked_wait > settings.patience:
        reason = (
            f"{where} wants no question for longer than {patience} (HTTP 429 with Retry-After): go on later, or raise it."
        )
    else:
        stop = False
        reason = (
            f"{where} has refused a question as too many at once (HTTP 429) for {patience}: give rpm and tpm as the "
            "account has them, lower max_in_flight, or raise patience."
        )
    return ChatFailed(reason, tuple(attempts), stop)


def failed(failure: Failure, settings: Settings, attempts: Sequence[Attempt]) -> ChatFailed:
    """Of a question whose attempts ended otherwise; `failure` is the last one."""
    where, outcome = settings.where, failure.outcome
    stop = True
    if outcome in ("http 401", "http 403"):
        reason = (
            f"{where} doesn't accept the key ({outcome}): put one into an environment variable, and the variable's name "
            "into api_key_variable."
        )
    elif failure.status == 404:
        reason = f"There is no {where} (HTTP 404): correct model or base_url."
    elif failure.kind == "ContextWindowExceededError":
        stop = False
        reason = f"The question is longer than {where} can read ({outcome})."
    elif failure.status is None and not failure.again:
        reason = (
            f"litellm can't ask {where} in this way ({failure.kind}): does the model take this temperature and, unless "
            "schema is never, a JSON schema?"
        )
    elif not failure.again:
        stop = False
        reason = f"{where} refuses the question ({outcome})."
    elif all(attempt.outcome == "no server" for attempt in attempts):
        reason = f"No server answers for {where}: start it, or correct base_url."
    else:
        stop = False
        reason = f"{where} gave no answer in {settings.attempts} attempts; the last one ended with: {outcome}."
    return ChatFailed(reason, tuple(attempts), stop)
