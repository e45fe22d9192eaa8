"""The hf teacher: level probabilities, batch invariance, truthful capabilities, a stable key."""

import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
import torch

from lantern_pl.causal_lm import load_causal_lm
from lantern_pl.data.featurize import DecoderFeaturizer
from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.signals import TokenBatch
from lantern_pl.tasks import Task
from lantern_pl.teachers.contract import Assignment
from lantern_pl.teachers.local_model import HFTeacher
from lantern_pl.text import chat_prompt, level_ids, load_tokenizer


@pytest.mark.parametrize("levels", [["low", "medium", "high"], ["no fit at all", "a partial fit", "an excellent fit"]])
def test_level_probs_equal_the_probability_of_each_whole_answer(
    teacher: HFTeacher, pairs: list[Pair], levels: list[str]
) -> None:
    """Also where a level takes several tokens."""
    task = Task(levels=levels)
    pair = pairs[0]
    prompt = chat_prompt(teacher.tokenizer, task.render_prompt(pair.job_text, pair.candidate_text)) + "Fit:"
    start = teacher.tokenizer.encode(prompt, add_special_tokens=False)
    expected = []
    for level in levels:
        ids = teacher.tokenizer.encode(f"{prompt} {level}", add_special_tokens=False)
        assert ids[: len(start)] == start
        with torch.no_grad():
            log_probs = teacher.lm(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected.append(sum(float(log_probs[i - 1, ids[i]]) for i in range(len(start), len(ids))))
    probs = teacher.level_probs([pair], task).probs[0]
    assert torch.allclose(probs, torch.tensor(expected).softmax(-1), atol=1e-4)
    assert float(probs.sum()) == pytest.approx(1)


def test_long_texts_are_cut_to_what_the_teacher_can_take(small_lm: str, pairs: list[Pair]) -> None:
    teacher = HFTeacher(small_lm, max_new_tokens=4).to(torch.device("cpu"))
    teacher._context = 320
    pair = replace(pairs[0], job_text=pairs[0].job_text * 9, candidate_text=pairs[0].candidate_text * 9)
    longest = 320 - 4 - 3  # "Fit: high\n" is four tokens, or three and a part of the text's first
    (annotation,) = teacher.annotate([pair], Task())
    assert longest - 24 < annotation.prompt_tokens <= 320 - 4
    assert teacher.pair_hidden_states([pair], Task(), [-1])[0].isfinite().all()
    (prompt,) = teacher._prompts([pair], Task())
    assert pair.job_text[:40] in prompt
    assert pair.candidate_text[:40] in prompt
    assert teacher._prompts([pairs[1]], Task()) == [
        chat_prompt(teacher.tokenizer, Task().render_prompt(pairs[1].job_text, pairs[1].candidate_text))
    ]


def test_beside_a_decoder_it_writes_about_texts_of_the_same_length(small_lm: str, pairs: list[Pair]) -> None:
    teacher = HFTeacher(small_lm, max_new_tokens=4).to(torch.device("cpu"))
    features = DecoderFeaturizer(teacher.tokenizer, Task(), 256)
    teacher.accept(Assignment("score_tokens", [], Task(), 256, "", ""))
    pair = replace(pairs[0], job_text=pairs[0].job_text * 9)
    assert teacher._prompts([pair], Task()) == [features.prompt(replace(pair, level=None))]


def test_answers_do_not_depend_on_the_rest_of_the_batch(teacher: HFTeacher, pairs: list[Pair]) -> None:
    task = Task()
    together = teacher.level_probs(pairs[:3], task).probs
    assert torch.allclose(together[1], teacher.level_probs([pairs[1]], task).probs[0], atol=1e-6)
    features = DecoderFeaturizer(teacher.tokenizer, task, 320)
    examples = [features.encode(pair) for pair in pairs[:3]]
    batch, alone = features.collate(examples).tokens, features.collate(examples[:1]).tokens
    count = int(alone.positions.sum())
    assert torch.allclose(teacher.score_tokens(batch).hidden[:count], teacher.score_tokens(alone).hidden, atol=1e-3)


def test_the_signal_is_that_of_the_position_before_the_token(teacher: HFTeacher) -> None:
    ids = torch.tensor([[1, 50, 60, 70, 80]])
    positions = torch.tensor([[False, False, True, True, False]])
    signal = teacher.score_tokens(TokenBatch(ids, torch.ones_like(ids), positions))
    with torch.no_grad():
        logits = teacher.lm(ids).logits[0, 2:4]
    assert torch.allclose(signal.hidden @ signal.head.weight.T, logits, atol=1e-3)
    assert not signal.hidden.requires_grad


def test_it_annotates_in_the_task_s_words(teacher: HFTeacher, pairs: list[Pair]) -> None:
    annotations = teacher.annotate(pairs[:2], Task())
    assert [a.completion_tokens > 0 and a.prompt_tokens > 50 for a in annotations] == [True, True]
    assert all(a.valid == (Task().parse_answer(a.text) is not None) for a in annotations)


def test_the_cache_key_is_stable_and_tells_weights_and_settings_apart(small_lm: str) -> None:
    assert HFTeacher(small_lm).cache_key() == HFTeacher(small_lm).cache_key()
    assert HFTeacher(small_lm).cache_key() != HFTeacher(small_lm, max_new_tokens=7).cache_key()
    assert HFTeacher(small_lm).cache_key() != HFTeacher("embedded:smollm2-135m").cache_key()


def test_a_level_can_win_that_begins_with_another_ones_name(teacher: HFTeacher, pairs: list[Pair]) -> None:
    """The name of one is never less probable than the other's: what ends it counts too."""
    task = Task(levels=["1", "10", "2"])
    ids = level_ids(lambda text: teacher.tokenizer.encode(text, add_special_tokens=False), task)
    closed, *names = (teacher.tokenizer.encode(text, add_special_tokens=False) for text in (" 1\n", " 10", " 2"))
    assert ids == [closed, *names]
    found = teacher.level_probs(pairs[:2], task).probs
    for pair, row in zip(pairs[:2], found, strict=True):
        prompt = teacher.tokenizer.encode(teacher._prompts([pair], task)[0] + task.answer_prefix, add_special_tokens=False)
        totals = []
        for level in ids:
            with torch.no_grad():
                log_probs = teacher.lm(torch.tensor([[*prompt, *level]])).logits[0].double().log_softmax(-1)
            totals.append(sum(log_probs[len(prompt) - 1 + place, token] for place, token in enumerate(level)))
        assert torch.allclose(row.double(), torch.stack(totals).softmax(0), atol=1e-4)


def test_the_cache_key_tells_chat_templates_apart(tiny_lm: Path, tmp_path: Path) -> None:
    """With another one, the same question becomes other tokens."""
    folder = copytree(tiny_lm, tmp_path / "model")
    before = HFTeacher(str(folder)).cache_key()
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "answer"))
    load_tokenizer.cache_clear()
    assert HFTeacher(str(folder)).cache_key() != before


