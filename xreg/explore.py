"""Exploration of a stack's spectra: principal components and clusters, over all particles and scans together."""

import dask.array as da
import numpy as np
import xarray as xr

from xreg.kernels.preedge import distinct_energies, merge_repeats
from xreg.kernels.spectra import kmeans, nearest_centre
from xreg.scans import alike, by_scan, energy_blocks, outline_blocks
from xreg.schema import check_dataset, check_number, check_some

_SAMPLE = 200_000
_NEAR = 0.25    # eV; an energy this close to one of the grid counts as that one measured
_LEAST = 0.9    # share of the energies that a spectrum must have measured; the rest is interpolated


def decompose_spectra(norm: xr.DataArray, contour: xr.DataArray | None = None, *, n_components: int = 3) -> xr.Dataset:
    """Find the principal components of all pixels' spectra.

    The spectra of all particles and scans are rows of one tall matrix, of whose covariance they are the eigenvectors.
    One block is one particle in one scan. The sign of a component is such that its largest value is positive. Scores
    wait for the components, and with them all spectra in float64: for long measurements choose particles or scans.

    Parameters
    ----------
    norm : DataArray, dims (particle, frame, y, x)
        Normalised spectra (or optical densities), with coordinates `energy` and `scan` on `frame`. The energies of the
        fullest scan are the columns of the matrix; a spectrum that lacks up to a tenth of them (a missing frame, a NaN)
        is interpolated there, linearly between its own energies.
    contour : DataArray, dims (particle, y, x), bool, optional
        Which pixels count; by default all.
    n_components : int
        Number of components to keep.

    Returns
    -------
    Dataset, lazy
        `mean` (energy,) and `component` (component, energy); `explained` (component,), share of the variance; `score`
        (particle, scan, y, x, component), NaN for pixels outside or that lack more than a tenth of the energies.

    Raises
    ------
    ValueError
        If a scan lacks more than a tenth of the fullest scan's energies, or there are fewer energies than components,
        or no particles.
    """
    stack, energies, scans = by_scan(norm, "norm")
    check_some(stack, "particle")
    check_number("n_components", n_components, "a whole number, 1 or more", whole=True)
    grid = max((distinct_energies(e) for e in energies), key=len)
    for scan, energy in zip(scans, energies, strict=True):
        shared = int(_measured(grid, energy).sum())
        if shared < _LEAST * len(grid):
            msg = (f"scan {scan} has {shared} of the {len(grid)} energies of the fullest scan; need nine tenths of "
                   f"them. Choose scans that share their energies.")
            raise ValueError(msg)
    if len(grid) < 2:
        msg = f"the stack has {len(grid)} energies; need at least 2."
        raise ValueError(msg)
    if not 0 < n_components <= len(grid):
        msg = f"n_components is {n_components}; need 1 to {len(grid)}, the number of energies."
        raise ValueError(msg)
    rows, shape = _rows(stack, contour, energies, grid)
    moments = da.map_blocks(_moments, rows, chunks=((1,) * rows.numblocks[0], (len(grid) + 1,), (len(grid) + 1,)),
                            new_axis=2, dtype=np.float64, meta=np.empty((0, 0, 0))).sum(axis=0)
    found = da.map_blocks(_principal, moments, chunks=((len(grid) + 2,), (len(grid),)), dtype=np.float64,
                          meta=np.empty((0, 0)))
    mean, size, right = found[0], found[1], found[2:]
    score = da.map_blocks(_project, rows, mean, right[:n_components].rechunk(-1), dtype=np.float64,
                          chunks=(rows.chunks[0], (n_components,)), meta=np.empty((0, 0)))
    places = {c: stack.coords[c] for c in ("particle", "y", "x") if c in stack.coords}
    words = {"units": "1", "long_name": "score"}
    return xr.Dataset(
        {"mean": ("energy", mean, {"units": "1", "long_name": "mean spectrum"}),
         "component": (("component", "energy"), right[:n_components],
                       {"units": "1", "long_name": "principal component"}),
         "explained": ("component", (size / da.maximum(size.sum(), 1e-300))[:n_components],
                       {"units": "1", "long_name": "share of the variance"}),
         "score": (("particle", "scan", "y", "x", "component"), score.reshape((*shape, n_components)), words)},
        coords={"energy": ("energy", grid, {"units": "eV"}), "scan": scans, **places},
    )


