"""Making raw stores: a simulated or a beamline's measurement streamed to Zarr, block by block.

The work goes on under ``<raw>.partial`` and gets its final name at the end, so that a store is whole or not there.
Behind a URL it goes on in its place, which is marked as unfinished until the end.
"""

import contextlib
import fcntl
import functools
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xreg import chunks, files, store
from xreg.journal import FOLDER, NO_LOCKS
from xreg.schema import FrameStatus

if TYPE_CHECKING:
    import xarray as xr

    from xreg.synthetic import PhantomConfig
    from xreg.workers import Pool

#: Called with the name of a stage, the number of finished tasks and the number of all.
Progress = Callable[[str, int, int], None]

_lock = threading.Lock()


def simulate(config: "PhantomConfig", raw: str | Path, truth: str | Path | None = None, *,
             workers: int | None = None, scheduler: Any = None, progress: Progress | None = None) -> None:
    """Write a simulated measurement, and the truth about it.

    Parameters
    ----------
    config : PhantomConfig
        What to simulate.
    raw, truth : path
        Stores to write; neither may exist.
    workers, scheduler
        Where the frames are drawn, as in `register`.
    progress : callable, optional
        Called with ("simulate", blocks done, blocks in all).

    Raises
    ------
    ValueError
        If a store exists already, or both are to be the same.
    """
    from xreg.synthetic import Phantom

    for place in filter(None, (raw, truth)):
        refuse_existing(place)
    if truth is not None and files.lies_in(truth, raw):
        msg = f"the truth is to be written to {truth}, into the raw store {raw}; choose another name."
        raise ValueError(msg)
    phantom = Phantom(config)
    coordinates = phantom.raw_coordinates()
    shapes = {"counts": config.n_frames, "flats": phantom.n_flats, "darks": config.n_darks}
    pictures = {name: (n, *config.shape) for name, n in shapes.items()}
    if truth is not None:
        # Where it cannot be written, that is known before the frames are drawn.
        clear(truth)
        store.begin(truth)
    _stream(partial(_phantom, config), coordinates, pictures, np.uint16, raw,
            "simulate", workers, scheduler, progress)
    if truth is not None:
        store.write_tables(store.growing(truth), phantom.truth())
        store.finish(truth)


def ingest(source: str | Path, raw: str | Path, *, workers: int | None = None, scheduler: Any = None,
           progress: Progress | None = None) -> dict[str, str]:
    """Write a raw store from a beamline's files.

    Parameters
    ----------
    source : path
        Folder or file of a format that `xreg.readers` knows.
    raw : path
        Store to write; it may not exist.
    workers, scheduler, progress
        As in `simulate`; the stage is called "ingest".

    Returns
    -------
    dict of str to str
        Reason by name, for every file or frame that could not be read. Such frames are kept in their place as zeros
        with `frame_status` corrupt.

    Raises
    ------
    ValueError
        If the store exists already, or nothing at the place can be read.
    """
    from xreg.readers import open_source

    refuse_existing(raw)
    found = open_source(source)
    pictures = {"counts": (found.table.sizes["frame"], *found.frame_shape),
                "flats": (found.table.sizes.get("flat", 0), *found.frame_shape)}
    table = found.table
    if found.notices:
        table = table.assign_attrs(notices=list(found.notices))
    faults = _stream(partial(_beamline, str(source)), table, pictures, found.dtype, raw,
                     "ingest", workers, scheduler, progress)
    return {**found.corrupt_files, **faults}


def refuse_existing(place: str | Path) -> None:
    """Raise ValueError where something is already stored under a name."""
    if store.exists(place):
        msg = f"{place} exists already; choose another name or delete it."
        raise ValueError(msg)


