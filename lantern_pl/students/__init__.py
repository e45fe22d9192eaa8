"""The two students: an encoder that classifies the fit, a decoder that explains it."""

from lantern_pl.students.decoder import DecoderStudent
from lantern_pl.students.encoder import EncoderStudent
from lantern_pl.students.lora import Lora
from lantern_pl.students.student import Optimization, Student

__all__ = ["DecoderStudent", "EncoderStudent", "Lora", "Optimization", "Student"]
