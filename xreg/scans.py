"""Registered stacks cut into their scans: one chunk holds one particle in one scan, however the input was chunked."""

from collections.abc import Iterator

import dask.array as da
import numpy as np
import xarray as xr

from xreg.kernels.preedge import to_electronvolts
from xreg.schema import RESULT, check_alike, check_array


def by_scan(stack: xr.DataArray, name: str = "aligned") -> tuple[xr.DataArray, tuple[np.ndarray, ...], np.ndarray]:
    """Sort the frames of a stack by scan and let one chunk hold one particle in one scan.

    Parameters
    ----------
    stack : DataArray, dims (particle, frame, y, x)
        With coordinates `energy` (eV; keV is converted with a warning) and `scan` on `frame`.
    name : str
        What the stack is called in a sentence, and in a Dataset from which it was not taken.

    Returns
    -------
    stack : DataArray
        Dask-backed; frames are reordered only where scans are interleaved, and those without an energy, which only bad
        ones may be, are left out.
    energies : tuple of ndarray
        Energies (eV) of each scan's frames.
    scans : ndarray
        The scans' numbers, ascending.

    Raises
    ------
    ValueError
        If it is no DataArray, the dims are others, a coordinate is missing, an energy is not positive, or a scan not a
        number.
    """
    check_array(stack, name, RESULT["aligned"].dims)
    if stack.dims != ("particle", "frame", "y", "x"):
        msg = (f"the stack has dims {stack.dims}; need ('particle', 'frame', 'y', 'x'). Choose a single particle or "
               f"pixel with a list, such as stack.isel(particle=[0]), which keeps the dimension.")
        raise ValueError(msg)
    for coordinate in ("energy", "scan"):
        if coordinate not in stack.coords or stack.coords[coordinate].dims != ("frame",):
            msg = (f"the stack has no coordinate {coordinate} on its frames; add it with "
                   f'stack.assign_coords({coordinate}=("frame", values)).')
            raise ValueError(msg)
    # The two small coordinates decide the graph's shape; `chunk` and `open_zarr` make even them lazy, so they are read
    # here, in this thread. Nothing else is.
    energy, scan = (stack.coords[name].compute(scheduler="synchronous").values for name in ("energy", "scan"))
    if not np.all(np.isfinite(scan)):
        count = np.count_nonzero(~np.isfinite(scan))
        msg = f"scan is not finite for {count} frames; need the number of each frame's scan."
        raise ValueError(msg)
    known = ~np.isnan(energy)
    if not known.all():
        stack, energy, scan = stack.isel(frame=np.flatnonzero(known)), energy[known], scan[known]
    energy = to_electronvolts(energy)
    order = np.argsort(scan, kind="stable")
    if np.any(order[1:] < order[:-1]):
        stack, energy, scan = stack.isel(frame=order), energy[order], scan[order]
    scans, counts = np.unique(scan, return_counts=True)
    stack = stack.assign_coords(energy=("frame", energy), scan=("frame", scan))
    stack = stack.chunk({"particle": 1, "frame": tuple(counts.tolist()), "y": -1, "x": -1})
    return stack, tuple(np.split(energy, np.cumsum(counts)[:-1])), scans


def energy_blocks(energies: tuple[np.ndarray, ...]) -> da.Array:
    """Energies as a dask array (1, frame, 1, 1) whose blocks fit those of `by_scan`: a task gets its own scan's."""
    lengths = tuple(map(len, energies))
    return da.from_array(np.concatenate(energies)[None, :, None, None], chunks=((1,), lengths, (1,), (1,)))


def outline_blocks(contour: xr.DataArray, stack: xr.DataArray) -> da.Array:
    """Outlines as a dask array (particle, 1, y, x), bool, in chunks of one particle, which fit those of `by_scan`.

    Raises
    ------
    ValueError
        If `contour` is no DataArray, or has not the dims (particle, y, x), the sizes and the labels of `stack`.
    """
    check_array(contour, "contour", RESULT["contour"].dims)
    wanted = tuple(stack.sizes[d] for d in ("particle", "y", "x"))
    if contour.dims != ("particle", "y", "x") or contour.shape != wanted:
        msg = (f"contour has dims {contour.dims} and shape {contour.shape}; need ('particle', 'y', 'x') and {wanted}, "
               f"as the stack has.")
        raise ValueError(msg)
    check_alike(contour, stack, "particle", "y", "x")
    # What xarray has filled up while it fitted windows to each other is outside.
    inside = contour.fillna(0) > 0.5 if contour.dtype.kind == "f" else contour.astype(bool)
    return inside.chunk({"particle": 1, "y": -1, "x": -1}).data[:, None]


def alike(finite: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield groups of pixels that have values at the same energies: rows (n,) bool and columns (integers).

    `finite` (n, pixels) says where a spectrum has a value.
    """
    if finite.all():
        yield np.ones(len(finite), dtype=bool), np.arange(finite.shape[1])
        return
    packed = np.ascontiguousarray(np.packbits(finite, axis=0).T)
    _, first, group = np.unique(packed.view([("", packed.dtype)] * packed.shape[1]).ravel(),
                                return_index=True, return_inverse=True)
    order, bounds = np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1]
    for start, columns in zip(first, np.split(order, bounds), strict=True):
        yield finite[:, start], columns