def _stream(maker: Callable[[], Mapping[str, Callable[[int], np.ndarray]]], coordinates: "xr.Dataset",
            pictures: Mapping[str, tuple[int, ...]], dtype: Any, raw: str | Path, stage: str,
            workers: int | None, scheduler: Any, progress: Progress | None) -> dict[str, str]:
    """Create a raw store and fill it; return what could not be read."""
    from xreg.workers import open_pool

    n_frames, *frame = pictures["counts"]
    length = chunks.block_length(n_frames, int(np.prod(frame)),
                                 scan_length=chunks.scan_length(coordinates.scan.values.tolist()))
    tasks = [(name, block) for name, shape in pictures.items() if shape[0]
             for block in chunks.frame_blocks(shape[0], length)]
    with _held(store.growing(raw)) as part:
        clear(raw)
        try:
            store.begin(raw, coordinates.attrs)
            store.create_raw(part, coordinates, pictures, dtype, length)
            with open_pool(workers, scheduler) as pool:
                faults = _fill(pool, partial(_write, part, maker), tasks, stage, progress)
            _record_faults(part, coordinates, faults)
        except BaseException:
            clear(raw)
            if not files.is_url(part):
                os.rmdir(part)
            raise
        store.finish(raw)
    return {f"{name} {index}": reason for (name, index), reason in faults.items()}


def _fill(pool: "Pool", write: Callable, tasks: list, stage: str,
          progress: Progress | None) -> dict[tuple[str, int], str]:
    """Have all blocks written; return the reasons of pictures that could not be read."""
    from xreg.workers import Lost

    faults: dict[tuple[str, int], str] = {}
    for done, (_, outcome) in enumerate(pool.each(write, tasks), start=1):
        if isinstance(outcome, Lost):
            raise outcome.error
        faults.update(outcome)
        if progress:
            progress(stage, done, len(tasks))
    return faults


def _write(path: str, maker: Callable, task: tuple[str, chunks.Block]) -> dict[tuple[str, int], str]:
    """Make the pictures of one block and write them; what cannot be read becomes zeros."""
    name, block = task
    with _lock:
        read = maker()[name]
    faults: dict[tuple[str, int], str] = {}
    pictures: list[np.ndarray | None] = []
    for index in range(block.start, block.stop):
        try:
            pictures.append(read(index))
        except (OSError, ValueError) as error:
            pictures.append(None)
            faults[name, index] = str(error)
    shape, dtype = store.declared(path, name)
    empty = np.zeros(shape[1:], dtype)
    whole = np.stack([empty if p is None else p.astype(dtype, copy=False) for p in pictures])
    store.write_block(path, name, (block.start, 0, 0), whole)
    return faults


def _record_faults(path: str, coordinates: "xr.Dataset", faults: dict[tuple[str, int], str]) -> None:
    """Mark frames whose file could be described but not read."""
    frames = [index for name, index in faults if name == "counts"]
    if frames:
        import xarray as xr

        n = coordinates.sizes["frame"]
        status = coordinates["frame_status"].values.copy() if "frame_status" in coordinates else np.zeros(n, np.int8)
        status[frames] = FrameStatus.CORRUPT
        store.write_tables(path, xr.Dataset({"frame_status": ("frame", status)}, attrs=coordinates.attrs))


@contextlib.contextmanager
def _held(part: str) -> Iterator[str]:
    """Keep other commands of this kind away from where a store grows; behind a URL nothing does.

    Raises
    ------
    ValueError
        If another command is making a store there.
    """
    if files.is_url(part):
        yield part
        return
    os.makedirs(part, exist_ok=True)
    folder = os.open(part, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(folder)
        msg = f"another command is writing {part}; wait for it or stop it."
        raise ValueError(msg) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        yield part
    finally:
        os.close(folder)


def clear(place: str | Path) -> None:
    """Remove what an interrupted command has left where a store is to grow; what is whole is never touched."""
    part = store.growing(place)
    if files.names(f"{part}/{FOLDER}") and not store.exists(place):
        msg = f"{part} was left by xreg run; go on with that, delete it, or choose another name."
        raise ValueError(msg)
    if not files.is_url(place):
        for left in Path(part).glob("*"):
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
    elif store.is_group(place) and not store.exists(place):
        files.remove_tree(part)


@functools.lru_cache(maxsize=1)
def _phantom(config: "PhantomConfig") -> dict[str, Callable[[int], np.ndarray]]:
    from xreg.synthetic import Phantom

    phantom = Phantom(config)
    return {"counts": phantom.counts, "flats": phantom.flat, "darks": phantom.dark}


@functools.lru_cache(maxsize=1)
def _beamline(source: str) -> dict[str, Callable[[int], np.ndarray]]:
    from xreg.readers import open_source

    found = open_source(source)
    return {"counts": found.read_counts, "flats": found.read_flat}
