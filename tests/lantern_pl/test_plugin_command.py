"""`lantern plugins`, `lantern completion`, and what a run says of a plugin that does wrong."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import Ran
from test_plugins import entry

from lantern_pl import plugins
from lantern_pl.completion import candidates
from lantern_pl.divergences import Divergence, PointwiseDivergence
from lantern_pl.errors import UserError
from lantern_pl.plugin_checks import check_divergence, check_teacher, checked_level_probs, checked_signal
from lantern_pl.plugin_command import listed
from lantern_pl.signals import Hidden, LevelProbs, Logits, OutputHead, TokenBatch, TopK
from lantern_pl.tasks import Task
from lantern_pl.teachers import Teacher

OWN = entry("kl", "lantern_pl.divergences.first_party:KL", "lantern-pl", "0.1.0")

# list


def test_all_claims_are_listed_with_their_state(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        OWN,
        entry("kl", "acme:KL"),
        entry("two", "acme:Two"),
        entry("two", "other:Two", "other-plugin"),
        entry("good", "lantern_pl.divergences.first_party:TVD"),
        entry("broken", "no_such_module:Broken"),
    ]
    states = {(row.name, row.distribution): row.state for row in listed("divergence", found)}
    assert states == {
        ("kl", "lantern-pl"): "installed",
        ("kl", "acme-plugin"): "shadowed",
        ("two", "acme-plugin"): "ambiguous",
        ("two", "other-plugin"): "ambiguous",
        ("good", "acme-plugin"): "installed",
        ("broken", "acme-plugin"): "installed",
    }
    checked = {(row.name, row.distribution): row for row in listed("divergence", found, check=True)}
    assert checked["good", "acme-plugin"].state == "ok"
    assert checked["broken", "acme-plugin"].state == "broken"
    assert "No module named 'no_such_module'" in str(checked["broken", "acme-plugin"].problem)
    monkeypatch.setenv("LANTERN_PLUGINS", "other_plugin")
    states = {(row.name, row.distribution): row.state for row in listed("divergence", found)}
    assert states["good", "acme-plugin"] == "off"
    assert states["two", "other-plugin"] == "installed", "the other claim is kept out"
    assert states["kl", "lantern-pl"] == "installed"


def test_the_json_is_what_the_documentation_says(lantern: Callable[..., Ran]) -> None:
    report = json.loads(lantern("plugins", "list", "--json").out)
    assert set(report) == {"lantern_api", "plugins"}
    assert report["lantern_api"] == 1
    rows = {row["alias"]: row for row in report["plugins"]}
    assert rows["lantern_pl.divergences.js"] == {
        "kind": "divergence",
        "name": "js",
        "alias": "lantern_pl.divergences.js",
        "distribution": "lantern-pl",
        "version": rows["lantern_pl.teachers.hf"]["version"],
        "value": "lantern_pl.divergences.first_party:JS",
        "state": "installed",
        "problem": None,
    }


def test_listing_imports_no_plugin_and_no_torch_and_takes_no_time() -> None:
    code = (
        "import sys; from lantern_pl.cli import main; code = main(['plugins', 'list'])\n"
        "loaded = [m for m in sys.modules if m.split('.')[0] in ('torch', 'transformers', 'jsonargparse')]\n"
        "assert not loaded, loaded\n"
        "assert not any(m.startswith(('lantern_pl.teachers', 'lantern_pl.divergences')) for m in sys.modules)\n"
        "sys.exit(code)"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
        assert ran.returncode == 0, ran.stderr
    assert "lantern_pl.divergences.reverse_kl" in ran.stdout
    # 0.15 s on a quiet machine, and torch alone takes over two; the limit is for a machine that does other things too.
    assert min(seconds) < 1.5


def test_check_says_which_is_broken_by_its_exit_code(
    lantern: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert lantern("plugins", "list", "--check").code == 0
    metadata = tmp_path / "acme_broken-0.3.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-broken\nVersion: 0.3\n")
    (metadata / "entry_points.txt").write_text("[lantern_pl.divergences]\nbroken = no_such_module:Broken\n")
    monkeypatch.syspath_prepend(tmp_path)
    plugins._installed.cache_clear()
    try:
        ran = lantern("plugins", "list", "--check")
    finally:
        plugins._installed.cache_clear()
    assert ran.code == 1
    assert "lantern_pl.divergences.broken (acme-broken 0.3): The divergence 'broken' from acme-broken 0.3" in ran.out


# show


def test_show_says_what_a_plugin_takes_and_can_do(lantern: Callable[..., Ran]) -> None:
    out = lantern("plugins", "show", "js").out
    for part in ("Jensen-Shannon", "beta (float; default: 0.5)", "the teacher's weight", "pointwise", "one launch", "0.693"):
        assert part in out
    out = lantern("plugins", "show", "lantern_pl.teachers.hf").out
    for part in (
        "model (str; required)",
        "annotate, level_probs, pair_hidden_states, score_tokens, token_hidden_states",
        "lantern_pl.teachers.local_model:HFTeacher",
    ):
        assert part in out
    ran = lantern("plugins", "show", "jss")
    assert (ran.code, "Did you mean 'js'?" in ran.err) == (2, True)


# new


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("divergence", "Le-Cam"), "'Le-Cam' can't name a plugin"),
        (("divergence", "le_"), "'le_' can't name a plugin"),
        (("teacher", "contract"), "'contract' is the name of a module"),
        (("teacher", "local_model"), "'local_model' is the name of a module"),
        (("divergence", "class"), "'class' can't name a plugin"),
        (("divergence", "kl"), "There is a divergence 'kl' already, of lantern-pl"),
        (("loss", "mine"), "invalid choice: 'loss'"),
    ],
)
def test_new_refuses_what_can_be_no_plugin(
    lantern: Callable[..., Ran], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    ran = lantern("plugins", "new", *arguments, "--out", tmp_path)
    assert ran.code == 2
    assert message in ran.err
    assert not list(tmp_path.iterdir())


def test_new_never_overwrites(lantern: Callable[..., Ran], tmp_path: Path) -> None:
    assert lantern("plugins", "new", "teacher", "mine", "--out", tmp_path).code == 0
    ran = lantern("plugins", "new", "teacher", "mine", "--out", tmp_path)
    assert (ran.code, "exists already" in ran.err) == (2, True)


# LANTERN_PLUGINS


@pytest.mark.parametrize(
    ("value", "loads"),
    [("auto", True), ("none", False), ("good", True), ("Acme_Plugin, x", True), ("other", False), ("", False)],
)
def test_a_restriction_is_by_plugin_or_distribution(monkeypatch: pytest.MonkeyPatch, value: str, loads: bool) -> None:
    monkeypatch.setenv("LANTERN_PLUGINS", value)
    found = [OWN, entry("good", "lantern_pl.divergences.first_party:TVD")]
    assert plugins.load("lantern_pl.divergences", "kl", found).__name__ == "KL"
    if loads:
        assert plugins.load("lantern_pl.divergences", "good", found).__name__ == "TVD"
    else:
        with pytest.raises(
            UserError, match=r"keeps out the divergence 'good' from acme-plugin 1.2 .*LANTERN_PLUGINS=acme-plugin"
        ):
            plugins.load("lantern_pl.divergences", "good", found)


# Completion


def test_completion_offers_commands_and_aliases() -> None:
    commands = ["fit", "plugins"]
    assert candidates(["f"], commands)[:2] == commands
    assert "lantern_pl.teachers.hf" in candidates(["fit", "--model.teacher", "lantern_pl.t"], commands)
    assert "js" in candidates(["plugins", "show", ""], commands)
    assert candidates(["plugins", "new", ""], commands) == ["divergence", "teacher"]
    assert candidates(["fit", "--config", ""], commands) == [], "files are the shell's to complete"


def test_the_script_works_in_bash() -> None:
    script = (
        'eval "$(lantern completion bash)"; COMP_WORDS=(lantern fit --model.teacher lantern_pl.teachers.rub); COMP_CWORD=3; '
        '_lantern; echo "${COMPREPLY[@]}"'
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert ran.stdout == "lantern_pl.teachers.rubric\n", ran.stderr


def test_help_names_the_installed_plugins(lantern: Callable[..., Ran]) -> None:
    out = lantern("fit", "--help").out
    assert "lantern_pl.divergences.reverse_kl" in out
    assert "lantern_pl.teachers.rubric" in out


# What a selected plugin does wrong, said before any training


class Bad(PointwiseDivergence):
    """Squared Hellinger distance, in several wrong ways."""

    name = "bad"

    def __init__(self, what: str) -> None:
        self.what = what
        self.upper_bound = 0.5 if what == "bound" else None

    def value_and_slope(self, log_p: Any, log_q: Any, p: Any, q: Any) -> Any:
        root_p, root_q = (log_p / 2).exp(), (log_q / 2).exp()
        value, slope = 0.5 * (root_p - root_q).square(), 0.5 * root_q * (root_q - root_p)
        if self.what == "raise":
            raise KeyError("no such thing")
        if self.what == "shape":
            return value.sum(-1), slope
        if self.what == "chi squared":
            return (p - q).square() / q, q - p.square() / q
        if self.what == "offset":
            return value + 1e-3, slope
        return (-value if self.what == "negative" else value), (-slope if self.what == "slope" else slope)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("raise", "KeyError: 'no such thing'"),
        ("shape", "gives a value or slope of shape [3]"),
        ("chi squared", "NaN or infinity"),
        ("negative", "none may be below 0"),
        ("offset", "for two equal distributions"),
        ("bound", "above its declared upper_bound of 0.5"),
        ("slope", "gradient that isn't its value's"),
    ],
)
def test_a_divergence_that_does_wrong_is_one_message(monkeypatch: pytest.MonkeyPatch, what: str, message: str) -> None:
    monkeypatch.setitem(plugins._loaded, "bad", (Bad, entry("bad", "acme:Bad")))
    check_divergence(Bad("nothing"))
    with pytest.raises(UserError) as error:
        check_divergence(Bad(what))
    for part in ("'bad' from acme-plugin 1.2 (acme:Bad)", message, "Update or uninstall"):
        assert part in str(error.value)


@pytest.mark.parametrize("alias", sorted(plugins.discover("lantern_pl.divergences")))
def test_every_installed_divergence_passes(alias: str) -> None:
    check_divergence(plugins.load("lantern_pl.divergences", alias)())


def test_a_divergence_that_lacks_its_method_is_one_message() -> None:
    class Empty(Divergence):
        name = "empty"

    with pytest.raises(UserError, match="Empty doesn't implement __call__"):
        check_divergence(Empty())


class Says(Teacher):
    capabilities = frozenset({"level_probs", "score_tokens"})
    vocab_size = 6

    def __init__(self, signal: Any, top_k: int | None = None) -> None:
        self.signal, self.top_k = signal, top_k

    def score_tokens(self, batch: TokenBatch) -> Any:
        if self.signal == "raise":
            raise KeyError("no such thing")
        return self.signal

    def level_probs(self, pairs: Any, task: Any) -> Any:
        return self.signal


def top_k(ids: list[int], log_probs: list[float], tail: float) -> TopK:
    return TopK(torch.tensor([ids] * 2), torch.tensor([log_probs] * 2), torch.tensor([tail] * 2))


HALVES = [-0.6931, -1.3863]


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (Says(Logits(torch.zeros(3, 6))), r"shape \[3, 6\], expected \[2, 6\]"),
        (Says(Logits(torch.zeros(2, 5))), r"shape \[2, 5\], expected \[2, 6\]"),
        (Says(Hidden(torch.zeros(2, 3), OutputHead(torch.zeros(7, 3)))), r"shape \[2, 7\]"),
        (Says(Hidden(torch.zeros(2, 3), OutputHead(torch.full((6, 3), torch.nan)))), "NaN"),
        (Says(Logits(torch.full((2, 6), torch.nan))), "NaN"),
        (Says(Logits(torch.zeros(2, 6)), top_k=2), "though it declares top_k 2"),
        (Says(top_k([1, 2], HALVES, -1.3863)), "with top_k None"),
        (Says(top_k([1, 2], HALVES, -1.3863), top_k=3), "with top_k 3"),
        (Says(top_k([1, 99], HALVES, -1.3863), top_k=2), "ids of tokens outside of 0 to 5"),
        (Says(top_k([1, 2], HALVES, 5.0), top_k=2), "a mass of 1"),
        (Says(top_k([1, 2], HALVES, float("nan")), top_k=2), "a mass of 1"),
        (Says(torch.zeros(2, 6)), "gives a Tensor for tokens"),
        (Says("raise"), r"fails: KeyError at test_plugin_command\.py:\d+"),  # its words may be a person's
    ],
)
def test_a_teacher_that_says_what_it_should_not_is_one_message(
    monkeypatch: pytest.MonkeyPatch, teacher: Says, message: str
) -> None:
    monkeypatch.setitem(plugins._loaded, "says", (Says, entry("says", "acme:Says")))
    batch = TokenBatch(torch.zeros(1, 4).long(), torch.ones(1, 4).long(), torch.tensor([[False, True, True, False]]))
    right = Says(top_k([1, 2], HALVES, -1.3863), top_k=2)
    assert checked_signal(right, batch, 2, look_at_values=True) is right.signal
    with pytest.raises(UserError, match=f"The teacher 'says' from acme-plugin 1.2 .*{message}.* Update or uninstall"):
        checked_signal(teacher, batch, 2, look_at_values=True)


def test_a_teacher_that_lacks_what_it_declares_is_one_message(
    lantern: Callable[..., Ran], tiny_decoder_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Promises(Says):
        capabilities = frozenset({"annotate"})

    with pytest.raises(UserError, match="declares 'annotate', but lacks that method"):
        check_teacher(Promises(None))
    from lantern_pl.teachers.local_model import HFTeacher

    monkeypatch.setattr(HFTeacher, "score_tokens", Teacher.score_tokens)
    ran = lantern("fit", "--config", tiny_decoder_config)
    assert ran.code == 2
    assert "'hf' from lantern-pl" in ran.err
    assert "declares 'score_tokens'" in ran.err


@pytest.mark.parametrize("probs", [torch.ones(2, 3), torch.tensor([[0.5, 0.5]]), torch.tensor([[torch.nan, 1, 0]] * 2)])
def test_level_probs_that_are_none_are_one_message(probs: torch.Tensor) -> None:
    pairs: Any = [None, None]
    with pytest.raises(UserError, match="The teacher Says gives level_probs"):
        checked_level_probs(Says(LevelProbs(probs)), pairs, Task())
    with pytest.raises(UserError, match="The teacher Says gives a Tensor for levels"):
        checked_level_probs(Says(probs), pairs, Task())
    right = LevelProbs(torch.tensor([[0.2, 0.3, 0.5]] * 2))
    assert checked_level_probs(Says(right), pairs, Task()) is right.probs


def test_levels_are_not_compared_across_tokenizers(lantern: Callable[..., Ran], tiny_encoder_config: Path) -> None:
    ran = lantern(
        "fit", "--config", tiny_encoder_config, "--model.mixture=[{divergence: {class_path: lantern_pl.divergences.uld}}]"
    )
    assert ran.code == 2
    assert "'uld', which doesn't tell the levels apart" in ran.err


def test_a_top_k_teacher_goes_with_temperature_one_and_pointwise_divergences(
    lantern: Callable[..., Ran], tiny_decoder_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lantern_pl.teachers.local_model import HFTeacher

    monkeypatch.setattr(HFTeacher, "top_k", 20)
    ran = lantern("fit", "--config", tiny_decoder_config, "--model.temperature=2")
    assert ran.code == 2
    assert "names only the 20 most probable tokens" in ran.err


def test_a_top_k_teacher_trains_a_student(
    lantern: Callable[..., Ran], tiny_decoder_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all tokens named, the figures are those of the whole vocabulary."""
    from lantern_pl.teachers.local_model import HFTeacher

    def figures() -> dict[str, float]:
        ran = lantern("fit", "--config", tiny_decoder_config)
        assert ran.code == 0, ran.err
        manifest = tiny_decoder_config.parent / "run" / "student" / "manifest.json"
        found: dict[str, float] = json.loads(manifest.read_text())["metrics"]["trained"]
        return found

    whole, score = figures(), HFTeacher.score_tokens

    def named(self: HFTeacher, batch: TokenBatch) -> TopK:
        signal = score(self, batch)
        log_probs, ids = (signal.hidden @ signal.head.weight.T).log_softmax(-1).sort(-1, descending=True)
        return TopK(ids, log_probs, torch.full((len(ids),), -torch.inf))

    monkeypatch.setattr(HFTeacher, "top_k", property(lambda self: self.vocab_size))
    monkeypatch.setattr(HFTeacher, "score_tokens", named)
    assert figures() == pytest.approx(whole, rel=1e-3)


