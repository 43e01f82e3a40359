"""The parts csm-tiny is made with: the grid, the symbols, batches, checkpoints."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from training import common, corpus, curves, frontend, grid, lm, phones, sentences
from training.spec import AUDIO, AUDIO_END, CODEBOOKS, CODES, EOS, FRAME, SAMPLE_RATE, WIDTH


def tone(hertz: float, seconds: float) -> np.ndarray:
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return np.sin(2 * np.pi * hertz * time).astype(np.float32)


def pitch(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 17))
    return float(np.argmax(spectrum)) * SAMPLE_RATE / (1 << 17)


def utterance(frames: int, seed: int = 0) -> dict:
    codes = np.random.default_rng(seed).integers(1, CODES, (frames, CODEBOOKS)).astype(np.int16)
    symbols = "".join(random.Random(seed).choices("ptkxA1", k=frames))
    return {"symbols": symbols, "codes": codes, "voice": "rms", "size": 1.0, "group": (1, seed)}


def test_every_phone_has_symbols_of_its_own():
    spelled = list(phones.SYMBOLS_OF.values())
    assert len(set(spelled)) == len(spelled)
    assert all(len(symbols) in (1, 2) for symbols in spelled)


def test_an_utterance_is_spelled_with_its_pauses():
    said = ["pau", "hh", "ay", "pau", "dh", "eh", "r", "pau"]
    assert "".join(phones.spell(said)) == "hI3,;Der.:"
    assert "".join(phones.spell(said, question=True)).endswith("?!")
    with pytest.raises(KeyError):
        phones.spell(["pau", "xx", "pau"])


def test_bending_moves_sounds_in_time_and_keeps_their_pitch():
    source = np.concatenate([tone(220, 0.5), tone(330, 0.5)])
    bent = grid.bend(source, [0.0, 0.5, 1.0], [0.0, 0.8, 1.0])
    assert len(bent) == SAMPLE_RATE
    assert pitch(bent[: SAMPLE_RATE * 3 // 4]) == pytest.approx(220, abs=6)
    assert pitch(bent[SAMPLE_RATE * 21 // 25 :]) == pytest.approx(330, abs=8)


def test_on_the_grid_a_phone_takes_its_frames_exactly():
    said = [("pau", 0.2), ("aa", 0.33), ("s", 0.5), ("pau", 0.7)]
    on_grid = grid.to_grid(tone(200, 0.7), 1.0, said, [0, 1, 1, 2])
    assert len(on_grid) == 4 * FRAME


def test_a_smaller_speaker_is_higher_and_the_clock_is_told():
    out, clock = grid.change_size(tone(200, 1.0), SAMPLE_RATE, 1.1)
    assert pitch(out) == pytest.approx(220, abs=3)
    assert len(out) / SAMPLE_RATE == pytest.approx(clock, rel=1e-3)


def test_sentences_repeat_for_a_seed_and_avoid_what_is_held_out():
    vocabulary = sentences.words()
    made = sentences.sentences(3, 400, vocabulary)
    assert made == sentences.sentences(3, 400, vocabulary)
    assert not set(made) & set(sentences.held_out(200))


def test_words_of_held_out_sentences_are_in_the_lexicon():
    known = frontend.lexicon()
    used = {w for text in sentences.held_out(100) for w in text.lower().strip(".?").split()}
    assert {w.strip(",") for w in used} <= set(known)


def test_a_turn_puts_each_symbol_one_width_before_its_frame():
    row = utterance(20)
    for pads in (3, WIDTH):
        ids, position, _, codes, used = lm.build_turn(
            row, row["symbols"], "agent", random.Random(1), 0.0, pads
        )
        first = ids.index(AUDIO)
        head = len("[agent]") + 1
        for frame in range(20):
            # the code of a frame is predicted one position earlier
            assert position[first + frame - 1] - position[head + frame] == WIDTH
        assert ids[first - 1] == EOS
        assert ids[-1] == AUDIO_END
        assert position == sorted(set(position))
        assert used == position[-1] + 1
        assert (codes[first:-1] == row["codes"]).all()


def test_hidden_frames_are_shown_as_padding_and_the_truth_is_kept():
    row = utterance(200)
    shown = lm._hide(row["codes"].astype(np.int64), random.Random(2), 0.5)
    hidden = (shown == lm.HIDDEN).all(1)
    assert 70 < hidden.sum() < 130
    assert (lm._hide(row["codes"].astype(np.int64), random.Random(2), 0.0) == row["codes"]).all()


def test_batches_depend_on_seed_and_step_alone():
    rows = [utterance(random.Random(n).randint(8, 40), n) for n in range(90)]
    source = lm.Corpus(rows)
    one, two, other = source.batch(1, 7), source.batch(1, 7), source.batch(1, 8)
    assert all(
        torch.equal(a, b) for a, b in zip(vars(one).values(), vars(two).values(), strict=True)
    )
    assert one.text.shape != other.text.shape or not torch.equal(one.text, other.text)


@pytest.mark.parametrize("seed", [1])
def test_leaving_padding_out_keeps_the_model_the_same_function(seed):
    model = lm.new_model(seed).eval()
    row = utterance(12)
    ids, position, shown, codes, _ = lm.build_turn(
        row, row["symbols"], "0", random.Random(1), 0.0, WIDTH
    )
    item = {"text": np.array(ids), "position": np.array(position), "shown": shown,
            "codes": codes, "weight": np.ones(len(ids), np.float32)}  # fmt: skip
    batch = lm.collate([item])
    with torch.no_grad():
        ours = lm.hidden_states(model, batch)
        theirs = model.backbone_model(inputs_embeds=lm.embed(model, batch)).last_hidden_state
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_a_new_model_already_looks_at_the_symbol_it_speaks():
    model = lm.new_model(1)
    row = utterance(30)
    ids, position, shown, codes, _ = lm.build_turn(
        row, row["symbols"], "0", random.Random(1), 0.0, WIDTH
    )
    item = {"text": np.array(ids), "position": np.array(position), "shown": shown,
            "codes": codes, "weight": np.ones(len(ids), np.float32)}  # fmt: skip
    batch = lm.collate([item])
    model.set_attn_implementation("eager")
    seen = []
    layer = model.backbone_model.layers[0].self_attn
    layer.register_forward_hook(lambda module, args, result: seen.append(result[1]))
    with torch.no_grad():
        model.backbone_model(inputs_embeds=lm.embed(model, batch))
    weights = seen[0][0, 0]
    first = ids.index(AUDIO)
    near = [weights[q, q - WIDTH - 2 : q - WIDTH + 3].sum() for q in range(first + 2, first + 25)]
    assert torch.stack(near).mean() > 0.7


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        torch.manual_seed(number)
        optimizer.zero_grad()
        model(torch.randn(4, 8)).pow(2).mean().backward()
        optimizer.step()


def test_a_resumed_run_is_the_same_run(tmp_path: Path):
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    steps(model, optimizer, range(5))
    common.save(tmp_path / "c.safetensors", 5, model, optimizer)
    steps(model, optimizer, range(5, 10))

    again = nn.Linear(8, 8)
    resumed = torch.optim.AdamW(again.parameters(), 1e-2)
    assert common.load(tmp_path / "c.safetensors", again, resumed) == 5
    steps(again, resumed, range(5, 10))
    assert torch.equal(model.weight, again.weight)


def test_a_checkpoint_of_the_language_model_is_below_60_mb(tmp_path: Path):
    model = lm.new_model(1)
    trainee = lm.Trainee(model)
    optimizer = lm.optimizer_of(trainee, 1e-3)
    for weight in trainee.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    common.save(tmp_path / "lm.safetensors", 1, trainee, optimizer)
    assert (tmp_path / "lm.safetensors").stat().st_size < 60_000_000


def test_voices_are_drawn_for_mixed_shards_only():
    random_ = random.Random(4)
    drawn = {corpus.draw_voice(random_) for _ in range(200)}
    assert len({name for name, _ in drawn}) == 3
    assert corpus.MAIN in drawn


def test_curves_are_read_from_what_trainers_print():
    log = "step 50  9 s  loss 2.500  heard 0.250\nwarning: no 1.0\n| 50 | heard 0.300 |\n"
    drawn = curves.read(log)
    assert drawn == {"loss": [(50, 2.5)], "heard": [(50, 0.25)], "heard (held out)": [(50, 0.3)]}
    assert curves.smooth([(1, 1.0), (2, 3.0)]) == [(1, 1.0), (2, 2.0)]
