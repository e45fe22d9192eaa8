"""The Triton kernels, in the interpreter, against the naive formula in float64."""

import pytest
import torch
from lantern_kernels import JS, KL, TVD, Head, Logits, ReverseKL, Term, TopK, linear_mixture_loss, mixture_loss
from lantern_kernels.heads import Bend
from lantern_kernels.mixture import Mixture
from naive import MIXTURES, naive_head, naive_loss

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")

# What is added to float32 is the conversion of the returned gradient; the interpreter's truncates where a GPU rounds.
GRADIENT_TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 8e-3, torch.float16: 1.2e-3}


def logits(rows, columns, dtype=torch.float32, *, seed=0, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(rows, columns, generator=generator, dtype=torch.float64)).to(dtype)


def check(student, teacher, terms, *, naive_student=None, naive_teacher=None, **keywords):
    """Loss, terms and gradient of the Triton backend agree with the naive formula. Returns the gradient."""
    leaf = student.values if isinstance(student, Logits) else student
    leaf.requires_grad_()
    exact = leaf.detach().double().requires_grad_()
    naive_student = exact if naive_student is None else naive_student(exact)
    naive_teacher = teacher if naive_teacher is None else naive_teacher
    accurate, in_place = keywords.pop("accurate", False), keywords.pop("in_place", False)
    expected, values = naive_loss(naive_student, naive_teacher, terms, **keywords)
    ours = mixture_loss(student, teacher, terms, backend="triton", accurate=accurate, in_place=in_place, **keywords)
    torch.testing.assert_close(ours.loss.double(), expected.detach(), rtol=5e-6, atol=3e-6)
    assert list(ours.terms) == list(values)
    for label, value in values.items():
        torch.testing.assert_close(ours.terms[label].double(), value.detach(), rtol=1e-5, atol=5e-6, msg=label)
    (gradient,) = torch.autograd.grad(3.0 * ours.loss, leaf)
    (wanted,) = torch.autograd.grad(3.0 * expected, exact)
    assert gradient.dtype == leaf.dtype
    error = (gradient.double() - wanted).abs().max()
    assert error <= GRADIENT_TOLERANCE[leaf.dtype] * wanted.abs().max() + 1e-6
    return gradient


@pytest.mark.parametrize("dtype", GRADIENT_TOLERANCE, ids=str)
@pytest.mark.parametrize("terms", MIXTURES.values(), ids=MIXTURES)
def test_every_dtype(terms, dtype):
    check(logits(3, 507, dtype), logits(3, 507, dtype, seed=1), terms)


@pytest.mark.parametrize("accurate", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("terms", [MIXTURES["all"], [Term("kl", 0.3), Term("reverse_kl", 0.7)]], ids=["all", "one sweep"])
def test_temperatures_targets_and_weights(terms, temperature, accurate):
    keywords = {"targets": torch.tensor([5, 0, 506]), "cross_entropy": 0.6, "row_weights": torch.tensor([0.2, 1.0, 3.0])}
    check(logits(3, 507), logits(3, 507, seed=1), terms, temperature=temperature, accurate=accurate, **keywords)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 1), (1, 7), (7, 7), (2, 507), (1, 32_001)])
def test_odd_shapes(rows, columns):
    targets = torch.arange(rows) % columns
    check(
        logits(rows, columns), logits(rows, columns, seed=1), MIXTURES["all"], temperature=2.0, targets=targets,
        cross_entropy=0.6,
    )  # fmt: skip


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sums_are_carried_from_block_to_block(temperature):
    """Maxima rise along the row, so that every block makes what was summed so far shrink."""
    ramp = torch.linspace(0, 8, 9001)
    terms = [Term("kl", 0.3), Term("reverse_kl", 0.7)]
    student, teacher = logits(2, 9001, spread=1.0) + ramp, logits(2, 9001, seed=1, spread=1.0) + ramp
    check(student, teacher, terms, temperature=temperature, targets=torch.tensor([9000, 4]), cross_entropy=0.5)


@pytest.mark.parametrize("terms", [MIXTURES["all"], [Term("kl")]], ids=["two sweeps", "one sweep"])
def test_a_large_vocabulary_in_bf16(terms):
    check(logits(1, 151_936, torch.bfloat16), logits(1, 151_936, torch.bfloat16, seed=1), terms)


