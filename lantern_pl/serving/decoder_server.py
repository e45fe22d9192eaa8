"""The decoder on another server, vLLM or llama.cpp's: the same prompt, and what comes back of it piece by piece."""

import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
from litserve import LitAPI

from lantern_pl.serving.decoder_worker import BROKEN, TIMEOUT, UNAVAILABLE, Event
from lantern_pl.serving.errors import place_of
from lantern_pl.serving.students import Prompt
from lantern_pl.serving.workers import start_worker

CONNECT_TIMEOUT = 5.0
"""Seconds to reach the server."""


class ServedDecoderWorker(LitAPI):
    """Answers /explain with what an OpenAI-compatible server completes, many pairs at once.

    It gets the prompt as token ids, made by the student's own tokenizer and chat template, as vLLM and llama.cpp take it.
    """

    def __init__(self, url: str, model: str, key: str | None, max_new_tokens: int) -> None:
        super().__init__(api_path="/explain", stream=True, enable_async=True)
        self.url = url.rstrip("/") + "/completions"
        self.model = model
        self.key = key
        self.max_new_tokens = max_new_tokens
        self.client: httpx.AsyncClient | None = None

    def setup(self, device: str) -> None:
        start_worker()

    async def decode_request(self, request: Any) -> Any:
        return request

    async def predict(self, asked: tuple[Prompt, float]) -> AsyncIterator[Event]:
        """asked: the prompt, and until when the answer is wanted, as `time.monotonic` counts."""
        prompt, until = asked
        try:
            async for event in self._answer(prompt, until):
                yield event
        except (httpx.ReadTimeout, httpx.WriteTimeout):
            yield {"failed": TIMEOUT}
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
            # Its answer isn't shown: a server may repeat the prompt there.
            status = f"HTTP {error.response.status_code}, " if isinstance(error, httpx.HTTPStatusError) else ""
            print(f"/explain: no answer from the decoder's server: {status}{place_of(error)}", file=sys.stderr, flush=True)
            yield {"failed": UNAVAILABLE}
        except Exception as error:
            print(f"/explain: {place_of(error)}", file=sys.stderr, flush=True)
            yield {"failed": BROKEN}

    async def encode_response(self, events: AsyncIterator[Event]) -> Any:  # what LitServe would show in its own route
        async for event in events:
            yield event

    def format_encoded_response(self, event: Event) -> Event:
        return event

    async def _answer(self, prompt: Prompt, until: float) -> AsyncIterator[Event]:
        if self.client is None:  # made here, since it belongs to this event loop
            headers = {"Authorization": f"Bearer {self.key}"} if self.key else None
            self.client = httpx.AsyncClient(headers=headers, limits=httpx.Limits(max_connections=None))
        left = max(0.1, until - time.monotonic())
        timeout = httpx.Timeout(left, connect=min(left, CONNECT_TIMEOUT))
        body = {
            "model": self.model,
            "prompt": prompt.ids,
            "max_tokens": self.max_new_tokens,
            "temperature": 0.0,
            "stream": True,
        }
        tokens, complete = 0, None
        async with self.client.stream("POST", self.url, json=body, timeout=timeout) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if time.monotonic() > until:
                    yield {"failed": TIMEOUT}
                    return
                if not line.startswith("data:") or line.endswith("[DONE]"):
                    continue
                choices = json.loads(line.removeprefix("data:"))["choices"]
                if not choices:
                    continue
                if text := choices[0]["text"]:
                    tokens += 1
                    yield {"text": str(text)}
                if reason := choices[0].get("finish_reason"):
                    complete = reason == "stop"
        if complete is None:
            raise ValueError("the answer broke off")
        yield {"done": True, "tokens": tokens, "complete": complete}
