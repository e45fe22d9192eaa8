"""`lantern serve`: students over HTTP until Ctrl-C or SIGTERM."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from types import FrameType

import jsonargparse

from lantern_pl.config_errors import explain_all
from lantern_pl.config_parser import HOW_TO_ALLOW, ConfigParser, restrict_imports
from lantern_pl.errors import UserError
from lantern_pl.serving.config import ServeConfig

USAGE = "lantern serve --encoder FOLDER --decoder FOLDER [--config FILE] [--KEY VALUE ...]"


def serve_command(argv: list[str]) -> int:
    """Run `lantern serve ...`; `argv` is what follows `serve`. Raises UserError, and SystemExit after help.

    Returns 128 and the number of the signal that has ended it: 130 after Ctrl-C, 143 after SIGTERM; 1 where it ended
    otherwise.
    """
    config = _read_config(argv)
    if config.host != "127.0.0.1" and config.api_key_env is None:
        print(
            f"lantern: warning: {config.host} can be reached from other machines, and everybody there may ask: "
            "give --api_key_env NAME, or put the service behind one that asks who comes.",
            file=sys.stderr,
        )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from lantern_pl.serving.connection import guarded
        from lantern_pl.serving.service import make_server
    except ImportError as error:
        raise UserError(f'lantern serve needs {error.name}: pip install "lantern-pl[serve]"') from error
    from lantern_pl.model_files import quiet_transformers

    quiet_transformers()
    server = make_server(config)
    server.uvicorn_graceful_timeout = int(config.timeout) + 1
    _check_port(config)
    ended = _end_by_signals()
    print("Loading the models.", flush=True)
    try:
        server.run(
            host=config.host,
            port=config.port,
            num_api_servers=1,
            generate_client_file=False,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=config.trust_proxy,
            forwarded_allow_ips="127.0.0.1",
            # Its answer has neither a type nor an id: what it refuses is beyond what ours answers.
            limit_concurrency=2 * config.max_requests,
            http=guarded(config.body_timeout),
            ws="none",
        )
    except KeyboardInterrupt:
        pass  # it came before LitServe was ready to hear it
    except RuntimeError as error:
        print(f"lantern: {error}", file=sys.stderr)
    finally:
        _end_children()
    return 128 + ended[0] if ended else 1


def _read_config(argv: Sequence[str]) -> ServeConfig:
    parser = ConfigParser(prog="lantern serve", usage=USAGE, description=ServeConfig.__doc__)
    restrict_imports()
    parser.add_argument("--config", action=jsonargparse.ActionConfigFile, help="YAML with the keys below")
    parser.add_class_arguments(ServeConfig)
    with explain_all(HOW_TO_ALLOW):
        made = parser.instantiate(parser.parse_args(list(argv)))
    return ServeConfig(**{key.name: made[key.name] for key in fields(ServeConfig)})


def _check_port(config: ServeConfig) -> None:
    """Raise UserError where another process listens; uvicorn would end this one without a word of ours."""
    import socket

    family = socket.AF_INET6 if config.host == "::" else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise UserError(
                f"can't listen at {config.host}:{config.port}: {error.strerror}. Give another --port."
            ) from error


def _end_by_signals() -> list[int]:
    """Let the first Ctrl-C or SIGTERM end the service when all that is in flight is answered, and a second one at once.
    Returns where the first signal's number will be."""
    main = os.getpid()
    ended: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != main:  # LitServe forks the process that answers; uvicorn sends it its signal again at its end
            os._exit(0)
        if ended:
            _end_children()
            os._exit(128 + number)
        ended.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    return ended


def _end_children() -> None:
    for child in multiprocessing.active_children():
        child.kill()
