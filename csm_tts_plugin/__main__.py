"""The command line: `csm-tts say | serve | voices | detect | doctor`, which is also
`python -m csm_tts_plugin`.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

from dotenv import find_dotenv

from .config import load_env_file
from .errors import ConfigError, CsmError
from .version import __version__

_COMMANDS = {
    "say": ("commands.say", "speak a text into a file"),
    "serve": ("commands.serve", "run the engine's server"),
    "voices": ("commands.voices", "store, list, check and remove voices"),
    "detect": ("commands.detect", "look for the watermark in recordings"),
    "doctor": ("commands.doctor", "check this machine: packages, GPU, keys, servers"),
}

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0; 1 if `doctor` found a fault; 2 for user errors."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        load_env_file(find_dotenv(usecwd=True))
        args = _parser(arguments).parse_args(arguments)
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except CsmError as error:
        return _refuse(error)
    except BrokenPipeError:
        return _unread()
    except OSError as error:
        if error.errno not in _FULL:
            raise
        return _refuse(ConfigError(f"The output cannot be written ({error.strerror})."))
    except ModuleNotFoundError as error:
        from .engine.api import PACKAGES, missing_packages

        package = (error.name or "").split(".")[0]
        if package not in PACKAGES:
            raise
        return _refuse(missing_packages(package))
    except KeyboardInterrupt:
        return 130


def _unread() -> int:
    """Handles a closed pipe, as of `head`: no error and no further output."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return 128 + 13  # what a shell shows for SIGPIPE


def _refuse(error: CsmError) -> int:
    print(f"csm_tts_plugin: {error}", file=sys.stderr)
    return 2


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Imports only the module of the given command."""
    parser = argparse.ArgumentParser(
        prog="csm-tts",
        description="Speech in consented voices by CSM-1B: the engine and its tools.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (home, summary) in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{name}: {summary}.")
        if name in arguments[:1]:
            import_module(f".{home}", __package__).add(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
