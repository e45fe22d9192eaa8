"""A vocabulary that is sharded over 2 and 4 processes, which talk by gloo: the same loss as one process has."""

import socket
import traceback

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lantern_kernels import Head, Logits, Term, TopK, chunk, engine, linear_mixture_loss, mixture_loss
from naive import MIXTURES

N, V, D = 7, 48, 6
ONE_EXCHANGE = {"kl": MIXTURES["kl"], "both": [Term("kl", 0.3), Term("reverse_kl", 0.7)]}


def tensors(excluded=None):
    generator = torch.Generator().manual_seed(0)
    student, teacher, hidden, weight, t_hidden, t_weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((N, V), (N, V), (N, D), (V, D), (N, D + 1), (V, D + 1), (V,))
    )
    if excluded:
        student[:, 5] = student[:, 30] = excluded
        teacher[:, :14] = excluded  # with four ranks, all that the first one has and more
    return 3 * student, 3 * teacher, hidden, weight, t_hidden, t_weight, bias


def share(tensor, dim, rank, ranks, widths=None):
    return (tensor.chunk(ranks, dim) if widths is None else tensor.split(widths, dim))[rank]


def unequal(ranks):
    """Widths that add up to V, so different that ranks would choose different chunks by their own."""
    return [V - sum(range(1, ranks)), *range(1, ranks)]


def compare(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)


def logits_agree(rank, ranks, terms, excluded, widths=None, **keywords):
    student, teacher = tensors(excluded)[:2]
    whole, mine = student.clone().requires_grad_(), share(student, 1, rank, ranks, widths).clone().requires_grad_()
    expected = mixture_loss(whole, teacher, terms, **keywords)
    teacher = share(teacher, 1, rank, ranks, widths)
    output = mixture_loss(mine, teacher, terms, process_group=dist.group.WORLD, **keywords)
    compare(output, expected)
    wanted = torch.autograd.grad(expected.loss, whole)[0]
    compare(torch.autograd.grad(output.loss, mine)[0], share(wanted, 1, rank, ranks, widths))


def heads_agree(rank, ranks, terms, **keywords):
    _, _, hidden, weight, t_hidden, t_weight, bias = tensors()
    whole = [tensor.clone().requires_grad_() for tensor in (hidden, weight, bias)]
    mine = [hidden.clone().requires_grad_(), *(share(x, 0, rank, ranks).clone().requires_grad_() for x in (weight, bias))]
    expected = linear_mixture_loss(Head(*whole, 4.0, 0.5), Head(t_hidden, t_weight), terms, **keywords)
    teacher = Head(t_hidden, share(t_weight, 0, rank, ranks))
    output = linear_mixture_loss(Head(*mine, 4.0, 0.5), teacher, terms, process_group=dist.group.WORLD, **keywords)
    compare(output, expected)
    wanted = torch.autograd.grad(expected.loss, whole)
    got = torch.autograd.grad(output.loss, mine)
    compare(got, (wanted[0], *(share(gradient, 0, rank, ranks) for gradient in wanted[1:])))


def unequal_shares_agree(rank, ranks, targets):
    keywords = {"temperature": 2.0, "targets": targets, "cross_entropy": 0.4}
    with pytest.MonkeyPatch.context() as patch:
        # So few that the widest share takes several tiles and chunks, and the narrowest would take one.
        patch.setattr(chunk, "_TILE_BYTES_CPU", 2 * V * 8)
        patch.setattr(engine, "_CHUNK_BYTES_CPU", 4 * V * 8)
        patch.setitem(engine._FEWEST_ROWS, "cpu", 1)
        for terms in (MIXTURES["all"], ONE_EXCHANGE["both"]):
            logits_agree(rank, ranks, terms, None, widths=unequal(ranks), **keywords)


def top_k_agrees(rank, ranks, targets):
    student, teacher, hidden, weight, *_ = tensors()
    student[1, 5] = -torch.inf
    log_probs, ids = (teacher / 2).log_softmax(-1).topk(5)
    ids[:, 0] = 0  # of the first rank's, whatever the teacher says, and one that the student excludes
    ids[1, 1] = 5
    distinct = torch.tensor([len(set(row.tolist())) == 5 for row in ids])
    assert distinct.any()
    ids[~distinct] = torch.tensor([0, 5, 17, 30, 47])
    top_k = TopK(ids, log_probs, (1 - log_probs.exp().sum(-1)).log())
    keywords = {"temperature": 2.0, "targets": targets, "cross_entropy": 0.4}
    for widths in (None, unequal(ranks)):
        mine = share(student, 1, rank, ranks, widths).clone().requires_grad_()
        whole = student.clone().requires_grad_()
        counts = count_exchanges(lambda x=mine: mixture_loss(x, top_k, [Term("tvd")], process_group=dist.group.WORLD))
        assert counts == {"all_gather": 1 + 1, "all_reduce": 0}
        for terms in (MIXTURES["all"], MIXTURES["kl"]):
            expected = mixture_loss(whole, top_k, terms, **keywords)
            output = mixture_loss(mine, top_k, terms, process_group=dist.group.WORLD, **keywords)
            compare(output, expected)
            wanted = torch.autograd.grad(expected.loss, whole)[0]
            compare(torch.autograd.grad(output.loss, mine)[0], share(wanted, 1, rank, ranks, widths))
    # A head's student against logits and against a top-k teacher.
    weight_share = share(weight, 0, rank, ranks)
    for given, part in ((teacher, share(teacher, 1, rank, ranks)), (top_k, top_k)):
        gradients = []
        for matrix, said, group in ((weight, given, None), (weight_share, part, dist.group.WORLD)):
            leaves = hidden.clone().requires_grad_(), matrix.clone().requires_grad_()
            output = linear_mixture_loss(Head(*leaves), said, MIXTURES["all"], chunk_size=3, process_group=group, **keywords)
            gradients.append((output.loss.detach(), *torch.autograd.grad(output.loss, leaves)))
        compare(gradients[1][:2], gradients[0][:2])
        compare(gradients[1][2], share(gradients[0][2], 0, rank, ranks))