def test_a_plugin_that_is_renamed_after_a_checkpoint_was_written(
    lantern: Callable[..., Ran], tiny_decoder_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(name: str) -> None:
        rest = [e for e in plugins.entry_points(group="lantern_pl.divergences") if plugins.distribution(e) == "lantern-pl"]
        found = plugins.by_name([*rest, entry(name, "lantern_pl.divergences.first_party:TVD")])
        monkeypatch.setattr(
            plugins, "discover", lambda group, given=None: found if "divergences" in group else all_(group, given)
        )

    all_ = plugins.discover
    installed("old")
    mixture = "--model.mixture=[{{divergence: {{class_path: lantern_pl.divergences.{}}}}}]"
    assert lantern("fit", "--config", tiny_decoder_config, mixture.format("old")).code == 0
    installed("new")
    run = tiny_decoder_config.parent / "run"
    go_on = ("fit", "--ckpt_path", run / "checkpoints" / "last.ckpt", "--trainer.max_steps=3")
    ran = lantern(*go_on)
    assert ran.code == 2
    for part in (
        "lantern_pl.divergences.old from acme-plugin 1.2",
        "isn't installed under that name",
        "model.init_args.mixture",
    ):
        assert part in ran.err
    ran = lantern(*go_on, mixture.format("new"))
    assert ran.code == 0, ran.err
    assert lantern(*go_on, "--model.mixture=[]", "--model.teacher=null", "--model.cross_entropy=1").code == 0
    assert lantern("validate", *go_on[1:3]).code == 0, "figures are to be had without it"
