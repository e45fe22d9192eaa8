"""An ensemble is the mixture that its formulas say, of any teachers, and a teacher like any other."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lantern_teacher_ensemble import token_signals
from lantern_teacher_ensemble.teacher import EnsembleTeacher, WeightedTeacher
from torch import Tensor

import lantern_pl.teachers
from lantern_pl.cli import main
from lantern_pl.data.pair import Pair
from lantern_pl.data.sample import make_pairs
from lantern_pl.errors import UserError
from lantern_pl.signals import Annotation, Hidden, LevelProbs, Logits, OutputHead, TokenBatch, TopK
from lantern_pl.tasks import Task
from lantern_pl.teachers import Teacher
from lantern_pl.teachers.local_model import HFTeacher
from lantern_pl.teachers.rule_based import RubricTeacher
from lantern_pl.testing import TeacherContract

CONFIG = Path(__file__).parent.parent / "configs" / "ensemble.yaml"
MIXINGS = ("arithmetic", "geometric")
BATCH = TokenBatch(torch.zeros(1, 7, dtype=torch.long), torch.ones(1, 7, dtype=torch.long), torch.ones(1, 7).bool())
PAIRS = [
    Pair(str(i), str(i), str(i), *texts)
    for i, texts in enumerate(
        [
            ("We need Python.", "I know Python."),
            ("A nurse for the night shift.", "Ten years as a nurse, mostly at night."),
        ]
    )
]


def ensemble(*teachers: Teacher, weights: tuple[float, ...] | None = None, **settings: Any) -> EnsembleTeacher:
    weighted = zip(teachers, weights or [1.0] * len(teachers), strict=True)
    return EnsembleTeacher([WeightedTeacher(*each) for each in weighted], **settings)


class Says(Teacher):
    """Answers with what it was made with."""

    def __init__(self, signal: Any = None, probs: Tensor | None = None, **attributes: Any) -> None:
        self.signal, self.probs = signal, probs
        self.capabilities = frozenset({"score_tokens"} if probs is None else {"level_probs"})
        self.tokenizer_fingerprint = "the one"
        self.vocab_size = None if signal is None else logits_of(signal).shape[1]
        self.device: torch.device | None = None
        vars(self).update(attributes)

    def identity(self) -> dict[str, Any]:
        return {}

    def to(self, device: torch.device) -> "Says":
        self.device = device
        return self

    def score_tokens(self, batch: TokenBatch) -> Any:
        return self.signal

    def level_probs(self, pairs: Any, task: Any) -> LevelProbs:
        assert self.probs is not None
        return LevelProbs(self.probs)

    def annotate(self, pairs: Any, task: Any) -> list[Annotation]:
        return [Annotation("said", None, None) for _ in pairs]


@functools.cache
def embedded() -> HFTeacher:
    return HFTeacher("embedded:smollm2-135m", max_new_tokens=1)


@functools.cache
def loaded(model: str) -> HFTeacher:
    return HFTeacher(model, max_new_tokens=1)


# The contract


class TestALargeAndASmallModel(TeacherContract):
    @pytest.fixture(autouse=True)
    def _models(self, tiny_lms: tuple[str, str]) -> None:
        self.small = tiny_lms[0]

    def make(self) -> Teacher:
        return ensemble(loaded(self.small), embedded(), weights=(1.0, 3.0), row_weights="confidence")

    def pairs(self) -> list[Pair]:
        return PAIRS

    def task(self) -> Task:
        return Task(prompt="{job_text} {candidate_text}", answer="{level} {explanation}")


class TestALinearMixture(TeacherContract):
    @pytest.fixture(autouse=True)
    def _models(self, tiny_lms: tuple[str, str]) -> None:
        self.models = tiny_lms

    def make(self) -> Teacher:
        return ensemble(*map(loaded, self.models), mixing="geometric")

    def pairs(self) -> list[Pair]:
        return PAIRS


class TestRules(TeacherContract):
    def make(self) -> Teacher:
        return ensemble(RubricTeacher(), RubricTeacher(), mixing="geometric", row_weights="confidence")


# Formulas


def naive(probs: list[Tensor], weights: tuple[float, ...], mixing: str, temperature: float | None) -> Tensor:
    """The mixture of distributions [N, V], as the README writes it."""
    shares = torch.tensor(weights, dtype=torch.float64)[:, None].expand(-1, len(probs[0]))
    if temperature is not None:
        entropies = torch.stack([torch.where(p > 0, -p * p.log(), 0.0).sum(-1) for p in probs])
        shares = shares * (-entropies / temperature).exp()
    shares = (shares / shares.sum(0))[:, :, None]
    if mixing == "arithmetic":
        return sum(share * p for share, p in zip(shares, probs, strict=True))
    product = math.prod(p**share for share, p in zip(shares, probs, strict=True))
    return product / product.sum(-1, keepdim=True)


def logits_of(signal: Hidden | Logits) -> Tensor:
    if isinstance(signal, Logits):
        return signal.logits.double()
    head = signal.head
    products = signal.hidden.double() @ head.weight.double().T + (0.0 if head.bias is None else head.bias.double())
    products = products * head.scale
    if head.softcap is None:
        return products
    return torch.where(products == -torch.inf, products, head.softcap * (products / head.softcap).tanh())


def probs_of(signal: Any, vocab_size: int = 0) -> Tensor:
    """Probabilities in float64, with columns of 0 up to a size."""
    probs = logits_of(signal).softmax(-1)
    return torch.nn.functional.pad(probs, (0, max(0, vocab_size - probs.shape[1])))


def mixed(teacher: EnsembleTeacher) -> Tensor:
    return probs_of(teacher.score_tokens(BATCH))


def logits(tokens: int, seed: int, spread: float = 3.0) -> Logits:
    return Logits(torch.randn(7, tokens, generator=torch.Generator().manual_seed(seed)) * spread)


def hidden(
    tokens: int, seed: int, width: int = 5, bias: bool = False, dtype: torch.dtype = torch.float32, **head: Any
) -> Hidden:
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return Hidden(draw(7, width), OutputHead(draw(tokens, width), draw(tokens) if bias else None, **head))


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("temperature", [None, 0.4, 1.0])
@pytest.mark.parametrize("chunk_rows", [256, 3])
def test_mixtures_are_what_the_formulas_say(
    mixing: str, temperature: float | None, chunk_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all that a teacher's logits can be: given or projected, capped, scaled, of a smaller vocabulary, −inf, large."""
    monkeypatch.setattr(token_signals, "CHUNK_ROWS", chunk_rows)
    excluding = logits(11, 1)
    excluding.logits[0, :4] = -torch.inf
    capped = hidden(11, 3, bias=True, scale=0.7, softcap=4.0)
    capped.head.bias[5] = -torch.inf  # type: ignore[index]
    signals = [
        excluding,
        logits(13, 2, spread=30.0),
        capped,
        hidden(13, 4, width=3, dtype=torch.bfloat16),
    ]
    weights = (1.0, 0.5, 2.0, 0.25)
    settings = {} if temperature is None else {"row_weights": "confidence", "confidence_temperature": temperature}
    teacher = ensemble(*map(Says, signals), weights=weights, mixing=mixing, **settings)
    signal = teacher.score_tokens(BATCH)
    assert isinstance(signal, Logits)
    assert signal.logits.dtype == torch.float32
    assert teacher.vocab_size == 13
    expected = naive([probs_of(signal, 13) for signal in signals], weights, mixing, temperature)
    torch.testing.assert_close(signal.logits.double().exp(), expected, rtol=1e-4, atol=1e-7)
    if mixing == "geometric":
        assert (signal.logits[:, 11:] == -torch.inf).all()


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("row_weights", ["fixed", "confidence"])
def test_logits_of_any_size_make_a_distribution(mixing: str, row_weights: str) -> None:
    signals = logits(13, 1, spread=1e30), logits(13, 2, spread=1e37), hidden(13, 3, scale=1e20)
    signal = ensemble(*map(Says, signals), mixing=mixing, row_weights=row_weights).score_tokens(BATCH)
    assert isinstance(signal, Logits)
    torch.testing.assert_close(signal.logits.exp().sum(-1), torch.ones(7))