@pytest.mark.parametrize(("columns", "teacher_columns"), [(500, 520), (520, 500), (1, 9), (9, 1)])
@pytest.mark.parametrize("terms", [MIXTURES["all"], [Term("kl")], [Term("reverse_kl")]], ids=["all", "kl", "reverse_kl"])
def test_padded_vocabularies(terms, columns, teacher_columns):
    check(logits(2, columns), logits(2, teacher_columns, seed=1), terms, temperature=2.0)


@pytest.mark.parametrize("terms", [MIXTURES["all"], [Term("kl"), Term("reverse_kl")]], ids=["two sweeps", "one sweep"])
@pytest.mark.parametrize("excluded", [-torch.inf, torch.finfo(torch.float32).min])
def test_excluded_tokens(terms, excluded):
    student, teacher = logits(3, 200), logits(3, 200, seed=1)
    student[:, 3] = excluded
    teacher[1, 5:60] = excluded
    teacher[:, 3] = excluded
    gradient = check(student, teacher, terms, targets=torch.tensor([7, 8, 9]), cross_entropy=0.5)
    assert (gradient[:, 3] == 0).all()


def test_a_row_that_needs_a_second_sweep_leaves_the_others_alone():
    student, teacher = logits(3, 200), logits(3, 200, seed=1)
    teacher[1, 5:60] = -torch.inf
    alone = mixture_loss(student[[0, 2]], teacher[[0, 2]], [Term("kl")], backend="triton").terms["kl"]
    assert torch.equal(mixture_loss(student, teacher, [Term("kl")], backend="triton").terms["kl"][[0, 2]], alone)


@pytest.mark.parametrize("softcap", [None, 4.0])
def test_softcap_and_scale_on_either_side(softcap):
    student, teacher = Logits(logits(3, 100), softcap, 0.7), Logits(logits(3, 100, seed=1), 5.0, 1.3)

    def bent(values):
        values = 0.7 * values
        return values if softcap is None else softcap * torch.tanh(values / softcap)

    naive_teacher = 5.0 * torch.tanh(1.3 * teacher.values.double() / 5.0)
    keywords = {"targets": torch.tensor([5, 0, 99]), "cross_entropy": 0.6, "temperature": 2.0}
    check(student, teacher, MIXTURES["all"], naive_student=bent, naive_teacher=naive_teacher, **keywords)


def test_any_stride_of_the_rows():
    wide, transposed = logits(3, 300), logits(300, 3, seed=1).t()
    check(wide[:, :290].detach(), transposed[:, :290], MIXTURES["all"])
    check(logits(6, 300)[::2].detach(), logits(1, 300, seed=1).expand(3, 300), [Term("kl")])
    for in_place in (False, True):
        check(logits(300, 3).t(), logits(3, 300, seed=1), MIXTURES["all"], in_place=in_place)


def test_rows_that_do_not_count_are_not_read():
    student, teacher = logits(4, 100), logits(4, 100, seed=1)
    student[1], teacher[2] = torch.nan, torch.nan
    student.requires_grad_()
    output = mixture_loss(
        student,
        teacher,
        MIXTURES["all"],
        targets=torch.tensor([3, -100, 5, 6]),
        cross_entropy=1.0,
        row_weights=torch.tensor([1.0, 1.0, 0.0, 1.0]),
        backend="triton",
    )
    (gradient,) = torch.autograd.grad(output.loss, student)
    assert output.loss.isfinite()
    assert (gradient[1:3] == 0).all()
    assert (gradient[[0, 3]] != 0).any(1).all()
    assert all((values[1:3] == 0).all() for values in output.terms.values())


def test_when_no_row_counts():
    student = logits(3, 50).requires_grad_()
    output = mixture_loss(
        student, logits(3, 50, seed=1), MIXTURES["all"], targets=torch.full((3,), -100), cross_entropy=1.0, backend="triton"
    )
    (gradient,) = torch.autograd.grad(output.loss, student)
    assert output.loss == 0
    assert (gradient == 0).all()


