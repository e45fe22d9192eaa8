"""The `openai_logprobs` teacher: top-k log-probabilities from a vLLM or llama.cpp server.

Configs name it `lantern_pl.teachers.openai_logprobs`.
"""
