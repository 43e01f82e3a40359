"""Attention of one new position per row over the row's cached keys and values.

Rows and lengths are read on the device: any rows may take part in a step, and one graph serves all
lengths. The query heads of one key head are processed together, so that keys are read once.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit(do_not_specialize=["length"])
def attend(
    q_ptr, k_ptr, v_ptr, y_ptr, part_ptr, row_ptr, place_ptr, length, scale,
    q_stride, row_stride, head_stride, place_stride,
    KV: tl.constexpr, GROUP: tl.constexpr, PADDED: tl.constexpr, D: tl.constexpr,
    BL: tl.constexpr, SPLITS: tl.constexpr, PLACED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """q [B, KV * GROUP, D] over keys and values [rows, KV, positions, D] -> y [B, KV * GROUP * D].

    PLACED: item b attends to row `row[b]` up to and including position `place[b]`; otherwise to
    `length` positions of row b. SPLITS: parts of the length, each computed by its own program,
    whose results are written to `part` [B, KV * GROUP, SPLITS, D + 8] for `combine`.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    b = tl.program_id(0) // KV
    h = tl.program_id(0) % KV
    split = tl.program_id(1)
    row = b.to(tl.int64)
    if PLACED:
        row = tl.load(row_ptr + b).to(tl.int64)
        length = tl.load(place_ptr + b).to(tl.int32) + 1
    g = tl.arange(0, PADDED)
    d = tl.arange(0, D)
    positions = tl.arange(0, BL)
    own = (g < GROUP)[:, None]
    q = tl.load(q_ptr + b * q_stride + (h * GROUP + g)[:, None] * D + d[None, :], own, 0.0)
    share = tl.cdiv(tl.cdiv(length, SPLITS), BL) * BL
    begin = split * share
    end = tl.minimum(begin + share, length)
    base = row * row_stride + h * head_stride
    top = tl.full((PADDED,), float("-inf"), tl.float32)
    total = tl.zeros((PADDED,), tl.float32)
    acc = tl.zeros((PADDED, D), tl.float32)
    for start in range(begin, end, BL):
        at = start + positions
        seen = at < end
        place = base + at[:, None].to(tl.int64) * place_stride + d[None, :]
        k = tl.load(k_ptr + place, mask=seen[:, None], other=0.0)
        v = tl.load(v_ptr + place, mask=seen[:, None], other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        score = tl.where(seen[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, axis=1))
        p = tl.exp(score - higher[:, None])
        shrink = tl.exp(top - higher)
        total = total * shrink + tl.sum(p, axis=1)
        acc = acc * shrink[:, None]
        acc += tl.dot(p.to(v.dtype), v, input_precision="ieee")
        top = higher
    item = b * (KV * GROUP) + h * GROUP + g
    if SPLITS == 1:
        y = acc / total[:, None]
        out = y_ptr + item[:, None] * D + d[None, :]
        tl.store(out, y.to(y_ptr.dtype.element_ty), mask=own)
    else:
        part = part_ptr + (item * SPLITS + split) * (D + 8)
        tl.store(part[:, None] + d[None, :], acc, mask=own)
        tl.store(part + D, top, mask=g < GROUP)
        tl.store(part + (D + 1), total, mask=g < GROUP)


@triton.jit
def combine(part_ptr, y_ptr, D: tl.constexpr, SPLITS: tl.constexpr, PDL: tl.constexpr):
    """Combines the parts of one head's attention: part [items, SPLITS, D + 8] -> y [items, D]"""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    item = tl.program_id(0)
    s = tl.arange(0, SPLITS)
    d = tl.arange(0, D)
    part = part_ptr + (item * SPLITS + s) * (D + 8)
    top = tl.load(part + D)
    share = tl.exp(top - tl.max(top, axis=0))
    total = tl.sum(tl.load(part + (D + 1)) * share, axis=0)
    acc = tl.sum(tl.load(part[:, None] + d[None, :]) * share[:, None], axis=0)
    tl.store(y_ptr + item * D + d, (acc / total).to(y_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["step"])
def attend_out(
    cache_ptr, w_ptr, scale_ptr, x_ptr, step, scale,
    N: tl.constexpr, HEADS: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, L: tl.constexpr,
    BN: tl.constexpr, EIGHT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row's attention over few positions with its output projection, added to x [N].

    cache [positions, HEADS + 2 KV, D]: queries, keys and values; the query is that of position
    `step`, which attends to itself and to those before. L: a power of two, at least the number of
    positions. Each program repeats the attention, which is small, and computes BN outputs of the
    product with w [N, HEADS * D].
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    positions = tl.arange(0, L)
    d = tl.arange(0, D)
    width: tl.constexpr = (HEADS + 2 * KV) * D
    group: tl.constexpr = HEADS // KV
    seen = positions <= step
    acc = tl.zeros((BN, D), tl.float32)
    for h in tl.static_range(KV):
        place = cache_ptr + positions[:, None] * width + (HEADS + h) * D + d[None, :]
        k = tl.load(place, mask=seen[:, None], other=0.0).to(tl.float32)
        v = tl.load(place + KV * D, mask=seen[:, None], other=0.0).to(tl.float32)
        for g in tl.static_range(group):
            here = (h * group + g) * D + d
            w = tl.load(w_ptr + n[:, None].to(tl.int64) * (HEADS * D) + here[None, :])
            q = tl.load(cache_ptr + step * width + here).to(tl.float32)
            score = tl.where(seen, tl.sum(k * q[None, :], axis=1) * scale, float("-inf"))
            p = tl.exp(score - tl.max(score, axis=0))
            y = tl.sum(v * p[:, None], axis=0) / tl.sum(p, axis=0)
            acc += w.to(tl.float32) * y[None, :]
    out = tl.sum(acc, axis=1)
    if EIGHT:
        out = out * tl.load(scale_ptr + n)
    out += tl.load(x_ptr + n).to(tl.float32)
    tl.store(x_ptr + n, out.to(x_ptr.dtype.element_ty))