@pytest.mark.parametrize("mixing", MIXINGS)
def test_a_student_in_mixed_precision_gets_the_same(mixing: str) -> None:
    teacher = ensemble(Says(hidden(11, 1, width=64)), Says(hidden(11, 2, width=64)), mixing=mixing)
    expected = mixed(teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = teacher.score_tokens(BATCH)
    torch.testing.assert_close(probs_of(found), expected, rtol=1e-5, atol=1e-9)


def test_the_lower_the_temperature_the_more_the_surest_teacher_has_its_way() -> None:
    sure, unsure = logits(9, 1, spread=6.0), logits(9, 2, spread=0.1)
    cold, cool, hot = (
        mixed(ensemble(Says(unsure), Says(sure), row_weights="confidence", confidence_temperature=t))
        for t in (1e-3, 1.0, 1e6)
    )
    torch.testing.assert_close(cold, probs_of(sure), rtol=0, atol=1e-6)
    torch.testing.assert_close(hot, (probs_of(sure) + probs_of(unsure)) / 2, rtol=0, atol=1e-5)
    assert ((cool - cold).abs().sum(-1) < (hot - cold).abs().sum(-1)).all()


def test_a_linear_mixture_needs_no_logits() -> None:
    """Hidden states and a head that say the same as the mixed logits do, whatever the heads' scales and biases are."""
    signals = [hidden(11, 1, bias=True, scale=0.25), hidden(11, 2, width=8), hidden(11, 3, bias=True, scale=3.0)]
    weights = (2.0, 1.0, 0.5)
    teacher = ensemble(*map(Says, signals), weights=weights, mixing="geometric")
    signal = teacher.score_tokens(BATCH)
    assert isinstance(signal, Hidden)
    assert signal.hidden.shape == (7, 5 + 8 + 5)
    expected = naive(list(map(probs_of, signals)), weights, "geometric", None)
    torch.testing.assert_close(probs_of(signal), expected, rtol=1e-5, atol=1e-8)
    # At another temperature too.
    tempered = naive([(logits_of(one) / 2).softmax(-1) for one in signals], weights, "geometric", None)
    torch.testing.assert_close((logits_of(signal) / 2).softmax(-1), tempered, rtol=1e-5, atol=1e-8)


def test_a_linear_mixture_joins_the_weights_once() -> None:
    teacher = ensemble(Says(hidden(11, 1)), Says(hidden(11, 2)), mixing="geometric")
    first, second = (teacher.score_tokens(BATCH) for _ in range(2))
    assert isinstance(first, Hidden)
    assert isinstance(second, Hidden)
    assert first.head.weight is second.head.weight


def test_a_linear_mixture_follows_its_teachers_to_another_device() -> None:
    one = Says(hidden(11, 1))
    teacher = ensemble(one, Says(hidden(11, 2)), mixing="geometric")
    before = teacher.score_tokens(BATCH)
    one.signal.head.weight.data = one.signal.head.weight.data * 2  # as a module's weights move: within the same object
    after = teacher.to(torch.device("cpu")).score_tokens(BATCH)
    assert isinstance(before, Hidden)
    assert isinstance(after, Hidden)
    assert not torch.equal(before.head.weight, after.head.weight)


def test_a_linear_mixture_of_half_precision_is_rounded_no_further() -> None:
    signals = [hidden(301, 1, width=64, dtype=torch.bfloat16), hidden(301, 2, width=64, dtype=torch.bfloat16)]
    found = mixed(ensemble(*map(Says, signals), weights=(0.3, 0.7), mixing="geometric"))
    expected = naive(list(map(probs_of, signals)), (0.3, 0.7), "geometric", None)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("signals", "row_weights"),
    [
        ([hidden(11, 1, softcap=5.0), hidden(11, 2)], "fixed"),
        ([hidden(11, 1), hidden(13, 2)], "fixed"),
        ([hidden(11, 1), logits(11, 2)], "fixed"),
        ([hidden(11, 1), hidden(11, 2)], "confidence"),
    ],
    ids=["softcap", "vocabulary", "logits", "confidence"],
)
def test_what_is_not_linear_is_mixed_as_logits(signals: list[Any], row_weights: str) -> None:
    signal = ensemble(*map(Says, signals), mixing="geometric", row_weights=row_weights).score_tokens(BATCH)
    assert isinstance(signal, Logits)
    probs = [probs_of(one, signal.logits.shape[1]) for one in signals]
    expected = naive(probs, (1.0, 1.0), "geometric", 1.0 if row_weights == "confidence" else None)
    torch.testing.assert_close(probs_of(signal), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("row_weights", ["fixed", "confidence"])
def test_teachers_that_contradict_each_other_in_everything_are_mixed_arithmetically(row_weights: str) -> None:
    one, other = logits(6, 1), logits(6, 2)
    one.logits[2, :3] = -torch.inf
    other.logits[2, 3:] = -torch.inf
    found = mixed(ensemble(Says(one), Says(other), mixing="geometric", row_weights=row_weights))
    temperature = 1.0 if row_weights == "confidence" else None
    probs = [probs_of(one), probs_of(other)]
    expected = naive(probs, (1.0, 1.0), "geometric", temperature)
    expected[2] = naive(probs, (1.0, 1.0), "arithmetic", temperature)[2]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_a_weight_too_small_for_its_number_still_excludes() -> None:
    sure, unsure = logits(6, 1, spread=50.0), logits(6, 2, spread=0.1)
    unsure.logits[:, 0] = -torch.inf
    settings: dict[str, Any] = {"mixing": "geometric", "row_weights": "confidence", "confidence_temperature": 1e-3}
    found = mixed(ensemble(Says(sure), Says(unsure), **settings))
    expected = probs_of(sure)
    expected[:, 0] = 0
    torch.testing.assert_close(found, expected / expected.sum(-1, keepdim=True), rtol=1e-4, atol=1e-6)


# Teachers


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("row_weights", ["fixed", "confidence"])
def test_a_single_teacher_is_itself(mixing: str, row_weights: str, tiny_lms: tuple[str, str]) -> None:
    alone = loaded(tiny_lms[0])
    teacher = ensemble(alone, weights=(7.0,), mixing=mixing, row_weights=row_weights)
    batch = TeacherContract.batch(type("Contract", (TeacherContract,), {"make": lambda self: alone})())
    torch.testing.assert_close(
        probs_of(teacher.score_tokens(batch)), probs_of(alone.score_tokens(batch)), rtol=1e-4, atol=1e-9
    )
    task = Task()
    torch.testing.assert_close(teacher.level_probs(PAIRS, task).probs, alone.level_probs(PAIRS, task).probs)
    assert teacher.annotate(PAIRS[:1], task) == alone.annotate(PAIRS[:1], task)
    assert (teacher.tokenizer, teacher.tokenizer_fingerprint) == (alone.tokenizer, alone.tokenizer_fingerprint)
    # Hidden states of several models have nothing in common that could be averaged.
    averaged = alone.capabilities - {"pair_hidden_states", "token_hidden_states"}
    assert (teacher.vocab_size, teacher.capabilities) == (alone.vocab_size, averaged)


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("temperature", [None, 0.3])
def test_level_distributions_are_mixed_alike(mixing: str, temperature: float | None) -> None:
    probs = [
        torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]]),
        torch.tensor([[0.1, 0.1, 0.8], [0.3, 0.7, 0.0]], dtype=torch.float64),
    ]
    settings = {} if temperature is None else {"row_weights": "confidence", "confidence_temperature": temperature}
    teacher = ensemble(*(Says(probs=one) for one in probs), weights=(1.0, 3.0), mixing=mixing, **settings)
    found = teacher.level_probs(PAIRS, Task()).probs
    expected = naive([one.double() for one in probs], (1.0, 3.0), mixing, temperature)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)


