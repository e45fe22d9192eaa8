"""The two Triton kernels behind every loss: what a row's logits add up to, and the gradient that follows from it.

A program of `row_sums` walks over one row of V logits of both models:

- the first sweep finds the log-sum-exps, with a running maximum for every eight neighbouring entries (per entry, it
  would take twice the exponentials and registers). KL and reverse KL come out of the same sweep, since log(p/q) =
  t − s − (Lt − Ls) is linear in the log-sum-exps: ``ONE_SWEEP``;
- the second one, for any other mixture, goes the opposite way, so that it starts with what's still in the L2 cache. It
  knows the log-sum-exps, and sums values and slopes entry by entry;
- `row_gradient` reads both again and needs three scalars of a row: Ls, Lt and H = Σ slope.

Per pair of bf16 logits that is 4 + 6 = 10 bytes with one sweep and 14 with two, however many terms there are. Whether the
memory can be kept busy is a matter of instructions, so blocks that both rows have in full go without masks.

Entries with a log-probability below ``FLOOR`` (−∞, columns that a model lacks) are taken to be at it. In one sweep the
columns that a model lacks are summed apart, for what they add is linear in the log-sum-exps too. Other entries it can't
put on the floor, which depends on its result; a row where two logits are that far apart gets its second sweep at once.
"""

import triton
import triton.language as tl

from lantern_kernels.gpu.arithmetic import (
    FLOOR,
    GROUP,
    LOG2_E,
    LOWEST,
    at_least,
    exp,
    exp2,
    positions_from,
    read,
)

FARTHEST = tl.constexpr(9e3)
"""Within this log-ratio no entry on the floor faces one whose probability isn't 0: that takes 10⁴ − 104."""


