"""The library's API: chunks that join to what `generate` says, options as transformers takes them,
references, files and playback; and the README's examples."""

from __future__ import annotations

import logging
import sys
import threading
import types

import numpy as np
import pytest
import soundfile
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
)

import csm_tts_plugin
from csm_tts_plugin import generator as module
from csm_tts_plugin.audio import playback
from csm_tts_plugin.errors import (
    AudioError,
    BusyError,
    ModelLoadError,
    NumericError,
    RequestError,
    TextError,
    VoiceError,
)
from csm_tts_plugin.generator import (
    Generator,
    generate_streaming_audio,
    load_csm_1b,
    load_reference_audio,
)
from tests.engine.tools import generated, noise, small_checkpoint, without_end
from tests.support.models import small_model

GREEDY = {"do_sample": False, "depth_decoder_do_sample": False}
FRAME = 1920


@pytest.fixture(scope="module")
def speaker(small):
    """A generator that hardly ever ends by itself."""
    return Generator(small.model, small.processor, "cpu")


@pytest.fixture(scope="module")
def tiny_speaker():
    return load_csm_1b("tiny")


def turn(text: str, audio: np.ndarray | None = None, role: str = "0") -> dict:
    content = [{"type": "text", "text": text}]
    if audio is not None:
        content.append({"type": "audio", "audio": audio})
    return {"role": role, "content": content}


def inputs_of(checkpoint, *turns: dict):
    return checkpoint.processor.apply_chat_template(list(turns), tokenize=True, return_dict=True)


@pytest.fixture(scope="module")
def inputs(small):
    """Two references of odd lengths, then a text."""
    return inputs_of(
        small,
        turn("first words", noise(0.71, 1)),
        turn("other words", noise(1.13, 2), "1"),
        turn("say this"),
    )


@pytest.fixture(scope="module")
def words(small):
    return inputs_of(small, turn("say this"))


def sound(generator: Generator, inputs, chunk_token_size: int = 20, **options) -> torch.Tensor:
    return torch.cat(list(generator.generate_stream(inputs, chunk_token_size, **options)))


def expected(model, inputs, **options) -> torch.Tensor:
    return model.generate(**inputs, output_audio=True, depth_decoder_do_sample=False, **options)[0]


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-4


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


# Options


def test_a_seed_makes_sampling_repeatable(speaker, words):
    options = {"do_sample": True, "depth_decoder_do_sample": True, "max_new_tokens": 5}
    one = sound(speaker, words, seed=1, **options)
    torch.testing.assert_close(sound(speaker, words, seed=1, **options), one, rtol=0, atol=0)
    assert not torch.equal(sound(speaker, words, seed=2, **options), one)
    torch.manual_seed(5)
    free = sound(speaker, words, **options)
    torch.manual_seed(5)
    torch.testing.assert_close(sound(speaker, words, **options), free, rtol=0, atol=0)
    assert not torch.equal(sound(speaker, words, **options), free)


@pytest.mark.parametrize(
    "narrow",
    [
        {"top_k": 1, "depth_decoder_top_k": 1},
        {"temperature": 1e-4, "depth_decoder_temperature": 1e-4},
        {"top_p": 1e-6, "depth_decoder_top_k": 1},
    ],
    ids=["top_k", "temperature", "top_p"],
)
def test_sampling_narrowed_to_one_candidate_is_greedy(speaker, words, narrow):
    greedy = sound(speaker, words, max_new_tokens=6, **GREEDY)
    sampling = {"do_sample": True, "depth_decoder_do_sample": True, "max_new_tokens": 6, "seed": 3}
    assert torch.equal(sound(speaker, words, **sampling, **narrow), greedy)
    assert not torch.equal(sound(speaker, words, **sampling), greedy), "sampling does something"


