"""The files that other commands leave in a run's folder, as the report reads them: forms of test.json and its like."""

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lantern_pl.errors import UserError

LARGEST = 256 << 20
"""Bytes, beyond which a file isn't read."""


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]
"""A finite number; NaN and infinities, which JSON of Python may hold, are read as None."""


class _Part(BaseModel):
    # What a later version adds doesn't keep this one from reading the rest.
    model_config = ConfigDict(extra="ignore")


class Figure(_Part):
    """A figure with its interval, and of how many pairs."""

    value: Number = None
    low: Number = None
    high: Number = None
    n: int | None = None


class Bin(_Part):
    """Of a reliability diagram: pairs whose confidence is from low to high."""

    low: float
    high: float
    count: int
    confidence: Number = None
    accuracy: Number = None


class ModelFigures(_Part):
    """What `lantern test` has found about one of the models."""

    about: str = ""
    figures: dict[str, Figure] = {}
    per_level: dict[str, dict[str, Figure]] = {}
    confusion: list[list[int]] | None = None
    reliability: list[Bin] | None = None


class Retention(_Part):
    """How much of the teacher's figure the student has kept, and of the teacher's lead over plain fine-tuning."""

    of_teacher: Figure | None = None
    of_gap: Figure | None = None
    why: str | None = None


class Judge(_Part):
    """Verdicts on the student's explanations, held against another model's; `failed` says why there are none."""

    against: str = "teacher"
    judge: str = "A judge"
    failed: str | None = None
    pairs: int | None = None
    wins: dict[str, int] = {}
    inconsistent: int = 0
    unreadable: int = 0
    win_rate: Figure | None = None


class Annotation(_Part):
    level: str | None = None
    explanation: str | None = None


class Sample(_Part):
    """A pair with the answers of each model."""

    pair_id: str
    job_text: str
    candidate_text: str
    annotation: Annotation = Annotation()
    answers: dict[str, str | None] = {}


class TestFile(_Part):
    """test.json."""

    __test__ = False  # no class of tests

    format: Literal[1]
    kind: str = ""
    levels: list[str] = []
    pairs: int
    data: dict[str, Any] = {}
    loss: dict[str, Number] = {}
    settings: dict[str, Any] = {}
    models: dict[str, ModelFigures] = {}
    retention: dict[str, Retention] = {}
    judge: Judge | None = None
    samples: list[Sample] = []
    seconds: Number = None


class Finding(_Part):
    kind: str
    about: str = ""
    text: str = ""


class AuditTable(_Part):
    title: str = ""
    columns: list[str] = []
    rows: list[list[str | Number]] = []
    note: str | None = None


class AuditFile(_Part):
    """audit.json."""

    format: Literal[1]
    student: str | None = None
    teacher: str | None = None
    pairs: int | None = None
    settings: dict[str, Any] = {}
    findings: list[Finding] = []
    tables: list[AuditTable] = []


class ExportFile(_Part):
    """export.json: whatever it holds is shown as it is."""

    model_config = ConfigDict(extra="allow")


class ComparisonFile(_Part):
    """What `lantern compare` writes."""

    pairs: str = ""
    count: int = 0
    models: dict[str, dict[str, str | Number]] = Field(min_length=1)


def as_object(value: Any) -> dict[str, Any]:
    """An object of JSON, an empty one in place of anything else: manifests may be of other versions."""
    return value if isinstance(value, dict) else {}


Form = TypeVar("Form", bound=_Part)


def read_json(path: Path) -> Any:
    """The values in a JSON file. Raises UserError, naming the file, where it can't be read."""
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes: that is no file of a run.")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} isn't JSON: {error}.") from error


def read_form(path: Path, form: type[Form]) -> Form:
    """A file of the given form. Raises UserError, naming the file and what is wrong with it; never quotes texts."""
    try:
        return form.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise UserError(f"{path} isn't as this version writes it: {where}: {first['msg']}.") from error