def test_two_equal_teachers_of_levels_are_one() -> None:
    rubric, task = RubricTeacher(), Task()
    found = ensemble(rubric, rubric).level_probs(PAIRS, task).probs
    torch.testing.assert_close(found, rubric.level_probs(PAIRS, task).probs)


def test_annotations_are_the_first_teachers() -> None:
    writer, other = Says(logits(5, 1), capabilities=frozenset({"annotate", "score_tokens"})), Says(logits(5, 2))
    assert ensemble(writer, other).annotate(PAIRS, Task())[0].text == "said"
    mute = ensemble(other, writer)
    assert mute.capabilities == {"score_tokens"}
    with pytest.raises(UserError, match="can't annotate; it can: score_tokens"):
        mute.annotate(PAIRS, Task())


def test_it_moves_all_its_teachers() -> None:
    teachers = [Says(logits(5, 1)), Says(logits(5, 2))]
    teacher = ensemble(*teachers)
    assert teacher.to(torch.device("meta")) is teacher
    assert [each.device for each in teachers] == [torch.device("meta")] * 2


@pytest.mark.parametrize("mixing", MIXINGS)
def test_it_carries_no_gradient(mixing: str) -> None:
    signal = hidden(11, 1)
    signal.hidden.requires_grad_()
    signal.head.weight.requires_grad_()
    found = ensemble(Says(signal), Says(hidden(11, 2)), mixing=mixing).score_tokens(BATCH)
    tensors = [found.hidden, found.head.weight] if isinstance(found, Hidden) else [found.logits]  # type: ignore[union-attr]
    assert not any(tensor.requires_grad for tensor in tensors)


