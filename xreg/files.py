"""Small files beside the arrays of a store, on a disk or behind a URL that fsspec knows, whole or not there at all.

On a disk a file is written under another name and renamed; behind a URL it is one PUT. Nothing here is kept open and
nothing is shipped: each process makes its own connections, with the credentials of its own surroundings.
"""

import contextlib
import functools
import io
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

#: Listings that were made earlier do not show what other processes have written since.
FRESH = {"use_listings_cache": False}


def is_url(place: str | Path) -> bool:
    """Whether a place is not on a disk."""
    return "://" in str(place)


def absolute(place: str | Path) -> str:
    """The place as processes with another working folder need it; URLs as they are, without a slash at the end."""
    return str(place).rstrip("/") if is_url(place) else str(Path(place).absolute())


def lies_in(place: str | Path, other: str | Path) -> bool:
    """Whether a place is another one or below it."""
    inner, outer = (absolute(p) if is_url(p) else str(Path(p).resolve()) for p in (place, other))
    return f"{inner}/".startswith(f"{outer}/")


def _in_one_sentence(function: Callable) -> Callable:
    """Turn what the libraries behind a URL raise where nothing answers into an error of a connection."""

    @functools.wraps(function)
    def guarded(place: str, *arguments: Any) -> Any:
        try:
            return function(place, *arguments)
        except (OSError, ValueError):
            raise
        except Exception as error:
            if not is_url(place):
                raise
            msg = f"{place} cannot be reached ({type(error).__name__}: {error}); check the address and the credentials."
            raise ConnectionError(msg) from error

    return guarded


@_in_one_sentence
def read(place: str) -> bytes:
    """Content of a file.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    if not is_url(place):
        return Path(place).read_bytes()
    system, path = _system(place)
    return system.cat_file(path)


@_in_one_sentence
def write(place: str, content: bytes) -> None:
    """Write a file, whole or not at all; folders are made as needed."""
    if is_url(place):
        system, path = _system(place)
        system.pipe_file(path, content)
        return
    target = Path(place)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}-{threading.get_ident()}-{uuid.uuid4().hex[:8]}.part")
    part.write_bytes(content)
    os.replace(part, target)


@_in_one_sentence
def create(place: str, content: bytes) -> None:
    """Write a file that is not there yet; of several processes that try, one succeeds.

    Raises
    ------
    FileExistsError
        If it is there already.
    """
    if is_url(place):
        system, path = _system(place)
        system.pipe_file(path, content, mode="create")
        return
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    with open(place, "xb") as file:
        file.write(content)


@_in_one_sentence
def remove(place: str) -> None:
    """Remove a file, if it is there."""
    if not is_url(place):
        Path(place).unlink(missing_ok=True)
        return
    system, path = _system(place)
    with contextlib.suppress(FileNotFoundError):
        system.rm_file(path)


@_in_one_sentence
def remove_tree(root: str) -> None:
    """Remove everything below a URL."""
    system, path = _system(root)
    system.rm(path, recursive=True)


@_in_one_sentence
def names(folder: str) -> list[str]:
    """Names of the files in a folder, sorted; none where there is no folder."""
    if not is_url(folder):
        try:
            return sorted(name for name in os.listdir(folder) if not name.endswith(".part"))
        except (FileNotFoundError, NotADirectoryError):
            return []
    system, path = _system(folder)
    try:
        return sorted(found.rpartition("/")[2] for found in system.ls(path, detail=False))
    except FileNotFoundError:
        return []


@_in_one_sentence
def stamp(place: str) -> str:
    """A text that changes whenever the file does."""
    if not is_url(place):
        return str(os.stat(place).st_mtime_ns)
    system, path = _system(place)
    info = system.info(path)
    return str(info.get("ETag") or info.get("LastModified") or info.get("mtime"))


@_in_one_sentence
def listing(root: str) -> list[tuple[str, int, str]]:
    """Relative name, size and a text that changes with the content, of every file below a place, in order."""
    if is_url(root):
        system, path = _system(root)
        found = system.find(path, detail=True)
        return [(name.removeprefix(path), info["size"], str(info.get("ETag") or info.get("mtime")))
                for name, info in sorted(found.items())]
    files = []
    for folder, folders, inside in os.walk(root):
        folders.sort()
        for file in sorted(inside):
            status = os.stat(os.path.join(folder, file))
            files.append((os.path.relpath(os.path.join(folder, file), root), status.st_size, str(status.st_mtime_ns)))
    return files


def save_arrays(place: str, **arrays: np.ndarray) -> None:
    """Write arrays into one compressed file, no pickles."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write(place, buffer.getvalue())


def load_arrays(place: str) -> dict[str, np.ndarray]:
    """Arrays that `save_arrays` wrote."""
    with np.load(io.BytesIO(read(place)), allow_pickle=False) as file:
        return dict(file)


def _system(place: str) -> "tuple[AbstractFileSystem, str]":
    """File system behind a URL, and the path in it; never with listings that were made earlier.

    Raises
    ------
    ValueError
        If the kind of URL is unknown, or the package for it is not there.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(place, **FRESH)
    except (ImportError, ValueError) as error:
        msg = f"{place} cannot be reached ({error}); for s3:// URLs: pip install 'xreg[s3]'."
        raise ValueError(msg) from error
