"""The service: LitServe's workers behind our own routes."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from litserve import LitAPI, LitServer
from litserve.transport.base import MessageTransport
from litserve.utils import WorkerSetupStatus
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from lantern_pl import __version__
from lantern_pl.serving.admission import Admission, Reception, current
from lantern_pl.serving.config import ServeConfig
from lantern_pl.serving.decoder_server import ServedDecoderWorker
from lantern_pl.serving.decoder_worker import DecoderWorker
from lantern_pl.serving.encoder_worker import EncoderWorker
from lantern_pl.serving.errors import ServiceError, error_response
from lantern_pl.serving.line import Line
from lantern_pl.serving.messages import ErrorOut, ExplainIn, ExplainOut, FitIn, FitOut, FitsOut, Health
from lantern_pl.serving.metrics import Metrics
from lantern_pl.serving.rate import InHand, RateLimit
from lantern_pl.serving.routes import Routes
from lantern_pl.serving.students import Student, read_student
from lantern_pl.serving.workers import Unpacked, end_with_parent

_ABOUT = """\
Two students of `lantern fit`: an encoder that classifies how well a candidate fits a job, and a decoder that explains it.

Every answer has an `X-Request-ID`: yours, if you send a plain one. Every error is
`{"error": {"type", "message", "request_id"}}`; where trying again is worth it, `Retry-After` says when.
"""
_STATUSES = {
    400: "The body isn't JSON in UTF-8.",
    401: "A key is missing or wrong.",
    408: "The body didn't come in time.",
    413: "The body, or the list of pairs, is too large.",
    415: "The body isn't declared as JSON.",
    422: "A field is missing, unknown or of the wrong type; a text is blank, too long, or no text.",
    429: "More pairs or requests than this client may send now.",
    500: "A failure here.",
    501: "The model of this route isn't served.",
    503: "Too many pairs or requests are waiting, or the server of the decoder gives no answer.",
    504: "No answer in time.",
}


class Server(LitServer):
    """LitServe's server, of which the listening sockets are known: the processes that don't answer hold them too, so that
    clients would go on to connect to a service that is ending, and wait. Its workers' messages may hold many answers."""

    listening: Sequence[socket.socket] = ()
    _transport: MessageTransport

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        transport, self._transport = self._transport, Unpacked(self._transport)
        async with super().lifespan(app):
            self._transport = transport  # workers get it as it is
            yield

    def _start_server(self, port: int, count: int, log_level: str, sockets: Any, kind: str, **more: Any) -> Any:
        self.listening = sockets
        return super()._start_server(port, count, log_level, sockets, kind, **more)

    def refuse_connections(self) -> None:
        for sock in self.listening:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def make_server(config: ServeConfig) -> Server:
    """A server that is ready to run. Raises UserError where a student's folder can't be served."""
    encoder = read_student(config.encoder, "encoder", config.encoder_format) if config.encoder else None
    decoder = read_student(config.decoder, "decoder") if config.decoder else None
    workers: list[LitAPI] = []
    if encoder is not None:
        workers.append(
            EncoderWorker(encoder.folder, config.encoder_format, config.threads, config.max_batch_size, config.batch_timeout)
        )
    if decoder is not None:
        workers.append(_decoder_worker(decoder, config))
    metrics = Metrics(config.variant)
    rate = RateLimit(config.rate, config.burst) if config.rate is not None else None
    server = Server(
        workers,
        accelerator=config.device,
        workers_per_device=config.workers_per_device,
        timeout=config.timeout,
        restart_workers=True,
        # The last is the outermost.
        middlewares=[
            (
                Admission,
                {
                    "keys": config.api_keys(),
                    "rate": rate,
                    "in_hand": InHand(config.max_requests, config.max_client_requests),
                    "max_body_bytes": config.max_body_bytes,
                    "body_timeout": config.body_timeout,
                },
            ),
            (Reception, {"metrics": metrics, "variant": config.variant}),
        ],
    )
    lines = {
        worker.api_path: Line(
            server,
            worker.api_path,
            waiting,
            config.timeout,
            group=_group(server, worker, config),
        )
        for worker in workers
        for waiting in [config.max_waiting if worker.api_path == "/fit" else config.max_waiting_explain]
    }
    for route, line in lines.items():
        metrics.waiting.labels(route).set_function(lambda line=line: line.waiting)
    routes = Routes(
        config,
        metrics,
        rate,
        (encoder, lines["/fit"]) if encoder else None,
        (decoder, lines["/explain"]) if decoder else None,
    )
    _register(server, routes, metrics, config, encoder, decoder)
    return server


def _group(server: Server, worker: LitAPI, config: ServeConfig) -> int:
    """How many questions go in one message. Of several workers, each takes one by one what the others leave."""
    alone = len(server._inference_workers_config_for_api(worker.api_path)) == 1
    return config.max_batch_size if alone and isinstance(worker, EncoderWorker) else 1


def _decoder_worker(decoder: Student, config: ServeConfig) -> LitAPI:
    if config.decoder_url is None or config.decoder_model is None:
        return DecoderWorker(decoder.folder, decoder.task, config.max_new_tokens, config.threads)
    return ServedDecoderWorker(config.decoder_url, config.decoder_model, config.decoder_key(), config.max_new_tokens)