def narrow_hidden_states_agree(rank, ranks):
    """The ranks' parts of a hidden state's gradient cancel, so that they may not be rounded before they're added up."""
    _, _, hidden, weight, t_hidden, t_weight, _ = (tensor.bfloat16() for tensor in tensors())
    weight, t_weight = weight.clone(), t_weight.clone()
    weight[: V // 2] += 30
    weight[V // 2 :] += 29.75
    gradients = []
    for group in (None, dist.group.WORLD):
        mine = hidden.clone().requires_grad_()
        heads = [weight, t_weight] if group is None else [share(tensor, 0, rank, ranks) for tensor in (weight, t_weight)]
        loss = linear_mixture_loss(Head(mine, heads[0], scale=0.05), Head(t_hidden, heads[1]), [Term("kl")],
                                   process_group=group).loss  # fmt: skip
        gradients.append(torch.autograd.grad(loss, mine)[0].float())
    assert (gradients[1] - gradients[0]).abs().max() <= 2**-8 * gradients[0].abs().max()


def count_exchanges(call):
    counts = {"all_gather": 0, "all_reduce": 0}
    originals = {name: getattr(dist, name) for name in counts}

    def counted(name):
        def call(*arguments, **keywords):
            counts[name] += 1
            return originals[name](*arguments, **keywords)

        return call

    for name in counts:
        setattr(dist, name, counted(name))
    try:
        call()
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
    return counts


def every_check(rank, ranks):
    targets = torch.tensor([0, 47, -100, 12, 23, 24, 36])
    for terms in (*MIXTURES.values(), *ONE_EXCHANGE.values()):
        for temperature in (1.0, 2.0):
            for excluded in (None, -torch.inf, -1e9):
                logits_agree(rank, ranks, terms, excluded, temperature=temperature)
            keywords = {"temperature": temperature, "targets": targets, "cross_entropy": 0.4}
            logits_agree(rank, ranks, terms, None, row_weights=torch.linspace(0, 1, N), **keywords)
            heads_agree(rank, ranks, terms, chunk_size=3, **keywords)
    unequal_shares_agree(rank, ranks, targets)
    top_k_agrees(rank, ranks, targets)
    narrow_hidden_states_agree(rank, ranks)
    plain = {"targets": targets, "cross_entropy": 1.0}
    student = share(tensors()[0], 1, rank, ranks)
    expected = mixture_loss(tensors()[0], None, [], **plain)
    compare(mixture_loss(student, None, [], process_group=dist.group.WORLD, **plain), expected)
    # One tells the widths of the shares.
    mine, teacher = (share(tensor, 1, rank, ranks) for tensor in tensors()[:2])
    for terms, reduces in ((ONE_EXCHANGE["kl"], 0), (ONE_EXCHANGE["both"], 0), (MIXTURES["all"], 1)):
        counts = count_exchanges(lambda terms=terms: mixture_loss(mine, teacher, terms, process_group=dist.group.WORLD))
        assert counts == {"all_gather": 1 + 1, "all_reduce": reduces}
    with pytest.raises(ValueError, match=r"its ranks' students have 1, 2.* rows; expected as many on each"):
        mixture_loss(student[: rank + 1], None, [], targets=targets[: rank + 1], cross_entropy=1.0,
                     process_group=dist.group.WORLD)  # fmt: skip


def in_a_process(rank, ranks, port, failures):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    try:
        every_check(rank, ranks)
    except BaseException:
        failures.put(traceback.format_exc())
        raise
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 4])
def test_it_is_the_loss_of_one_process(ranks):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    failures = mp.get_context("spawn").SimpleQueue()
    try:
        mp.spawn(in_a_process, (ranks, port, failures), nprocs=ranks)
    except Exception:
        pytest.fail("\n".join(failures.get() for _ in range(not failures.empty())) or "a process died")


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_one_rank_alone(group):
    logits_agree(0, 1, MIXTURES["all"], None, temperature=2.0)
    heads_agree(0, 1, ONE_EXCHANGE["both"])


class Square:
    name = "square"

    def __call__(self, student_logits, teacher_logits):
        return (student_logits - teacher_logits).square().sum(-1)


def test_refusals(group):
    student, teacher = tensors()[:2]
    for expected, given, terms, keywords in (
        ("'square' isn't pointwise", teacher, [Term(Square())], {}),
        ("which backend 'inductor' doesn't take", teacher, [Term("kl")], {"backend": "inductor"}),
        ("has 48 columns of the student and 40 of the teacher", Logits(teacher[:, :40]), [Term("kl")], {}),
        ("targets[0] is 48; expected 0 to 47", teacher, [], {"targets": torch.full((N,), V), "cross_entropy": 1.0}),
    ):
        with pytest.raises(ValueError) as refused:  # noqa: PT011
            mixture_loss(student, given, terms, process_group=group, **keywords)
        assert expected in str(refused.value)
