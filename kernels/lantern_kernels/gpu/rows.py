"""The two Triton kernels behind every loss: what a row's logits add up to, and the gradient that follows from it.

A program of `row_sums` walks over one row of V logits of both models:

- the first sweep finds the log-sum-exps, with a running maximum for every eight neighbouring entries (per entry, it
  would take twice the exponentials and registers). KL and reverse KL come out of the same sweep, since log(p/q) =
  t − s − (Lt − Ls) is linear in the log-sum-exps: ``ONE_SWEEP``;
- the second one, for any other mixture, goes the opposite way, so that it starts with what's still in the L2 cache. It
  knows the log-sum-exps, and sums values and slopes entry by entry;
- `row_gradient` reads both again and needs three scalars of a row: Ls, Lt and H = Σ slope.

Per pair of bf16 logits that is 4 + 6 = 10 bytes with one sweep and 14 with two, however many terms there are.

Entries with a log-probability below ``FLOOR`` (−∞, columns that a model lacks) are taken to be at it. One sweep can't do
that, as the floor depends on its result; a row that turns out to have such entries gets its second sweep there and then.
"""

import triton
import triton.language as tl

FLOOR = tl.constexpr(-1e4)
LOWEST = tl.constexpr(-1e38)
"""Starts a running maximum: finite, so that a difference with −∞ is no NaN."""
GROUP = tl.constexpr(8)
"""Entries that share a running maximum: a thread's own, 128 bits of bf16."""


@triton.jit
def read(row, columns, positions, scale, softcap, CAPPED: tl.constexpr):
    """Logits at `positions` in float32, ``softcap·tanh(scale·x/softcap)``; −∞ where the row has no such column."""
    logits = tl.load(row + positions, mask=positions < columns, other=-float("inf")).to(tl.float32) * scale
    if CAPPED:
        # tanh by the exponential of −2|y|, which can't overflow. An excluded token stays excluded.
        y = logits / softcap
        e = tl.exp(-2.0 * tl.abs(y))
        size = softcap * (1.0 - e) / (1.0 + e)
        logits = tl.where(logits == -float("inf"), logits, tl.where(y < 0, -size, size))
    return logits


@triton.jit
def at_least(x, lowest):
    """As tl.maximum, but NaN stays NaN: on a GPU a maximum of NaN and a number is the number."""
    return tl.where(x < lowest, lowest, x)


