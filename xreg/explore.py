"""Exploration of a stack's spectra: principal components and clusters, over all particles and scans together."""

import dask.array as da
import numpy as np
import xarray as xr

from xreg.kernels.preedge import SAME_ENERGY
from xreg.kernels.spectra import kmeans, nearest_centre
from xreg.scans import by_scan, outline_blocks

_SAMPLE = 200_000


def decompose_spectra(norm: xr.DataArray, contour: xr.DataArray | None = None, *, n_components: int = 3) -> xr.Dataset:
    """Find the principal components of all pixels' spectra.

    The spectra of all particles and scans are rows of one tall matrix, of which dask makes a singular value
    decomposition block by block (one block is one particle in one scan). The sign of a component is such that its
    largest value is positive.

    Parameters
    ----------
    norm : DataArray, dims (particle, frame, y, x)
        Normalised spectra (or optical densities), with coordinates `energy` and `scan` on `frame`; all scans must share
        their energies.
    contour : DataArray, dims (particle, y, x), bool, optional
        Which pixels count; by default all.
    n_components : int
        Number of components to keep.

    Returns
    -------
    Dataset, lazy
        `mean` (energy,) and `component` (component, energy); `explained` (component,), share of the variance; `score`
        (particle, scan, y, x, component), NaN for pixels outside or with a NaN in their spectrum.

    Raises
    ------
    ValueError
        If scans differ in their energies, or there are fewer energies than components.
    """
    stack, energies, scans = by_scan(norm)
    grid = energies[0]
    for scan, energy in zip(scans, energies, strict=True):
        if len(energy) != len(grid) or np.abs(energy - grid).max() > SAME_ENERGY:
            msg = (f"scan {scan} has other energies than scan {scans[0]}; need the same in all scans. Interpolate them "
                   f"or choose one scan.")
            raise ValueError(msg)
    if not 0 < n_components <= len(grid):
        msg = f"n_components is {n_components}; need 1 to {len(grid)}, the number of energies."
        raise ValueError(msg)
    rows, shape = _rows(stack, contour, len(scans))
    good = da.isfinite(rows).all(axis=1, keepdims=True)
    filled = da.where(good, rows, 0.0)
    count = good.sum()
    mean = filled.sum(axis=0) / count
    # Rows that do not count become zeros, which change no component.
    left, size, right = da.linalg.svd(da.where(good, filled - mean, 0.0))
    sign = da.sign(da.where(da.fabs(right.min(axis=1)) > right.max(axis=1), -1.0, 1.0))
    score = da.where(good, left * (size * sign), np.nan)[:, :n_components]
    places = {c: stack.coords[c] for c in ("particle", "y", "x") if c in stack.coords}
    words = {"units": "1", "long_name": "score"}
    return xr.Dataset(
        {"mean": ("energy", mean, {"units": "1", "long_name": "mean spectrum"}),
         "component": (("component", "energy"), (right * sign[:, None])[:n_components],
                       {"units": "1", "long_name": "principal component"}),
         "explained": ("component", (size**2 / (size**2).sum())[:n_components],
                       {"units": "1", "long_name": "share of the variance"}),
         "score": (("particle", "scan", "y", "x", "component"), score.reshape((*shape, n_components)), words)},
        coords={"energy": ("energy", grid, {"units": "eV"}), "scan": scans, **places},
    )


def cluster_spectra(decomposed: xr.Dataset, *, n_clusters: int = 3, seed: int = 0) -> xr.Dataset:
    """Sort pixels into clusters of similar spectra by k-means on their scores.

    The centres are found at once from a sample of at most about 200 000 evenly spaced pixels, which computes the
    scores; which pixel belongs where stays lazy.

    Parameters
    ----------
    decomposed : Dataset
        Result of `decompose_spectra`.
    n_clusters, seed : int
        Number of clusters, and the seed of the start.

    Returns
    -------
    Dataset
        `cluster` (particle, scan, y, x), lazy, int16, -1 where there is no score; `spectrum` (cluster_number, energy),
        each centre's spectrum in the space of the kept components. Cluster 0 is the largest.

    Raises
    ------
    ValueError
        If fewer pixels differ than there are clusters.
    """
    score = decomposed["score"]
    flat = score.data.reshape((-1, score.sizes["component"]))
    sample = np.asarray(flat[:: max(1, flat.shape[0] // _SAMPLE)])
    centres = kmeans(sample[np.isfinite(sample).all(axis=1)], n_clusters, seed)
    label = da.map_blocks(_label_task, score.data, centres=centres, drop_axis=4, dtype=np.int16,
                          meta=np.empty((0,) * 4, dtype=np.int16))
    spectrum = np.asarray(decomposed["mean"]) + centres @ np.asarray(decomposed["component"])
    return xr.Dataset(
        {"cluster": (score.dims[:4], label, {"long_name": "cluster", "comment": "-1 where there is no spectrum"}),
         "spectrum": (("cluster_number", "energy"), spectrum, {"units": "1", "long_name": "spectrum of the cluster"})},
        coords={name: decomposed.coords[name] for name in decomposed.coords},
    )


def _rows(stack: xr.DataArray, contour: xr.DataArray | None, n_scans: int) -> tuple[da.Array, tuple[int, ...]]:
    """Spectra as rows (pixels, energies), one block per particle and scan, NaN outside; and the pixels' shape."""
    particles, frames, ny, nx = stack.shape
    arrays = [stack.data] if contour is None else [stack.data, outline_blocks(contour, stack)]
    energies = frames // n_scans
    cubes = da.map_blocks(_row_task, *arrays, new_axis=4, dtype=np.float64, meta=np.empty((0,) * 5),
                          chunks=(stack.chunks[0], (1,) * n_scans, (ny,), (nx,), (energies,)))
    return cubes.reshape((-1, energies)), (particles, n_scans, ny, nx)


def _row_task(values, contour=None):
    """One block (1, energies, y, x) -> (1, 1, y, x, energies)."""
    values = np.asarray(values, dtype=np.float64)
    if contour is not None:
        values = np.where(contour, values, np.nan)
    return np.moveaxis(values, 1, -1)[:, None]


def _label_task(score, *, centres):
    flat = score.reshape(-1, score.shape[-1])
    good = np.isfinite(flat).all(axis=1)
    label = np.full(len(flat), -1, dtype=np.int16)
    label[good] = nearest_centre(flat[good], centres)
    return label.reshape(score.shape[:-1])