def test_no_sampling_means_none_in_any_codebook_unless_asked(speaker, small, words, monkeypatch):
    monkeypatch.setattr(small.model.depth_decoder.generation_config, "do_sample", True)
    greedy = sound(speaker, words, max_new_tokens=6, **GREEDY)
    assert torch.equal(sound(speaker, words, max_new_tokens=6, do_sample=False), greedy)
    mixed = {"do_sample": False, "depth_decoder_do_sample": True, "seed": 1}
    assert not torch.equal(sound(speaker, words, max_new_tokens=6, **mixed), greedy)


def test_a_generation_config_is_followed_and_single_options_come_first(speaker, small, words):
    config = GenerationConfig(max_new_tokens=7, do_sample=False, suppress_tokens=[1, 2, 3, 5, 8])
    theirs = expected(small.model, words, generation_config=config)
    assert_same(sound(speaker, words, generation_config=config), theirs)
    sound(speaker, words, generation_config=config, max_new_tokens=2)
    assert speaker.metrics.frames == 2


def test_the_checkpoints_own_options_may_be_given_back(tiny_speaker):
    inputs = inputs_of(tiny_speaker, turn("Hello."))
    config = GenerationConfig.from_pretrained(csm_tts_plugin.engine.loading.TINY_FOLDER)
    sound(tiny_speaker, inputs, generation_config=config, max_new_tokens=2)
    assert tiny_speaker.metrics.frames <= 2


def test_options_of_one_stream_do_not_stay_in_the_model(speaker, small, words):
    before = small.model.generation_config.to_dict(), small.model.depth_decoder.generation_config
    after = before[1].to_dict()
    sound(speaker, words, max_new_tokens=2, temperature=0.3, depth_decoder_temperature=0.2)
    assert small.model.generation_config.to_dict() == before[0]
    assert small.model.depth_decoder.generation_config.to_dict() == after