@pytest.mark.parametrize("exported", [False, True])
def test_a_student_is_asked_about_texts_as_long_as_it_was_trained_on(
    tiny_lm: Path, pairs: list[Pair], tmp_path: Path, exported: bool
) -> None:
    folder = copytree(tiny_lm, tmp_path / "student")
    keys = set()
    for length in (None, 160, 200):
        if length is not None:
            task = {"levels": Task().levels, "prompt": Task().prompt, "answer": Task().answer}
            data = {"max_length": length} if exported else {"data": {"max_length": length}}
            about = {"kind": "decoder", "task": task, **data}
            (folder / ("lantern.json" if exported else "manifest.json")).write_text(json.dumps(about))
        teacher = HFTeacher(str(folder))
        long = replace(pairs[0], candidate_text="Bakes bread in Berlin. " * 200)
        tokens = len(teacher.tokenizer.encode(teacher._prompts([long], Task())[0], add_special_tokens=False))
        assert tokens > 400 if length is None else length - 12 <= tokens <= length
        keys.add(teacher.cache_key())
    assert len(keys) == 3
    # Another question may take longer, such as a judge's; and who asks may say how long.
    another = Task(prompt=Task().prompt + "\nThink of the team, too.")
    for asked, longest in ((another, None), (Task(), 300)):
        teacher = HFTeacher(str(folder), max_length=longest)
        tokens = len(teacher.tokenizer.encode(teacher._prompts([long], asked)[0], add_special_tokens=False))
        assert tokens > 400 if longest is None else longest - 12 <= tokens <= longest
        keys.add(teacher.cache_key())
    assert len(keys) == 4


def test_the_cache_key_tells_adapters_of_one_folder_apart(tiny_lm: Path, tmp_path: Path) -> None:
    """The same run writes its adapter into the same folder again."""
    from peft import LoraConfig, get_peft_model

    lm = get_peft_model(load_causal_lm(str(tiny_lm), torch.float32), LoraConfig(r=2, target_modules=["q_proj"]))
    keys = []
    for bias in (0.0, 1.0):
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:
                parameter.data.fill_(bias)
        lm.save_pretrained(tmp_path)
        keys.append(HFTeacher(str(tiny_lm), adapter=str(tmp_path)).cache_key())
    assert keys[0] != keys[1]
    assert keys[1] == HFTeacher(str(tiny_lm), adapter=str(tmp_path)).cache_key()


def test_the_cache_key_tells_settings_of_an_adapter_apart(tiny_lm: Path, tmp_path: Path) -> None:
    """The same weights answer otherwise when they are scaled otherwise."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"])
    get_peft_model(load_causal_lm(str(tiny_lm), torch.float32), settings).save_pretrained(tmp_path)
    before = HFTeacher(str(tiny_lm), adapter=str(tmp_path)).cache_key()
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 16}))
    assert HFTeacher(str(tiny_lm), adapter=str(tmp_path)).cache_key() != before


def test_an_adapter_that_is_not_there_is_refused(small_lm: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder with"):
        HFTeacher(small_lm, adapter=str(tmp_path))
