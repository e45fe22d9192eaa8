"""A server that fails in the ways that a test wants."""

import asyncio
import json
import threading
import time
from typing import Any


def completion(text: str | None = "said", finish_reason: str = "stop", **changes: Any) -> bytes:
    """A chat completion as OpenAI's API gives it."""
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 30, "completion_tokens": 12, "total_tokens": 42}
    answer = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return json.dumps({**answer, **changes}).encode()


def http(status: int, body: bytes, *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status} Said", "content-type: application/json", f"content-length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def failure(status: int, *headers: str, code: str = "x") -> bytes:
    """An error as OpenAI's API gives it. It quotes the question, as some servers do."""
    return http(status, json.dumps({"error": {"message": "no: QUOTED", "type": code, "code": code}}).encode(), *headers)


class FaultServer:
    """Answers by a script: for each request the next of `script`, and `usual` after its end.

    An answer is bytes for the wire, and ends the connection where it's incomplete; or a number of seconds to say nothing
    and then end it. b"" ends it at once. A function gets the request's body and its number, and gives one of these.
    """

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.usual: Any = http(200, completion())
        self.bodies: list[dict[str, Any]] = []
        self.heads: list[str] = []
        self.times: list[float] = []
        self.open = self.most_open = 0
        self.loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._started.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        server = self.loop.run_until_complete(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        self._started.set()
        self.loop.run_forever()
        server.close()
        connections = asyncio.all_tasks(self.loop)
        for connection in connections:
            connection.cancel()
        self.loop.run_until_complete(asyncio.gather(*connections, return_exceptions=True))
        self.loop.close()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(int(line[15:]) for line in head.lower().split("\r\n") if line.startswith("content-length:"))
                body = json.loads(await reader.readexactly(length))
                self.heads.append(head)
                self.bodies.append(body)
                self.times.append(time.monotonic())
                self.open += 1
                self.most_open = max(self.most_open, self.open)
                try:
                    answer = self.script.pop(0) if self.script else self.usual
                    if callable(answer):
                        answer = answer(body, len(self.bodies))
                    if isinstance(answer, tuple):
                        await asyncio.sleep(answer[0])
                        answer = answer[1]
                    if isinstance(answer, float):
                        await asyncio.sleep(answer)
                        answer = b""
                finally:
                    self.open -= 1
                writer.write(answer)
                await writer.drain()
                head, _, sent = answer.partition(b"\r\n\r\n")
                if f"content-length: {len(sent)}".encode() not in head:
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # an exception here would be printed
        finally:
            writer.close()