def test_no_rows():
    student = torch.empty(0, 50, requires_grad=True)
    output = mixture_loss(student, torch.empty(0, 50), MIXTURES["all"], backend="triton")
    assert torch.autograd.grad(output.loss, student)[0].shape == (0, 50)


def test_cross_entropy_alone_needs_no_teacher():
    check(logits(3, 300), None, [], targets=torch.tensor([1, 2, 3]), cross_entropy=1.5, temperature=2.0)


def test_the_gradient_may_take_the_place_of_the_logits():
    student = logits(3, 507, torch.bfloat16)
    wanted = check(student.clone(), logits(3, 507, torch.bfloat16, seed=1), MIXTURES["all"])
    got = check(student, logits(3, 507, torch.bfloat16, seed=1), MIXTURES["all"], in_place=True)
    assert torch.equal(got, wanted)
    assert got.data_ptr() == student.data_ptr()


def test_a_second_backward_in_place_fails_rather_than_going_wrong():
    student = logits(3, 50).requires_grad_()
    output = mixture_loss(student, logits(3, 50, seed=1), [Term("js")], backend="triton", in_place=True)
    torch.autograd.grad(output.loss, student, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(output.loss, student)


def test_rows_that_share_memory_keep_their_gradients_apart():
    pairs = []
    for in_place in (False, True):
        row = logits(1, 60).requires_grad_()
        student = (row * 1.0).expand(3, 60)
        output = mixture_loss(student, logits(3, 60, seed=1), [Term("js")], backend="triton", in_place=in_place)
        pairs.append(torch.autograd.grad(output.loss, row)[0])
    torch.testing.assert_close(*pairs)


@pytest.mark.parametrize("changed", ["teacher", "targets", "ids"])
def test_what_the_gradient_is_made_from_may_not_change_before_it(changed):
    student, teacher, targets = logits(3, 50).requires_grad_(), logits(3, 50, seed=1), torch.arange(3)
    log_probs, ids = teacher.log_softmax(-1).topk(4)
    top_k = TopK(ids, log_probs, (1 - log_probs.exp().sum(-1)).log())
    output = mixture_loss(
        student, top_k if changed == "ids" else teacher, [Term("kl")], targets=targets, cross_entropy=1.0, backend="triton"
    )
    {"teacher": teacher, "targets": targets, "ids": ids}[changed].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.loss.backward()


def test_the_default_dtype_does_not_round_the_weights():
    student, teacher, terms = logits(3, 50).requires_grad_(), logits(3, 50, seed=1), [Term("kl", 0.3), Term("js", 0.7)]
    wanted = torch.autograd.grad(mixture_loss(student, teacher, terms, backend="triton").loss, student)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        got = torch.autograd.grad(mixture_loss(student, teacher, terms, backend="triton").loss, student)
    finally:
        torch.set_default_dtype(before)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_a_teacher_made_in_inference_mode():
    with torch.inference_mode():
        made = logits(3, 50, seed=1), torch.arange(3)
    student = logits(3, 50).requires_grad_()
    gradients = []
    for teacher, targets in (made, [tensor.clone() for tensor in made]):
        output = mixture_loss(student, teacher, MIXTURES["all"], targets=targets, cross_entropy=0.5, backend="triton")
        gradients.append(torch.autograd.grad(output.loss, student)[0])
    assert torch.equal(*gradients)


def test_autocast_does_not_touch_it():
    student, teacher = logits(3, 50), logits(3, 50, seed=1)
    plain = mixture_loss(student, teacher, MIXTURES["all"], backend="triton")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(mixture_loss(student, teacher, MIXTURES["all"], backend="triton"), plain)


@pytest.mark.parametrize("terms", [MIXTURES["all"], [Term("kl"), Term("reverse_kl")]], ids=["two sweeps", "one sweep"])
def test_nan_is_not_hidden(terms):
    student, teacher = logits(3, 50), logits(3, 50, seed=1)
    student[1, 7] = torch.nan
    student.requires_grad_()
    output = mixture_loss(student, teacher, terms, backend="triton")
    (gradient,) = torch.autograd.grad(output.loss, student)
    assert output.loss.isnan()
    assert gradient[1].isnan().all()
    assert gradient[[0, 2]].isfinite().all()


def test_a_subclass_with_another_formula_does_not_run_its_parents_kernel():
    class Twice(KL):
        def value_and_slope(self, log_p, log_q, p, q):
            value, slope = super().value_and_slope(log_p, log_q, p, q)
            return 2 * value, 2 * slope

    class Renamed(KL):
        name = "renamed"

    pair = logits(2, 5), logits(2, 5, seed=1)
    with pytest.raises(ValueError, match="'kl' has no `triton_entry`"):
        mixture_loss(*pair, [Term(Twice())], backend="triton")
    mixture_loss(*pair, [Term(Renamed())], backend="triton")


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("teacher_columns", [123, 140])
def test_linear(teacher_columns, frozen):
    student = Head(
        logits(7, 12, seed=2, spread=1.0).requires_grad_(),
        logits(123, 12, seed=3, spread=0.9).requires_grad_(not frozen),
        logits(1, 123, seed=4)[0].clone().requires_grad_(),
        softcap=6.0,
        scale=0.5,
    )
    teacher = Head(logits(7, 19, seed=5, spread=1.0), logits(teacher_columns, 19, seed=6, spread=0.7), scale=1.5)
    keywords = {"temperature": 2.0, "targets": torch.arange(7), "cross_entropy": 0.6}
    ours = linear_mixture_loss(student, teacher, MIXTURES["all"], chunk_size=3, backend="triton", **keywords)
    full = [naive_head(h.hidden, h.weight, h.bias, h.softcap, h.scale) for h in (student, teacher)]
    expected, values = naive_loss(*full, MIXTURES["all"], **keywords)
    for label, value in values.items():
        torch.testing.assert_close(ours.terms[label].double(), value.detach(), rtol=1e-5, atol=5e-6)
    inputs = [t for t in (student.hidden, student.weight, student.bias) if t.requires_grad]
    got, wanted = torch.autograd.grad(ours.loss, inputs), torch.autograd.grad(expected, inputs)
    for one, other in zip(got, wanted, strict=True):
        assert (one - other).abs().max() <= 2e-5 * other.abs().max()


def test_linear_keeps_rows_that_do_not_count_from_the_others():
    hidden, weight = logits(4, 6, seed=2, spread=1.0), logits(50, 6, seed=3, spread=1.0).requires_grad_()
    hidden[1], hidden[2] = torch.nan, torch.inf
    hidden.requires_grad_()
    teacher = Head(logits(4, 5, seed=4), logits(50, 5, seed=5))
    weights, rows = torch.tensor([0.5, 0.0, 0.0, 0.5]), [0, 3]
    ours = linear_mixture_loss(
        Head(hidden, weight), teacher, MIXTURES["all"], row_weights=weights, chunk_size=3, backend="triton"
    )
    chosen = Head(teacher.hidden[rows], teacher.weight)
    expected = linear_mixture_loss(Head(hidden[rows], weight), chosen, MIXTURES["all"], backend="torch")
    torch.testing.assert_close(ours.loss, expected.loss)
    got, wanted = (torch.autograd.grad(loss, (hidden, weight)) for loss in (ours.loss, expected.loss))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def near_convergence(columns=5000, spread=1e-3):
    teacher = logits(2, columns)
    return teacher + spread * logits(2, columns, seed=1, spread=1.0), teacher


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("divergence", [KL(), ReverseKL(), JS(), JS(0.1)], ids=lambda d: d.name)
def test_accurate_near_convergence(divergence, backend):
    student, teacher = near_convergence()
    term = Term(divergence, label="value")
    exact = naive_loss(student, teacher, [term])[1]["value"]
    assert (exact < 1e-6).all()
    got = mixture_loss(student, teacher, [term], backend=backend, accurate=True).terms["value"]
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=0)