class Forbid:
    """A logits processor that takes the best code away and notes what it was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        history = tuple(input_ids.flatten().tolist())
        self.shown.append((tuple(input_ids.shape), tuple(scores.shape), scores.dtype, history))
        best = scores.argmax(dim=-1, keepdim=True)
        return scores.scatter(1, best, float("-inf"))


def test_logits_processors_see_and_change_what_they_do_in_generate(speaker, small, inputs):
    theirs, ours = Forbid(), Forbid()
    sounds = expected(
        small.model,
        inputs,
        max_new_tokens=6,
        do_sample=False,
        logits_processor=LogitsProcessorList([theirs]),
    )
    assert_same(sound(speaker, inputs, max_new_tokens=6, logits_processor=[ours], **GREEDY), sounds)
    assert ours.shown == theirs.shown
    plain = sound(speaker, inputs, max_new_tokens=6, **GREEDY)
    assert not torch.equal(plain, sounds)


def test_a_processor_that_does_nothing_leaves_sampling_as_it_is(speaker, words):
    options = {"do_sample": True, "temperature": 0.6, "top_k": 7, "seed": 5, "max_new_tokens": 12}
    plain = sound(speaker, words, depth_decoder_do_sample=False, **options)
    idle = sound(
        speaker,
        words,
        depth_decoder_do_sample=False,
        logits_processor=[lambda ids, scores: scores],
        **options,
    )
    assert torch.equal(idle, plain)


def test_stopping_criteria_see_the_codes_so_far_and_end_the_stream(speaker, small, words):
    seen = []

    def enough(codes, scores):
        seen.append(codes)
        return torch.tensor([codes.shape[1] >= 5])

    ours = sound(
        speaker, words, stopping_criteria=StoppingCriteriaList([enough]), max_new_tokens=9, **GREEDY
    )
    assert len(ours) == 5 * FRAME
    assert speaker.metrics.reason == "stopped"
    assert [codes.shape[1] for codes in seen] == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(seen[-1][0], generated(small.model, 5, **words))


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_the_longest_length_counts_the_prompt_as_in_generate(speaker, small, words):
    length = words["input_ids"].shape[1] + 4
    criteria = [MaxLengthCriteria(length)]
    theirs = expected(
        small.model,
        words,
        do_sample=False,
        stopping_criteria=StoppingCriteriaList([MaxLengthCriteria(length)]),
    )
    assert_same(sound(speaker, words, stopping_criteria=criteria, **GREEDY), theirs)
    assert_same(sound(speaker, words, max_length=length, **GREEDY), theirs)
    assert criteria[0].max_length == length, "the caller's criterion is left as it was"


def test_time_that_is_up_ends_the_stream_after_a_frame(speaker, words):
    sound(speaker, words, max_time=1e-9, max_new_tokens=9, **GREEDY)
    assert (speaker.metrics.frames, speaker.metrics.reason) == (1, "stopped")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"chunk_token_size": 0}, "chunk_token_size"),
        ({"chunk_token_size": 2.5}, "chunk_token_size"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_length": 3}, "max_length counts the prompt"),
        ({"max_time": -1}, "max_time"),
        ({"do_sample": True, "temperature": -0.1}, "temperature"),
        ({"do_sample": True, "top_k": 1.5}, "top_k"),
        ({"do_sample": True, "top_p": 3.0}, "top_p"),
        ({"depth_decoder_do_sample": True, "depth_decoder_top_k": -1}, "depth_decoder_top_k"),
        ({"seed": 2**70}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"synced_gpus": True}, "synced_gpus"),
        ({"num_beams": 4}, "num_beams is not supported"),
        ({"depth_decoder_top_p": 0.5}, "depth_decoder_top_p is not supported"),
        ({"depth_decoder_max_new_tokens": 7}, "depth_decoder_max_new_tokens is not supported"),
        ({"max_tokens": 4}, "no option max_tokens"),
        ({"model": 4}, "no option model"),
        ({"depth_decoder_temprature": 1.0}, "no option depth_decoder_temprature"),
        ({"logits_processor": 3}, "logits_processor"),
        ({"stopping_criteria": ["x"]}, "stopping_criteria"),
        ({"generation_config": {"do_sample": True}}, "generation_config"),
    ],
)
def test_options_that_cannot_be_followed_are_refused_in_one_line(speaker, words, options, told):
    with pytest.raises(RequestError, match=told) as caught:
        speaker.generate_stream(words, **options)
    assert "\n" not in str(caught.value)


def test_options_that_change_nothing_are_taken(speaker, words):
    moot = {
        "num_beams": 1,
        "use_cache": True,
        "output_audio": True,
        "depth_decoder_use_cache": True,
    }
    assert len(sound(speaker, words, max_new_tokens=2, **moot, **GREEDY)) == 2 * FRAME


def _broken_inputs(inputs, case: str) -> tuple[dict, str]:
    ids, values, cutoffs = (
        inputs[name] for name in ("input_ids", "input_values", "input_values_cutoffs")
    )
    empty = ids[:, :0]
    return {
        "none": ({}, "missing"),
        "empty": ({"input_ids": empty}, "nothing to say"),
        "all padding": ({"input_ids": ids, "attention_mask": ids * 0}, "nothing to say"),
        "batch": ({"input_ids": torch.cat([ids, ids])}, "2 prompts"),
        "codes": ({"input_ids": ids[:, :, None]}, "shape"),
        "text": ({"input_ids": "hello"}, "tensor"),
        "vocabulary": ({"input_ids": ids + 1000}, "input_ids must lie"),
        "no values": ({"input_ids": ids}, "no input_values"),
        "no cutoffs": ({"input_ids": ids, "input_values": values[..., :9000]}, "audio tokens"),
        "cutoffs": (
            {"input_ids": ids, "input_values": values, "input_values_cutoffs": cutoffs + 9**9},
            "cutoffs must rise",
        ),
        "nan": (
            {**inputs, "input_values": values * float("nan")},
            "NaN",
        ),
        "mask": ({"input_ids": ids, "attention_mask": ids[:, :3] * 0}, "differ"),
        "hole": (
            {"input_ids": ids, "attention_mask": torch.arange(ids.shape[1])[None] < 3},
            "padding on the left",
        ),
        "long": ({"input_ids": ids[:, :1].expand(1, 512)}, "512 of the model's 512"),
    }[case]


@pytest.mark.parametrize(
    "case",
    [
        "none",
        "empty",
        "all padding",
        "batch",
        "codes",
        "text",
        "vocabulary",
        "no values",
        "no cutoffs",
        "cutoffs",
        "nan",
        "mask",
        "hole",
        "long",
    ],
)
def test_inputs_that_cannot_be_spoken_are_refused_in_one_line(speaker, inputs, case):
    broken, told = _broken_inputs(inputs, case)
    with pytest.raises(RequestError, match=told) as caught:
        speaker.generate_stream(broken)
    assert "\n" not in str(caught.value)


def test_inputs_must_be_a_mapping_and_the_model_a_csm(speaker, small, words):
    with pytest.raises(RequestError, match="mapping"):
        speaker.generate_stream(words["input_ids"])
    with pytest.raises(RequestError, match="CsmForConditionalGeneration"):
        Generator(small.model.depth_decoder, small.processor)
    with pytest.raises(ModelLoadError, match="no folder"):
        load_csm_1b("./nowhere")


# A stream's life


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
    """A time that passes only where a test says so."""

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


# Conversations


@pytest.fixture
def wav(tmp_path):
    """A reference at another rate, in stereo."""
    path = tmp_path / "reference1.wav"
    soundfile.write(path, np.stack([noise(2.0, 5)] * 2, axis=1), 32_000)
    return path


def reference(path, **changes) -> dict:
    return {"path": str(path), "text": "some words", "speaker_id": "0", **changes}


def speak(speaker, conversation, *arguments, **options) -> np.ndarray:
    options = {"max_new_tokens": 6, "play_audio": False, "progress": None, **GREEDY, **options}
    return generate_streaming_audio(speaker, conversation, *arguments, **options)


def test_references_come_back_with_their_audio(wav, tmp_path):
    flac = tmp_path / "other.flac"
    soundfile.write(flac, noise(1.0, 6), 24_000)
    given = [reference(wav, note=1), reference(flac, speaker_id=1)]
    one, two = load_reference_audio(given)
    assert {key: one[key] for key in given[0]} == given[0]
    assert one["audio_array"].dtype == np.float32
    assert abs(len(one["audio_array"]) - 36_000) < 3, "1.5 s at 24 kHz"
    np.testing.assert_allclose(two["audio_array"], noise(1.0, 6), atol=1e-4)
    assert "audio_array" not in given[0], "what was passed in is left alone"


def _bad_references(folder) -> dict:
    (folder / "broken.wav").write_bytes(b"RIFF....WAVE no such thing")
    (folder / "song.mp3").write_bytes(b"\xff\xfb" * 400)
    soundfile.write(folder / "silent.wav", np.zeros(24_000), 24_000)
    soundfile.write(folder / "short.wav", noise(0.1), 24_000)
    return {
        "missing": (reference(folder / "no.wav"), AudioError, "no.wav: no such file"),
        "folder": (reference(folder), AudioError, "this is a folder"),
        "broken": (reference(folder / "broken.wav"), AudioError, "broken.wav: .* decoded"),
        "format": (reference(folder / "song.mp3"), AudioError, "song.mp3: .* not a WAV"),
        "silent": (reference(folder / "silent.wav"), AudioError, "silent.wav: .* silent"),
        "short": (reference(folder / "short.wav"), AudioError, "short.wav: .* 0.10 s"),
        "no path": ({"text": "a", "speaker_id": "0"}, RequestError, "Reference 1 lacks path"),
        "no keys": ({"path": "a.wav"}, RequestError, "lacks text, speaker_id"),
        "no words": (reference("a.wav", text=" "), VoiceError, "no transcript"),
        "a number": (3, RequestError, "Reference 1 must be a dictionary"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "missing",
        "folder",
        "broken",
        "format",
        "silent",
        "short",
        "no path",
        "no keys",
        "no words",
        "a number",
    ],
)
def test_a_bad_reference_is_an_error_that_names_it_and_the_cause(tmp_path, case):
    given, kind, told = _bad_references(tmp_path)[case]
    with pytest.raises(kind, match=told) as caught:
        load_reference_audio([given])
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_references_must_be_a_list():
    for given in ({"path": "a.wav"}, "a.wav", None):
        with pytest.raises(RequestError, match="list of dictionaries"):
            load_reference_audio(given)


def test_references_go_before_the_text_and_it_is_spoken_in_their_role(speaker, small, wav):
    heard = speak(speaker, "say this", reference_data=[reference(wav, speaker_id=7)])
    (loaded,) = load_reference_audio([reference(wav)])
    inputs = inputs_of(
        small, turn("some words", loaded["audio_array"], "7"), turn("say this", role="7")
    )
    theirs = expected(small.model, inputs, max_new_tokens=6, do_sample=False)
    np.testing.assert_allclose(heard, theirs.clamp(-1, 1), atol=1e-4)
    again = speak(speaker, "say this", reference_data=[{**loaded, "speaker_id": 7}])
    np.testing.assert_array_equal(again, heard)


def test_a_conversation_may_hold_samples_files_and_plain_text(speaker, wav):
    (loaded,) = load_reference_audio([reference(wav)])
    samples = [turn("some words", loaded["audio_array"]), turn("say this")]
    heard = speak(speaker, samples)
    by_path = [
        {
            "role": 0,
            "content": [{"type": "text", "text": "some words"}, {"type": "audio", "path": wav}],
        },
        {"role": "0", "content": "say this"},
    ]
    np.testing.assert_array_equal(speak(speaker, by_path), heard)
    plain = speak(speaker, "say this")
    assert not np.array_equal(plain, heard)
    np.testing.assert_array_equal(speak(speaker, [turn("say this")]), plain)


@pytest.mark.parametrize(
    ("conversation", "kind", "told"),
    [
        ("", TextError, "nothing to say"),
        ("  \n", TextError, "nothing to say"),
        ([turn("hello"), turn(" ")], TextError, "nothing to say"),
        ([], RequestError, "not empty"),
        (5, RequestError, "conversation must be"),
        (["secret words"], RequestError, "Turn 1 must be"),
        ([{"role": "0"}], RequestError, "Turn 1 must be"),
        ([{"role": "0", "content": 3}], RequestError, "content of turn 1"),
        ([{"role": "0", "content": [{"type": "picture"}]}], RequestError, "Turn 1 has a part"),
        ([turn("secret words", noise(1.0))], RequestError, "last turn"),
        ([turn("secret words", noise(0.1)), turn("x")], AudioError, "0.1 s"),
        ([turn("a", np.full(24_000, np.nan, np.float32)), turn("x")], AudioError, "NaN"),
        ([turn("a", "no.wav"), turn("x")], AudioError, "no.wav: no such file"),
        ("secret words <|AUDIO|>", TextError, "audio marks"),
        ("word " * 500, RequestError, "leaves no room"),
    ],
)
def test_conversations_that_cannot_be_spoken_are_refused(speaker, conversation, kind, told):
    with pytest.raises(kind, match=told) as caught:
        speak(speaker, conversation)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_template_that_fails_is_an_error_without_the_text(speaker, small, monkeypatch):
    monkeypatch.setattr(small.processor, "chat_template", "{{ raise_exception(messages) }}")
    with pytest.raises(RequestError, match="processor cannot read") as caught:
        speak(speaker, "secret words")
    assert "secret" not in str(caught.value)


# Files


@pytest.mark.parametrize("name", ["out.wav", "OUT.WAV", "out.flac", "out.ogg"])
def test_the_file_holds_what_is_returned(tiny_speaker, tmp_path, name):
    heard = speak(tiny_speaker, "Hello there.", tmp_path / name, max_new_tokens=8)
    samples, rate = soundfile.read(tmp_path / name, dtype="float32")
    assert (rate, samples.shape) == (24_000, heard.shape)
    tolerance = 0.1 if name.endswith("ogg") else 1e-4
    np.testing.assert_allclose(samples, heard, atol=tolerance)


def test_the_file_grows_with_every_chunk_and_is_whole_at_any_time(speaker, tmp_path):
    path, lengths = tmp_path / "out.wav", []

    def look(progress):
        lengths.append(soundfile.info(path).frames if progress.chunk > 1 else 0)

    speak(speaker, "say this", str(path), max_new_tokens=15, progress=look)
    assert lengths == [0, FRAME, 3 * FRAME, 7 * FRAME]
    assert soundfile.info(path).frames == 15 * FRAME


def test_an_interrupted_file_keeps_what_was_spoken(speaker, tmp_path):
    path = tmp_path / "out.wav"

    def interrupt(progress):
        if progress.chunk == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        speak(speaker, "say this", path, max_new_tokens=15, progress=interrupt)
    assert soundfile.info(path).frames == 3 * FRAME
    assert len(speak(speaker, "say this", max_new_tokens=2)) == 2 * FRAME


@pytest.mark.parametrize(
    ("name", "told"),
    [("out.mp3", r"ends in \.wav"), ("out", r"ends in \.wav"), ("no/out.wav", "No such file")],
)
def test_a_file_that_cannot_be_written_is_an_error_at_once(speaker, tmp_path, name, told):
    with pytest.raises(AudioError, match=told) as caught:
        speak(speaker, "say this", tmp_path / name, progress=pytest.fail)
    assert str(tmp_path) not in str(caught.value)


def test_a_line_is_printed_for_each_chunk_and_one_for_all(speaker, capsys):
    generate_streaming_audio(
        speaker, "say this", play_audio=False, max_new_tokens=3, do_sample=False
    )
    one, two, last = capsys.readouterr().out.splitlines()
    assert one.startswith("chunk 1: 0.08 s of speech in ")
    assert two.startswith("chunk 2: 0.16 s of speech in ")
    assert last.startswith("0.24 s of speech in ")
    assert all("RTF" in line for line in (one, two, last))
    speak(speaker, "say this")
    assert not capsys.readouterr().out


# Playback


class Device:
    """Stands in for the package sounddevice: a device that asks for samples from its own thread."""

    class PortAudioError(Exception):
        pass

    def __init__(self, *, broken: bool = False, dead: bool = False) -> None:
        self.broken, self.dead = broken, dead
        self.heard: list[np.ndarray] = []
        self.calls: list[str] = []
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def OutputStream(self, samplerate, channels, dtype, callback):
        assert (samplerate, channels, dtype) == (24_000, 1, "float32")
        if self.broken:
            raise self.PortAudioError("Error querying device -1")
        self._callback = callback
        return self

    def start(self) -> None:
        if not self.dead:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(0.001):
            out = np.full((700, 1), 9.0, np.float32)
            self._callback(out, len(out), None, None)
            self.heard.append(out[:, 0])

    def _end(self, call: str) -> None:
        self.calls.append(call)
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def stop(self) -> None:
        self._end("stop")

    def abort(self) -> None:
        self._end("abort")

    def close(self) -> None:
        self.calls.append("close")


def test_speech_is_played_whole_and_in_order(speaker, monkeypatch):
    device = Device()
    monkeypatch.setitem(sys.modules, "sounddevice", device)
    heard = speak(speaker, "say this", play_audio=True)
    played = np.concatenate(device.heard)
    sounding = np.flatnonzero(played)
    assert np.abs(played).max() <= 1.0
    np.testing.assert_array_equal(played[played != 0], heard[heard != 0])
    assert len(sounding)
    assert device.calls == ["stop", "close"]


def test_an_interrupt_silences_the_device_at_once(speaker, monkeypatch):
    device = Device()
    monkeypatch.setitem(sys.modules, "sounddevice", device)

    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        speak(speaker, "say this", play_audio=True, progress=interrupt)
    assert device.calls == ["abort", "close"]


def _no_portaudio(name: str) -> types.ModuleType:
    raise OSError("PortAudio library not found")


@pytest.mark.parametrize("lack", ["package", "library", "device"])
def test_where_nothing_can_play_speech_is_made_all_the_same(speaker, monkeypatch, caplog, lack):
    wanted = speak(speaker, "say this")
    if lack == "library":
        monkeypatch.setattr(playback, "import_module", _no_portaudio)
    else:
        module = None if lack == "package" else Device(broken=True)
        monkeypatch.setitem(sys.modules, "sounddevice", module)
    with caplog.at_level(logging.WARNING):
        heard = speak(speaker, "say this", play_audio=True)
    np.testing.assert_array_equal(heard, wanted)
    (record,) = caplog.records
    cure = {"package": "pip install", "library": "libportaudio2", "device": "connect one"}
    assert cure[lack] in record.getMessage()


def test_a_device_that_stops_asking_does_not_hold_the_caller(speaker, monkeypatch, caplog):
    device = Device(dead=True)
    monkeypatch.setitem(sys.modules, "sounddevice", device)
    monkeypatch.setattr(playback, "_GRACE_S", 0.0)
    with caplog.at_level(logging.WARNING):
        assert len(speak(speaker, "say this", play_audio=True, max_new_tokens=2)) == 2 * FRAME
    assert "stopped playing" in caplog.text


# The README's examples


@pytest.fixture
def example(tmp_path, monkeypatch, tiny_speaker):
    """Names as the README's examples have them, with csm-tiny and a recording that is there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path" / "to").mkdir(parents=True)
    rng = np.random.default_rng(0)
    steps = np.arange(3 * 16_000) / 16_000
    voice = 0.2 * np.sin(2 * np.pi * 140 * steps) * (1 + rng.standard_normal(len(steps)) / 10)
    soundfile.write(tmp_path / "path" / "to" / "reference1.wav", voice, 16_000)
    torch.manual_seed(0)
    return tiny_speaker


