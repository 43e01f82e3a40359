"""The library's streams: their audio, closing, errors and timing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csm_tts_plugin.errors import BusyError, NumericError
from csm_tts_plugin.library import generator as module
from csm_tts_plugin.library.generator import Generator
from tests.engine.tools import generated, noise, small_checkpoint, without_end
from tests.library.speaking import FRAME, GREEDY, assert_same, expected, inputs_of, sound, turn
from tests.support.models import small_model

# What is spoken


@pytest.mark.parametrize("chunk_token_size", [1, 3, 20])
def test_chunks_joined_are_what_generate_gives(speaker, small, inputs, chunk_token_size):
    ours = sound(speaker, inputs, chunk_token_size, max_new_tokens=25, **GREEDY)
    theirs = expected(small.model, inputs, max_new_tokens=25, do_sample=False)
    assert_same(ours, theirs)
    assert speaker.metrics.reason == "length"


def test_csm_tiny_speaks_what_generate_gives_within_full_scale(tiny_speaker):
    inputs = inputs_of(tiny_speaker, turn("Hello.", noise(1.0)), turn("The quick brown fox."))
    ours = sound(tiny_speaker, inputs, max_new_tokens=40, do_sample=False)
    codes = generated(tiny_speaker.model, 40, **inputs)
    frames = torch.from_numpy(without_end(codes)).T[None]
    with torch.no_grad():
        theirs = tiny_speaker.model.codec_model.decode(frames).audio_values[0, 0]
    assert_same(ours, theirs)
    assert ours.abs().max() <= 1.0


def test_the_end_frame_is_not_heard():
    checkpoint = small_checkpoint(3, codebooks=3, codes=8)
    generator = Generator(checkpoint.model, checkpoint.processor)
    for number in range(60):
        inputs = inputs_of(checkpoint, turn(f"Try number {number}."))
        codes = generated(checkpoint.model, 50, **inputs)
        if 5 <= len(codes) < 50 and codes.max() < 8:
            break
    else:
        pytest.fail("no text was found after which this model ends; take other weights")
    ours = sound(generator, inputs, max_new_tokens=50, **GREEDY)
    assert generator.metrics.reason == "end"
    frames = torch.from_numpy(codes[:-1]).T[None]
    with torch.no_grad():
        theirs = checkpoint.model.codec_model.decode(frames).audio_values[0, 0]
    assert_same(ours, theirs)


def test_chunks_are_float_tensors_that_grow_from_one_frame(speaker, words):
    chunks = list(speaker.generate_stream(words, 8, max_new_tokens=30, **GREEDY))
    assert [len(chunk) // FRAME for chunk in chunks] == [1, 2, 4, 8, 8, 7]
    assert all(chunk.dtype == torch.float32 and chunk.ndim == 1 for chunk in chunks)
    assert {chunk.device for chunk in chunks} == {speaker.device}
    three = speaker.generate_stream(words, 3, max_new_tokens=9, **GREEDY)
    assert [len(chunk) // FRAME for chunk in three] == [1, 2, 3, 3]


def test_arguments_one_by_one_and_padding_change_nothing(speaker, inputs):
    whole = sound(speaker, inputs, max_new_tokens=6, **GREEDY)
    values = {name: inputs[name] for name in ("input_values", "input_values_cutoffs")}
    padded = torch.nn.functional.pad(inputs["input_ids"], (5, 0), value=130)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (5, 0), value=0)
    values["input_values_cutoffs"] = torch.nn.functional.pad(
        values["input_values_cutoffs"], (0, 2), value=-1
    )
    stream = speaker._generate_stream(
        input_ids=padded, attention_mask=mask, max_new_tokens=6, **values, **GREEDY
    )
    torch.testing.assert_close(torch.cat(list(stream)), whole, rtol=0, atol=0)


def test_the_model_still_generates_by_itself_what_it_did_before(words):
    checkpoint = small_checkpoint(11)
    generator = Generator(checkpoint.model, checkpoint.processor)
    sound(generator, words, max_new_tokens=3)
    untouched = small_model(11, context=512)
    np.testing.assert_array_equal(
        generated(generator.model, 10, **words), generated(untouched, 10, **words)
    )


def test_speech_ends_where_the_context_does(small):
    checkpoint = small_checkpoint(3, context=64)
    generator = Generator(checkpoint.model, checkpoint.processor)
    inputs = inputs_of(checkpoint, turn("say it"))
    sound(generator, inputs, **GREEDY)
    assert generator.metrics.reason == "length"
    assert generator.metrics.frames == 64 - inputs["input_ids"].shape[1]


# Life cycle of a stream


def test_a_closed_stream_leaves_nothing_behind(speaker, words):
    whole = sound(speaker, words, max_new_tokens=8, **GREEDY)
    stream = speaker.generate_stream(words, max_new_tokens=8, **GREEDY)
    next(stream), next(stream)
    with pytest.raises(BusyError, match=r"close\(\)"):
        next(speaker.generate_stream(words, **GREEDY))
    stream.close()
    assert not any(tensor.any() for tensor in speaker._runner.state.tensors())
    assert torch.equal(sound(speaker, words, max_new_tokens=8, **GREEDY), whole)


def test_metrics_of_a_closed_stream_say_so(speaker, words):
    stream = speaker.generate_stream(words, max_new_tokens=8, **GREEDY)
    next(stream), next(stream)
    stream.close()
    assert (speaker.metrics.frames, speaker.metrics.reason) == (3, "cancelled")


def test_a_stream_that_was_never_begun_blocks_nobody(speaker, words):
    waiting = speaker.generate_stream(words, max_new_tokens=2, **GREEDY)
    speaker.generate_stream(words, **GREEDY).close()
    assert len(sound(speaker, words, max_new_tokens=2, **GREEDY)) == 2 * FRAME
    assert len(torch.cat(list(waiting))) == 2 * FRAME


def test_nan_in_the_model_ends_that_stream_with_a_typed_error_and_no_other():
    checkpoint = small_checkpoint(3)
    good = inputs_of(checkpoint, turn("aaaa"))
    bad = inputs_of(checkpoint, turn("aaqa"))
    (token,) = set(bad["input_ids"][0].tolist()) - set(good["input_ids"][0].tolist())
    with torch.no_grad():
        checkpoint.model.embed_text_tokens.weight[token] = float("nan")
    generator = Generator(checkpoint.model, checkpoint.processor)
    before = sound(generator, good, max_new_tokens=4, **GREEDY)
    with pytest.raises(NumericError, match="NaN"):
        sound(generator, bad, max_new_tokens=4, **GREEDY)
    assert generator.metrics.reason == "failed"
    assert torch.equal(sound(generator, good, max_new_tokens=4, **GREEDY), before)


class Clock:
    """A clock that advances only where a test sets it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_metrics_count_from_the_request_to_the_samples_and_nothing_else(
    speaker, words, monkeypatch
):
    clock, runner = Clock(), speaker._runner
    monkeypatch.setattr(module, "time", clock)
    reports, draw = [], runner.draw

    def slow_draw(*arguments):
        clock.now += 0.5
        return draw(*arguments)

    def slow_options(*arguments):
        clock.now += 2.0
        return read_options(*arguments)

    read_options = module.read_options
    monkeypatch.setattr(runner, "draw", slow_draw)
    monkeypatch.setattr(module, "read_options", slow_options)
    stream = speaker.generate_stream(words, 2, max_new_tokens=4, progress=reports.append, **GREEDY)
    clock.now += 77.0
    for _ in stream:
        clock.now += 33.0
    metrics = speaker.metrics
    assert (metrics.frames, metrics.reason) == (4, "length")
    assert metrics.seconds == pytest.approx(2.0 + 4 * 0.5)
    assert metrics.first_audio == pytest.approx(2.5)
    assert metrics.rtf == pytest.approx(4.0 / (4 * 0.08))
    assert [(r.chunk, r.frames) for r in reports] == [(1, 1), (2, 2), (3, 1)]
    assert [r.seconds for r in reports] == pytest.approx([2.5, 1.0, 0.5])
    assert reports[1].rtf == pytest.approx(1.0 / 0.16)
    assert [r.total.frames for r in reports] == [1, 3, 4]