def test_one_sweep_is_not_accurate_near_convergence_which_is_why_the_option_exists():
    student, teacher = near_convergence()
    exact = naive_loss(student, teacher, [Term("kl")])[1]["kl"]
    fast = mixture_loss(student, teacher, [Term("kl")], backend="triton").terms["kl"]
    assert ((fast - exact).abs() > 1e-3 * exact).any()
    assert (fast >= 0).all()


@pytest.mark.parametrize("spread", [1e-3, 1e-2, 1.0])
@pytest.mark.parametrize(
    "divergence",
    [KL(), ReverseKL(), JS(), JS(0.1), JS(1e-6), JS(1 - 1e-6), TVD()],
    ids=["kl", "reverse_kl", "js", "js0.1", "js0", "js1", "tvd"],
)
def test_plain_entries_keep_the_gradient(divergence, spread):
    """Near convergence too: what's lost there is the value's, and no more than 5·10⁻⁷ of it.

    A log-probability in float32 has an error of 10⁻⁶, of which the gradient of a student that is `spread` away has its
    share: the tolerance is that error.
    """
    student, teacher = near_convergence(spread=spread)
    term = Term(divergence, label="value")
    student.requires_grad_()
    exact = student.detach().double().requires_grad_()
    expected, values = naive_loss(exact, teacher, [term])
    (wanted,) = torch.autograd.grad(expected, exact)
    for accurate in (False, True):
        output = mixture_loss(student, teacher, [term], backend="triton", accurate=accurate)
        error = (torch.autograd.grad(output.loss, student)[0] - wanted).abs().max()
        # TVD's slope jumps where two probabilities are equal: there rounding turns an entry's sign around.
        assert error <= (1e-3 if isinstance(divergence, TVD) else 2e-6 / spread + 2e-6) * wanted.abs().max()
        torch.testing.assert_close(output.terms["value"].double(), values["value"].detach(), rtol=1e-5, atol=5e-7)


