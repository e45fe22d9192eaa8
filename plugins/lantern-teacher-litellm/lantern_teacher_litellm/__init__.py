"""The `litellm` teacher: labels from any LLM that litellm can ask.

Configs name it `lantern_pl.teachers.litellm`.
"""
