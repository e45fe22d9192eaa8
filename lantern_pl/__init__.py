"""Distil a strong, slow LLM into small students that can be served."""

__version__ = "0.1.0"
