"""The parts of csm-tiny's training: grid, symbols, batches, checkpoints."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from training import (
    batches,
    common,
    corpus,
    crops,
    curves,
    evaluate,
    frontend,
    lm,
    phones,
    sentences,
    speakers,
    teacher,
    texts,
)
from training.prosodic import PITCHES, SIZES
from training.spec import AUDIO, AUDIO_END, CODEBOOKS, ENCODED, EOS, FRAME, VOCAB, WIDTH


def utterance(frames: int, seed: int = 0) -> dict:
    codes = np.random.default_rng(seed).integers(1, ENCODED, (frames, CODEBOOKS)).astype(np.int16)
    symbols = "".join(random.Random(seed).choices("ptkxA1", k=frames))
    return {"text": f"Text {seed}.", "symbols": symbols, "frames": symbols, "codes": codes,
            "voice": corpus.STOCK, "group": (1, seed)}  # fmt: skip


def spoken(row: dict) -> dict:
    """The utterance in codes in which the model speaks; those of the encoder stay as `encoded`."""
    return {**row, "encoded": row["codes"], "codes": row["codes"] + ENCODED - 1}


def batch_of(row: dict) -> tuple[list[int], batches.Sequences]:
    """The ids of one turn, and a batch with only this turn."""
    ids, position, shown, codes, _ = batches.build_turn(
        row, row["symbols"], "0", random.Random(1), 0.0, WIDTH
    )
    item = {"text": np.array(ids), "position": np.array(position), "shown": shown,
            "codes": codes, "weight": np.ones(len(ids), np.float32)}  # fmt: skip
    return ids, batches.collate([item])


def test_every_phone_has_symbols_of_its_own():
    vowels = [*phones.VOWELS.values(), phones.R_VOWEL]
    spelled = {*phones.CONSONANTS.values(), *vowels, phones.PAUSE, phones.STOP, phones.QUESTION}
    assert all(len(symbols) in (1, 2) for symbols in spelled)
    singles = [c for symbols in spelled for c in symbols]
    assert len(set(singles)) == len(singles)
    assert set(phones.STRESSED) == {symbols[0] for symbols in vowels} - {"x"}
    assert not set(phones.STRESSED.values()) & {*singles, phones.LEAD, " "}


def test_an_utterance_is_spelled_with_its_pauses_and_stress():
    said = phones.spell("həlˈO, ðˈɛɹ.")
    assert phones.symbols_of(said) == "_hxl$7,;DFr.:"
    assert phones.symbols_of(phones.spell("ɑɹ jˈu?")) == "_aryM?!"
    with pytest.raises(KeyError):
        phones.spell("ʘ.")


def test_an_r_belongs_to_its_vowel_and_ids_are_covered_without_a_gap():
    phonemes = "wˈɜɹd, lˈɛTəɹ."
    said = phones.spell(phonemes)
    assert "".join(p.symbols for p in said) == "w&8d,;lFdR8.:"
    assert [p.first for p in said[1:]] == [p.last for p in said[:-1]]
    assert (said[0].first, said[-1].last) == (1, len(phonemes) + 1)


def test_quotes_go_and_one_closing_mark_stays():
    assert phones.clean("“həlˈO”...") == "həlˈO."
    assert phones.clean("jˈu?!") == "jˈu!"
    assert phones.clean("jˈu,") == "jˈu."


def test_on_the_grid_every_phone_takes_its_frames_exactly():
    said = phones.spell("ɡˈɑɹdᵊn, bˈaɪ".replace("aɪ", "I") + ".")
    count = said[-1].last + 1
    natural = np.random.default_rng(1).integers(1, 9, count).astype(np.float32)
    used = phones.on_grid(said, natural)
    ends = np.cumsum([used[: said[0].first].sum(), *(used[p.first : p.last].sum() for p in said)])
    wanted = np.cumsum([1, *(len(p.symbols) for p in said)]) * FRAME / teacher.UNIT
    assert np.abs(ends - wanted).max() <= 0.5
    assert phones.spoken(said, used.astype(np.float32), len(phones.symbols_of(said))) == (
        phones.symbols_of(said)
    )


def test_in_natural_timing_a_frame_says_what_lies_in_its_middle():
    said = phones.spell("ɑs.")
    units = FRAME / teacher.UNIT
    durations = np.array([units, 3 * units, 2 * units, 2 * units, 0], np.float32)
    assert phones.spoken(said, durations, 8) == "_aaass.:"


def test_made_up_speakers_change_pitch_and_formants_as_told():
    parts = [np.zeros((speakers.BINS, 4), np.float32) for _ in range(5)]
    parts[0][50] = 1.0  # a formant at 1 kHz
    f0 = np.array([0.0, 180.0, 200.0, 220.0], np.float32)
    one = speakers.Speaker(0.5, 1.0, 0.8, 0.8, 0.0, 0.0, (0.0,) * 9, 1.0)
    changed = speakers.change([*parts, f0], one)
    assert np.argmax(changed[0][:, 0]) == 40
    assert changed[5][0] == 0.0
    assert changed[5][1:] == pytest.approx(f0[1:] / 2, rel=0.01)
    drawn = [speakers.draw(random.Random(n)).pitch for n in range(50)]
    assert min(drawn) < 0.6
    assert max(drawn) > 1.1


def test_sentences_repeat_for_a_seed_and_avoid_what_is_held_out():
    vocabulary = sentences.words()

    def made() -> list[str]:
        return list(itertools.islice(sentences.sentences(3, vocabulary, ["A free one."]), 400))

    assert made() == made()
    assert not set(made()) & set(sentences.held_out(200))
    assert 100 < made().count("A free one.") < 220


def test_words_of_held_out_sentences_are_in_the_lexicon():
    known = frontend.lexicon()
    used = {w for text in sentences.held_out(100) for w in text.lower().strip(".?").split()}
    assert {w.strip(",") for w in used} <= set(known)


def test_a_turn_puts_each_symbol_one_width_before_its_frame():
    row = utterance(20)
    for pads in (3, WIDTH):
        ids, position, _, codes, used = batches.build_turn(
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
    shown = batches.hide(row["codes"].astype(np.int64), random.Random(2), 0.5)
    hidden = (shown == batches.HIDDEN).all(1)
    assert 70 < hidden.sum() < 130
    assert (
        batches.hide(row["codes"].astype(np.int64), random.Random(2), 0.0) == row["codes"]
    ).all()


def test_batches_depend_on_seed_and_step_alone():
    rows = [utterance(random.Random(n).randint(8, 40), n) for n in range(90)]
    source = batches.Corpus(rows)
    one, two, other = source.batch(1, 7), source.batch(1, 7), source.batch(1, 8)
    assert all(
        torch.equal(a, b) for a, b in zip(vars(one).values(), vars(two).values(), strict=True)
    )
    assert one.text.shape != other.text.shape or not torch.equal(one.text, other.text)


@pytest.mark.parametrize("seed", [1])
def test_leaving_padding_out_keeps_the_model_the_same_function(seed):
    model = lm.new_model(seed).eval()
    _, batch = batch_of(utterance(12))
    with torch.no_grad():
        ours = lm.hidden_states(model, batch)
        theirs = model.backbone_model(inputs_embeds=lm.embed(model, batch)).last_hidden_state
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_a_new_model_already_looks_at_the_symbol_it_speaks():
    model = lm.new_model(1)
    ids, batch = batch_of(utterance(30))
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


def test_only_what_the_model_speaks_is_learnt_not_the_reference_before():
    own = spoken(utterance(20, 2))
    before = batches.reference(spoken(utterance(10, 1)))
    built = batches.build([before, own], random.Random(1), full=False)
    frames = built["text"] == AUDIO
    assert frames.sum() == 30
    assert not built["weight"][frames][:10].any()
    assert built["weight"][frames][10:].all()
    assert (built["shown"][frames][:10] == before["codes"]).all()


def group_of(number: int) -> list[dict]:
    """Six utterances of a synthetic speaker: a reference off the grid, three more references."""
    rows = [
        {**spoken(utterance(8, 10 * number + n)), "voice": "{}", "group": number} for n in range(6)
    ]
    rows[0]["frames"] = rows[0]["symbols"][::-1]
    for row in rows[4:]:
        del row["encoded"]
    return rows


def test_an_utterance_follows_a_reference_of_its_own_speaker_or_is_in_the_stock_voice():
    rows = [spoken(utterance(8, n)) for n in range(20)]
    rows += [row for n in range(5) for row in group_of(100 + n)]
    source = batches.Corpus(rows, (0.3, 0.2, 0.5))
    drawn = [source.draw(random.Random(n)) for n in range(400)]
    assert 80 < sum(len(turns) == 1 for turns in drawn) < 160
    others = [turns for turns in drawn if turns[-1]["voice"] != corpus.STOCK]
    assert 150 < len(others) < 250
    for *before, said in others:
        assert {row["group"] for row in before} == {said["group"]}
        assert said["text"] not in {row["text"] for row in before}
        assert all((row["codes"] < ENCODED).all() for row in before)
        assert said["frames"] == said["symbols"], "never one that is off the grid"
        assert (said["codes"] >= ENCODED).all()
    assert any(row["frames"] != row["symbols"] for *before, _ in others for row in before)
    assert 0.5 < sum(len(turns) == 3 for turns in others) / len(others) / batches.TWO < 1.5


def test_crops_are_cut_between_frames_with_the_symbols_that_they_speak():
    sound = np.repeat(np.arange(30), FRAME).astype(np.int16)
    symbols = "".join(random.Random(2).choices("ptk", k=30))
    stock = {"voice": corpus.STOCK, "frames": symbols, "audio": sound}
    source = crops.Crops([stock], share=1.0)
    audio, numbers = source.batch(1, 5, "cpu")
    starts = (audio[:, 0, 0] * 32768).round().long().tolist()
    for row, start in enumerate(starts):
        assert [chr(n + 0x20) for n in numbers[row]] == list(symbols[start : start + crops.FRAMES])


def test_rare_sounds_are_trained_on_more_often_than_they_occur():
    sound = np.zeros(400 * FRAME, np.int16)
    symbols = "".join(random.Random(2).choices("pt", k=399)) + "9"
    source = crops.Crops([{"voice": corpus.STOCK, "frames": symbols, "audio": sound}], share=1.0)
    numbers = torch.cat([source.batch(1, step, "cpu")[1] for step in range(50)])
    rare = (numbers == ord("9") - 0x20).any(1).float().mean()
    assert rare > crops.RARE_SHARE / 3 / 2


def test_crops_of_codes_are_spoken_ones_but_for_a_share():
    row = {**utterance(40), "audio": np.zeros(40 * FRAME, np.int16)}
    row = spoken(row)
    source = crops.Crops([row], share=1.0)
    codes = torch.cat([source.coded_batch(1, step, "cpu")[0] for step in range(100)])
    of_encoder = codes[:, 0] < ENCODED
    assert (of_encoder.all(1) | ~of_encoder.any(1)).all()
    assert 0.5 < of_encoder.all(1).float().mean() / crops.ENCODED_SHARE < 1.5


def test_symbols_that_a_model_has_never_seen_begin_as_their_likes():
    model = lm.new_model(1)
    lm.teach_symbols(model)
    table = model.embed_text_tokens.weight
    assert torch.equal(table[batches.token("c")], table[batches.token("a")])
    assert torch.equal(table[batches.token(phones.LEAD)], table[batches.token(phones.PAUSE[1])])


def test_an_answer_is_cut_into_sentences_that_can_be_spoken():
    answer = "Sure, I can *help*. It costs \u20ac5 today! Ok. What is your   name?"
    assert texts.split(answer) == ["Sure, I can help.", "What is your name?"]


def test_examples_of_a_dictionary_become_sentences(tmp_path):
    entry = '00 n 01 act 0 000 | a deed; "a kind act"; "they did it; nobody saw?"; "C++"\n'
    for kind in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{kind}").write_text(entry)
    found = texts.examples(tmp_path)
    assert sorted(found) == ["They did it; nobody saw?"]


def test_error_rates_count_words_and_not_how_they_are_written():
    assert evaluate.plain("It\u2019s 7 o'clock, well-known!") == "its oclock well known"


def test_curves_are_read_from_what_trainers_print():
    log = "step 50  9 s  loss 2.500  heard 0.250\nwarning: no 1.0\n| 50 | heard 0.300 |\n"
    drawn = curves.read(log)
    assert drawn == {"loss": [(50, 2.5)], "heard": [(50, 0.25)], "heard (held out)": [(50, 0.3)]}
    assert curves.smooth([(1, 1.0), (2, 3.0)]) == [(1, 1.0), (2, 2.0)]


def test_codes_of_near_pitches_begin_alike():
    model = lm.new_model(1)
    table = model.backbone_model.embed_tokens.embed_audio_tokens.weight
    head = model.depth_decoder.codebooks_head.weight[0].T

    def likeness(some: torch.Tensor, one: int, other: int) -> float:
        return torch.cosine_similarity(some[one], some[other], dim=0).item()

    for rows in (table[VOCAB:], head):
        low, next_, high = (ENCODED + pitch * SIZES for pitch in (5, 6, 25))
        assert likeness(rows, low, next_) > 0.5 > likeness(rows, low, high)
        assert likeness(rows, low, low + 1) > likeness(rows, low, low + SIZES - 1)


def test_a_pitch_that_is_heard_begins_as_the_same_pitch_when_it_is_spoken():
    model = lm.new_model(1)
    table = model.backbone_model.embed_tokens.embed_audio_tokens.weight[VOCAB : 2 * VOCAB]
    assert torch.equal(table[: PITCHES * SIZES, 1:], table[ENCODED:][: PITCHES * SIZES, 1:])
