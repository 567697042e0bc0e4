"""Whole pictures sampled on another grid, by cubic splines, and which of the samples are valid."""

import numpy as np
from scipy import ndimage, sparse

#: Axes up to this long are sampled faster by a dense matrix than by a sparse one.
_SMALL = 256


def spline_coefficients(picture: np.ndarray) -> np.ndarray:
    """Cubic spline coefficients (float32) of a picture without NaN, for `sample_plane`."""
    return ndimage.spline_filter(picture, order=3, output=np.float32, mode="mirror")


def nearest_valid(valid: np.ndarray) -> np.ndarray:
    """Of a mask (y, x), the flat number of each invalid pixel's nearest valid one.

    Pictures that are continued so beyond their holes have no step there, about which a spline would ring.
    """
    if not valid.any():
        return np.zeros(valid.size, int)  # nothing to continue: whatever is there
    rows, columns = ndimage.distance_transform_edt(~valid, return_distances=False, return_indices=True)
    return (rows * valid.shape[1] + columns)[~valid]


def sample_plane(coefficients: np.ndarray, first: np.ndarray, step: float, shape: tuple[int, int]) -> np.ndarray:
    """Sample a picture on a regular grid.

    Parameters
    ----------
    coefficients : ndarray, shape (Y, X), float32
        From `spline_coefficients`.
    first : ndarray, shape (2,)
        Place (y, x) of the first sample, px of the picture.
    step : float
        Distance of the samples, px of the picture.
    shape : (ny, nx)
        Samples along each axis.

    Returns
    -------
    ndarray, shape (ny, nx), float32
        Off the picture its edge is continued, which means nothing unless that is zero; see `valid_samples`.
    """
    rows, columns = (_weights(n, size, start, step)
                     for n, size, start in zip(shape, coefficients.shape, first, strict=True))
    return np.ascontiguousarray((columns @ (rows @ coefficients).T).T)


def _weights(n: int, size: int, first: float, step: float) -> "np.ndarray | sparse.csr_array":
    """Cubic spline weights (n, size) that sample an axis of `size` coefficients at first + step * (0 ... n - 1)."""
    place = first + step * np.arange(n)
    base = np.floor(place).astype(int)
    t = (place - base)[:, None]
    # Cubic B-spline at distances t + 1, t, 1 - t and 2 - t.
    weights = np.concatenate([(1 - t) ** 3, (3 * t - 6) * t * t + 4, ((3 - 3 * t) * t + 3) * t + 1, t**3], axis=1) / 6
    columns = base[:, None] + np.arange(-1, 3)
    # One coefficient beyond the edge is that of the mirrored picture, as the spline takes it; farther out nothing is.
    columns = np.clip(np.where(columns == -1, 1, np.where(columns == size, size - 2, columns)), 0, size - 1)
    if size > _SMALL:
        return sparse.csr_array((weights.astype(np.float32).ravel(), columns.ravel(), np.arange(0, 4 * n + 1, 4)),
                                shape=(n, size))
    dense, rows = np.zeros((n, size), np.float32), np.arange(n)
    for tap in range(4):
        dense[rows, columns[:, tap]] += weights[:, tap]
    return dense


def valid_samples(valid: np.ndarray, first: np.ndarray, step: float, shape: tuple[int, int]) -> np.ndarray:
    """Whether all four pixels around each sample of a grid are on the picture and valid: (ny, nx) bool."""
    places = [start + step * np.arange(n) for n, start in zip(shape, first, strict=True)]
    spans = [slice(max(int(np.floor(p[0])), 0), max(int(np.ceil(p[-1])) + 1, 0)) for p in places]
    inside = all(p[0] >= 0 and p[-1] <= size - 1 for p, size in zip(places, valid.shape, strict=True))
    if inside and valid[tuple(spans)].all():
        return np.ones(shape, bool)
    # A border of False takes what lies off the picture.
    framed = np.pad(valid, 1)
    low, high = ([np.clip(f(p).astype(int) + 1, 0, size + 1) for p, size in zip(places, valid.shape, strict=True)]
                 for f in (np.floor, np.ceil))
    rows = framed[low[0]] & framed[high[0]]
    return rows.take(low[1], axis=1) & rows.take(high[1], axis=1)
