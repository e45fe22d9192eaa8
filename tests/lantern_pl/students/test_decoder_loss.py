"""The decoder's loss: right positions, right formula, right normalisation, and a teacher that is left alone."""

from collections.abc import Callable

import pytest
import torch
from naive_decoder import naive_decoder_loss
from torch import nn

from lantern_pl.causal_lm import load_causal_lm
from lantern_pl.data.pair import Pair
from lantern_pl.divergences.contract import WeightedDivergence
from lantern_pl.divergences.first_party import JS, KL
from lantern_pl.students import DecoderStudent, Lora
from lantern_pl.tasks import Task
from lantern_pl.teachers.local_model import HFTeacher

MakeDecoder = Callable[..., DecoderStudent]


def batch_of(student: DecoderStudent, pairs: list[Pair]):
    features = student.featurizer(Task(), 320)
    return features.collate([features.encode(pair) for pair in pairs])


def gradients(student: DecoderStudent) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


def test_loss_and_gradient_equal_the_naive_formula(make_decoder: MakeDecoder, pairs: list[Pair]) -> None:
    student = make_decoder()
    batch = batch_of(student, pairs[:2])
    output, rows = student.summed_loss(batch)
    output.loss.backward()
    found = gradients(student)
    student.zero_grad()
    expected = naive_decoder_loss(student, batch, kl=0.5, js=0.5, beta=0.3)
    expected.backward()
    assert rows == len(batch.targets)
    assert float(output.loss) == pytest.approx(float(expected), rel=1e-5)
    for name, gradient in gradients(student).items():
        scale = float(gradient.abs().max())
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=2e-5 * scale), name


def test_only_answer_and_end_of_sequence_are_supervised(make_decoder: MakeDecoder, pairs: list[Pair]) -> None:
    student = make_decoder()
    batch = batch_of(student, pairs[:3])
    tokenizer, at = student.tokenizer, 0
    for row, pair in enumerate(pairs[:3]):
        count = int(batch.tokens.positions[row].sum())
        targets = batch.targets[at : at + count]
        at += count
        answer = Task().render_answer(pair.level, pair.explanation)
        assert tokenizer.decode(targets[:-1]) == answer
        assert int(targets[-1]) == tokenizer.eos_token_id
        # The output at a position predicts the token after it: shifted once, not twice, not never.
        shifted = batch.tokens.input_ids[row, 1:][batch.tokens.positions[row, :-1]]
        assert torch.equal(shifted, targets)


def test_end_of_sequence_is_learnt_though_it_is_also_the_padding(make_decoder: MakeDecoder, pairs: list[Pair]) -> None:
    student = make_decoder()
    assert student.tokenizer.pad_token_id == student.tokenizer.eos_token_id
    batch = batch_of(student, pairs[:2])
    assert int((batch.targets == student.tokenizer.eos_token_id).sum()) == 2
    # Padding follows the shorter example and has no supervised position.
    assert not (batch.tokens.positions & (batch.tokens.attention_mask == 0)).any()


def test_padding_and_batch_neighbours_do_not_change_the_loss(make_decoder: MakeDecoder, pairs: list[Pair]) -> None:
    student = make_decoder()
    with torch.no_grad():
        together = float(student.summed_loss(batch_of(student, pairs[:3]))[0].loss)
        alone = sum(float(student.summed_loss(batch_of(student, [pair]))[0].loss) for pair in pairs[:3])
    assert together == pytest.approx(alone, rel=1e-5)


def test_masked_positions_get_exactly_no_gradient(make_decoder: MakeDecoder, pairs: list[Pair]) -> None:
    student = make_decoder()
    batch = batch_of(student, pairs[:2])
    seen = {}

    def keep_gradient(module, inputs, output):
        output.last_hidden_state.retain_grad()
        seen["hidden"] = output.last_hidden_state

    handle = student.lm.get_decoder().register_forward_hook(keep_gradient)
    student.summed_loss(batch)[0].loss.backward()
    handle.remove()
    gradient = seen["hidden"].grad
    assert (gradient[~batch.tokens.positions] == 0).all()
    assert (gradient[batch.tokens.positions].abs().sum(-1) > 0).all()


def test_logits_of_all_positions_never_exist(make_decoder: MakeDecoder, pairs: list[Pair], monkeypatch) -> None:
    student = make_decoder()
    for model in (student.lm, student.teacher.lm):
        head = model.get_output_embeddings()
        monkeypatch.setattr(head, "forward", lambda hidden: pytest.fail("a model's own head was run"))
    student.summed_loss(batch_of(student, pairs[:2]))[0].loss.backward()


