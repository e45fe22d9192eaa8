"""The review page, in a real Chromium."""

import contextlib
import http.client
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from review_labels import GOOD, decision, labelled, write_labels
from support import CHROMEDRIVER, CHROMIUM, Ran, needs_browser

from lantern_pl.errors import UserError
from lantern_pl.labelling.review.labelled import LabelledPair, Requirement, read_labels
from lantern_pl.labelling.review.session import Session
from lantern_pl.labelling.store import LabelStore

pytestmark = needs_browser

ATTACK = (
    "<img src=x onerror='document.title=1'><script>document.title=2</script>${document.title=3}{{document.title}}@children"
)
LONG = "Wrote services in Python and looked after them for years. " * 120

PAIRS = [
    labelled("p1", confidence=0.1),
    labelled("p2", confidence=0.2),
    labelled("p3", confidence=0.3),
    labelled(
        "p4",
        confidence=0.4,
        job_text=ATTACK,
        candidate_text=f"{ATTACK} five years of Python. {LONG}",
        explanation=ATTACK,
        requirements=[Requirement(ATTACK, ATTACK, "met", ATTACK)],
        flags=[ATTACK],
    ),
    labelled(
        "p5",
        confidence=0.5,
        job_text=LONG,
        candidate_text=f"{LONG}At the end: Kafka.",
        explanation=LONG,
        requirements=[
            *(Requirement(LONG[:150], "must", "met", LONG[:50]) for _ in range(20)),
            Requirement("Kafka", "nice", "partly", "Kafka"),
        ],
    ),
]
WITH_EQUAL_VOTES = [LabelledPair(**{**vars(pair), "votes": None}) for pair in PAIRS]