def test_equal_ensembles_have_equal_keys_and_others_do_not(tiny_lms: tuple[str, str]) -> None:
    one, other = loaded(tiny_lms[0]), RubricTeacher()
    key = ensemble(one, other, weights=(1.0, 3.0)).cache_key()
    assert key == ensemble(one, RubricTeacher(), weights=(2.0, 6.0), confidence_temperature=5.0).cache_key()
    sure: dict[str, Any] = {"weights": (1.0, 3.0), "row_weights": "confidence"}
    others = [
        ensemble(one, other),
        ensemble(other, one, weights=(3.0, 1.0)),
        ensemble(loaded(tiny_lms[1]), other, weights=(1.0, 3.0)),
        ensemble(one, other, weights=(1.0, 3.0), mixing="geometric"),
        ensemble(one, other, **sure),
        ensemble(one, other, **sure, confidence_temperature=5.0),
    ]
    assert len({key, *(teacher.cache_key() for teacher in others)}) == 1 + len(others)


# Refusals


def test_teachers_of_different_tokenizers_are_refused_for_tokens_alone() -> None:
    both = frozenset({"score_tokens", "level_probs"})
    probs = torch.tensor([[0.5, 0.5]])
    one, other = (Says(logits(5, 1), probs, capabilities=both, tokenizer_fingerprint=name) for name in ("abc", "xyz"))
    expected = r"teachers\[0\] \(Says\) and teachers\[1\] \(Says\) have different tokenizers.* abc and xyz.*tokens: false"
    with pytest.raises(UserError, match=expected):
        ensemble(one, other)
    teacher = ensemble(one, other, tokens=False)
    assert teacher.capabilities == {"level_probs"}
    assert teacher.level_probs(PAIRS[:1], Task()).probs.tolist() == [[0.5, 0.5]]
    with pytest.raises(UserError, match="can't score_tokens; it can: level_probs"):
        teacher.score_tokens(BATCH)
    one.capabilities = other.capabilities = frozenset({"score_tokens"})
    with pytest.raises(UserError) as refusal:
        ensemble(one, other)
    assert "tokens: false" not in str(refusal.value)


