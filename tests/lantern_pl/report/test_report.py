"""The page of `lantern report`, written by the command and opened in Chromium."""

import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chain
import pytest
import report_files
from support import CHROMIUM, needs_browser

from lantern_pl.report.collect import read_runs
from lantern_pl.report.identities import Checker
from lantern_pl.report.provenance import trace


def write_run(folder: Path, kind: str = "decoder", seed: int = 0, right: int = 11, **changes: Any) -> Path:
    (folder / "student").mkdir(parents=True)
    (folder / "csv" / "version_0").mkdir(parents=True)
    (folder / "config.yaml").write_text("seed_everything: 0\nmodel: {api_key: sk-secret, model: smollm2}\n")
    manifest = {"format": 1, "kind": kind, "metrics": {"untrained": {"kl": 2.0}, "trained": {"kl": 0.5}}}
    (folder / "student" / "manifest.json").write_text(json.dumps(manifest))
    curve = "".join(f"{step},{2 / (step + 1)},\n" for step in range(5)) + "4,,0.5\n"
    (folder / "csv" / "version_0" / "metrics.csv").write_text(f"step,train/kl,val/kl\n{curve}")
    test = report_files.figures_of(kind, seed=seed, right=right) | changes
    (folder / "test.json").write_text(json.dumps(test))
    (folder / "audit.json").write_text(json.dumps(report_files.audited()))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs" / "one")


Lantern = Callable[..., Any]


def page_of(lantern: Lantern, *arguments: object) -> str:
    out = Path(str(arguments[-1]))
    result = lantern("report", *map(str, arguments[:-1]), "--out", str(out))
    assert result.code == 0, result.err
    return out.read_text(encoding="utf-8")


def browse(page: str, tmp_path: Path, *options: str) -> str:
    """The page's content as Chromium has it after it was loaded."""
    file = tmp_path / "browsed.html"
    file.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={tmp_path}/p",
         *options, file.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def test_a_page_has_all_parts(lantern: Lantern, run: Path, tmp_path: Path) -> None:
    page = page_of(lantern, run, tmp_path / "r.html")
    for part in ("of the teacher", "fine-tuned alone", "insufficient data", "year of birth", "ten years on the moon"):
        assert part in page, part
    assert page.count("<svg") >= 6
    shown = report_files.figures_of()["models"]["student"]["figures"]["rouge_l"]["value"]
    assert f"{100 * shown:.0f}" in page or f"{shown:.2f}" in page
    assert "sk-secret" not in page


def test_the_page_is_for_its_owner_alone(lantern: Lantern, run: Path, tmp_path: Path) -> None:
    page_of(lantern, run, tmp_path / "r.html")
    assert (tmp_path / "r.html").stat().st_mode & 0o077 == 0


def test_a_page_without_texts_has_none(lantern: Lantern, run: Path, tmp_path: Path) -> None:
    page = page_of(lantern, run, "--without_texts", tmp_path / "r.html")
    sample = json.loads((run / "test.json").read_text())["samples"][0]
    assert sample["job_text"][:30] not in page
    assert "ten years on the moon" not in page
    assert sample["job_text"][:30] in page_of(lantern, run, tmp_path / "with.html")


def test_nothing_is_fetched_and_nothing_runs(lantern: Lantern, run: Path, tmp_path: Path) -> None:
    page = page_of(lantern, run, tmp_path / "r.html")
    assert "<script" not in page
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)
    assert "url(" not in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


@needs_browser
def test_a_browser_shows_it(lantern: Lantern, run: Path, tmp_path: Path) -> None:
    page = page_of(lantern, run, tmp_path / "r.html")
    shown = browse(page, tmp_path, "--dump-dom")
    assert "of the teacher" in shown
    picture = tmp_path / "page.png"
    browse(page, tmp_path, f"--screenshot={picture}", "--window-size=1200,2000")
    from PIL import Image

    colors = Image.open(picture).convert("RGB").getcolors(1 << 24)
    assert colors is not None
    assert len(colors) > 50  # the style sheet and the charts are there: the policy lets them in


@needs_browser
def test_texts_of_strangers_stay_texts(lantern: Lantern, tmp_path: Path) -> None:
    attack = report_files.ATTACK
    sample = dict.fromkeys(("pair_id", "job_text", "candidate_text"), attack)
    answers = {"annotation": {"level": attack, "explanation": attack}, "answers": {"student": attack, attack: attack}}
    run = write_run(tmp_path / "runs" / "hostile", samples=[sample | answers], data={"path": attack, "sha256": attack})
    page = page_of(lantern, run, "--title", attack, tmp_path / "r.html")
    assert "<img" not in page
    assert "{{7*7}}" in page  # not 49: texts are no templates
    shown = browse(page, tmp_path, "--dump-dom")
    assert "<title>owned" not in shown


def test_several_runs_side_by_side(lantern: Lantern, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "runs" / name, seed=at, right=9 + at) for at, name in enumerate(("red", "green", "blue"))]
    page = page_of(lantern, *runs, tmp_path / "r.html")
    for name in ("red", "green", "blue"):
        assert page.count(name) > 2


