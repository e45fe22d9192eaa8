"""A server that answers every chat completion alike, as fast as one process can, or after a fixed time.

Prints its address, and ends with its standard input. It counts how many requests are open: GET /most says the highest
number since it was last asked.
"""

import argparse
import asyncio
import json
import sys

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {
                "role": "assistant",
                "content": '{"level": "high", "confidence": 0.9, "explanation": "' + "x" * 400 + '"}',
            },
        }
    ],
    "usage": {"prompt_tokens": 700, "completion_tokens": 120, "total_tokens": 820},
}


def response(body: object) -> bytes:
    text = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(text), text)


class Server(asyncio.Protocol):
    """One connection. Requests come one after the other: clients don't pipeline."""

    latency = 0.0
    open = most = 0
    answer = response(ANSWER)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.read = transport, b""

    def data_received(self, data: bytes) -> None:
        self.read += data
        head, end, body = self.read.partition(b"\r\n\r\n")
        if not end:
            return
        length = next((int(h[15:]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length:")), 0)
        if len(body) < length:
            return
        self.read = b""
        if head.startswith(b"GET /most"):
            self.transport.write(response(Server.most))
            Server.most = Server.open
            return
        Server.open += 1
        Server.most = max(Server.most, Server.open)
        if self.latency:
            asyncio.get_running_loop().call_later(self.latency, self.reply)
        else:
            self.reply()

    def reply(self) -> None:
        Server.open -= 1
        if not self.transport.is_closing():
            self.transport.write(self.answer)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    Server.latency = parser.parse_args().latency
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