@triton.jit
def positions_from(start, BLOCK: tl.constexpr):
    """``[BLOCK / GROUP, GROUP]`` neighbouring positions."""
    return start + tl.arange(0, BLOCK // GROUP)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]


@triton.jit
def row_sums(
    S, T, TARGETS, WEIGHTS, FACTORS, VALUES, SUMS,
    s_stride, t_stride, s_columns, t_columns, rows,
    inverse_temperature, s_scale, s_softcap, t_scale, t_softcap,
    ENTRIES: tl.constexpr, SOURCES: tl.constexpr, PARAMETERS: tl.constexpr, KINDS: tl.constexpr, ONE_SWEEP: tl.constexpr,
    TEMPERED: tl.constexpr, WITH_TARGETS: tl.constexpr, S_CAPPED: tl.constexpr, T_CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
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
    if K > 0:
        columns = tl.maximum(s_columns, t_columns)

    s_top = tl.full([BLOCK // GROUP], LOWEST, tl.float32)
    t_top = tl.full([BLOCK // GROUP], LOWEST, tl.float32)
    zeros = tl.zeros([BLOCK // GROUP], tl.float32)
    s_sum = zeros
    t_sum = zeros
    s_sum_untempered = zeros
    s_difference = zeros
    t_difference = zeros
    # The lowest log-probabilities tell whether a single sweep was enough.
    s_low = tl.full([BLOCK // GROUP], float("inf"), tl.float32)
    t_low = tl.full([BLOCK // GROUP], float("inf"), tl.float32)
    for start in range(0, columns, BLOCK):
        positions = positions_from(start, BLOCK)
        s = read(S, s_columns, positions, s_scale, s_softcap, S_CAPPED)
        higher = tl.maximum(s_top, tl.max(s, axis=1))
        s_exp = tl.exp((s - higher[:, None]) * inverse_temperature)
        s_shrink = tl.exp((s_top - higher) * inverse_temperature)
        s_sum = s_sum * s_shrink + tl.sum(s_exp, axis=1)
        if WITH_TARGETS and TEMPERED:
            s_sum_untempered = s_sum_untempered * tl.exp(s_top - higher) + tl.sum(tl.exp(s - higher[:, None]), axis=1)
        s_top = higher
        if K > 0:
            t = read(T, t_columns, positions, t_scale, t_softcap, T_CAPPED)
            higher = tl.maximum(t_top, tl.max(t, axis=1))
            t_exp = tl.exp((t - higher[:, None]) * inverse_temperature)
            t_shrink = tl.exp((t_top - higher) * inverse_temperature)
            t_sum = t_sum * t_shrink + tl.sum(t_exp, axis=1)
            t_top = higher
            if ONE_SWEEP:
                inside = positions < columns
                s_low = tl.minimum(s_low, tl.min(tl.where(inside, s, float("inf")), axis=1))
                t_low = tl.minimum(t_low, tl.min(tl.where(inside, t, float("inf")), axis=1))
                difference = tl.where(tl.minimum(s, t) > LOWEST, t - s, 0.0) * inverse_temperature
                s_difference = s_difference * s_shrink + tl.sum(s_exp * difference, axis=1)
                t_difference = t_difference * t_shrink + tl.sum(t_exp * difference, axis=1)

    s_highest = tl.max(s_top, axis=0)
    s_weight = tl.exp((s_top - s_highest) * inverse_temperature)
    s_total = tl.sum(s_sum * s_weight, axis=0)
    s_lse = s_highest * inverse_temperature + tl.log(s_total)
    tl.store(SUMS + row, s_lse)
    if WITH_TARGETS:
        s_lse_untempered = s_lse
        if TEMPERED:
            s_lse_untempered = s_highest + tl.log(tl.sum(s_sum_untempered * tl.exp(s_top - s_highest), axis=0))
        tl.store(SUMS + 3 * rows + row, s_lse_untempered)
        target = tl.load(TARGETS + row)
        logit = read(S, s_columns, target, s_scale, s_softcap, S_CAPPED)
        tl.store(VALUES + K * rows + row, -at_least(logit - s_lse_untempered, FLOOR))

    if K > 0:
        t_highest = tl.max(t_top, axis=0)
        t_weight = tl.exp((t_top - t_highest) * inverse_temperature)
        t_total = tl.sum(t_sum * t_weight, axis=0)
        t_lse = t_highest * inverse_temperature + tl.log(t_total)
        tl.store(SUMS + rows + row, t_lse)

        enough = False
        if ONE_SWEEP:
            s_lowest = tl.min(s_low, axis=0) * inverse_temperature - s_lse
            t_lowest = tl.min(t_low, axis=0) * inverse_temperature - t_lse
            enough = tl.minimum(s_lowest, t_lowest) > FLOOR
        if enough:
            shift = t_lse - s_lse
            forward = at_least(tl.sum(t_difference * t_weight, axis=0) / t_total - shift, 0.0)
            backward = at_least(shift - tl.sum(s_difference * s_weight, axis=0) / s_total, 0.0)
            slopes = 0.0
            for k in tl.static_range(K):
                if KINDS[k] == 1:
                    tl.store(VALUES + k * rows + row, forward)
                else:
                    tl.store(VALUES + k * rows + row, backward)
                    slopes += tl.load(FACTORS + k) * inverse_temperature * backward
            tl.store(SUMS + 2 * rows + row, slopes)
        else:
            values = ()
            for _ in tl.static_range(K):
                values = values + (zeros,)
            slopes_of_groups = zeros
            last = (columns - 1) // BLOCK * BLOCK
            for done in range(0, columns, BLOCK):
                positions = positions_from(last - done, BLOCK)
                s = read(S, s_columns, positions, s_scale, s_softcap, S_CAPPED)
                t = read(T, t_columns, positions, t_scale, t_softcap, T_CAPPED)
                log_q = at_least(s * inverse_temperature - s_lse, FLOOR)
                log_p = at_least(t * inverse_temperature - t_lse, FLOOR)
                q = tl.exp(log_q)
                p = tl.exp(log_p)
                inside = positions < columns
                movable = inside & ~(log_q <= FLOOR)
                new_values = ()
                slopes = tl.zeros_like(q)
                for k in tl.static_range(K):
                    value, slope = ENTRIES[k](log_p, log_q, p, q, PARAMETERS[k])
                    new_values = new_values + (values[k] + tl.sum(tl.where(inside, value, 0.0), axis=1),)
                    slopes += tl.load(FACTORS + k) * slope
                values = new_values
                slopes_of_groups += tl.sum(tl.where(movable, slopes, 0.0), axis=1)
            for k in tl.static_range(K):
                tl.store(VALUES + k * rows + row, tl.sum(values[k], axis=0))
            tl.store(SUMS + 2 * rows + row, tl.sum(slopes_of_groups, axis=0) * inverse_temperature)


@triton.jit
def row_gradient(
    S, T, TARGETS, WEIGHTS, UPSTREAM, FACTORS, SUMS, OUT,
    s_stride, t_stride, out_stride, s_columns, t_columns, rows,
    inverse_temperature, s_scale, s_softcap, t_scale, t_softcap,
    ENTRIES: tl.constexpr, SOURCES: tl.constexpr, PARAMETERS: tl.constexpr, WITH_TARGETS: tl.constexpr,
    S_CAPPED: tl.constexpr, T_CAPPED: tl.constexpr, BLOCK: tl.constexpr,
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
    s = read(S + row * s_stride, s_columns, positions, s_scale, s_softcap, S_CAPPED)
    gradient = tl.zeros_like(s)
    if K > 0:
        t = read(T + row * t_stride, t_columns, positions, t_scale, t_softcap, T_CAPPED)
        log_q = at_least(s * inverse_temperature - tl.load(SUMS + row), FLOOR)
        log_p = at_least(t * inverse_temperature - tl.load(SUMS + rows + row), FLOOR)
        q = tl.exp(log_q)
        p = tl.exp(log_p)
        for k in tl.static_range(K):
            _, slope = ENTRIES[k](log_p, log_q, p, q, PARAMETERS[k])
            gradient += tl.load(FACTORS + k) * slope
        gradient = tl.where(log_q <= FLOOR, 0.0, gradient * inverse_temperature)
        gradient -= q * tl.load(SUMS + 2 * rows + row)
    if WITH_TARGETS:
        untempered = tl.exp(s - tl.load(SUMS + 3 * rows + row))
        is_target = positions == tl.load(TARGETS + row)
        gradient += tl.load(FACTORS + K) * (untempered - tl.where(is_target, 1.0, 0.0))
    if S_CAPPED:
        bent = s / s_softcap
        gradient = tl.where(s == -float("inf"), 0.0, gradient * (1.0 - bent * bent))
    gradient *= weight * tl.load(UPSTREAM) * s_scale
    tl.store(OUT + positions, gradient.to(OUT.dtype.element_ty), mask=present)
