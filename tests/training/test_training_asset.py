"""csm-tiny's folder: how its template reads text, and that its parts match."""

import json
from pathlib import Path

import jinja2.sandbox
import pytest
import torch
from transformers import AutoProcessor, CsmForConditionalGeneration

from training import frontend
from training.spec import ENCODED_LENGTH, FRAME, WIDTH

TINY = Path(__file__).parents[2] / "csm_tts_plugin" / "assets" / "tiny"


@pytest.fixture(scope="module")
def template():
    source = (TINY / "chat_template.jinja").read_text()
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source)


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(TINY)


def phones(template, text: str, role: str = "0") -> str:
    content = [{"type": "text", "text": text}]
    out = template.render(messages=[{"role": role, "content": content}])
    head, tail = f"<|begin_of_text|>[{role}]", "<|end_of_text|>"
    assert out.startswith(head)
    assert out.endswith(tail)
    body = out[len(head) : -len(tail)]
    assert len(body) % WIDTH == 0
    return body.rstrip(" ")


def test_words_become_the_phones_of_the_lexicon(template):
    assert phones(template, "Hello.") == "_hxl$7.:"
    assert phones(template, "hello") == phones(template, "HELLO!")


def test_a_question_ends_as_one_and_commas_pause(template):
    assert phones(template, "You?").endswith("?!")
    assert phones(template, "Yes, you.") == phones(template, "yes - , ( you )")
    assert phones(template, "Yes, you.").count(",;") == 1


def test_unknown_words_are_spelled_out_and_known_stems_keep_their_sound(template):
    assert phones(template, "blorptash") not in ("", ".:")
    for word, stem, sound in (("kitchen's", "kitchen", "z"), ("clock's", "clock", "s")):
        assert word not in frontend.lexicon()
        assert phones(template, word) == phones(template, stem).removesuffix(".:") + sound + ".:"


def test_numbers_are_read_out(template):
    assert phones(template, "12") == phones(template, "twelve")
    assert phones(template, "45") == phones(template, "forty five")
    assert phones(template, "307") == phones(template, "three hundred seven")
    assert phones(template, "2026") == phones(template, "two thousand twenty six")
    assert phones(template, "0451") == phones(template, "zero four five one")


@pytest.mark.parametrize(
    "text", ["", "  ", "…", "漢字", "<|AUDIO|>", "<|end_of_text|>[0]", "'", "a" * 600]
)
def test_any_text_stays_text(template, text):
    body = phones(template, text)
    assert "<" not in body
    assert body.endswith(".:")


def test_long_text_takes_the_next_multiple_of_the_width(processor):
    short = [{"role": "0", "content": [{"type": "text", "text": "the garden"}]}]
    long = [{"role": "0", "content": [{"type": "text", "text": "the garden " * 30}]}]
    lengths = [
        processor.apply_chat_template(c, tokenize=True, return_dict=True)["input_ids"].shape[1]
        for c in (short, long)
    ]
    assert lengths[0] == WIDTH + 5
    assert (lengths[1] - 5) % WIDTH == 0
    assert lengths[1] > lengths[0]


def test_the_processor_counts_the_frames_that_the_codec_makes(processor):
    model = CsmForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32).codec_model
    lengths = [1, 959, FRAME - 1, FRAME, FRAME + 1, 2 * FRAME, 5 * FRAME + 7, 48_000]
    for length in lengths:
        with torch.no_grad():
            made = model.encode(torch.zeros(1, 1, length)).audio_codes.shape[-1]
        assert (
            processor._get_encoded_length(length, **ENCODED_LENGTH) == made == -(-length // FRAME)
        )


def test_code_zero_of_the_first_codebook_cannot_be_chosen():
    model = CsmForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32).codec_model
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, 1, 20 * FRAME, generator=generator) * 0.3
    with torch.no_grad():
        codes = model.encode(noise).audio_codes
    assert (codes[:, 0] != 0).all()


def test_every_file_is_small_and_names_no_machine():
    assert (TINY / "model.safetensors").stat().st_size <= 40_000_000
    for path in TINY.glob("*.json"):
        assert "/" not in str(json.loads(path.read_text()).get("_name_or_path", ""))
    record = json.loads((TINY / "stock.json").read_text())
    assert set(record) == {"speaker", "transcript"}
