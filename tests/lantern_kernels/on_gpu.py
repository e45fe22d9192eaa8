"""The Triton kernels on a real GPU against the naive formula in float64: exits with an error at the first that disagrees.

A script of its own, since the other tests of this folder have Triton interpreted, which a process decides once.
"""

import math

import torch
from lantern_kernels import Head, Term, TopK, linear_mixture_loss, mixture_loss
from naive import MIXTURES, naive_head, naive_loss

GRADIENT_TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}


def logits(rows, columns, dtype, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    return (3 * torch.randn(rows, columns, generator=generator, device="cuda")).to(dtype)


def close(got, wanted, tolerance, what):
    error, most = float((got.double() - wanted).abs().max()), tolerance * float(wanted.abs().max()) + 1e-6
    assert error <= most, f"{what}: {error:.1e} > {most:.1e}"


def agrees(student, teacher, terms, what, rows_at_once=256, **keywords):
    student = student.detach().requires_grad_()
    output = mixture_loss(student, teacher, terms, backend="triton", **keywords)
    (gradient,) = torch.autograd.grad(output.loss, student)
    keywords.pop("accurate", None)
    for start in range(0, len(student), rows_at_once):
        rows = slice(start, start + rows_at_once)
        exact = student.detach()[rows].double().requires_grad_()
        targets = keywords.get("targets")
        few = {**keywords, "targets": None if targets is None else targets[rows]}
        weights = torch.full((len(exact),), 1 / len(student), device="cuda", dtype=torch.float64)
        loss, values = naive_loss(exact, teacher[rows], terms, row_weights=weights, **few)
        for label, value in values.items():
            torch.testing.assert_close(output.terms[label][rows].double(), value.detach(), rtol=1e-5, atol=5e-6, msg=what)
        close(gradient[rows], torch.autograd.grad(loss, exact)[0], GRADIENT_TOLERANCE[student.dtype], what)


def every_dtype_and_shape():
    for dtype in GRADIENT_TOLERANCE:
        for name, terms in MIXTURES.items():
            for rows, columns, teacher_columns in ((1, 1, 1), (7, 252, 252), (7, 507, 520), (16, 32_001, 31_990)):
                pair = logits(rows, columns, dtype), logits(rows, teacher_columns, dtype, seed=1)
                targets = torch.arange(rows, device="cuda") % columns
                for accurate in (False, True):
                    keywords = {"temperature": 2.0, "targets": targets, "cross_entropy": 0.5, "accurate": accurate}
                    agrees(*pair, terms, f"{name}, {dtype}, {rows} x {columns}", **keywords)


def full_size():
    pair = logits(2048, 151_936, torch.bfloat16), logits(2048, 152_064, torch.bfloat16, seed=1)
    for name in ("kl", "js", "all"):
        agrees(*pair, MIXTURES[name], f"{name} at full size", rows_at_once=32)


def heads_in_bf16():
    """Within the bound of `lantern_kernels.products`, and of the results' own rounding."""
    N, V, D = 2000, 4096, 256
    make = [logits(N, D, torch.bfloat16), logits(V, D, torch.bfloat16, seed=1) / 16]
    t_hidden, t_weight = logits(N, D, torch.bfloat16, seed=2), logits(V, D, torch.bfloat16, seed=3) / 16
    leaves, exact = (
        [tensor.detach().to(dtype).requires_grad_() for tensor in make] for dtype in (torch.bfloat16, torch.float64)
    )
    output = linear_mixture_loss(Head(*leaves), Head(t_hidden, t_weight), MIXTURES["all"], chunk_size=512)
    got = torch.autograd.grad(output.loss, leaves)
    projected = naive_head(*exact)
    projected.retain_grad()
    naive_loss(projected, naive_head(t_hidden, t_weight), MIXTURES["all"])[0].backward()
    size = projected.grad.abs()
    for one, leaf, bound in (
        (got[0], exact[0], size @ exact[1].detach().abs()),
        (got[1], exact[1], size.t() @ exact[0].detach().abs()),
    ):
        assert ((one.double() - leaf.grad).abs() <= 2**-8 * (bound + leaf.grad.abs()) * 1.1 + 1e-7).all()


def top_k():
    student = logits(16, 32_001, torch.float32).requires_grad_()
    log_probs, ids = logits(16, 32_001, torch.float32, seed=1).log_softmax(-1).topk(50)
    known = TopK(ids, log_probs, torch.log1p(-log_probs.exp().sum(-1)))
    outputs = [mixture_loss(student, known, MIXTURES["all"], backend=backend) for backend in ("triton", "torch")]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    close(*(torch.autograd.grad(output.loss, student)[0] for output in outputs), 1e-4, "top-k")


def nothing_waits_for_the_device():
    student, teacher = logits(64, 4000, torch.bfloat16).requires_grad_(), logits(64, 4000, torch.bfloat16, seed=1)
    targets = torch.arange(64, device="cuda")
    leaves = [logits(64, 128, torch.bfloat16).requires_grad_(), logits(4000, 128, torch.bfloat16, seed=1).requires_grad_()]
    teacher_head = Head(logits(64, 64, torch.bfloat16, seed=2), logits(4000, 64, torch.bfloat16, seed=3))
    keywords = {"targets": targets, "cross_entropy": 0.5}
    for mode in ("default", "error"):  # the first time compiles
        torch.cuda.set_sync_debug_mode(mode)
        mixture_loss(student, teacher, MIXTURES["all"], **keywords).loss.backward()
        linear_mixture_loss(Head(*leaves), teacher_head, [Term("js")], chunk_size=32, **keywords).loss.backward()
    torch.cuda.set_sync_debug_mode("default")


def nan_is_not_hidden():
    student = logits(3, 5000, torch.float32)
    student[1, 7] = math.nan
    student.requires_grad_()
    for terms in (MIXTURES["all"], MIXTURES["kl"]):
        output = mixture_loss(student, logits(3, 5000, torch.float32, seed=1), terms)
        (gradient,) = torch.autograd.grad(output.loss, student)
        assert output.loss.isnan()
        assert gradient[1].isnan().all()
        assert gradient[[0, 2]].isfinite().all()


if __name__ == "__main__":
    for check in (
        every_dtype_and_shape, full_size, heads_in_bf16, top_k, nothing_waits_for_the_device, nan_is_not_hidden
    ):  # fmt: skip
        check()
        print(check.__name__, flush=True)
