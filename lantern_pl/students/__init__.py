"""The two students: an encoder that classifies the fit, a decoder that explains it."""

from lantern_pl.students.decoder import DecoderStudent
from lantern_pl.students.encoder import EncoderStudent
from lantern_pl.students.hidden_states import HiddenStates
from lantern_pl.students.lora import Lora
from lantern_pl.students.on_policy import OnPolicy, ServedStudent
from lantern_pl.students.student import Optimization, Student

__all__ = [
    "DecoderStudent",
    "EncoderStudent",
    "HiddenStates",
    "Lora",
    "OnPolicy",
    "Optimization",
    "ServedStudent",
    "Student",
]
