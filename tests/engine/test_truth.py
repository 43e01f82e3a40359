"""Greedy codes equal those of transformers' `generate` in float32, also next to other streams."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csm_tts_plugin.engine.api import Reason, Turn, VoicePrompt
from csm_tts_plugin.engine.steps import CudaSteps
from tests.engine.tools import (
    ByHand,
    Rows,
    assert_begins,
    generated,
    noise,
    random_positions,
    say,
    small_checkpoint,
    started,
    truth,
    voice,
    without_end,
)
from tests.support.models import small_model

# Frames


@pytest.mark.parametrize("turns", [1, 4])
@pytest.mark.parametrize("weights", [0, 1, 2])
def test_frames_equal_generate_after_a_prompt_read_in_random_pieces(weights, turns, seed):
    model, rng = small_model(weights), np.random.default_rng(seed)
    positions = random_positions(model, rng, turns)
    expected = truth(model, positions, 16)
    rows = Rows(model, 2)
    rows.read(0, positions, rng)
    rows.start(0)
    codes = np.stack([rows.step(1)[0] for _ in range(len(expected))])
    np.testing.assert_array_equal(codes, expected)


def test_prompts_read_in_one_pass_are_each_what_generate_reads(seed):
    """Pieces of different lengths at different places, one of them the second half of a prompt."""
    model, rng = small_model(6), np.random.default_rng(seed)
    prompts = [random_positions(model, rng, turns) for turns in (1, 3, 2)]
    rows, half = Rows(model, 4), len(prompts[1]) // 2
    rows.runner.read(2, 0, prompts[1][:half])
    rows.runner.read_all([(0, 0, prompts[0]), (2, half, prompts[1][half:]), (1, 0, prompts[2])])
    for row, stream in enumerate((0, 2, 1)):
        rows.valid[row] = len(prompts[stream])
        rows.start(row)
    codes = np.stack([rows.step(3) for _ in range(10)])
    for row, stream in enumerate((0, 2, 1)):
        np.testing.assert_array_equal(codes[:, row], truth(model, prompts[stream], 10))


def test_more_codebooks_and_other_sizes_equal_generate(seed):
    model, rng = small_model(7, codebooks=9, codes=32), np.random.default_rng(seed)
    positions = random_positions(model, rng, 3)
    rows = Rows(model, 1)
    rows.read(0, positions, rng)
    rows.start(0)
    codes = np.stack([rows.step(1)[0] for _ in range(12)])
    np.testing.assert_array_equal(codes, truth(model, positions, 12))


def test_steps_as_cuda_devices_take_them_equal_generate(seed):
    """The same in PyTorch with fewer kernels: rotations merged into the products, one cache."""
    model, rng = small_model(7, codebooks=6), np.random.default_rng(seed)
    prompts = [random_positions(model, rng, turns) for turns in (3, 1, 2)]
    rows = Rows(model, 3)
    rows.runner.steps = CudaSteps(rows.runner.weights)
    for row, positions in enumerate(prompts):
        rows.read(row, positions, rng)
        rows.start(row)
    codes = np.stack([rows.step(3) for _ in range(12)])
    for row, positions in enumerate(prompts):
        np.testing.assert_array_equal(codes[:, row], truth(model, positions, 12))


def test_packing_leaves_the_model_of_transformers_as_it_was(seed):
    positions = random_positions(small_model(4), np.random.default_rng(seed), 3)
    untouched, packed = small_model(4), small_model(4)
    Rows(packed, 1)
    np.testing.assert_array_equal(truth(packed, positions, 10), truth(untouched, positions, 10))


def test_rows_that_join_leave_and_move_give_each_the_codes_it_has_alone(seed):
    model, rng = small_model(5), np.random.default_rng(seed)
    rows, most = Rows(model, 6), 4
    prompts = [random_positions(model, rng, int(rng.integers(1, 4))) for _ in range(10)]
    lengths = [int(n) for n in rng.integers(4, 14, len(prompts))]
    expected = [truth(model, prompt, n) for prompt, n in zip(prompts, lengths, strict=True)]
    waiting, seats = list(range(len(prompts))), {}
    said: dict[int, list[np.ndarray]] = {n: [] for n in waiting}
    while waiting or seats:
        while waiting and len(seats) < most and (not seats or rng.random() < 0.4):
            stream, row = waiting.pop(), len(seats)
            rows.valid[row] = 0
            rows.read(row, prompts[stream], rng)
            rows.start(row)
            seats[row] = stream
        codes = rows.step(len(seats))
        for row, stream in list(seats.items()):
            said[stream].append(codes[row])
        for row in sorted(seats, reverse=True):
            if len(said[seats[row]]) >= len(expected[seats[row]]):
                last = len(seats) - 1
                if row != last:
                    rows.swap(row, last)
                    seats[row] = seats[last]
                del seats[last]
    for stream, codes in said.items():
        np.testing.assert_array_equal(np.stack(codes), expected[stream])


def _ends_by_itself(weights: int):
    """A model of few codes, a prompt after which its speech ends, and the codes."""
    model = small_model(weights, codebooks=3, codes=8)
    rng = np.random.default_rng(weights)
    for _ in range(60):
        positions = random_positions(model, rng, 1)
        codes = truth(model, positions, 50)
        if 5 <= len(codes) < 50:
            return model, positions, codes
    raise AssertionError("no prompt was found after which this model ends; take other weights")


@pytest.mark.parametrize("weights", [3, 4])
def test_the_frame_that_ends_speech_is_that_of_generate(weights, seed):
    model, positions, expected = _ends_by_itself(weights)
    rows = Rows(model, 1)
    rows.read(0, positions, np.random.default_rng(seed))
    rows.start(0)
    codes = np.stack([rows.step(1)[0] for _ in range(len(expected) + 1)])
    np.testing.assert_array_equal(codes[:-1], expected)
    assert not codes[-1].any(), "the end frame is written as all end codes"
    assert codes[:-1, :-1].any(axis=1).all()


# The engine, against the processor's own chat template


class Script:
    """A conversation in the form for transformers' processor."""

    def __init__(self, checkpoint) -> None:
        self.checkpoint, self.messages = checkpoint, []

    def turn(self, role: int, text: str, audio: np.ndarray | None = None) -> Script:
        content = [{"type": "text", "text": text}]
        if audio is not None:
            content.append({"type": "audio", "path": audio})
        self.messages.append({"role": str(role), "content": content})
        return self

    def generate(self, frames: int) -> np.ndarray:
        inputs = self.checkpoint.processor.apply_chat_template(
            self.messages, tokenize=True, return_dict=True, return_tensors="pt"
        )
        return without_end(generated(self.checkpoint.model, frames, **inputs))


