"""The rubric's chat answers behind HTTP: a server that counts what it's asked, and the teacher that asks it."""

import json
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import aiohttp
from rubric_chat import answer_of

from lantern_pl.teachers import Teacher
from lantern_pl.teachers.chat import ChatReply, ChatRequest


class _HTTPServer(ThreadingHTTPServer):
    """One whose clients may be killed: a connection that they tear down is no error of the server's."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class RubricServer:
    """Answers questions that are posted as JSON, after `latency` seconds; `asked` counts them by their text."""

    def __init__(self, latency: float = 0.0) -> None:
        self.asked: Counter[str] = Counter()
        self.changed = threading.Condition()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                request = ChatRequest(**json.loads(body))
                with server.changed:
                    server.asked[request.messages[1]["content"]] += 1
                    server.changed.notify_all()
                time.sleep(latency)
                content = json.dumps(answer_of(request)).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = _HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


class HTTPChat(Teacher):
    """Asks a `RubricServer`."""

    lantern_api = 1
    capabilities = frozenset({"chat"})
    follows_schema = True
    max_in_flight = 16

    def __init__(self, url: str) -> None:
        self.url = url

    def identity(self) -> dict[str, Any]:
        return {"rubric": "behind HTTP"}

    async def get_ready_to_chat(self) -> None:
        self.session = aiohttp.ClientSession()

    async def chat(self, request: ChatRequest) -> ChatReply:
        body = {"messages": list(request.messages), "schema": request.schema, "seed": request.seed}
        async with self.session.post(self.url, json=body) as response:
            return ChatReply(await response.text(), "stop", 100, 20, cost=0.0)

    async def close(self) -> None:
        await self.session.close()


class PricedHTTPChat(HTTPChat):
    """Its answers cost something, and few are asked for at once: little money is set aside."""

    price = (20.0, 20.0)
    max_in_flight = 2
