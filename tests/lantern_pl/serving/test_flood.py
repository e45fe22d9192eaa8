"""More than the service can take: who sends too much is told so, in the form of every error, and the others are answered."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
from serving_support import PAIR, Service, check_error, running

from lantern_pl.errors import UserError
from lantern_pl.serving.config import ServeConfig

FIRST, SECOND, THIRD = ({"x-api-key": name} for name in ("first", "second", "third"))


@pytest.fixture(scope="module")
def crowded(students: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Room for twelve requests, of which a client may have six, and for four pairs that wait; a batch waits for two
    seconds."""
    options = {
        "encoder": students["encoder"],
        "max_requests": 12,
        "max_client_requests": 6,
        "max_waiting": 4,
        "max_pairs": 4,
        "batch_timeout": 2,
        "timeout": 15,
        "api_key_env": "KEYS",
        "threads": 1,
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    with running(tmp_path_factory.mktemp("log") / "crowded.log", *arguments, KEYS="first,second,third") as service:
        yield service


@contextmanager
def six_in_hand(service: Service, key: dict[str, str]) -> Iterator[None]:
    """Six requests of one client whose bodies don't end."""
    head = f"POST /fit HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-api-key: {key['x-api-key']}\r\n"
    with ExitStack() as open_:
        for _ in range(6):
            connection = open_.enter_context(socket.create_connection(("127.0.0.1", service.port)))
            connection.sendall(head.encode() + b"content-length: 100\r\n\r\n{")
        end = time.monotonic() + 8
        while service.post("/fit", headers=key, content=b"").status_code != 429:
            assert time.monotonic() < end
        yield


def test_a_client_with_too_many_requests_in_hand_is_told_so_and_others_have_room(crowded: Service) -> None:
    with six_in_hand(crowded, FIRST):
        refused = crowded.post("/fit", PAIR, headers=FIRST)
        assert "6 requests in hand" in check_error(refused, 429)
        assert int(refused.headers["retry-after"]) >= 1
        assert crowded.post("/fit", PAIR, headers=SECOND).status_code == 200
        with six_in_hand(crowded, SECOND):
            refused = crowded.post("/fit", PAIR, headers=THIRD)
            assert "12 requests are in hand" in check_error(refused, 503)
            assert refused.json()["error"]["type"] == "overloaded"
            assert crowded.line_of(refused.headers["x-request-id"])["error"] == "overloaded"
            assert crowded.get("/health").status_code == 200
            assert crowded.figure_of(THIRD, "lantern_requests_total", status="429") > 0
    for key in (FIRST, SECOND, THIRD):
        assert crowded.post("/fit", PAIR, headers=key).status_code == 200


def test_more_pairs_than_may_wait_are_told_so(crowded: Service) -> None:
    with ThreadPoolExecutor(1) as client:
        waits = client.submit(crowded.post, "/fit", PAIR, headers=FIRST)
        end = time.monotonic() + 5
        while not crowded.figure_of(SECOND, "lantern_waiting_pairs", route="/fit"):
            assert time.monotonic() < end
        refused = crowded.post("/fit", {"pairs": [PAIR] * 4}, headers=SECOND)
        assert "1 pairs are waiting, of 4" in check_error(refused, 503)
        assert waits.result().status_code == 200
    assert crowded.post("/fit", {"pairs": [PAIR] * 4}, headers=SECOND).status_code == 200


def test_every_answer_to_a_flood_is_typed(crowded: Service) -> None:
    body = json.dumps(PAIR).encode()
    kind = {"content-type": "application/json"}
    with ThreadPoolExecutor(20) as clients:
        sent = [clients.submit(crowded.post, "/fit", content=body, headers=FIRST | kind) for _ in range(200)]
    answers = [one.result() for one in sent]
    statuses = {answer.status_code for answer in answers}
    assert 200 in statuses
    assert {429, 503} & statuses
    assert statuses <= {200, 429, 503}
    for answer in answers:
        if answer.status_code != 200:
            check_error(answer, answer.status_code)
    assert crowded.post("/fit", PAIR, headers=SECOND).status_code == 200


def test_a_worker_that_dies_is_replaced(crowded: Service) -> None:
    """Its pairs are in hand for the two seconds that the batch waits: their clients are told, and others are answered."""
    import psutil

    def workers() -> list[psutil.Process]:
        family = psutil.Process(crowded.process.pid).children(recursive=True)
        return [one for one in family if any("spawn_main" in word for word in one.cmdline())]

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(crowded.post, "/fit", PAIR, headers=FIRST) for _ in range(3)]
        time.sleep(1)
        began = time.monotonic()
        (worker,) = workers()
        worker.kill()
        for answer in asked:
            check_error(answer.result(), 504)
    assert time.monotonic() - began < 20
    answer = crowded.post("/fit", PAIR, headers=FIRST)
    assert answer.status_code == 200, answer.text
    assert workers() != [worker]


@pytest.mark.parametrize("key", ["burst", "max_waiting"])
def test_a_request_that_could_never_pass_is_refused_in_the_config(key: str) -> None:
    with pytest.raises(UserError, match=f"max_pairs is 20, but {key} is 10"):
        ServeConfig(encoder="student", rate=1.0, max_pairs=20, **{key: 10})
    ServeConfig(encoder="student", rate=1.0, max_pairs=10, **{key: 10})
    ServeConfig(encoder="student", max_pairs=20, burst=10)  # which counts only where there's a rate