REFERENCE_DATA = [
    {
        "path": "path/to/reference1.wav",
        "text": "This is a reference sample for voice cloning.",
        "speaker_id": "0",
    }
]
CLONED = "Generate this text with the voice from the reference audio."


def conversation_of(refs: list[dict]) -> list[dict]:
    conversation = []
    for ref in refs:
        conversation.append(
            {
                "role": ref["speaker_id"],
                "content": [
                    {"type": "text", "text": ref["text"]},
                    {"type": "audio", "audio": ref["audio_array"]},
                ],
            }
        )
    conversation.append(
        {"role": refs[0]["speaker_id"], "content": [{"type": "text", "text": CLONED}]}
    )
    return conversation


def test_readme_simple_text_to_speech(example, tmp_path):
    prompt = "The sunset painted the sky with hues of orange and purple."
    audio = csm_tts_plugin.generate_streaming_audio(
        example, prompt, output_filename="output.wav", play_audio=True
    )
    assert isinstance(audio, np.ndarray)
    assert audio.dtype == np.float32
    assert len(audio)
    assert soundfile.info("output.wav").frames == len(audio)


def test_readme_direct_streaming(example):
    refs = csm_tts_plugin.load_reference_audio(REFERENCE_DATA)
    inputs = example.processor.apply_chat_template(
        conversation_of(refs), tokenize=True, return_dict=True
    ).to(example.device)
    seconds = [
        len(chunk.cpu().numpy()) / 24000
        for chunk in example.generate_stream(inputs, chunk_token_size=20)
    ]
    assert seconds[0] == 0.08
    assert max(seconds) <= 20 * 0.08
    assert sum(seconds) == pytest.approx(example.metrics.audio_seconds)


def test_readme_reference_audio(example):
    refs = csm_tts_plugin.load_reference_audio(REFERENCE_DATA)
    audio = csm_tts_plugin.generate_streaming_audio(
        example, conversation_of(refs), output_filename="with_reference.wav", play_audio=True
    )
    assert soundfile.info("with_reference.wav").frames == len(audio) > 0
