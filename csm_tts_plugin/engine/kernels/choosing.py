"""Sampling of a code and the depth decoder's next input in one kernel: see `sampling.py`."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _scramble(x):
    """`sampling._scramble`, on int64 with 32-bit values."""
    x = x ^ (x >> 16)
    x = (x * 0x85EBCA6B) & 0xFFFFFFFF
    x = x ^ (x >> 13)
    x = (x * 0xC2B2AE35) & 0xFFFFFFFF
    return x ^ (x >> 16)


@triton.jit(do_not_specialize=["codebook"])
def choose(
    logits_ptr, row_ptr, temperature_ptr, top_k_ptr, seed_ptr, frame_ptr, table_ptr,
    code_ptr, x_ptr, sound_ptr, codebook, end,
    V: tl.constexpr, PV: tl.constexpr, C: tl.constexpr, PC: tl.constexpr, BOOKS: tl.constexpr,
    PBOOKS: tl.constexpr, BITS: tl.constexpr, LAST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """logits [B, V] -> code [B, BOOKS] at `codebook`, x [B, C]: that row of `table` [V, C].

    One program per row; `row` [B]: index of its temperature, top-k, seed and frame. All codes at
    least as likely as the k-th are candidates, ties included, as in transformers. BITS: bits of a
    logit, 16 or 32. `sound` [B] becomes false if a logit is not finite. LAST: the last codebook;
    if all codes before are `end`, so is this one, and there is no next input.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    b = tl.program_id(0)
    row = tl.load(row_ptr + b)
    part = tl.minimum(codebook, 1)
    temperature = tl.load(temperature_ptr + row * 2 + part)
    kept = tl.where(temperature > 0, tl.load(top_k_ptr + row * 2 + part), 1).to(tl.int32)
    v = tl.arange(0, PV)
    live = v < V
    value = tl.load(logits_ptr + b * V + v, mask=live, other=float("-inf")).to(tl.float32)
    # As integers in the order of the values; the k-th largest by bisection over their bits.
    bits = value.to(tl.int32, bitcast=True)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    order = tl.where(live, order, -0x80000000)
    low = tl.where(tl.sum((order >= 0).to(tl.int32), axis=0) >= kept, 0, -0x80000000)
    for step in tl.static_range(30, 31 - BITS, -1):
        probe = low + (1 << step)
        low = tl.where(tl.sum((order >= probe).to(tl.int32), axis=0) >= kept, probe, low)
    key = tl.load(seed_ptr + row)
    key = _scramble((key + tl.load(frame_ptr + row) * 0x9E3779B1) & 0xFFFFFFFF)
    key = _scramble((key + codebook.to(tl.int64) * 0x85EBCA77) & 0xFFFFFFFF)
    noise = _scramble((key + v.to(tl.int64) * 0xC2B2AE3D) & 0xFFFFFFFF)
    uniform = ((noise >> 9).to(tl.float32) + 0.5) * (1.0 / 8388608)
    gumbel = -tl.log(-tl.log(uniform))
    # A greedy row takes the first of the largest, whatever the noise.
    score = value
    if temperature > 0:
        score = value * (1.0 / tl.maximum(temperature, 1e-5)) + gumbel
    score = tl.where(live & (order >= low), score, float("-inf"))
    code = tl.argmax(score, axis=0).to(tl.int64)
    code = tl.minimum(tl.maximum(code, 0), V - 1)
    wrong = tl.sum(((value != value) | (value == float("inf"))).to(tl.int32), axis=0)
    sound = (wrong == 0) & (tl.max(value, axis=0) > float("-inf"))
    if codebook > 0:
        sound = sound & (tl.load(sound_ptr + b) != 0)
    tl.store(sound_ptr + b, sound.to(tl.int8))
    if LAST:
        k = tl.arange(0, PBOOKS)
        others = tl.load(code_ptr + b * BOOKS + k, mask=k < BOOKS - 1, other=end)
        going = tl.sum((others != end).to(tl.int32), axis=0)
        code = tl.where(going == 0, tl.zeros_like(code) + end, code)
    tl.store(code_ptr + b * BOOKS + codebook, code)
    if not LAST:
        c = tl.arange(0, PC)
        at = table_ptr + code * C + c
        tl.store(x_ptr + b * C + c, tl.load(at, mask=c < C, other=0.0), mask=c < C)