@pytest.fixture(scope="module", params=["small", "tiny"])
def both(request):
    """An engine and its checkpoint: a random model, and csm-tiny."""
    checkpoint = request.getfixturevalue(request.param)
    engine = started(checkpoint, slots=4, queue=4)
    yield engine, checkpoint
    engine.stop()


@pytest.mark.parametrize(
    "text", ["Hello there.", "What is the time? It is 5 o'clock!", "a", "  Spaces around.  "]
)
def test_a_sentence_equals_generate_on_the_same_prompt(both, text):
    engine, checkpoint = both
    heard = say(engine, engine.open(), text, max_seconds=1.2).wait()
    expected = Script(checkpoint).turn(0, text.strip()).generate(15)
    assert heard.frames()
    np.testing.assert_array_equal(heard.codes, expected[: len(heard.codes)])
    assert heard.reason is Reason.END or len(heard.codes) == 15


def test_a_voice_and_later_turns_equal_generate_on_the_same_conversation(both):
    engine, checkpoint = both
    mine, question, answer = noise(1.3, 1), noise(0.9, 2), noise(0.7, 3)
    reference = VoicePrompt("ref", "caller", (Turn("caller", "this is my voice", mine),))
    conversation = engine.open(reference)
    engine.add_turn(conversation, Turn("someone", "how are you", question))
    engine.add_turn(conversation, Turn("caller", "very well", answer))
    engine.add_turn(conversation, Turn("someone", "text only"))
    heard = say(engine, conversation, "So am I.", max_seconds=1.2).wait()
    script = Script(checkpoint).turn(0, "this is my voice", mine).turn(1, "how are you", question)
    script.turn(0, "very well", answer).turn(1, "text only").turn(0, "So am I.")
    np.testing.assert_array_equal(heard.codes, script.generate(15)[: len(heard.codes)])


def test_a_voice_taken_from_the_cache_speaks_as_one_read_afresh(both):
    engine, checkpoint = both
    mine = noise(1.0, 4)
    reference = VoicePrompt("again", "caller", (Turn("caller", "here i am", mine),))
    expected = Script(checkpoint).turn(0, "here i am", mine).turn(0, "Once more.").generate(12)
    for _ in range(2):
        heard = say(engine, engine.open(reference), "Once more.", max_seconds=0.96).wait()
        np.testing.assert_array_equal(heard.codes, expected[: len(heard.codes)])


def test_many_at_once_equal_each_alone(both):
    engine, checkpoint = both
    texts = ["One.", "Two of us.", "Three of us here.", "Four.", "Five at last.", "Six."]
    heard = [say(engine, engine.open(), text, max_seconds=0.96) for text in texts]
    for text, one in zip(texts, heard, strict=True):
        expected = Script(checkpoint).turn(0, text).generate(12)
        np.testing.assert_array_equal(one.wait().codes, expected[: len(one.codes)])


# Conversations, stepped manually: the model must have read exactly what the log holds


def _spoken_text(checkpoint, text: str) -> np.ndarray:
    hand = ByHand(checkpoint, slots=1, queue=0)
    return hand.engine._writer.turn(0, text)