def test_a_teacher_of_a_few_tokens_is_refused() -> None:
    with pytest.raises(UserError, match=r"teachers\[1\] \(Says\) names only 20 tokens.*Replace it"):
        ensemble(Says(logits(5, 1)), Says(logits(5, 1), top_k=20))
    undeclared = Says(logits(5, 1))
    undeclared.signal = TopK(torch.zeros(7, 1, dtype=torch.long), torch.zeros(7, 1), torch.full((7,), -torch.inf))
    with pytest.raises(UserError, match=r"teachers\[1\] \(Says\) .* without having declared its top_k"):
        ensemble(Says(logits(5, 1)), undeclared).score_tokens(BATCH)


def test_teachers_with_nothing_in_common_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"teachers\[0\] \(Says\): score_tokens; teachers\[1\] \(RubricTeacher\): annotate, lev"
    ):
        ensemble(Says(logits(5, 1)), RubricTeacher())
    with pytest.raises(UserError, match="while tokens is false"):
        ensemble(Says(logits(5, 1)), tokens=False)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_weights_that_are_none_are_refused(weight: float) -> None:
    with pytest.raises(UserError, match=rf"weight of teachers\[1\] \(RubricTeacher\) is {weight!r}"):
        ensemble(RubricTeacher(), RubricTeacher(), weights=(1.0, weight))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mixing": "harmonic"}, "mixing is 'harmonic': give arithmetic or geometric"),
        ({"row_weights": "sure"}, "row_weights is 'sure': give fixed or confidence"),
        ({"confidence_temperature": 0.0}, "confidence_temperature is 0.0: give"),
    ],
)
def test_settings_that_are_none_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ensemble(RubricTeacher(), **settings)
    with pytest.raises(UserError, match="teachers is empty"):
        ensemble()


