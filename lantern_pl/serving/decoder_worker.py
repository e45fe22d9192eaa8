"""The decoder in a worker process: what it writes about one pair, piece by piece."""

import sys
import time
from collections.abc import Iterator
from typing import Any

from litserve import LitAPI

from lantern_pl.serving.errors import place_of
from lantern_pl.serving.students import Prompt
from lantern_pl.serving.workers import start_worker
from lantern_pl.tasks import Task

Event = dict[str, Any]
"""{"level_probs": [float]}, {"text": str}, {"done": True, "tokens": int, "complete": bool}, or {"failed": reason}."""
TIMEOUT, UNAVAILABLE, BROKEN = "timeout", "unavailable", "broken"
"""Reasons for which there is no answer: it took too long, the decoder's server gives none, or the model failed."""


class DecoderWorker(LitAPI):
    """Answers /explain with a model in this process, one pair at a time.

    The level is the most probable of the task's; the explanation after it is decoded greedily.
    """

    def __init__(self, folder: str, task: Task, max_new_tokens: int, threads: int) -> None:
        super().__init__(api_path="/explain", stream=True)
        self.folder = folder
        self.task = task
        self.max_new_tokens = max_new_tokens
        self.threads = threads

    def setup(self, device: str) -> None:
        start_worker()
        import torch

        from lantern_pl.teachers.local_model import HFTeacher

        if self.threads:
            torch.set_num_threads(self.threads)
        self.model = HFTeacher(self.folder).to(torch.device(device))

    def predict(self, asked: tuple[Prompt, float]) -> Iterator[Event]:
        """asked: the prompt, and until when the answer is wanted, as `time.monotonic` counts."""
        prompt, until = asked
        try:
            yield from self._answer(prompt, until)
        except Exception as error:
            print(f"/explain: {place_of(error)}", file=sys.stderr, flush=True)
            yield {"failed": BROKEN}

    def encode_response(self, events: Iterator[Event]) -> Any:  # what LitServe would show in its own route
        yield from events

    def format_encoded_response(self, event: Event) -> Event:
        return event

    def _answer(self, prompt: Prompt, until: float) -> Iterator[Event]:
        from lantern_pl.data.pair import Pair

        pair = Pair("", "", "", prompt.job_text, prompt.candidate_text)
        probs = self.model.level_probs([pair], self.task).probs[0]
        yield {"level_probs": probs.tolist()}
        opening = self.task.answer_opening(self.task.levels[int(probs.argmax())])
        yield {"text": opening}
        tokens, complete = 0, False
        written: list[int] = []
        shown = ""
        for token, complete in greedy(self.model, prompt.text + opening, self.max_new_tokens):
            if time.monotonic() > until:
                yield {"failed": TIMEOUT}
                return
            tokens += 1
            if not complete:
                written.append(token)
            text = str(self.model.tokenizer.decode(written, skip_special_tokens=True))
            # Half of a character shows as U+FFFD until its other bytes are there.
            if len(text) > len(shown) and not text.endswith("\ufffd"):
                yield {"text": text[len(shown) :]}
                shown = text
        yield {"done": True, "tokens": tokens, "complete": complete}


def greedy(model: Any, prompt: str, max_new_tokens: int) -> Iterator[tuple[int, bool]]:
    """The most probable tokens after a prompt, each with whether it ends the answer; as `causal_lm.generate` has them.

    model: an HFTeacher.
    """
    import torch

    from lantern_pl.causal_lm import stop_tokens

    stops = stop_tokens(model.lm, model.tokenizer)
    ids = torch.tensor([model.tokenizer.encode(prompt, add_special_tokens=False)], device=model.lm.device)
    cache = None
    for _ in range(max_new_tokens):
        with torch.no_grad():
            out = model.lm(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token = int(out.logits[0, -1].argmax())
        yield token, token in stops
        if token in stops:
            return
        cache, ids = out.past_key_values, torch.tensor([[token]], device=ids.device)
