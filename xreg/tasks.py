"""What one task of a run does: look at a block of frames, cut the particles out of it, or fit one particle in one scan.

A task gets a `Job` of a few hundred bytes and a block's number, reads what it needs from the stores, and writes what it
made back; its answer is small. Inside a block frames are worked through one by one, so that memory does not depend on
the length of a block and no answer on how frames were grouped.
"""

import errno
import functools
import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xreg import chunks, files, store
from xreg.journal import FOLDER, Journal
from xreg.schema import ROIS, SHARPNESS, FrameStatus

if TYPE_CHECKING:
    from xreg.kernels.edge import EdgeSettings
    from xreg.kernels.layers import Layers
    from xreg.normalize import Illumination

#: Errors that say that the disk, not a block, is at fault: the run stops and can go on later.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
#: Errors that say that the program is at fault.
_OURS = (AssertionError, AttributeError, ImportError, NameError, NotImplementedError, TypeError)
#: Windows of one block that are in memory at a time.
_WINDOW_BYTES = 128 * chunks.MIB
#: Frames, and open-beam references, that are normalised at a time.
_STEP_FRAMES, _STEP_FLATS = 8, 32
#: Group of the result store that holds the table of regions.
ROI_GROUP = "rois"
#: Group of what linking gives, before every frame has been asked about it, and what the frames say.
CANDIDATES = "candidates"
LOCATED = f"{CANDIDATES}/located"
#: What is made from all blocks of a stage; a block that is done anew makes it out of date.
_MADE_OF_ALL = {"observe": "link", "locate": "measure", "align": "stacks"}

_lock = threading.Lock()


@dataclass(frozen=True)
class Job:
    """All that a task must know, in plain values: a scheduler, which unpickles it, needs no torch.

    `first` is the raw store's frame with which the run begins; frames and blocks are counted from it. `detector` and
    `refiner` are path and sha256 of weights.
    """

    raw: str
    out: str
    pictures: str
    first: int
    n_frames: int
    block: int
    device: str
    detector: tuple[str, str]
    refiner: tuple[str, str]
    fit: "EdgeSettings"

    @property
    def journal(self) -> Journal:
        """Records of what is done."""
        return Journal.of(self.out)


@dataclass(frozen=True)
class Piece:
    """One array that a task has made, and where in the result store it belongs."""

    name: str
    start: tuple[int, ...]
    array: np.ndarray


def perform(job: Job, stage: str, task: Any) -> None:
    """Do one task unless it is done already; write what it makes, then its marker.

    A failure that is the task's own fault (damaged data, say) is recorded, and the run goes on.

    Parameters
    ----------
    job : Job
        The run that the task belongs to.
    stage : {"observe", "locate", "align", "fit"}
        What to do.
    task : Block or (particle, scan)
        Where to do it; see the functions of these names.

    Raises
    ------
    OSError
        If the disk is full or may not be written.
    """
    key = key_of(task)
    _one_thread()
    try:
        marker = job.journal.done(stage, key)
        if marker is not None and _is_there(job, marker):
            return
        digest, places = hashlib.sha256(), []
        for piece in _WORK[stage](job, task):
            if not piece.array.size:
                continue
            array = _canonical(piece.array)
            store.write_block(job.out, piece.name, piece.start, array)
            digest.update(array.tobytes())
            places.append([piece.name, piece.start, array.shape])
        # In this order: whoever is killed in between does this block again, and what is made of all of them.
        if stage in _MADE_OF_ALL:
            job.journal.unmark(_MADE_OF_ALL[stage], "0")
        job.journal.mark(stage, key, {"checksum": digest.hexdigest(), "pieces": places})
    except _OURS:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            raise
        reason = f"{type(error).__name__}: {error}"
        job.journal.fail(stage, key, reason)


def _one_thread() -> None:
    """Let a task use one thread: as many tasks run as there are cores, and sums are always in the same order."""
    import torch

    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


def key_of(task: chunks.Block | tuple[int, int]) -> str:
    """Name of a task among those of its stage."""
    return str(task.index) if isinstance(task, chunks.Block) else "-".join(map(str, task))


def _is_there(job: Job, marker: dict[str, Any]) -> bool:
    """Whether the store still holds what a marker says was written."""
    digest = hashlib.sha256()
    try:
        for name, start, shape in marker["pieces"]:
            region = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
            digest.update(store.read_block(job.out, name, region).tobytes())
    except (OSError, KeyError, ValueError):
        return False
    return digest.hexdigest() == marker["checksum"]


def _canonical(array: np.ndarray) -> np.ndarray:
    """The array in one piece, with one kind of NaN: chunks of nothing but NaN are not stored and read as that kind."""
    array = np.ascontiguousarray(array)
    if array.dtype.kind == "f":
        array[np.isnan(array)] = np.nan
    return array


# -- the three kinds of task -----------------------------------------------------------------------------------------