@pytest.mark.parametrize(
    "entry", [KL().triton_entry()[0], JS().triton_entry()[0], TVD().triton_entry()[0]], ids=["kl", "js", "tvd"]
)
def test_accurate_takes_the_entries_that_a_divergence_gives(entry):
    class Theirs:
        name = "theirs"

        def value_and_slope(self, log_p, log_q, p, q):
            return q - p, q

        def triton_entry(self):
            return their_entry, (0.5,)

    from lantern_kernels.gpu import entries

    their_entry = object()
    assert entries.plain(Theirs().triton_entry()[0], True) is their_entry
    assert entries.plain(Theirs().triton_entry()[0], False) is their_entry
    assert entries.plain(entry, False) is entries.PLAIN.get(entry, entry)


@pytest.mark.parametrize(("columns", "teacher_columns"), [(4500, 4620), (4620, 4500)])
def test_columns_that_a_model_lacks_take_no_second_sweep(columns, teacher_columns, monkeypatch):
    """The second sweep would call the entries, which fail here."""
    from lantern_kernels.gpu import launch

    terms = [Term("kl", 0.3), Term("reverse_kl", 0.7)]
    kernels = launch.RowKernels(Mixture(terms, 2.0, 0.0, False), Bend(), Bend(), accurate=False)
    student, teacher = logits(2, columns), logits(2, teacher_columns, seed=1)
    with_all, sums = kernels.sums(student, teacher, None, torch.ones(2))
    kernels._constants["ENTRIES"] = (None, None)
    without, same_sums = kernels.sums(student, teacher, None, torch.ones(2))
    torch.testing.assert_close(without, with_all)
    torch.testing.assert_close(same_sums[0][:3], sums[0][:3])
    teacher[1, 7] = -torch.inf
    with pytest.raises(Exception, match="NoneType"):
        kernels.sums(student, teacher, None, torch.ones(2))


def test_refusals(monkeypatch):
    class WithoutTriton:
        name = "plain"

        def value_and_slope(self, log_p, log_q, p, q):
            return q - p, q

    pair = logits(2, 5), logits(2, 5, seed=1)
    with pytest.raises(ValueError, match="backend is 'triton', but 'plain' has no `triton_entry`; use 'auto'"):
        mixture_loss(*pair, [Term(WithoutTriton())], backend="triton")
    with pytest.raises(ValueError, match="computes in float32, and the student is float64"):
        mixture_loss(*(tensor.double() for tensor in pair), [Term("kl")], backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="but the student is on cpu; move it to a GPU, or use 'auto'"):
        mixture_loss(*pair, [Term("kl")], backend="triton")
