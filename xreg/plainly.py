"""What programs on the command line share: errors in one sentence, and types of options for `argparse`."""

import math
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BAD_INPUT = 2
STOPPED = 130


@contextmanager
def plain_errors(program: str | None = None, go_on: str = "") -> Iterator[None]:
    """Turn errors that a user can mend into one sentence on stderr and exit code 2; Ctrl-C ends with 130.

    `program` stands before the sentence, by default the file that was started; `go_on` says what to do after Ctrl-C.
    """
    program = program or Path(sys.argv[0]).name
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        print(f"{program}: {_sentence(error)}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print(f"{program}: stopped{f'; {go_on}' if go_on else ''}.", file=sys.stderr)
        sys.exit(STOPPED)


def _sentence(error: ValueError | OSError | ImportError) -> str:
    """An error in one line; where a disk, a server or a missing package has raised it, with what to do."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is needed and not installed; install it with pip, and start again."
    if not isinstance(error, OSError) or error.errno is None:
        return text
    if error.filename is None:
        return f"{text}; check the address, and whether the machine behind it answers."
    place = error.filename2 or error.filename
    return f"{place} cannot be used ({error.strerror}); check the path, and that you may read and write there."


def number(kind: type, least: float, most: float = math.inf) -> Callable[[str], Any]:
    """Type of an option: an int or a float between two bounds."""
    wanted = "a whole number" if kind is int else "a number"
    wanted += f" of at least {least:g}" if most == math.inf else f" from {least:g} to {most:g}"

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most or value == math.inf:
            msg = f"{text!r} came; need {wanted}."
            raise ArgumentTypeError(msg)
        return value

    return convert


def several(one: Callable[[str], Any]) -> Callable[[str], list]:
    """Type of an option: values of a type, separated by commas."""
    return lambda text: [one(part) for part in text.split(",")]


def folder_type(text: str) -> Path:
    """Type of an argument: a folder, which need not be there yet."""
    place = Path(text)
    if place.exists() and not place.is_dir():
        msg = f"{text} is a file; need a folder, which is made if it is not there."
        raise ArgumentTypeError(msg)
    return place