def _register(
    server: Server,
    routes: Routes,
    metrics: Metrics,
    config: ServeConfig,
    encoder: Student | None,
    decoder: Student | None,
) -> None:
    """Put our routes in the place of LitServe's, which answer any error in their own form and wait without end."""
    app: FastAPI = server.app
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") in _KEPT]
    app.title, app.version, app.description = "lantern serve", __version__, _ABOUT
    app.router.redirect_slashes = False
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorOut, "description": about} for status, about in _STATUSES.items()
    }

    @app.post("/fit", responses={200: {"model": FitOut | FitsOut}, **errors}, summary="Classify the fit of pairs")
    async def fit(body: FitIn) -> Response:
        """One pair, or `{"pairs": [...]}`. Pairs of many requests go through the encoder together."""
        return await routes.fit(body)

    @app.post(
        "/explain",
        responses={200: {"model": ExplainOut, "content": {"text/event-stream": {"example": _EVENTS}}}, **errors},
        summary="Explain the fit of a pair",
    )
    async def explain(body: ExplainIn) -> Response:
        """An explanation, of which nothing leaves unchecked: the answer's form, and each quote in the texts.

        With `"stream": true` it comes as server-sent events: `level` where the decoder runs here, then a `sentence` at a
        time, then `answer` with all of it and its checks; `error` where it fails on the way.
        """
        return await routes.explain(body)

    def ready() -> bool:
        states = server.workers_setup_status
        return bool(states) and all(state == WorkerSetupStatus.READY for state in states.values())

    @app.get("/health", response_model=Health, responses={503: {"model": Health}}, summary="Whether all models are ready")
    async def health() -> Response:
        is_ready = ready()
        about = {
            "status": "ok" if is_ready else "loading",
            "variant": config.variant,
            "encoder": encoder and encoder.name,
            "decoder": decoder and decoder.name,
        }
        return JSONResponse(about, 200 if is_ready else 503)

    @app.get("/metrics", summary="Figures for Prometheus")
    async def metrics_page() -> Response:
        return Response(metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        return _typed(_HTTP.get(error.status_code, ServiceError(error.status_code, "bad_request", "Not understood.")))

    @app.exception_handler(RequestValidationError)
    async def of_validation(request: Request, error: RequestValidationError) -> Response:
        return _typed(ServiceError(422, "invalid", _first_fault(error)))

    original = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        end_with_parent(lambda: os._exit(1))
        async with original(app) as state:
            telling = asyncio.create_task(_tell_when_ready(server, config, encoder, decoder))
            _refuse_when_ending(server)
            try:
                yield state
            finally:
                telling.cancel()

    app.router.lifespan_context = lifespan


_KEPT = {"/openapi.json", "/docs", "/docs/oauth2-redirect"}
_EVENTS = (
    'event: level\ndata: {"level": "high", "level_probs": {"low": 0.1, "medium": 0.2, "high": 0.7}}\n\n'
    'event: sentence\ndata: {"text": "The candidate has \\"5 years in intensive care\\". ", "unfounded": false}\n\n'
    'event: answer\ndata: {"level": "high", "explanation": "...", "checks": {"quotes": 1, "quotes_found": 1}}\n\n'
)
_HTTP = {
    404: ServiceError(404, "not_found", "There is nothing at this path; GET /docs shows what there is."),
    405: ServiceError(405, "method_not_allowed", "This path knows another method; GET /docs shows which."),
}


def _typed(error: ServiceError) -> Response:
    about = current.get()
    about.error = error.type
    return error_response(error, about.id)


def _first_fault(error: RequestValidationError) -> str:
    """What is wrong with the body, by names of our own fields alone: pydantic's messages may quote."""
    fault = error.errors()[0]
    known = {"pairs", "job_text", "candidate_text", "pair_id", "stream"}
    place = ".".join(str(part) for part in fault["loc"] if part in known or isinstance(part, int)) or "the body"
    reasons = {
        "missing": "is missing",
        "extra_forbidden": "has a field that isn't known",
        "string_type": "isn't text",
        "string_unicode": "holds half of a surrogate pair",
        "string_too_long": "is too long",
        "too_short": "is empty",
        "bool_type": "isn't true or false",
        "list_type": "isn't a list",
    }
    return f"{place}: {reasons.get(fault['type'], 'is not an object of the expected form')}. GET /docs shows the form."


def _refuse_when_ending(server: Server) -> None:
    """Once uvicorn was told to end, what is in flight is answered, and new connections are refused."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        uvicorns = signal.getsignal(number)

        def end(number: int, frame: Any, uvicorns: Any = uvicorns) -> None:
            # uvicorn looks ten times a second whether it shall end; sooner, it would take its own socket for broken.
            loop.call_soon_threadsafe(loop.call_later, 0.5, server.refuse_connections)
            uvicorns(number, frame)

        signal.signal(number, end)


async def _tell_when_ready(server: Server, config: ServeConfig, encoder: Student | None, decoder: Student | None) -> None:
    """Say where the service is once all models are loaded; end it if one of them can't be."""
    while True:
        states = set(server.workers_setup_status.values())
        if WorkerSetupStatus.ERROR in states:
            print("lantern: a model can't be loaded; the reason is above. The service ends.", flush=True)
            server._shutdown_event.set()
            return
        if states == {WorkerSetupStatus.READY}:
            break
        await asyncio.sleep(0.1)
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(config.host, config.host)
    for route, student in (("/fit", encoder), ("/explain", decoder)):
        if student is not None:
            print(f"{route}: {student.folder} ({student.name})")
    print(
        f"Serving variant {config.variant!r} at http://{host}:{config.port}, described at /docs. Ctrl-C ends it.", flush=True
    )
