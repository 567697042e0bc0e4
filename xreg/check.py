"""Looking at a raw store before a run: what is in it, what is wrong with it, what a run will take."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from xreg import chunks, store
from xreg.schema import FrameStatus, frames_name
from xreg.workers import cores

#: Frames that are looked at, evenly spread, and of these the number that the networks see.
_LOOKED, _TIMED = 24, 2
#: Side (px) of a typical window on a particle, for the estimates.
_WINDOW = 121
#: What every run takes to start and to link, s.
_OVERHEAD_S = 15.0
#: Bytes that a process may take; a store for which a worker would take more is a problem.
MEMORY_LIMIT = 2 * 2**30


@dataclass(frozen=True)
class Report:
    """What a look at a raw store has shown: rows (quantity, value), and sentences about what is wrong."""

    contents: list[tuple[str, str]]
    problems: list[str]


def check_raw_store(path: str | Path, *, device: str = "auto") -> Report:
    """Look at a raw store: its tables, and a few of its frames, evenly spread.

    Parameters
    ----------
    path : path or URL
        Raw store.
    device : str
        "auto", "cpu" or "cuda", for the estimate of time.

    Returns
    -------
    Report

    Raises
    ------
    ValueError
        If the store cannot be registered at all.
    """
    from xreg.models.infer import choose_device
    from xreg.normalize import check_raw, normalize_frames, survey

    device = choose_device(device)
    raw = store.open_frames(path, forgiving=True)
    check_raw(raw)
    pictures = raw[frames_name(raw)]
    chosen = np.unique(np.linspace(0, raw.sizes["frame"] - 1, _LOOKED).round().astype(int))
    single = store.open_frames(path, block=1, forgiving=True)
    normalized = normalize_frames(single, survey(single)).isel(frame=chosen)
    looks = normalized[["frame_status", "noise"]].compute()
    status, noise = looks["frame_status"].values, looks["noise"].values
    seconds = _seconds_per_frame(normalized.isel(frame=np.flatnonzero(status == FrameStatus.OK)[:_TIMED]), device)
    block = pictures.data.chunks[0][0]
    read = store.chunk_length(path, str(pictures.name))
    flats = raw.sizes.get("flat", 0) / raw.sizes["frame"]
    memory = chunks.process_memory(int(np.prod(pictures.shape[1:])), block, read, min(flats, 16), _WINDOW, 30)
    contents = [*_tables(raw, pictures), *_looks(status, noise, len(chosen)),
                ("frames per block", f"{block} (chunks of {read} in the store)"),
                ("memory per process", f"about {memory / 2**30:.1f} GiB"),
                ("time of a run", _duration(seconds, raw.sizes["frame"], device))]
    problems = [*_table_problems(raw), *_frame_problems(chosen, status, path, raw, pictures)]
    if memory > MEMORY_LIMIT:
        problems.append(f"a worker would take about {memory / 2**30:.1f} GiB; rewrite the store with smaller chunks.")
    return Report(contents, problems)


def _tables(raw: xr.Dataset, pictures: xr.DataArray) -> list[tuple[str, str]]:
    """What the small variables say."""
    n, ny, nx = pictures.shape
    energy, (scans, lengths) = raw["energy"].values, np.unique(raw["scan"].values, return_counts=True)
    frames = f"{lengths[0]}" if len(set(lengths.tolist())) == 1 else f"{lengths.min()} to {lengths.max()}"
    attrs = raw.attrs
    return [
        ("frames", f"{n} of {ny} x {nx} pixels, {pictures.name} as {pictures.dtype}"),
        ("scans", f"{len(scans)} of {frames} frames"),
        ("energies", f"{np.nanmin(energy):.1f} to {np.nanmax(energy):.1f} eV, {len(np.unique(energy))} different"),
        ("element and edge", f"{attrs.get('element', '?')} {attrs.get('edge', '?')}"),
        ("pixel size", f"{attrs['pixel_size_nm']:g} nm" if "pixel_size_nm" in attrs else "not given"),
        ("magnification", str(attrs.get("magnification", "constant (not given)"))),
        ("open-beam references", str(raw.sizes.get("flat", 0))),
        ("darks", str(raw.sizes.get("dark", 0))),
        ("time stamps", "yes" if "time" in raw.coords else "no"),
    ]


def _looks(status: np.ndarray, noise: np.ndarray, looked: int) -> list[tuple[str, str]]:
    good = int((status == FrameStatus.OK).sum())
    rows = [("frames looked at", f"{looked}, of which {good} can be used")]
    if good:
        rows.append(("noise", f"{np.nanmedian(noise):.4f} optical density"))
    return rows


def _table_problems(raw: xr.Dataset) -> list[str]:
    """What is wrong with, or missing from, the small variables."""
    from xreg.normalize import given_status
    from xreg.xanes import check_energies, scans_without_edge

    problems = []
    lengths = np.unique(raw["scan"].values, return_counts=True)[1]
    if len(set(lengths.tolist())) > 1:
        problems.append(f"scans have {lengths.min()} to {lengths.max()} frames; incomplete ones are fitted with what "
                        "they have.")
    for name, loss in (("pixel_size_nm", "motion will be in pixels only"),
                       ("element", "the edge will be looked for in each particle's mean spectrum")):
        if name not in raw.attrs:
            problems.append(f"the attribute {name} is missing; {loss}.")
    timed = [name for name in ("exposure", "flat_exposure") if name in raw]
    if len(timed) == 1 and "flats" in raw:
        problems.append(f"there is only {timed[0]} of exposure and flat_exposure; it is left aside, and frames and "
                        "references are taken to be exposed alike.")
    try:
        energies = raw["energy"].values, raw["scan"].values, raw.attrs
        check_energies(*energies)
        short = scans_without_edge(*energies)
        if short:
            shown = ", ".join(map(str, short[:5])) + (", ..." if len(short) > 5 else "")
            problems.append(f"edge energies cannot be fitted in {len(short)} scans ({shown}): too few energies before, "
                            "in or behind the edge.")
    except ValueError as error:
        problems.append(f"edge energies cannot be fitted: {error}")
    status, names = given_status(raw), np.atleast_1d(raw.attrs.get("source_files", []))
    for i in np.flatnonzero(status):
        name = f" ({names[i]})" if i < len(names) else ""
        problems.append(f"frame {i}{name} was {FrameStatus(status[i]).name.lower()} when it was read in.")
    listed = set(names[np.flatnonzero(status[: len(names)])])
    lost = (str(name) for name in np.atleast_1d(raw.attrs.get("corrupt_files", [])))
    return problems + [f"file {name}" for name in lost if name.partition(":")[0] not in listed]


def _frame_problems(chosen: np.ndarray, status: np.ndarray, path: str | Path, raw: xr.Dataset,
                    pictures: xr.DataArray) -> list[str]:
    """Frames that were looked at and are no good, and pictures that are not there."""
    from xreg.normalize import given_status

    problems, known = [], given_status(raw)
    for frame, code in zip(chosen.tolist(), status.tolist(), strict=True):
        if code == FrameStatus.OK or known[frame] != FrameStatus.OK:
            continue
        try:
            store.read_block(path, str(pictures.name), frame)
            problems.append(f"frame {frame} is {FrameStatus(code).name.lower()}.")
        except OSError as error:
            problems.append(str(error))
    for name in store.PICTURES:
        missing = store.missing_chunks(path, name) if name in raw else 0
        if missing:
            problems.append(f"at least {missing} chunks of {name} are not there; their pictures read as zeros.")
    return problems


def _seconds_per_frame(normalized: xr.Dataset, device: str) -> float:
    """Time that detection and refinement of one frame take, s; NaN without a usable frame."""
    from xreg.detect import detect_block
    from xreg.refine import refine_block

    spent = []
    for i in range(normalized.sizes["frame"]):
        frame = normalized.isel(frame=[i]).compute()
        began = time.perf_counter()
        found = detect_block(frame["optical_density"].values, device=device)
        refine_block(frame["optical_density"].values, found, frame["noise"].values, device=device)
        spent.append(time.perf_counter() - began)
    # The first frame also pays for loading the networks.
    return min(spent, default=float("nan"))


def _duration(seconds: float, frames: int, device: str) -> str:
    """Estimate in words: start, linking, and both passes over the frames; the second costs a third of the first."""
    if not np.isfinite(seconds):
        return "unknown, no usable frame was looked at"
    workers = cores() if device == "cpu" else 1
    total = _OVERHEAD_S + 1.3 * seconds * frames / workers
    shown = f"{total:.0f} s" if total < 90 else f"{total / 60:.0f} min" if total < 5400 else f"{total / 3600:.1f} h"
    return f"about {shown} ({seconds:.2f} s per frame, {workers} at a time on {device})"
