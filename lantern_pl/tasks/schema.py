"""What an answer looks like: the kinds of its fields, as a pydantic model, as a JSON schema and in words.

| kind | |
|---|---|
| `text` | text that says something, up to 4000 characters |
| `level` | one of the task's levels |
| `share` | a number from 0 to 1 |
| `a \\| b \\| c` | one of these words |
| `quote of candidate_text` | a passage of that text, up to 1000 characters; `job_text` likewise |
| `quote of candidate_text unless verdict = unmet` | the same, but empty where the field beside it has that value |
| `{list: {field: kind, ...}}` | any number of objects, up to 64; `{list: ..., at_most: 12}` for fewer |
| `{list: ..., for_each: STAGE}` | one object for each in that stage's list of the same name, with the same first text |
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from lantern_pl.errors import UserError
from lantern_pl.tasks.stage import TEXTS, Stage

MAX_TEXT = 4000
MAX_QUOTE = 1000
MAX_ITEMS = 64

_QUOTE = re.compile(r"quote of (\w+)(?: unless (\w+) = (.+))?")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_KEPT_IN_SCHEMAS = ("type", "properties", "required", "additionalProperties", "items", "enum", "maxItems")


@dataclass(frozen=True)
class Quote:
    """A passage of a text; it may be blank where the field `unless` has the value `equals`."""

    of: str
    unless: str | None = None
    equals: str | None = None

    def may_be_blank(self, beside: Mapping[str, Any]) -> bool:
        """Whether the fields beside it (of a parsed answer) allow it to be blank."""
        return self.unless is not None and beside[self.unless] == self.equals


@dataclass(frozen=True)
class Items:
    """A list of objects with these fields."""

    fields: Mapping[str, Any]
    at_most: int
    for_each: str | None = None

    @property
    def wording(self) -> str | None:
        """The field that tells the objects apart: the first text."""
        return next((name for name, kind in self.fields.items() if kind == "text"), None)


Kind = Literal["text", "level", "share"] | tuple[str, ...] | Quote | Items
"""A parsed kind; a tuple holds the words to choose from."""


def kind_of(declared: Any, where: str) -> Kind:
    """Parse what a stage's output declares for the field `where`. Raises UserError if it's no kind."""
    if isinstance(declared, Mapping):
        at_most = declared.get("at_most", MAX_ITEMS)
        if not set(declared) <= {"list", "at_most", "for_each"} or not isinstance(declared.get("list"), Mapping):
            raise UserError(f"{where} is {dict(declared)!r}: a list is declared as {{list: {{field: kind, ...}}}}")
        if not isinstance(at_most, int) or isinstance(at_most, bool) or not 1 <= at_most <= MAX_ITEMS:
            raise UserError(f"{where}.at_most is {at_most!r}: give a whole number from 1 to {MAX_ITEMS}")
        for_each = declared.get("for_each")
        if not isinstance(for_each, str | None):
            raise UserError(f"{where}.for_each is {for_each!r}: give the name of a stage")
        return Items(declared["list"], at_most, for_each)
    kind = _kind_in_words(declared) if isinstance(declared, str) else None
    if kind is not None:
        return kind
    raise UserError(
        f"{where} is {declared!r}: expected text, level, share, different words to choose from such as yes | no, "
        "quote of candidate_text, quote of job_text, quote of candidate_text unless FIELD = VALUE, or "
        "{list: {field: kind, ...}}"
    )


@lru_cache(maxsize=256)
def _kind_in_words(declared: str) -> Kind | None:
    kind = " ".join(declared.split())
    if kind in ("text", "level", "share"):
        return kind  # type: ignore[return-value]
    if quote := _QUOTE.fullmatch(kind):
        return Quote(*quote.groups())
    words = tuple(word.strip() for word in kind.split("|"))
    return words if len(words) > 1 and all(words) and len(set(words)) == len(words) else None


def check_output(stage: Stage) -> None:
    """Raise UserError where the stage's output can't be asked for."""
    _check_fields(stage.output, stage, f"guide.stages: {stage.name}.output")


def _check_fields(fields: Mapping[str, Any], stage: Stage, where: str) -> None:
    if not fields:
        raise UserError(f"{where} is empty: declare at least one field")
    for name, declared in fields.items():
        # A model's attributes can't be fields of it.
        if not isinstance(name, str) or not _NAME.fullmatch(name) or hasattr(BaseModel, name):
            raise UserError(
                f"{where} has the field {name!r}: names begin with a small letter and hold small letters, digits and _, up "
                "to 40, and a few that pydantic needs (copy, json, model_...) can't be used"
            )
        kind = kind_of(declared, f"{where}.{name}")
        if isinstance(kind, Items):
            _check_fields(kind.fields, stage, f"{where}.{name}")
        if not isinstance(kind, Quote):
            continue
        if kind.of not in TEXTS or kind.of not in stage.reads:
            texts = [text for text in stage.reads if text in TEXTS]
            raise UserError(
                f"{where}.{name} is a quote of {kind.of}, which the stage doesn't read as a text: "
                f"{f'quote {texts[0]}' if texts else 'it reads no text; add one to its reads'}"
            )
        if kind.unless is not None:
            beside = kind_of(fields[kind.unless], f"{where}.{kind.unless}") if kind.unless in fields else None
            if beside != "level" and not (isinstance(beside, tuple) and kind.equals in beside):
                raise UserError(
                    f"{where}.{name} is declared with 'unless {kind.unless} = {kind.equals}': {kind.unless} must be a field "
                    f"beside it that can be {kind.equals}"
                )


def model_of(stage: Stage, levels: Sequence[str]) -> type[BaseModel]:
    """The pydantic model of the stage's answers: strict, all fields required, no others allowed.

    Whether quotes are quotes isn't its matter: see `quotes`. Raises UserError if the output isn't made of kinds.
    """
    check_output(stage)
    return _model(json.dumps(stage.output), tuple(levels))


@lru_cache(maxsize=256)
def _model(output: str, levels: tuple[str, ...]) -> type[BaseModel]:
    # Making a model takes a millisecond, and every answer needs one.
    return _model_of_fields("Answer", json.loads(output), levels)


def _model_of_fields(name: str, fields: Mapping[str, Any], levels: tuple[str, ...]) -> type[BaseModel]:
    types: dict[str, Any] = {field: (_type_of(field, kind_of(kind, field), levels), ...) for field, kind in fields.items()}
    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return create_model(name, __config__=config, **types)


def _type_of(field: str, kind: Kind, levels: tuple[str, ...]) -> Any:
    if isinstance(kind, Items):
        item = _model_of_fields(field, kind.fields, levels)
        return Annotated[list[item], Field(max_length=kind.at_most)]  # type: ignore[valid-type]
    if isinstance(kind, Quote):
        return Annotated[str, Field(max_length=MAX_QUOTE)]
    if kind == "text":
        return Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_not_blank)]
    if kind == "share":
        return Annotated[float, Field(ge=0, le=1)]
    return Literal[levels if kind == "level" else kind]


def says_something(text: str) -> bool:
    """Whether there is a letter or a digit in it: a form's own placeholder, "...", isn't text either."""
    return any(character.isalnum() for character in text)


def _not_blank(text: str) -> str:
    if not says_something(text):
        raise ValueError("blank")
    return text


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """A JSON schema that both llama.cpp's grammars and OpenAI's strict mode take: without $ref, and without limits on
    text and numbers, which one or the other refuses. `read_answer` checks those."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})

    def plain(part: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in part:
            part = definitions[part["$ref"].rpartition("/")[2]]
        kept = {key: part[key] for key in _KEPT_IN_SCHEMAS if key in part}
        if "properties" in kept:
            kept["properties"] = {name: plain(value) for name, value in kept["properties"].items()}
        if "items" in kept:
            kept["items"] = plain(kept["items"])
        return kept

    return plain(schema)


def form(output: Mapping[str, Any], levels: Sequence[str], names: Mapping[str, str]) -> str:
    """The answer's form in one line, for a prompt. `names` says what the texts are called."""
    fields = (f'"{name}": {_form_of(kind_of(kind, name), levels, names)}' for name, kind in output.items())
    return f"{{{', '.join(fields)}}}"


def _form_of(kind: Kind, levels: Sequence[str], names: Mapping[str, str]) -> str:
    if isinstance(kind, Items):
        return f"[{form(kind.fields, levels, names)}, ...]"
    if isinstance(kind, Quote):
        blank = f", or empty if {kind.unless} is {kind.equals}" if kind.unless else ""
        return f'"<exact quote of the {names.get(kind.of, kind.of)}{blank}>"'
    if kind == "text":
        return '"..."'
    if kind == "share":
        return "<number from 0 to 1>"
    return " | ".join(f'"{word}"' for word in (levels if kind == "level" else kind))


def quotes(stage: Stage, parsed: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each quote of a parsed answer with the name of the text that it must be in. One that is rightly blank is left out."""
    for kind, beside, value in _values(stage.output, parsed):
        if isinstance(kind, Quote) and not (kind.may_be_blank(beside) and not value.strip()):
            yield kind.of, value


def needed_quotes(stage: Stage, parsed: Mapping[str, Any]) -> Iterator[str]:
    """The quotes that couldn't have been left blank: those of what is met, say."""
    for kind, beside, value in _values(stage.output, parsed):
        if isinstance(kind, Quote) and not kind.may_be_blank(beside):
            yield value


def has_quotes(stage: Stage) -> bool:
    """Whether the stage's answers quote anything."""
    return _declares_quotes(stage.output)


def _declares_quotes(fields: Mapping[str, Any]) -> bool:
    kinds = [kind_of(declared, name) for name, declared in fields.items()]
    return any(_declares_quotes(kind.fields) if isinstance(kind, Items) else isinstance(kind, Quote) for kind in kinds)


def own_words(stage: Stage, parsed: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """Each text of a parsed answer, and whether it's in a list."""
    for kind, beside, value in _values(stage.output, parsed):
        if kind == "text":
            yield value, beside is not parsed


def _values(fields: Mapping[str, Any], parsed: Mapping[str, Any]) -> Iterator[tuple[Kind, Mapping[str, Any], Any]]:
    """Each value of a parsed answer, those in lists included: its kind, the fields beside it, and itself."""
    for name, declared in fields.items():
        kind = kind_of(declared, name)
        if isinstance(kind, Items):
            for item in parsed[name]:
                yield from _values(kind.fields, item)
        else:
            yield kind, parsed, parsed[name]