# Configs


def test_its_alias_leads_to_it() -> None:
    assert lantern_pl.teachers.ensemble is EnsembleTeacher


def test_a_student_learns_from_the_config_of_this_distribution(
    tmp_path: Path, tiny_lms: tuple[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    """With tiny models; the resolved config keeps the aliases, and parses again."""
    config = yaml.safe_load(CONFIG.read_text())
    student = config["model"]["init_args"]
    student |= {"model": tiny_lms[0], "layers": {"keep": 1}, "max_new_tokens": 1, "generate_pairs": 1}
    for weighted, model in zip(student["teacher"]["init_args"]["teachers"], tiny_lms, strict=True):
        weighted["teacher"]["init_args"] = {"model": model, "max_new_tokens": 1}
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in make_pairs(48, seed=0)))
    config["data"]["init_args"] |= {"path": str(data), "max_length": 200, "batch_size": 2, "eval_batch_size": 2}
    config["run_dir"] = str(tmp_path / "run")
    few = {"limit_train_batches": 2, "limit_val_batches": 1, "num_sanity_val_steps": 1, "enable_progress_bar": False}
    config["trainer"] |= {**few, "accelerator": "cpu"}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    assert main(["fit", f"--config={file}"]) == 0
    manifest = json.loads((tmp_path / "run" / "student" / "manifest.json").read_text())
    assert manifest["steps"] == 2
    assert manifest["teacher"]["class"] == "EnsembleTeacher"
    assert [teacher["share"] for teacher in manifest["teacher"]["teachers"]] == [2 / 3, 1 / 3]
    capfd.readouterr()
    with pytest.raises(SystemExit):
        main(["fit", f"--config={tmp_path}/run/config.yaml", "--print_config"])
    teacher = yaml.safe_load(capfd.readouterr().out)["model"]["init_args"]["teacher"]
    assert teacher["class_path"] == "lantern_pl.teachers.ensemble"
    assert {each["teacher"]["class_path"] for each in teacher["init_args"]["teachers"]} == {"lantern_pl.teachers.hf"}


def test_a_wrong_key_in_the_list_of_teachers_ends_the_command_with_a_message(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load(CONFIG.read_text())
    config["model"]["init_args"]["teacher"]["init_args"]["teachers"][1]["wieght"] = 2.0
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    assert main(["fit", f"--config={file}", "--print_config"]) == 2
    said = capfd.readouterr().err
    assert "wieght" in said
    assert "Traceback" not in said


def test_every_key_of_the_config_is_explained() -> None:
    lines = CONFIG.read_text().splitlines()
    structure = {"class_path", "init_args", "model", "data", "trainer", "- divergence", "- teacher"}
    unexplained = [
        line
        for above, line in zip(["", *lines], lines, strict=False)
        if ":" in line and not line.strip().startswith("#") and line.strip().split(":")[0] not in structure
        if " #" not in line and not above.strip().startswith("#")
    ]
    assert unexplained == []
