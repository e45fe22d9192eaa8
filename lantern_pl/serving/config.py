"""What `lantern serve` can be told."""

import os
from dataclasses import dataclass
from typing import Literal

from lantern_pl.errors import UserError

EncoderFormat = Literal["torch", "onnx", "int8"]
OnUnfounded = Literal["drop", "mark", "refuse"]


@dataclass
class ServeConfig:
    """Answer over HTTP with a pair of students: /fit by the encoder, /explain by the decoder."""

    encoder: str | None = None
    """Folder of the encoder, such as runs/NAME/student or what `lantern export` wrote; null: /fit answers 501."""
    decoder: str | None = None
    """Folder of the decoder; null: /explain answers 501."""
    encoder_format: EncoderFormat = "torch"
    """What runs the encoder: torch, or the ONNX model of an exported folder in fp32 (onnx) or quantized (int8)."""
    decoder_url: str | None = None
    """An OpenAI-compatible server that runs the decoder in this process's place, such as http://127.0.0.1:8080/v1. The
    folder is needed all the same: it holds the task and the tokenizer."""
    decoder_model: str | None = None
    """Name of the model on that server."""
    decoder_key_env: str | None = None
    """Environment variable with the key of that server."""
    max_new_tokens: int = 96
    """Length limit of an explanation."""
    on_unfounded: OnUnfounded = "drop"
    """What becomes of a sentence that quotes what neither text says. drop: it's left out; mark: it's sent, marked; refuse:
    the whole explanation is withheld."""
    host: str = "127.0.0.1"
    """127.0.0.1 serves this machine alone, 0.0.0.0 all who can reach it, :: also by IPv6."""
    port: int = 8000
    """Where to listen, 1024 or above."""
    variant: str = "default"
    """Name of this variant in answers, logs and metrics, to tell the sides of an experiment apart."""
    api_key_env: str | None = None
    """Environment variable with the keys that clients must send, divided by commas; null asks for none."""
    rate: float | None = None
    """Pairs a second that each client may send on average, by its key or address; null sets no limit."""
    burst: int = 128
    """Pairs that a client may send at once where a rate is set."""
    trust_proxy: bool = False
    """Take a client's address from X-Forwarded-For, where the connection comes from this machine."""
    max_batch_size: int = 32
    """Pairs that go through the encoder together."""
    batch_timeout: float = 0.01
    """Seconds to wait for a batch to fill up once its first pair is there."""
    max_pairs: int = 64
    """Pairs in one request."""
    max_text_bytes: int = 65536
    """Size of a text in UTF-8."""
    max_body_bytes: int = 1048576
    """Size of a request's body."""
    body_timeout: float = 10.0
    """Seconds in which the head of a request, and then its body, must have come."""
    max_waiting: int = 512
    """Pairs that may wait for the encoder; more are answered 503."""
    max_waiting_explain: int = 16
    """Pairs that may wait for the decoder; more are answered 503."""
    max_requests: int = 500
    """Requests in hand at once; more are answered 503. Of connections there may be twice as many."""
    max_client_requests: int = 250
    """Requests of one client, by its key or address, in hand at once; more are answered 429, so that there is room for
    others."""
    timeout: float = 60.0
    """Seconds for an answer, from when the request is there to its last word."""
    workers_per_device: int = 1
    """Processes of each model on each device."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the models run; auto takes all GPUs if there are some."""
    threads: int = 0
    """CPU threads of each worker; 0 leaves it to torch or ONNX Runtime, which take all cores."""

    def __post_init__(self) -> None:
        if self.encoder is None and self.decoder is None:
            raise UserError("lantern serve needs a student: give --encoder FOLDER, --decoder FOLDER, or both.")
        if self.encoder_format != "torch" and self.encoder is None:
            raise UserError(f"encoder_format is {self.encoder_format!r}, but there is no encoder: give --encoder FOLDER.")
        if (self.decoder_url is None) != (self.decoder_model is None):
            raise UserError("decoder_url and decoder_model belong together: give both, or none.")
        if self.decoder_url is not None and self.decoder is None:
            raise UserError("decoder_url needs the decoder's folder too, for its task and tokenizer: give --decoder FOLDER.")
        if self.host not in ("127.0.0.1", "0.0.0.0", "::"):
            raise UserError(f"host is {self.host!r}: give 127.0.0.1, 0.0.0.0 or ::.")
        if not 1024 <= self.port <= 65535:
            raise UserError(f"port is {self.port}: give one from 1024 to 65535.")
        for name in ("max_new_tokens", "burst", "max_batch_size", "max_pairs", "max_text_bytes", "max_body_bytes"):
            self._check_positive(name)
        for name in ("body_timeout", "max_waiting", "max_waiting_explain", "max_requests", "timeout"):
            self._check_positive(name)
        self._check_positive("workers_per_device")
        self._check_positive("max_client_requests")
        if self.rate is not None:
            self._check_positive("rate")
            self._check_max_pairs("burst")
        self._check_max_pairs("max_waiting")
        if not 0 <= self.batch_timeout < self.timeout:
            raise UserError(f"batch_timeout is {self.batch_timeout}: give 0 or more seconds, less than timeout.")
        if self.threads < 0:
            raise UserError(f"threads is {self.threads}: give 0 for all cores, or how many.")
        if not (self.variant.isascii() and self.variant.replace("-", "").replace("_", "").replace(".", "").isalnum()):
            raise UserError(f"variant is {self.variant!r}: give a name of letters, digits, '-', '_' and '.'.")
        self.api_keys()
        self.decoder_key()

    def _check_positive(self, name: str) -> None:
        if not getattr(self, name) > 0:
            raise UserError(f"{name} is {getattr(self, name)}: give more than 0.")

    def _check_max_pairs(self, name: str) -> None:
        """A request that is let in must be able to pass, or its client would try again for ever."""
        if self.max_pairs > getattr(self, name):
            raise UserError(
                f"max_pairs is {self.max_pairs}, but {name} is {getattr(self, name)}, so that no request of so many pairs "
                f"could ever pass: give a smaller max_pairs or a larger {name}."
            )

    def api_keys(self) -> tuple[str, ...]:
        """The keys that clients may send; none where no key is asked for."""
        if self.api_key_env is None:
            return ()
        keys = tuple(key for key in (part.strip() for part in _variable("api_key_env", self.api_key_env).split(",")) if key)
        if not keys or not all(map(str.isascii, keys)):
            raise UserError(f"{self.api_key_env} (api_key_env) holds no key in ASCII: put one or several there.")
        return keys

    def decoder_key(self) -> str | None:
        """The key of the decoder's server."""
        return None if self.decoder_key_env is None else _variable("decoder_key_env", self.decoder_key_env)


def _variable(key: str, name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise UserError(f"{key} names the environment variable {name!r}, which is empty or not set: put the key there.")
    return value