def observe(job: Job, block: chunks.Block) -> Iterator[Piece]:
    """Normalise a block's frames, find and refine their regions: the block's rows of the table of regions."""
    from xreg.detect import detect_block
    from xreg.models.weights import Weights
    from xreg.refine import empty_rois, refine_block
    from xreg.sharpness import sharpness_block

    detector, refiner = Weights(*job.detector), Weights(*job.refiner)
    table, frames = [], []
    for frame in _normalized(job, block):
        rows = empty_rois(1)
        if frame.status == FrameStatus.OK:
            density, noise = frame.optical_density[None], np.array([frame.noise])
            found = detect_block(density, device=job.device, weights=detector)
            rows = refine_block(density, found, noise, device=job.device, weights=refiner)
        table.append(rows)
        frames.append((frame.noise, frame.background, frame.status, sharpness_block(frame.optical_density[None])[0]))
    rows = np.concatenate(table)
    for name in ROIS:
        yield Piece(f"{ROI_GROUP}/{name}", (block.start,) + (0,) * (rows[name].ndim - 1), rows[name])
    noise, background, status, sharpness = (np.array(column) for column in zip(*frames, strict=True))
    yield Piece(f"{ROI_GROUP}/noise", (block.start,), noise.astype(np.float32))
    yield Piece(f"{ROI_GROUP}/background", (block.start, 0), background.astype(np.float32))
    yield Piece(f"{ROI_GROUP}/frame_status", (block.start,), status.astype(np.int8))
    yield Piece(f"{ROI_GROUP}/{SHARPNESS.name}", (block.start, 0), sharpness.astype(np.float32))


def locate(job: Job, block: chunks.Block) -> Iterator[Piece]:
    """Fit stage and particles of a block's frames to the layers: their places to a fraction of a pixel."""
    from xreg.locate import locate_block

    start, guessed, doubtful = (store.read_block(job.out, f"{CANDIDATES}/{name}", (slice(None), block.region))
                                for name in ("start", "guessed", "doubtful"))
    stage, scale, judged = (store.read_block(job.out, f"{CANDIDATES}/{name}", block.region)
                            for name in ("stage", "scale", "frame_status"))
    layers = load_layers(job.out)
    rows = np.full((len(start) + 1, len(block), 6), np.nan)
    for k, frame in enumerate(_normalized(job, block)):
        # That a frame is blurred, or could not be observed, is known only since all frames have been looked at.
        if frame.status == FrameStatus.OK and judged[k] == FrameStatus.OK:
            part = slice(k, k + 1)
            rows[:, part] = locate_block(frame.optical_density[None], start[:, part], (guessed | doubtful)[:, part],
                                         stage[part], scale[part], layers)
    yield Piece(LOCATED, (0, block.start, 0), rows)


