"""The command line: `python -m csm_tts_plugin say | serve | voices | doctor`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from dotenv import find_dotenv, load_dotenv

from .errors import CsmError
from .version import __version__

_COMMANDS = {
    "say": ("commands.say", "speak one text into a file"),
    "serve": ("commands.serve", "run the engine's server"),
    "voices": ("commands.voices", "keep, list, check and remove voices"),
    "doctor": ("commands.doctor", "look for what is missing or wrong here"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, 1 where `doctor` found something, 2 for the user's errors."""
    load_dotenv(find_dotenv(usecwd=True))
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser(arguments).parse_args(arguments)
    try:
        return int(args.run(args))
    except CsmError as error:
        print(f"csm_tts_plugin: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Only the module of the command that is asked for is imported."""
    parser = argparse.ArgumentParser(prog="python -m csm_tts_plugin", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (home, summary) in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{name}: {summary}.")
        if name in arguments[:1]:
            import_module(f".{home}", __package__).add(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
