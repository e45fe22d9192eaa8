"""How to ask, as a config says it."""

from dataclasses import dataclass

from lantern_pl.errors import UserError


@dataclass(frozen=True)
class TokenPrice:
    """Money per million tokens, in whatever currency the bill is in."""

    input: float
    """Per million tokens of questions."""
    output: float
    """Per million tokens of answers."""

    def __post_init__(self) -> None:
        if not (0 <= self.input < float("inf") and 0 <= self.output < float("inf")):
            raise UserError(f"price is {self.input} and {self.output} per million tokens: give numbers of 0 or more.")


@dataclass(frozen=True)
class Settings:
    """See `LiteLLMTeacher`, whose arguments these are. `price` is of questions and of answers."""

    model: str
    base_url: str | None
    timeout: float
    max_in_flight: int
    rpm: float | None
    tpm: float | None
    attempts: int
    patience: float
    price: tuple[float, float] | None

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise UserError("model is blank: give litellm's name of a model, such as openai/gpt-4o-mini.")
        for name in ("timeout", "patience", "rpm", "tpm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"{name} is {value}: give a number above 0.")
        for name in ("max_in_flight", "attempts"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: give 1 or more.")

    @property
    def where(self) -> str:
        """What is asked, for a person."""
        return f"{self.model} at {self.base_url}" if self.base_url else self.model
