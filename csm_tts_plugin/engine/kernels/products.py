"""Matrix products of few rows, fused with the norm before and the operation after them.

Weights are [N, K], row-major, in the model's dtype or in 8 bits with a scale per row. `gemv` is for
one row of x: each program reads some rows of the weights once. `skinny` is for more rows: a tile of
x times a tile of the weights. Sums are in float32. The `_qkv` forms rotate queries and keys and
write them and the values to the memory that attention reads.

RMS norm: its factor, one number per row, is applied to the sums, and its weight to x.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _tile(ptr, ok, WHOLE: tl.constexpr):
    """Loads weights, which are read once per frame and should not displace
    other data in the cache.
    """
    if WHOLE:
        return tl.load(ptr, eviction_policy="evict_first")
    else:
        return tl.load(ptr, mask=ok, other=0, eviction_policy="evict_first")


@triton.jit
def _dots(
    x_ptr, norm_ptr, w_ptr, scale_ptr, n, live, eps,
    K: tl.constexpr, SHIFT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WHOLE: tl.constexpr,
    NORM: tl.constexpr, PAIRED: tl.constexpr, EIGHT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Rows `n` of the weights times x [K], and rows `n + SHIFT` where PAIRED: two [BN]."""
    k = tl.arange(0, BK)
    ok = live[:, None] & (k < K)[None, :]
    rows = w_ptr + n[:, None].to(tl.int64) * K + k[None, :]
    others = rows + SHIFT * K
    if PDL:
        gdc_launch_dependents()
    # Weights do not depend on the kernel before: they are loaded before it has ended.
    w = _tile(rows, ok, WHOLE)
    if PAIRED:
        u = _tile(others, ok, WHOLE)
    if PDL:
        gdc_wait()
    first = tl.zeros((BN, BK), tl.float32)
    second = tl.zeros((BN, BK), tl.float32)
    square = tl.zeros((BK,), tl.float32)
    for start in tl.static_range(0, K, BK):
        here = k < K - start
        x = tl.load(x_ptr + start + k, mask=here, other=0.0).to(tl.float32)
        if NORM:
            square += x * x
            x = x * tl.load(norm_ptr + start + k, mask=here, other=0.0).to(tl.float32)
        first += w.to(tl.float32) * x[None, :]
        if PAIRED:
            second += u.to(tl.float32) * x[None, :]
        if start + BK < K:
            ok = live[:, None] & (k < K - start - BK)[None, :]
            w = _tile(rows + (start + BK), ok, WHOLE)
            if PAIRED:
                u = _tile(others + (start + BK), ok, WHOLE)
    a = tl.sum(first, axis=1)
    b = tl.sum(second, axis=1)
    if EIGHT:
        a = a * tl.load(scale_ptr + n, mask=live, other=0.0)
        if PAIRED:
            b = b * tl.load(scale_ptr + SHIFT + n, mask=live, other=0.0)
    if NORM:
        root = tl.rsqrt(tl.sum(square, axis=0) / K + eps)
        a = a * root
        b = b * root
    return a, b


