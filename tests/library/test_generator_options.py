"""Options and inputs of the library's streams: accepted as in transformers, or refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
)

import csm_tts_plugin
from csm_tts_plugin.errors import ModelLoadError, RequestError
from csm_tts_plugin.library.generator import Generator, load_csm_1b
from tests.engine.tools import generated
from tests.library.speaking import FRAME, GREEDY, assert_same, expected, inputs_of, sound, turn


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
    """A logits processor that removes the best code and records its inputs."""

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
