"""`lantern label` with litellm, through the plugin's own config: a server that fails, and a real one."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fault_server import FaultServer, completion, failure, http

from lantern_pl.cli import main
from lantern_pl.data.sample import make_pairs
from lantern_pl.labelling.store import LabelStore

CONFIG = Path(__file__).parent.parent / "configs" / "litellm.yaml"


def label(folder: Path, url: str, model: str, pairs: int, *more: str) -> int:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_pairs(pairs, seed=0)))
    return main(
        [
            "label", "--config", str(CONFIG), f"--labels={folder / 'labels'}", f"--pairs={path}",
            f"--teacher.init_args.model={model}", f"--teacher.init_args.base_url={url}", "--yes", *more,
        ]
    )  # fmt: skip


def answer_of(body: dict[str, Any]) -> dict[str, Any]:
    """A right answer to a stage, found by what its question shows."""
    asked = body["messages"][1]["content"]
    shown = dict(re.findall(r"<<<begin ([^>]+)>>>\n(.*?)\n<<<end \1>>>", asked, flags=re.DOTALL))
    if set(shown) == {"job"}:
        return {"requirements": [{"requirement": "Python", "kind": "must"}]}
    words = " ".join(shown["candidate"].split()[:2])
    if set(shown) == {"candidate"}:
        return {"facts": [{"fact": "what it begins with", "evidence": words}]}
    if "judge" in shown:
        return {"explanation": f"Has what is asked: '{words}'."}
    item = {"requirement": "Python", "verdict": "met", "evidence": words}
    return {"requirements": [item], "level": "high", "confidence": 0.9}


def test_a_server_that_fails_now_and_then_labels_all_pairs_and_is_paid_once(
    tmp_path: Path, server: FaultServer, no_waiting: list[float]
) -> None:
    def answer(body: dict[str, Any], number: int) -> bytes:
        if "response_format" in body and "colour" in json.dumps(body["response_format"]):
            return http(200, completion('{"colour": "amber"}'))
        faults = {3: failure(429, "Retry-After: 0"), 6: failure(500), 9: http(200, b"<html>"), 12: b""}
        if number in faults:
            return faults[number]
        text = "Let me think." if number == 5 else json.dumps(answer_of(body))
        return http(200, completion(text))

    server.usual = answer
    assert label(tmp_path, server.url, "openai/m", 6) == 0
    labels = pq.read_table(tmp_path / "labels" / "labels.parquet").to_pylist()
    assert [row["level"] for row in labels] == ["high"] * 6
    assert {row["teacher"] for row in labels} == {"litellm:openai/m"}
    report = json.loads((tmp_path / "labels" / "report.json").read_text())
    attempts: dict[str, int] = {}
    for stage in report["stages"].values():
        for outcome, count in stage["attempts"].items():
            attempts[outcome] = attempts.get(outcome, 0) + count
    assert attempts.pop("ok") == len(server.bodies) - 4
    assert {"http 429", "http 500", "unreadable"} < set(attempts)
    assert sum(attempts.values()) == 4
    assert sum(stage["repairs"] for stage in report["stages"].values()) == 1
    assert report["stages"]["getting ready"]["asked"] == 1
    cost = (30 * 0.15 + 12 * 0.6) / 1e6
    paid = sum(stage["cost"] for stage in report["stages"].values())
    assert paid == pytest.approx(cost * (len(server.bodies) - 4))

    before = len(server.bodies)
    assert label(tmp_path, server.url + "/", "openai/m", 6, "--teacher.init_args.max_new_tokens=9") == 0
    assert len(server.bodies) == before, "a finished run has asked something"


def test_a_budget_ends_a_run_whose_server_tells_no_tokens(tmp_path: Path, server: FaultServer) -> None:
    server.usual = lambda body, number: http(200, completion(json.dumps(answer_of(body)), usage=None))
    never = "--teacher.init_args.schema=never"
    assert label(tmp_path, server.url, "openai/m", 6, never, "--budget=0.012") == 3
    asked = len(server.bodies)
    assert 0 < asked < 30
    assert label(tmp_path, server.url, "openai/m", 6, never) == 0
    assert pq.read_table(tmp_path / "labels" / "labels.parquet").num_rows == 6


def test_a_wrong_key_is_said_and_kept_on_record(
    tmp_path: Path, server: FaultServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.usual = failure(401)
    assert label(tmp_path, server.url, "openai/m", 3, "--teacher.init_args.schema=never") == 2
    said = capsys.readouterr().err
    assert "doesn't accept the key" in said
    assert "QUOTED" not in said
    with LabelStore(tmp_path / "labels") as store:
        assert store.totals().attempts == {"http 401": len(server.bodies)}


@pytest.mark.timeout(900)
def test_a_real_server_answers_in_the_form_of_each_stage(tmp_path: Path, llama_server: str) -> None:
    """Its answers have structure and no wisdom: what isn't right is in quarantine, for a reason."""
    limits = ["--teacher.init_args.max_in_flight=2", "--teacher.init_args.price=null", "--repair_turns=0", "--limit=1"]
    code = label(tmp_path, llama_server, "openai/smollm2-135m", 2, *limits)
    assert code == 0
    report = json.loads((tmp_path / "labels" / "report.json").read_text())
    assert report["labelled"] + sum(report["without_label"].values()) == 1
    asked = [stage for name, stage in report["stages"].items() if name != "getting ready"]
    assert sum(stage["asked"] for stage in asked) >= 2
    assert sum(stage["attempts"].get("ok", 0) for stage in asked) >= 2
    with LabelStore(tmp_path / "labels") as store:
        rows = list(store.rows())
    assert all(row.raw and (row.state == "ok" or row.reason) for row in rows)
    # The server holds them to the schema: JSON, unless it ran out of tokens.
    assert all(row.finish_reason == "length" or isinstance(json.loads(row.raw), dict) for row in rows)