@triton.jit
def gemv(
    x_ptr, norm_ptr, w_ptr, scale_ptr, y_ptr, eps,
    N: tl.constexpr, K: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WHOLE: tl.constexpr,
    NORM: tl.constexpr, GATED: tl.constexpr, RESIDUAL: tl.constexpr, EIGHT: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """x [K] -> y [N]: the product. GATED: SiLU of the first N rows times the second N rows.
    RESIDUAL: added to y.
    """
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    live = n < N
    y, up = _dots(
        x_ptr, norm_ptr, w_ptr, scale_ptr, n, live, eps,
        K, N, BN, BK, WHOLE, NORM, GATED, EIGHT, PDL,
    )  # fmt: skip
    if GATED:
        y = y * tl.sigmoid(y) * up
    if RESIDUAL:
        y += tl.load(y_ptr + n, mask=live, other=0.0).to(tl.float32)
    tl.store(y_ptr + n, y.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def _rotated(low, high, cos_ptr, sin_ptr):
    """Both halves of a head's dimensions, rotated by the angles there."""
    cos = tl.load(cos_ptr).to(tl.float32)
    sin = tl.load(sin_ptr).to(tl.float32)
    return low * cos - high * sin, high * cos + low * sin


@triton.jit
def gemv_qkv(
    x_ptr, norm_ptr, w_ptr, scale_ptr, q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, row_ptr, place_ptr,
    eps, row_stride, head_stride,
    HEADS: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, K: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, WHOLE: tl.constexpr, PLACED: tl.constexpr,
    EIGHT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """x [K] -> queries, keys and values of one position, rotated.

    PLACED: cos and sin [positions, D]; queries are written to q [HEADS, D], keys and values to row
    `row[0]`, position `place[0]`. Otherwise cos and sin [D], and all are written to q in turn.
    """
    half: tl.constexpr = D // 2
    parts: tl.constexpr = half // BN
    head = tl.program_id(0) // parts
    j = (tl.program_id(0) % parts) * BN + tl.arange(0, BN)
    n = head * D + j
    low, high = _dots(
        x_ptr, norm_ptr, w_ptr, scale_ptr, n, n >= 0, eps,
        K, half, BN, BK, WHOLE, True, True, EIGHT, PDL,
    )  # fmt: skip
    angle = j
    if PLACED:
        place = tl.load(place_ptr)
        angle = place * D + j
    if head < HEADS + KV:
        low, high = _rotated(low, high, cos_ptr + angle, sin_ptr + angle)
    kind: tl.constexpr = q_ptr.dtype.element_ty
    if PLACED:
        if head < HEADS:
            out = q_ptr + n
        else:
            base = tl.load(row_ptr).to(tl.int64) * row_stride + place * D + j
            if head < HEADS + KV:
                out = k_ptr + base + (head - HEADS) * head_stride
            else:
                out = v_ptr + base + (head - HEADS - KV) * head_stride
        tl.store(out, low.to(kind))
        tl.store(out + half, high.to(kind))
    else:
        tl.store(q_ptr + n, low.to(kind))
        tl.store(q_ptr + n + half, high.to(kind))


@triton.jit
def _tiles(
    x_ptr, norm_ptr, w_ptr, scale_ptr, m, n, rows, live, eps,
    K: tl.constexpr, SHIFT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    NORM: tl.constexpr, PAIRED: tl.constexpr, EIGHT: tl.constexpr,
):  # fmt: skip
    """Rows `m` of x [B, K] times rows `n` (and `n + SHIFT`) of the weights: two [BM, BN]."""
    k = tl.arange(0, BK)
    first = tl.zeros((BM, BN), tl.float32)
    second = tl.zeros((BM, BN), tl.float32)
    square = tl.zeros((BM,), tl.float32)
    for start in range(0, K, BK):
        at = start + k
        here = at < K
        x = tl.load(x_ptr + m[:, None] * K + at[None, :], mask=rows & here[None, :], other=0.0)
        if NORM:
            f = x.to(tl.float32)
            square += tl.sum(f * f, axis=1)
            weight = tl.load(norm_ptr + at, mask=here, other=0.0).to(tl.float32)
            x = (f * weight[None, :]).to(x.dtype)
        place = w_ptr + n[None, :].to(tl.int64) * K + at[:, None]
        ok = live[None, :] & here[:, None]
        w = tl.load(place, mask=ok, other=0).to(x.dtype)
        first = tl.dot(x, w, first, input_precision="ieee")
        if PAIRED:
            u = tl.load(place + SHIFT * K, mask=ok, other=0).to(x.dtype)
            second = tl.dot(x, u, second, input_precision="ieee")
    if EIGHT:
        first *= tl.load(scale_ptr + n, mask=live, other=0.0)[None, :]
        if PAIRED:
            second *= tl.load(scale_ptr + SHIFT + n, mask=live, other=0.0)[None, :]
    if NORM:
        root = tl.rsqrt(square / K + eps)[:, None]
        first = first * root
        second = second * root
    return first, second


@triton.jit
def skinny(
    x_ptr, norm_ptr, w_ptr, scale_ptr, y_ptr, eps, B,
    N: tl.constexpr, K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    NORM: tl.constexpr, GATED: tl.constexpr, RESIDUAL: tl.constexpr, EIGHT: tl.constexpr,
):  # fmt: skip
    """`gemv` for x [B, K] -> y [B, N]"""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    rows, live = (m < B)[:, None], n < N
    y, up = _tiles(
        x_ptr, norm_ptr, w_ptr, scale_ptr, m, n, rows, live, eps,
        K, N, BM, BN, BK, NORM, GATED, EIGHT,
    )  # fmt: skip
    if GATED:
        y = y * tl.sigmoid(y) * up
    out = y_ptr + m[:, None] * N + n[None, :]
    ok = rows & live[None, :]
    if RESIDUAL:
        y += tl.load(out, mask=ok, other=0.0).to(tl.float32)
    tl.store(out, y.to(y_ptr.dtype.element_ty), mask=ok)


@triton.jit
def skinny_qkv(
    x_ptr, norm_ptr, w_ptr, scale_ptr, q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, row_ptr, place_ptr,
    eps, row_stride, head_stride, B,
    HEADS: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PLACED: tl.constexpr,
    EIGHT: tl.constexpr,
):  # fmt: skip
    """`gemv_qkv` for x [B, K]; rows and places [B]. Not PLACED: all of it to q [B, all heads, D]"""
    half: tl.constexpr = D // 2
    parts: tl.constexpr = half // BN
    total: tl.constexpr = HEADS + 2 * KV
    head = tl.program_id(0) // parts
    j = (tl.program_id(0) % parts) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    n = head * D + j
    rows = (m < B)[:, None]
    low, high = _tiles(
        x_ptr, norm_ptr, w_ptr, scale_ptr, m, n, rows, n >= 0, eps,
        K, half, BM, BN, BK, True, True, EIGHT,
    )  # fmt: skip
    place = tl.zeros((BM,), tl.int64)
    if PLACED:
        place += tl.load(place_ptr + m, mask=m < B, other=0)
    angle = place[:, None] * D + j[None, :]
    if head < HEADS + KV:
        low, high = _rotated(low, high, cos_ptr + angle, sin_ptr + angle)
    kind: tl.constexpr = q_ptr.dtype.element_ty
    if PLACED:
        if head < HEADS:
            out = q_ptr + m[:, None] * (HEADS * D) + n[None, :]
        else:
            row = tl.load(row_ptr + m, mask=m < B, other=0).to(tl.int64)
            base = (row * row_stride)[:, None] + angle
            if head < HEADS + KV:
                out = k_ptr + base + (head - HEADS) * head_stride
            else:
                out = v_ptr + base + (head - HEADS - KV) * head_stride
    else:
        out = q_ptr + m[:, None] * (total * D) + n[None, :]
    tl.store(out, low.to(kind), mask=rows)
    tl.store(out + half, high.to(kind), mask=rows)


@triton.jit
def gate(y_ptr, h_ptr, N: tl.constexpr, BN: tl.constexpr):
    """SiLU of y [B, 2 N]'s first half times its second half -> h [B, N]"""
    row = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    live = n < N
    y = tl.load(y_ptr + row * 2 * N + n, mask=live, other=0.0).to(tl.float32)
    up = tl.load(y_ptr + row * 2 * N + N + n, mask=live, other=0.0).to(tl.float32)
    tl.store(h_ptr + row * N + n, (y * tl.sigmoid(y) * up).to(h_ptr.dtype.element_ty), mask=live)