@pytest.fixture
def whole_way(run: Path, tmp_path: Path) -> Path:
    """The run, with all that its student came from, which is beside it."""
    chain.write_chain(tmp_path / "way", run)
    return run


def edges_of(run: Path) -> dict[tuple[str, str, str], str]:
    """(source, relation, target) -> whether it is still the same."""
    found = trace(read_runs([run]), [], Checker())
    titles = {key: node.title for key, node in found.nodes.items()}
    return {(titles[edge.source], edge.relation, titles[edge.target]): edge.state for edge in found.edges}


def test_a_student_is_followed_back_to_the_first_pairs(whole_way: Path, tmp_path: Path) -> None:
    assert edges_of(whole_way) == {
        ("base/pairs.jsonl", "of", "way/labels"): "same",
        ("rubric", "labels", "way/labels"): "unchecked",
        ("way/labels", "reviewed", "labels/seed.jsonl"): "same",
        ("labels/seed.jsonl", "trains", "teacher"): "same",
        ("embedded:smollm2-135m", "starts from", "teacher"): "same",
        ("labels/seed.jsonl", "trains", "one"): "same",
        ("teacher", "teaches", "one"): "same",
        ("embedded:smollm2-135m", "starts from", "one"): "same",
    }


@pytest.mark.parametrize(
    ("changed", "edge"),
    [
        ("base/pairs.jsonl", ("base/pairs.jsonl", "of", "way/labels")),
        ("labels/labels.parquet", ("way/labels", "reviewed", "labels/seed.jsonl")),
        ("labels/seed.jsonl", ("labels/seed.jsonl", "trains", "one")),
        ("teacher/student/model.safetensors", ("teacher", "teaches", "one")),
    ],
)
def test_what_was_changed_since_is_said_to_be(
    lantern: Lantern, whole_way: Path, tmp_path: Path, changed: str, edge: tuple[str, str, str]
) -> None:
    path = tmp_path / "way" / changed
    with path.open("r+b") as file:
        if path.suffix == ".jsonl":
            rows = path.read_bytes().splitlines(keepends=True)
            file.truncate(0)
            file.write(b"".join(rows[:150]))
        else:
            file.write(b"x")
    assert edges_of(whole_way)[edge] == "changed"
    result = lantern("report", str(whole_way), "--out", str(tmp_path / "r.html"))
    assert result.code == 0
    assert f"{edge[0]} → {edge[2]}: " in result.err


def test_a_report_of_the_whole_way_with_models_of_full_size_takes_seconds(
    lantern: Lantern, whole_way: Path, tmp_path: Path
) -> None:
    began = time.process_time()
    page = page_of(lantern, whole_way, tmp_path / "r.html")
    assert time.process_time() - began < 10
    picture = re.search(r"What came from what: ([^\"]*)", page)
    assert picture
    assert "one (student) from embedded:smollm2-135m, teacher, labels/seed.jsonl" in picture[1]
    assert "way/labels (labels) from rubric, base/pairs.jsonl" in picture[1]
    shown = browse(page, tmp_path, "--dump-dom")
    drawn = shown.partition('class="provenance"')[2].partition("</svg>")[0]
    assert drawn.count("<rect") == 2 * 7  # a box and its stripe for each
    assert drawn.count('class="edge same"') == 7
    assert drawn.count('class="edge unchecked"') == 1
    for kind in ("pairs", "labels", "reviewed seed", "student", "teacher", "model"):
        assert f">{kind}</text>" in drawn


@pytest.mark.parametrize("name", ["test.json", "audit.json", "student/manifest.json"])
def test_a_damaged_file_is_named_and_the_rest_is_shown(lantern: Lantern, run: Path, tmp_path: Path, name: str) -> None:
    (run / name).write_text('{"format": 1, "cut o')
    result = lantern("report", str(run), "--out", str(tmp_path / "r.html"))
    assert result.code == 0
    assert Path(name).name in result.err
    assert (tmp_path / "r.html").read_text().count("<svg") > 0


def test_a_run_that_was_not_tested_says_how(lantern: Lantern, run: Path, tmp_path: Path) -> None:
    (run / "test.json").unlink()
    (run / "audit.json").unlink()
    page = page_of(lantern, run, tmp_path / "r.html")
    for command in ("lantern test --config", "lantern audit --config", "lantern export"):
        assert command in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "isn't a folder"),
        (["."], "holds no run"),
        (["runs/one", "runs/one"], "given twice"),
        (["runs/one/student"], "give the run itself"),
        (["runs/one", "--max_samples", "-1"], "give 0 or more"),
        (["runs/one", "--out", "not/there/r.html"], "give a file in a folder that is there"),
        (["runs/one", "--compare", "none.json"], "none.json"),
    ],
)
def test_mistakes_are_named(
    lantern: Lantern, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = lantern("report", *arguments)
    assert result.code != 0
    assert message in result.err