class Browser:
    """A tab on the page, used as a person does: by keys, waiting for what should come."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        driver.get(url)
        self.wait(lambda: self.pair() is not None, 30)

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def pair(self) -> str | None:
        """The pair on the screen; "" at the end."""
        return self.run("const r = document.querySelector('.review'); return r && (r.dataset.pair || '')")

    def wait(self, holds: Callable[[], Any], seconds: float = 10) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"waited {seconds} s in vain, at pair {self.pair()!r}"
            time.sleep(0.02)

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def look(self) -> None:
        """As long as the page thinks that a look at a pair takes at least."""
        time.sleep(0.4)

    def decide(self, key: str, then: str) -> None:
        self.look()
        self.press(key)
        self.wait(lambda: self.pair() == then)

    def go(self, key: str, then: str) -> None:
        self.press(key)
        self.wait(lambda: self.pair() == then)

    def chosen(self) -> str | None:
        return self.run("return document.querySelector('#level input:checked')?.value")

    def explanation(self) -> str:
        return self.run("return document.querySelector('#explanation textarea').value")

    def focused(self) -> str:
        return self.run("return document.activeElement.tagName")


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    size = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    yield driver
    driver.quit()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_labels(tmp_path / "labels", WITH_EQUAL_VOTES)


@pytest.fixture
def serve(folder: Path) -> Iterator[Callable[[str], str]]:
    """Serves the page for a reviewer, with the decisions that are in the store; returns its address."""
    from lantern_pl.labelling.review.page import open_page

    opened: list[Callable[[], None]] = []

    def start(reviewer: str) -> str:
        store = LabelStore(folder, create=False)
        page = open_page(Session(read_labels(folder), store, reviewer))
        opened.extend([lambda: page.close(verbose=False), store.close])
        return str(page.local_url)

    yield start
    for close in opened:
        close()


def test_a_review_by_keyboard(driver: Any, serve: Callable[[str], str], folder: Path) -> None:
    tab = Browser(driver, serve("ann"))
    assert tab.pair() == "p1"
    tab.wait(lambda: tab.chosen() == "medium" and tab.explanation() == GOOD.explanation)

    # Accepted as it is; a second press in haste decides nothing that wasn't seen.
    tab.look()
    tab.press("a", "a", "r")
    tab.wait(lambda: tab.pair() == "p2")
    time.sleep(0.2)
    assert tab.pair() == "p2"

    # Edited: another level, and words that hold all the keys.
    tab.press("3")
    tab.wait(lambda: tab.chosen() == "high")
    accept = "return getComputedStyle(document.querySelector('#accept'), '::after').content"
    tab.wait(lambda: "as edited" in tab.run(accept))
    tab.press("e")
    tab.wait(lambda: tab.focused() == "TEXTAREA")
    tab.press(" parneme 12")
    assert tab.pair() == "p2"
    assert tab.explanation() == f"{GOOD.explanation} parneme 12"
    from selenium.webdriver.common.keys import Keys

    tab.press(Keys.ESCAPE)
    tab.wait(lambda: tab.focused() != "TEXTAREA")
    tab.decide("a", "p3")
    tab.wait(lambda: tab.chosen() == "medium" and tab.explanation() == GOOD.explanation)

    # Next and back change nothing, and show what was said.
    tab.go("n", "p4")
    tab.go("p", "p3")
    tab.go("p", "p2")
    tab.wait(lambda: tab.chosen() == "high" and tab.explanation().endswith("parneme 12"))
    assert "You: edited as high" in tab.run("return document.querySelector('.own').textContent")
    tab.go("n", "p3")

    # Rejected with a note, and Ctrl+Enter from within the explanation.
    tab.press("m")
    tab.wait(lambda: tab.focused() in ("INPUT", "TEXTAREA"))
    tab.press("no reason given", Keys.ESCAPE)
    tab.decide("r", "p4")
    tab.go("n", "p5")
    tab.press("e")
    tab.wait(lambda: tab.focused() == "TEXTAREA")
    tab.look()
    from selenium.webdriver import ActionChains

    ActionChains(driver).send_keys("More.").key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()
    tab.wait(lambda: tab.pair() == "p4")
    tab.decide("r", "")
    assert "All decided" in tab.run("return document.querySelector('.review').textContent")
    tab.go("p", "p5")

    made = session_decisions(folder)
    assert [(said.pair_id, said.verdict, said.level) for said in made] == [
        ("p1", "accept", "medium"),
        ("p2", "edit", "high"),
        ("p3", "reject", None),
        ("p5", "edit", "medium"),
        ("p4", "reject", None),
    ]
    assert made[1].explanation == f"{GOOD.explanation} parneme 12"
    assert made[2].note == "no reason given"
    assert made[3].explanation == f"{LONG}More."
    assert all(said.reviewer == "ann" and said.rule is None for said in made)


def session_decisions(folder: Path) -> list[Any]:
    """What is in the store's file while the page has it."""
    import sqlite3

    from lantern_pl.labelling.store import Decision

    with sqlite3.connect(f"file:{folder / 'store.sqlite'}?mode=ro", uri=True) as connection:
        columns = ", ".join(Decision.__dataclass_fields__)
        return [Decision(*row) for row in connection.execute(f"SELECT {columns} FROM decisions ORDER BY id")]


def test_what_is_seen(driver: Any, serve: Callable[[str], str]) -> None:
    tab = Browser(driver, serve("ann"))
    # Nothing comes from another machine.
    origin = tab.run("return location.origin")
    requests = tab.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in requests if not name.startswith((origin, "data:"))] == []

    # Quotes are marked in the colour of their verdict.
    marks = "return [...document.querySelectorAll('.candidate mark')].map(mark => [mark.className, mark.innerText])"
    assert tab.run(marks) == [["met", "1five years\nof Python"]]
    colour = "return getComputedStyle(document.querySelector('{}')).{}"
    assert tab.run(colour.format("mark.met", "backgroundColor")) not in ("rgba(0, 0, 0, 0)", "rgb(255, 255, 255)")
    assert tab.run(colour.format("li.met", "borderLeftColor")) != tab.run(colour.format("li.unmet", "borderLeftColor"))

    # A text stays text.
    for then in ("p2", "p3", "p4"):
        tab.go("n", then)
    assert tab.run("return document.title") == "Review: ann"
    assert tab.run("return document.querySelectorAll('.review img, .review script').length") == 0
    for pane, count in (("job", 1), ("candidate", 1), ("requirements", 3)):
        assert tab.run(f"return document.querySelector('.pane.{pane}').textContent").count(ATTACK) == count
    tab.wait(lambda: tab.explanation() == ATTACK)

    # Long texts scroll in their panes, and the page doesn't.
    tab.go("n", "p5")
    panes = "[...document.querySelectorAll('.review .scroll')]"
    assert tab.run(f"return {panes}.map(pane => getComputedStyle(pane).overflowY)") == ["auto"] * 3
    assert tab.run(f"return {panes}.map(pane => pane.scrollHeight > pane.clientHeight + 1)") == [True, True, True]
    assert tab.run("return [innerWidth, innerHeight]") == [1280, 800]
    assert tab.run("return [document.documentElement.scrollWidth, document.body.scrollHeight]") == [1280, 800]
    for part in ("#accept", "#reject", "#previous", "#next", "#explanation", "#note", "#level", ".panes"):
        box = tab.run(f"return document.querySelector('{part}').getBoundingClientRect().toJSON()")
        assert 0 <= box["top"] < box["bottom"] <= 800, part
        assert 0 <= box["left"] < box["right"] <= 1280, part
        assert box["height"] >= 20, part

    # A requirement leads to its quote; the next pair begins at the top.
    tab.run("document.querySelector('li[data-quote=\"21\"]').click()")
    top = "return document.querySelector('.candidate .scroll').scrollTop"
    tab.wait(lambda: tab.run(top) > 500)
    tab.go("p", "p4")
    assert tab.run(top) == 0
    assert kept(driver) == []