def _moments(rows: np.ndarray) -> np.ndarray:
    """Sums (1, g + 1, g + 1) of the products of spectra (n, g) with a one in front of each; those with NaN left out."""
    good = rows[np.isfinite(rows).all(axis=1)]
    good = np.column_stack([np.ones(len(good)), good])
    return (good.T @ good)[None]


def _principal(moments: np.ndarray) -> np.ndarray:
    """Mean, variances in falling order, and the components that belong to them: (2 + g, g)."""
    count, total = moments[0, 0], moments[0, 1:]
    mean = total / count if count else np.full(len(total), np.nan)
    size, vectors = np.linalg.eigh(moments[1:, 1:] - np.outer(total, total) / max(count, 1))
    right = vectors.T[::-1]
    right = right * np.where(np.abs(right.min(axis=1)) > right.max(axis=1), -1.0, 1.0)[:, None]
    return np.vstack([mean, np.maximum(size[::-1], 0.0), right])


def _project(rows: np.ndarray, mean: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Scores (n, components) of spectra (n, g); NaN for those with NaN."""
    return (rows - mean) @ right.T


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
        If fewer pixels differ than there are clusters, or the number of clusters is not positive.
    """
    check_dataset(decomposed, "what decompose_spectra gives")
    check_number("n_clusters", n_clusters, "a whole number, 1 or more", least=1, whole=True)
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


def _rows(stack: xr.DataArray, contour: xr.DataArray | None, energies: tuple[np.ndarray, ...],
          grid: np.ndarray) -> tuple[da.Array, tuple[int, ...]]:
    """Spectra as rows (pixels, energies), one block per particle and scan, NaN outside; and the pixels' shape."""
    particles, _, ny, nx = stack.shape
    arrays = [] if contour is None else [outline_blocks(contour, stack)]
    cubes = da.map_blocks(_row_task, stack.data, energy_blocks(energies), *arrays, grid=grid, new_axis=4,
                          dtype=np.float64, meta=np.empty((0,) * 5),
                          chunks=(stack.chunks[0], (1,) * len(energies), (ny,), (nx,), (len(grid),)))
    return cubes.reshape((-1, len(grid))), (particles, len(energies), ny, nx)


def _row_task(values, energy, contour=None, *, grid):
    """One block (1, frames, y, x) -> (1, 1, y, x, energies)."""
    energy = energy.ravel()
    order = np.argsort(energy, kind="stable")
    spectra = np.asarray(values[0], dtype=np.float64).reshape(len(energy), -1)[order]
    energy, spectra = merge_repeats(energy[order], spectra)
    if contour is not None:
        spectra = np.where(contour.reshape(-1), spectra, np.nan)
    out = np.full((spectra.shape[1], len(grid)), np.nan)
    for rows, columns in alike(np.isfinite(spectra)):
        if not rows.any() or _measured(grid, energy[rows]).sum() < _LEAST * len(grid):
            continue
        at, part = energy[rows], spectra[np.ix_(rows, columns)]
        right = np.clip(np.searchsorted(at, grid), 1, max(len(at) - 1, 1))
        share = np.clip((grid - at[right - 1]) / (at[right] - at[right - 1]), 0.0, 1.0)[:, None]
        out[columns] = (part[right - 1] * (1.0 - share) + part[right] * share).T
    return out.reshape(1, 1, *values.shape[2:], len(grid))


def _measured(grid: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Which energies of the ascending `grid` (n,) are among `energy`."""
    energy = np.sort(energy)
    right = np.clip(np.searchsorted(energy, grid), 0, len(energy) - 1)
    return np.minimum(np.abs(energy[right] - grid), np.abs(energy[right - 1] - grid)) <= _NEAR


def _label_task(score, *, centres):
    flat = score.reshape(-1, score.shape[-1])
    good = np.isfinite(flat).all(axis=1)
    label = np.full(len(flat), -1, dtype=np.int16)
    label[good] = nearest_centre(flat[good], centres)
    return label.reshape(score.shape[:-1])
