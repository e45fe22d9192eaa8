"""What is asked about a pair: the levels, the prompt, the format of the answer."""

from lantern_pl.tasks.task import Answer, Task

__all__ = ["Answer", "Task"]