def kept(driver: Any) -> list[str]:
    """The databases in which the browser keeps something of the page."""
    return driver.execute_async_script(
        "const done = arguments[0]; indexedDB.databases().then(found => done(found.map(database => database.name)))"
    )


def test_a_disagreement_comes_back_flagged_and_a_reload_goes_on(
    driver: Any, serve: Callable[[str], str], folder: Path
) -> None:
    with LabelStore(folder) as store:
        for name in ("p2", "p3", "p4", "p5"):
            store.decide(decision(name, "ann", "accept", "medium", 1), decision(name, "ben", "accept", "medium", 2))
        store.decide(decision("p3", "ben", "edit", "high", 3, note="senior"))
    url = serve("ann")
    tab = Browser(driver, url)
    assert tab.pair() == "p3"
    assert "ben: edited as high (“senior”)" in tab.run("return document.querySelector('.other').textContent")
    tab.decide("a", "p1")
    assert tab.run("return document.querySelector('.count').textContent") == "4 of 5 decided"
    tab = Browser(driver, url)
    assert tab.pair() == "p1"
    tab.decide("r", "")


def test_the_page_is_for_this_machine_alone(serve: Callable[[str], str]) -> None:
    host, port = serve("ann").removeprefix("http://").rstrip("/").split(":")
    assert host == "127.0.0.1"

    def status(method: str, path: str, **headers: str) -> int:
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        connection.request(method, path, headers=headers)
        return connection.getresponse().status

    assert status("GET", "/") == 200
    # A name of somebody else's that leads here.
    assert status("GET", "/", Host="attacker.example") == 400
    assert status("GET", "/config", Host="attacker.example") == 400


def test_a_taken_port_is_named(folder: Path, serve: Callable[[str], str]) -> None:
    from lantern_pl.labelling.review.page import open_page

    port = int(serve("ann").rstrip("/").rsplit(":", 1)[1])
    session = Session(read_labels(folder), _Nothing(), "ben")
    with pytest.raises(UserError, match=f"port {port} .* is taken"):
        open_page(session, port)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_command_serves_until_it_is_ended_and_writes_the_seed(
    lantern: Callable[..., Ran], folder: Path, number: signal.Signals, code: int
) -> None:
    with LabelStore(folder) as store:
        store.decide(decision("p1", "ann", "accept", "medium"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = signal.getsignal(number)  # a job in the background ignores SIGINT
    seen: list[str] = []

    def look_and_end() -> None:
        while not seen:
            time.sleep(0.1)
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                connection.request("GET", "/")
                seen.append(connection.getresponse().read().decode())
        time.sleep(1)  # until the command waits for its end
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=look_and_end, daemon=True)
    thread.start()
    ran = lantern("review", "--labels", folder, "--reviewer", "ann", "--port", port)
    thread.join()
    assert ran.code == code, ran.err
    assert "Review: ann" in seen[0]
    assert f"http://127.0.0.1:{port}/" in ran.out
    assert "Seed: 1 pairs" in ran.out
    assert signal.getsignal(number) == before
    with LabelStore(folder, create=False):  # it is let go of
        pass


class _Nothing:
    def decide(self, *decisions: Any) -> None: ...

    def decisions(self) -> list[Any]:
        return []