def align(job: Job, block: chunks.Block) -> Iterator[Piece]:
    """Cut all particles out of a block's frames, some particles at a time."""
    from xreg.align import align_block

    (particles, _, side, _), _ = store.declared(job.out, "aligned")
    position = store.read_block(job.out, "position", (slice(None), block.region))
    scale = store.read_block(job.out, "scale", block.region)
    frames = [f.optical_density if f.status == FrameStatus.OK else None for f in _normalized(job, block)]
    step = max(1, _WINDOW_BYTES // (len(block) * side**2 * 4))
    for first in range(0, particles, step):
        part = slice(first, first + step)
        windows = np.full((len(position[part]), len(block), side, side), np.nan, np.float32)
        for k, frame in enumerate(frames):
            if frame is not None:
                windows[:, k] = align_block(frame[None], position[part, k : k + 1], scale[k : k + 1], side // 2)[:, 0]
        yield Piece("aligned", (first, block.start, 0, 0), windows)


def fit(job: Job, task: tuple[int, int]) -> Iterator[Piece]:
    """Fit the edge of every pixel of one particle in one scan: a row of each map."""
    from xreg.xanes import fit_block

    particle, scan = task
    of_frame, energy = (store.read_block(job.out, name, ...) for name in ("scan", "energy"))
    known = ~np.isnan(energy)
    frames = np.flatnonzero(known & (of_frame == np.unique(of_frame[known])[scan]))
    stack = np.concatenate([store.read_block(job.out, "aligned", (particle, slice(a, b)))
                            for a, b in chunks.runs(frames.tolist())])
    contour = store.read_block(job.out, "contour", slice(particle, particle + 1))
    for name, values in fit_block(stack[None], energy[frames], contour, job.fit).items():
        _, dtype = store.declared(job.out, name)
        yield Piece(name, (particle, scan, 0, 0), values[:, None].astype(dtype, copy=False))


_WORK: dict[str, Callable[[Job, Any], Iterator[Piece]]] = {
    "observe": observe, "locate": locate, "align": align, "fit": fit}


# -- reading frames --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """One normalised frame; see `schema.NORMALIZED`."""

    optical_density: np.ndarray
    noise: float
    background: np.ndarray
    status: int


def _normalized(job: Job, block: chunks.Block) -> Iterator[Frame]:
    """Read and normalise a block's frames, a few at a time; damaged ones are corrupt, the others go on."""
    from xreg.normalize import level_block, normalize_block

    setup = load_setup(job.out)
    counts, damaged = store.read_sound_rows(job.raw, job.pictures, np.arange(block.start, block.stop) + job.first)
    status = np.where(damaged, FrameStatus.CORRUPT, setup.status[block.region])
    for part in _steps(setup, block):
        rows = slice(part.start - block.start, part.stop - block.start)
        if setup.illumination.choice is None:
            made = level_block(counts[rows], setup.illumination, status[rows])
        else:
            chosen, weights = setup.illumination.choice.needed(part)
            flats, unreadable = store.read_sound_rows(job.raw, "flats", chosen)
            for flat in chosen[unreadable | ~flats.any(axis=(1, 2))]:
                job.journal.fail("flats", str(flat), "damaged, left out")
            made = normalize_block(
                counts[rows], flats, np.where(unreadable, np.float32(0), weights), setup.illumination,
                None if setup.exposure is None else setup.exposure[part],
                None if setup.flat_exposure is None else setup.flat_exposure[chosen], status[rows])
        yield from (Frame(*values) for values in zip(*made, strict=True))


def _steps(setup: "Setup", block: chunks.Block) -> Iterator[slice]:
    """Parts of a block whose frames need few references."""
    choice, start = setup.illumination.choice, block.start
    for stop in range(block.start + 1, block.stop + 1):
        grown = slice(start, stop + 1)
        many = choice is not None and stop < block.stop and len(choice.needed(grown)[0]) > _STEP_FLATS
        if stop == block.stop or stop - start == _STEP_FRAMES or many:
            yield slice(start, stop)
            start = stop


def normalized_frame(job: Job, frame: int) -> Frame:
    """One normalised frame, by its number in the run."""
    return next(_normalized(job, chunks.Block(0, frame, frame + 1)))


# -- what all tasks share --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """What is known about all frames of a run before the first is looked at.

    Attributes
    ----------
    illumination : Illumination
        From `normalize.survey`, its choice of references for the run's frames only.
    status : ndarray, shape (frame,)
        As the raw store gives it.
    exposure, flat_exposure : ndarray, s, or None
        Of the run's frames, and of all references.
    """

    illumination: "Illumination"
    status: np.ndarray
    exposure: np.ndarray | None
    flat_exposure: np.ndarray | None


def save_setup(out: str | Path, setup: Setup) -> None:
    """Write a setup where all tasks find it: plain arrays, no pickle."""
    look, choice = setup.illumination, setup.illumination.choice
    arrays = {f.name: getattr(look, f.name) for f in fields(look) if f.name != "choice"}
    arrays |= {"status": setup.status}
    arrays |= {n: v for n in ("exposure", "flat_exposure") if (v := getattr(setup, n)) is not None}
    if choice is not None:
        empty = np.zeros(0)
        arrays |= {"recipe": choice.recipe, "lengths": np.array([len(f) for f in choice.flats], int),
                   "flats": np.concatenate([empty, *choice.flats]).astype(int),
                   "weights": np.concatenate([empty, *choice.weights]).astype(np.float32)}
    files.save_arrays(f"{out}/{FOLDER}/setup.npz", **arrays)


def load_setup(out: str | Path) -> Setup:
    """Setup of a run, read once per process."""
    place = f"{out}/{FOLDER}/setup.npz"
    with _lock:
        return _read_setup(place, files.stamp(place))


@functools.lru_cache(maxsize=2)
def _read_setup(place: str, changed: str) -> Setup:
    from xreg.normalize import FlatChoice, Illumination

    arrays = files.load_arrays(place)
    choice = None
    if "recipe" in arrays:
        ends = np.cumsum(arrays["lengths"])[:-1]
        choice = FlatChoice(arrays["recipe"], *(tuple(np.split(arrays[n], ends)) for n in ("flats", "weights")))
    known = {f.name for f in fields(Illumination)} & set(arrays)
    values = {n: arrays[n].item() if arrays[n].ndim == 0 else arrays[n] for n in known}
    return Setup(Illumination(**values, choice=choice), arrays["status"], arrays.get("exposure"),
                 arrays.get("flat_exposure"))


def save_layers(out: str | Path, layers: "Layers") -> None:
    """Write background and templates where all tasks find them."""
    files.save_arrays(f"{out}/{FOLDER}/layers.npz", **{f.name: getattr(layers, f.name) for f in fields(layers)})


def load_layers(out: str | Path) -> "Layers":
    """Layers of a run, read once per process."""
    place = f"{out}/{FOLDER}/layers.npz"
    with _lock:
        return _read_layers(place, files.stamp(place))


@functools.lru_cache(maxsize=2)
def _read_layers(place: str, changed: str) -> "Layers":
    from xreg.kernels.layers import Layers

    arrays = files.load_arrays(place)
    return Layers(**{name: array.item() if array.ndim == 0 else array for name, array in arrays.items()})
