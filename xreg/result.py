"""Result stores: opening them lazily, whether their stacks were written or not, and saying what failed."""

from pathlib import Path

import numpy as np
import xarray as xr

from xreg import store
from xreg.schema import FrameStatus
from xreg.tasks import CANDIDATES, load_setup


def open_result(path: str | Path) -> xr.Dataset:
    """Open a result store lazily.

    Parameters
    ----------
    path : path
        What `xreg run` wrote.

    Returns
    -------
    Dataset
        The variables of `schema.RESULT`: tracks in memory, stacks and maps dask-backed in the store's chunks. For a run
        that stopped after the tracks, `aligned` and the maps are built from the raw store and computed when asked for;
        one particle of one scan reads that scan's frames only.

    Raises
    ------
    ValueError
        If there is no such store, it is no result or not a whole one, or the run has not ended; for a lazy run also if
        the raw store has gone or changed.
    """
    result = store.open_store(path)
    store.refuse_unfinished(result.attrs, path)
    missing = [n for n in ("position", "frame_status") if n not in result]
    missing += [n for n in ("raw", "settings") if n not in result.attrs]
    if missing:
        msg = f"{path} has no {', no '.join(missing)}; give what xreg run wrote, and all of it."
        raise ValueError(msg)
    if result.attrs.get("lazy"):
        result = _with_stacks(result, path)
    return result


def open_raw_of(result: xr.Dataset) -> xr.Dataset | None:
    """Frames that a result was made from, lazily, damaged ones as zeros; None where its raw store is not there."""
    try:
        return _raw_of(result)
    except (ValueError, OSError):
        return None


def _raw_of(result: xr.Dataset) -> xr.Dataset:
    """As `open_raw_of`; ValueError says why not, and OSError of a server that does not answer goes through."""
    try:
        origin = result.attrs["raw"]
        raw = store.open_frames(origin["path"], block=origin["block"], forgiving=True)
        changed = store.fingerprint(origin["path"])["content"] != origin["content"]
    except (KeyError, TypeError) as error:
        msg = "it does not say which raw store it was made from"
        raise ValueError(msg) from error
    except ValueError as error:
        msg = f"its raw store {origin['path']} is not there"
        raise ValueError(msg) from error
    if changed:
        msg = f"its raw store {origin['path']} has changed"
        raise ValueError(msg)
    raw = raw.isel(frame=slice(*origin["frames"])).assign_attrs(
        {k: result.attrs[k] for k in ("pixel_size_energy_ev",) if k in result.attrs})
    return raw.assign(frame_status=("frame", result["frame_status"].values))


def failures(result: xr.Dataset) -> list[str]:
    """What failed in a run: bad frames with their status, and tasks that could not be done, one line each."""
    names = np.atleast_1d(result.attrs.get("source_files", []))
    lines = []
    for number, status in zip(result["frame"].values.tolist(), result["frame_status"].values.tolist(), strict=True):
        if status != FrameStatus.OK:
            name = f" ({names[number]})" if number < len(names) else ""
            lines.append(f"frame {number}{name}: {FrameStatus(status).name.lower()}")
    return lines + list(result.attrs.get("failed_tasks", []))


def rigid_part(result: xr.Dataset) -> str:
    """What defines the rigid part of the motion, in one sentence; nothing where that is not known."""
    attrs = result["rigid"].attrs if "rigid" in result and result.sizes["particle"] else {}
    which = ", ".join(map(str, attrs.get("particles", [])))
    return {
        "background": "The rigid part is the motion of the background.",
        "particles that move as one": f"The rigid part is the motion of particles {which}, which move as one.",
        "all particles": "The rigid part is what the motions of all particles have in common.",
        "reference particle": f"The rigid part is the motion of particle {which}, which was chosen as the reference.",
    }.get(attrs.get("definition", ""), "")


def _with_stacks(result: xr.Dataset, path: str | Path) -> xr.Dataset:
    """Add `aligned` and the maps to the tracks, from the raw store, without computing anything."""
    from xreg.align import align_stacks
    from xreg.normalize import normalize_frames
    from xreg.xanes import fit_edges

    try:
        raw = _raw_of(result)
    except ValueError as error:
        msg = f"{path} was made with --lazy, and {error}; put that back, or run again without --lazy."
        raise ValueError(msg) from error
    # What could not be located has a picture all the same.
    judged = store.read_block(path, f"{CANDIDATES}/frame_status", ...)
    look = load_setup(path).illumination
    normalized = normalize_frames(raw.assign(frame_status=("frame", judged)), look, references=look.choice)
    half = (result.sizes["y"] - 1) // 2
    aligned = align_stacks(normalized, result, half)["aligned"]
    aligned = aligned.assign_coords(y=result["y"], x=result["x"], particle=result["particle"])
    maps = fit_edges(aligned, result["contour"], incomplete=True, **result.attrs["settings"]["fit"])
    stacks = xr.Dataset({"aligned": aligned.drop_vars([c for c in ("scan", "axis") if c in aligned.coords])})
    return result.assign({**stacks.data_vars, **{n: v.drop_vars("scan") for n, v in maps.data_vars.items()}})