def test_the_next_sentence_equals_generate_on_text_frames_end_frame_and_text(small):
    hand = ByHand(small, slots=2, queue=2)
    conversation = hand.engine.open()
    first = say(hand.engine, conversation, "A first sentence.", max_seconds=0.8)
    hand.run()
    second = say(hand.engine, conversation, "And a second one.", max_seconds=0.8)
    before = hand.log(conversation)
    hand.run()
    text = _spoken_text(small, "And a second one.")
    books = small.model.config.num_codebooks
    length = len(before)
    assert not before[-1, :-1].any(), "the first sentence is closed by an end frame"
    assert before[-1, -1] == -1
    np.testing.assert_array_equal(before[length - 11 : length - 1, :books], first.codes)
    expected = truth(small.model, np.concatenate([before, text]), 10)
    assert_begins(expected, second.codes, least=10)


def test_a_sentence_after_a_natural_end_equals_generate():
    """Here the end frame went through the model as part of the step that drew it."""
    checkpoint = small_checkpoint(3, codebooks=3, codes=8)
    hand = ByHand(checkpoint, slots=1, queue=1)
    for number in range(40):
        conversation = hand.engine.open()
        first = say(hand.engine, conversation, f"Try number {number}.", max_seconds=4)
        hand.run()
        if first.reason is Reason.END and first.frames() > 3:
            break
        hand.engine.close(conversation)
    assert first.reason is Reason.END
    before = hand.log(conversation)
    assert not before[-1, :-1].any()
    assert before[-2, :-1].any(), "one end frame, not two"
    second = say(hand.engine, conversation, "Something else.", max_seconds=1.6)
    hand.run()
    text = _spoken_text(checkpoint, "Something else.")
    expected = truth(checkpoint.model, np.concatenate([before, text]), 20)
    np.testing.assert_array_equal(second.codes, expected[: second.frames()])


@pytest.mark.parametrize("batches", [None, [2, 3]], ids=["exact", "padded"])
def test_random_arrivals_cancels_and_ends_leave_everybody_the_codes_it_has_alone(
    small, batches, seed
):
    rng = np.random.default_rng(seed)
    hand = ByHand(small, slots=3, queue=40, max_lead_s=0.5)
    hand.runner.batches = batches or hand.runner.batches
    streams = []
    for number in range(24):
        conversation = hand.engine.open(voice("v", 0.8) if rng.random() < 0.4 else None)
        for turn in range(int(rng.integers(0, 3))):
            hand.engine.add_turn(
                conversation, Turn("someone", f"turn {turn}", noise(0.5, number + turn))
            )
        seconds, text = float(rng.uniform(0.3, 1.5)), f"I am number {number}."
        heard = say(
            hand.engine,
            conversation,
            text,
            max_seconds=seconds,
            live=bool(rng.random() < 0.5),
        )
        leaves = int(rng.integers(1, 12)) if rng.random() < 0.3 else None
        streams.append((conversation, text, heard, leaves))
        for _ in range(int(rng.integers(0, 8))):
            hand.round()
            hand.now += float(rng.choice([0.0, 0.05, 0.3]))
            for *_, one, frames in streams:
                if frames is not None and len(one.audio) >= frames:
                    hand.engine.cancel(one.id)
    hand.run()
    for conversation, text, heard, _ in streams:
        if frames := heard.frames():
            prompt = hand.asked(conversation, text)
            np.testing.assert_array_equal(heard.codes, truth(small.model, prompt, frames))


def test_bfloat16_would_be_seen(small):
    """The comparison above is strict: a model rounded to bfloat16 does not pass it."""
    rng = np.random.default_rng(0)
    model = small_model(3)
    positions = random_positions(model, rng, 3)
    expected = truth(model, positions, 24)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    assert not np.array_equal(truth(model, positions, 24), expected)


def test_it_is_the_same_when_the_backbone_runs_before_the_frame_is_handed_out(seed):
    """The order on a GPU, where the host only queues work."""
    checkpoint, said = small_checkpoint(6), []
    for behind in (False, True):
        hand = ByHand(checkpoint, slots=2, queue=4)
        hand.runner.runs_behind = behind
        rng = np.random.default_rng(seed)
        heard, logs = [], []
        conversations = [hand.engine.open(voice(f"v{n}", seed=n)) for n in range(3)]
        for number in range(4):
            for conversation in conversations:
                heard.append(say(hand.engine, conversation, f"Sentence {number}.", max_seconds=0.8))
            for _ in range(int(rng.integers(1, 5))):
                hand.round()
            hand.engine.cancel(heard[int(rng.integers(len(heard)))].id)
            hand.run()
        logs = [hand.log(conversation) for conversation in conversations]
        said.append(([[a.codes.tolist() for a in one.audio] for one in heard], logs))
    (codes, logs), (codes_behind, logs_behind) = said
    assert codes_behind == codes
    for log, log_behind in zip(logs, logs_behind, strict=True):
        np.testing.assert_array_equal(log_behind, log)