@triton.jit
def first_sweep(
    start, state, S, T, s_columns, t_columns, rate, s_scale, s_softcap, t_scale, t_softcap,
    WITH_TEACHER: tl.constexpr, ONE_SWEEP: tl.constexpr, UNTEMPERED: tl.constexpr,
    S_SCALED: tl.constexpr, T_SCALED: tl.constexpr, S_CAPPED: tl.constexpr, T_CAPPED: tl.constexpr,
    MASKED: tl.constexpr, ASSEMBLY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The state after a block: per group of entries maxima, and sums relative to them.

    Of each model the largest logit, Σ e, and Σ e·(t − s) over the columns that both have; Σ e and Σ e·logit over those that
    the other lacks; the student's Σ e at temperature 1; and the largest |t − s|. `rate` is log₂e / temperature.
    """
    s_top, s_sum, s_difference, s_alone, s_alone_logits, s_sum_untempered, t_top, t_sum, t_difference, t_alone, t_alone_logits, farthest = state  # noqa: E501 # fmt: skip
    positions = positions_from(start, BLOCK)
    s = read(S, s_columns, positions, s_scale, s_softcap, S_SCALED, S_CAPPED, MASKED, ASSEMBLY)
    higher = tl.maximum(s_top, tl.max(s, axis=1))
    s_exp = exp2((s - higher[:, None]) * rate, ASSEMBLY)
    s_shrink = exp2((s_top - higher) * rate, ASSEMBLY)
    s_sum = s_sum * s_shrink + tl.sum(s_exp, axis=1)
    if UNTEMPERED:
        fresh = tl.sum(exp(s - higher[:, None], ASSEMBLY), axis=1)
        s_sum_untempered = s_sum_untempered * exp(s_top - higher, ASSEMBLY) + fresh
    s_top = higher
    if WITH_TEACHER:
        t = read(T, t_columns, positions, t_scale, t_softcap, T_SCALED, T_CAPPED, MASKED, ASSEMBLY)
        higher = tl.maximum(t_top, tl.max(t, axis=1))
        t_exp = exp2((t - higher[:, None]) * rate, ASSEMBLY)
        t_shrink = exp2((t_top - higher) * rate, ASSEMBLY)
        t_sum = t_sum * t_shrink + tl.sum(t_exp, axis=1)
        t_top = higher
        if ONE_SWEEP:
            difference = t - s
            if MASKED:
                s_has, t_has = positions < s_columns, positions < t_columns
                difference = tl.where(s_has & t_has, difference, 0.0)
                s_only, t_only = s_has & (positions >= t_columns), t_has & (positions >= s_columns)
                s_alone = s_alone * s_shrink + tl.sum(tl.where(s_only, s_exp, 0.0), axis=1)
                t_alone = t_alone * t_shrink + tl.sum(tl.where(t_only, t_exp, 0.0), axis=1)
                s_alone_logits = s_alone_logits * s_shrink + tl.sum(tl.where(s_only, s_exp * s, 0.0), axis=1)
                t_alone_logits = t_alone_logits * t_shrink + tl.sum(tl.where(t_only, t_exp * t, 0.0), axis=1)
            farthest = tl.maximum(farthest, tl.max(tl.abs(difference), axis=1))
            s_difference = s_difference * s_shrink + tl.sum(s_exp * difference, axis=1)
            t_difference = t_difference * t_shrink + tl.sum(t_exp * difference, axis=1)
    return s_top, s_sum, s_difference, s_alone, s_alone_logits, s_sum_untempered, t_top, t_sum, t_difference, t_alone, t_alone_logits, farthest  # noqa: E501 # fmt: skip


@triton.jit
def second_sweep(
    start, values, slopes_of_groups, factors, S, T, s_columns, t_columns, s_lse, t_lse,
    inverse_temperature, s_scale, s_softcap, t_scale, t_softcap,
    ENTRIES: tl.constexpr, PARAMETERS: tl.constexpr,
    S_SCALED: tl.constexpr, T_SCALED: tl.constexpr, S_CAPPED: tl.constexpr, T_CAPPED: tl.constexpr,
    MASKED: tl.constexpr, ASSEMBLY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The terms' values and their slopes' sum after a block, per group of entries."""
    positions = positions_from(start, BLOCK)
    s = read(S, s_columns, positions, s_scale, s_softcap, S_SCALED, S_CAPPED, MASKED, ASSEMBLY)
    t = read(T, t_columns, positions, t_scale, t_softcap, T_SCALED, T_CAPPED, MASKED, ASSEMBLY)
    log_q = at_least(s * inverse_temperature - s_lse, FLOOR)
    log_p = at_least(t * inverse_temperature - t_lse, FLOOR)
    q = exp(log_q, ASSEMBLY)
    p = exp(log_p, ASSEMBLY)
    new_values = ()
    slopes = tl.zeros_like(q)
    for k in tl.static_range(len(ENTRIES)):
        value, slope = ENTRIES[k](log_p, log_q, p, q, PARAMETERS[k])
        if MASKED:
            value = tl.where(positions < tl.maximum(s_columns, t_columns), value, 0.0)
        new_values = new_values + (values[k] + tl.sum(value, axis=1),)
        slopes += factors[k] * slope
    slopes_of_groups += tl.sum(tl.where(log_q <= FLOOR, 0.0, slopes), axis=1)
    return new_values, slopes_of_groups


@triton.jit
def row_sums(
    S, T, TARGETS, WEIGHTS, FACTORS, VALUES, SUMS,
    s_stride, t_stride, s_columns, t_columns, rows,
    inverse_temperature, s_scale, s_softcap, t_scale, t_softcap,
    ENTRIES: tl.constexpr, SOURCES: tl.constexpr, PARAMETERS: tl.constexpr, KINDS: tl.constexpr, ONE_SWEEP: tl.constexpr,
    TEMPERED: tl.constexpr, WITH_TARGETS: tl.constexpr,
    S_SCALED: tl.constexpr, T_SCALED: tl.constexpr, S_CAPPED: tl.constexpr, T_CAPPED: tl.constexpr,
    ASSEMBLY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Values ``[K, rows]`` and SUMS ``[4, rows]`` (Ls, Lt, H, and Ls at temperature 1) of one row per program.

    Args:
        S, T: Logits, ``[rows, columns]`` with unit stride along columns; T isn't read without ENTRIES.
        TARGETS: Class ids ``[rows]``, read WITH_TARGETS.
        WEIGHTS: Row weights ``[rows]``; the rows of weight 0 aren't read.
        FACTORS: Factor in the loss of each value, ``[K]``.
        ENTRIES: The terms' entry functions, and PARAMETERS theirs. SOURCES stands for their code (see `entries.sources`).
        KINDS: Per term 1 for KL, 2 for reverse KL, 0 for any other.
        ONE_SWEEP: Whether to do with one sweep where a row allows it; none of KINDS is 0 then.
        S_SCALED, T_SCALED: Whether the scales differ from 1.
    """
    row = tl.program_id(0).to(tl.int64)
    K: tl.constexpr = len(ENTRIES)
    if tl.load(WEIGHTS + row) == 0.0:
        for k in tl.static_range(K + WITH_TARGETS):
            tl.store(VALUES + k * rows + row, 0.0)
        for k in tl.static_range(4):
            tl.store(SUMS + k * rows + row, 0.0)
        return
    S += row * s_stride
    T += row * t_stride
    columns = s_columns
    whole = s_columns // BLOCK * BLOCK
    if K > 0:
        columns = tl.maximum(s_columns, t_columns)
        whole = tl.minimum(s_columns, t_columns) // BLOCK * BLOCK
    rate = inverse_temperature * LOG2_E

    zeros = tl.zeros([BLOCK // GROUP], tl.float32)
    lowest = tl.full([BLOCK // GROUP], LOWEST, tl.float32)
    state = (lowest, zeros, zeros, zeros, zeros, zeros, lowest, zeros, zeros, zeros, zeros, zeros)
    for start in range(0, whole, BLOCK):
        state = first_sweep(
            start, state, S, T, s_columns, t_columns, rate, s_scale, s_softcap, t_scale, t_softcap,
            K > 0, ONE_SWEEP, WITH_TARGETS and TEMPERED, S_SCALED, T_SCALED, S_CAPPED, T_CAPPED, False, ASSEMBLY, BLOCK,
        )  # fmt: skip
    for start in range(whole, columns, BLOCK):
        state = first_sweep(
            start, state, S, T, s_columns, t_columns, rate, s_scale, s_softcap, t_scale, t_softcap,
            K > 0, ONE_SWEEP, WITH_TARGETS and TEMPERED, S_SCALED, T_SCALED, S_CAPPED, T_CAPPED, True, ASSEMBLY, BLOCK,
        )  # fmt: skip
    s_top, s_sum, s_difference, s_alone, s_alone_logits, s_sum_untempered, t_top, t_sum, t_difference, t_alone, t_alone_logits, farthest = state  # noqa: E501 # fmt: skip

    s_highest = tl.max(s_top, axis=0)
    s_weight = tl.exp2((s_top - s_highest) * rate)
    s_total = tl.sum(s_sum * s_weight, axis=0)
    s_lse = s_highest * inverse_temperature + tl.log(s_total)
    tl.store(SUMS + row, s_lse)
    if WITH_TARGETS:
        s_lse_untempered = s_lse
        if TEMPERED:
            s_lse_untempered = s_highest + tl.log(tl.sum(s_sum_untempered * tl.exp(s_top - s_highest), axis=0))
        tl.store(SUMS + 3 * rows + row, s_lse_untempered)
        target = tl.load(TARGETS + row)
        logit = read(S, s_columns, target, s_scale, s_softcap, S_SCALED, S_CAPPED, True, False)
        tl.store(VALUES + K * rows + row, -at_least(logit - s_lse_untempered, FLOOR))

    if K > 0:
        t_highest = tl.max(t_top, axis=0)
        t_weight = tl.exp2((t_top - t_highest) * rate)
        t_total = tl.sum(t_sum * t_weight, axis=0)
        t_lse = t_highest * inverse_temperature + tl.log(t_total)
        tl.store(SUMS + rows + row, t_lse)
        factors = ()
        for k in tl.static_range(K):
            factors = factors + (tl.load(FACTORS + k) * inverse_temperature,)

        enough = False
        forward = 0.0
        backward = 0.0
        p_alone = 0.0
        if ONE_SWEEP:
            # Less rounded than the difference of the two log-sum-exps.
            shift = (t_highest - s_highest) * inverse_temperature + tl.log(t_total / s_total)
            p_alone = tl.sum(t_alone * t_weight, axis=0) / t_total
            q_alone = tl.sum(s_alone * s_weight, axis=0) / s_total
            p_difference = tl.sum(t_difference * t_weight, axis=0) / t_total * inverse_temperature
            q_difference = tl.sum(s_difference * s_weight, axis=0) / s_total * inverse_temperature
            # Where the other model has no column its log-probability is the floor.
            p_floored = tl.sum(t_alone_logits * t_weight, axis=0) / t_total * inverse_temperature - (t_lse + FLOOR) * p_alone
            q_floored = tl.sum(s_alone_logits * s_weight, axis=0) / s_total * inverse_temperature - (s_lse + FLOOR) * q_alone
            forward = at_least(p_difference - shift * (1.0 - p_alone) + p_floored, 0.0)
            backward = at_least(shift * (1.0 - q_alone) - q_difference + q_floored, 0.0)
            near = tl.max(farthest, axis=0) * inverse_temperature + tl.abs(shift) < FARTHEST
            # NaN, of an excluded token or of a student that has diverged, is for the second sweep to tell apart.
            enough = near & (forward == forward) & (backward == backward)
        if enough:
            slopes = 0.0
            for k in tl.static_range(K):
                if KINDS[k] == 1:
                    tl.store(VALUES + k * rows + row, forward)
                    # q − p sums to nothing, but what the student lacks has no slope.
                    slopes += factors[k] * p_alone
                else:
                    tl.store(VALUES + k * rows + row, backward)
                    slopes += factors[k] * backward
            tl.store(SUMS + 2 * rows + row, slopes)
        else:
            values = ()
            for _ in tl.static_range(K):
                values = values + (zeros,)
            slopes_of_groups = zeros
            for done in range(0, columns - whole, BLOCK):
                values, slopes_of_groups = second_sweep(
                    whole + (columns - whole - 1) // BLOCK * BLOCK - done, values, slopes_of_groups, factors,
                    S, T, s_columns, t_columns, s_lse, t_lse, inverse_temperature, s_scale, s_softcap, t_scale, t_softcap,
                    ENTRIES, PARAMETERS, S_SCALED, T_SCALED, S_CAPPED, T_CAPPED, True, ASSEMBLY, BLOCK,
                )  # fmt: skip
            for done in range(0, whole, BLOCK):
                values, slopes_of_groups = second_sweep(
                    whole - BLOCK - done, values, slopes_of_groups, factors,
                    S, T, s_columns, t_columns, s_lse, t_lse, inverse_temperature, s_scale, s_softcap, t_scale, t_softcap,
                    ENTRIES, PARAMETERS, S_SCALED, T_SCALED, S_CAPPED, T_CAPPED, False, ASSEMBLY, BLOCK,
                )  # fmt: skip
            for k in tl.static_range(K):
                tl.store(VALUES + k * rows + row, tl.sum(values[k], axis=0))
            tl.store(SUMS + 2 * rows + row, tl.sum(slopes_of_groups, axis=0))


@triton.jit
def row_gradient(
    S, T, TARGETS, WEIGHTS, UPSTREAM, FACTORS, SUMS, OUT,
    s_stride, t_stride, out_stride, s_columns, t_columns, rows,
    inverse_temperature, s_scale, s_softcap, t_scale, t_softcap,
    ENTRIES: tl.constexpr, SOURCES: tl.constexpr, PARAMETERS: tl.constexpr, WITH_TARGETS: tl.constexpr,
    S_SCALED: tl.constexpr, T_SCALED: tl.constexpr, S_CAPPED: tl.constexpr, T_CAPPED: tl.constexpr,
    ASSEMBLY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of the loss with respect to S, one block of a row per program. OUT may be S itself.

    UPSTREAM is the gradient of the loss, one number on the device, so that nothing waits for it.
    """
    row = tl.program_id(0).to(tl.int64)
    K: tl.constexpr = len(ENTRIES)
    positions = positions_from(tl.program_id(1) * BLOCK, BLOCK)
    present = positions < s_columns
    weight = tl.load(WEIGHTS + row)
    OUT += row * out_stride
    if weight == 0.0:
        tl.store(OUT + positions, tl.zeros_like(positions).to(OUT.dtype.element_ty), mask=present)
        return
    # What all entries are multiplied by goes into the row's scalars.
    weight *= tl.load(UPSTREAM)
    if S_SCALED:
        weight *= s_scale
    s = read(S + row * s_stride, s_columns, positions, s_scale, s_softcap, S_SCALED, S_CAPPED, True, ASSEMBLY)
    gradient = tl.zeros_like(s)
    if K > 0:
        t = read(T + row * t_stride, t_columns, positions, t_scale, t_softcap, T_SCALED, T_CAPPED, True, ASSEMBLY)
        log_q = at_least(s * inverse_temperature - tl.load(SUMS + row), FLOOR)
        log_p = at_least(t * inverse_temperature - tl.load(SUMS + rows + row), FLOOR)
        q = exp(log_q, ASSEMBLY)
        p = exp(log_p, ASSEMBLY)
        for k in tl.static_range(K):
            _, slope = ENTRIES[k](log_p, log_q, p, q, PARAMETERS[k])
            gradient += tl.load(FACTORS + k) * inverse_temperature * weight * slope
        gradient = tl.where(log_q <= FLOOR, 0.0, gradient)
        gradient -= q * (tl.load(SUMS + 2 * rows + row) * weight)
    if WITH_TARGETS:
        untempered = exp(s - tl.load(SUMS + 3 * rows + row), ASSEMBLY)
        is_target = positions == tl.load(TARGETS + row)
        gradient += tl.load(FACTORS + K) * weight * (untempered - tl.where(is_target, 1.0, 0.0))
    if S_CAPPED:
        bent = s * (1.0 / s_softcap)
        gradient = tl.where(s == -float("inf"), 0.0, gradient * (1.0 - bent * bent))
    tl.store(OUT + positions, gradient.to(OUT.dtype.element_ty), mask=present)