def test_the_teacher_is_no_part_of_the_student(make_decoder: MakeDecoder, pairs: list[Pair]) -> None:
    student = make_decoder()
    before = {name: p.clone() for name, p in student.teacher.lm.named_parameters()}
    student.summed_loss(batch_of(student, pairs[:2]))[0].loss.backward()
    own = {id(p) for p in student.parameters()}
    for name, parameter in student.teacher.lm.named_parameters():
        assert id(parameter) not in own
        assert parameter.grad is None
        assert not parameter.requires_grad
        assert torch.equal(parameter, before[name])
    assert not any("teacher" in key for key in student.state_dict())
    student.train()
    assert not student.teacher.lm.training
    assert student.lm.training


def test_a_teacher_equal_to_the_student_leaves_only_cross_entropy(make_decoder: MakeDecoder, pairs: list[Pair]) -> None:
    student = make_decoder(layers=None, cross_entropy=0.0)
    student.summed_loss(batch_of(student, pairs[:1]))[0].loss.backward()
    assert all(float(g.abs().max()) < 1e-3 for g in gradients(student).values())


def test_a_wider_padded_vocabulary_of_the_teacher_is_no_probability_mass(
    make_decoder: MakeDecoder, small_lm: str, pairs: list[Pair]
) -> None:
    """Rows that pad the student's embedding count as −inf at the teacher, and the other way round."""
    teacher = HFTeacher(small_lm).to(torch.device("cpu"))
    teacher.vocab_size = 49152 + 64
    teacher.lm.resize_token_embeddings(teacher.vocab_size, mean_resizing=False)
    with torch.no_grad():
        teacher.lm.get_output_embeddings().weight[49152:] = -100 * teacher.lm.get_output_embeddings().weight[:64]
    padded = make_decoder(teacher=teacher, mixture=[WeightedDivergence(KL())], cross_entropy=0.0)
    plain = make_decoder(mixture=[WeightedDivergence(KL())], cross_entropy=0.0)
    batch = batch_of(plain, pairs[:1])
    with torch.no_grad():
        z = plain.lm(batch.tokens.input_ids).logits.double()[0][batch.tokens.positions[0]] / 2.0
        u = teacher.lm(batch.tokens.input_ids).logits.double()[0][batch.tokens.positions[0]] / 2.0
        log_q = torch.cat([z.log_softmax(-1), z.new_full((len(z), 64), -1e4)], -1)
        log_p = u.log_softmax(-1)
        expected = float((log_p.exp() * (log_p - log_q)).sum() * 4)
        assert float(padded.summed_loss(batch)[0].loss) == pytest.approx(expected, rel=1e-4)


def test_labels_tell_two_of_a_kind_apart(make_decoder: MakeDecoder, pairs: list[Pair]) -> None:
    """Also with a dot in it, which no submodule's name may have."""
    mixture = [WeightedDivergence(JS(beta), label=f"js_{beta}") for beta in (0.1, 0.9)]
    student = make_decoder(mixture=mixture)
    student.update_metrics(batch_of(student, pairs))
    figures = student.means.finish()
    assert 0 < figures["js_0.1"] != figures["js_0.9"] > 0


def test_supervised_fine_tuning_needs_no_teacher(make_decoder: MakeDecoder, pairs: list[Pair]) -> None:
    student = make_decoder(teacher=None, mixture=[], cross_entropy=1.0)
    batch = batch_of(student, pairs[:2])
    output, _ = student.summed_loss(batch)
    logits = student.lm(input_ids=batch.tokens.input_ids, attention_mask=batch.tokens.attention_mask).logits
    expected = nn.functional.cross_entropy(logits[batch.tokens.positions].double(), batch.targets, reduction="sum")
    assert float(output.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_lora_trains_adapters_alone_and_is_merged_when_saved(make_decoder: MakeDecoder, pairs: list[Pair], tmp_path) -> None:
    student = make_decoder(lora=Lora(rank=4))
    trainable = {name for name, p in student.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    for name, parameter in student.named_parameters():
        if "lora_B" in name:  # adapters start as no change at all
            nn.init.normal_(parameter, std=0.05)
    batch = batch_of(student, pairs[:1])
    student.summed_loss(batch)[0].loss.backward()
    assert {name for name, p in student.named_parameters() if p.grad is not None} == trainable
    student.write(tmp_path)
    merged = load_causal_lm(str(tmp_path), torch.float32)
    student.eval()
    with torch.no_grad():
        own = student.lm(batch.tokens.input_ids).logits
        assert torch.allclose(merged(batch.tokens.input_ids).logits, own, atol=2e-3)
