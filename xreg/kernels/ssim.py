"""Structural similarity of many pairs of small pictures.

Wang et al. 2004 (doi:10.1109/TIP.2003.819861), with their Gaussian window and constants, not the formula as
printed in Su et al. 2024 (whose luminance term multiplies where it should add and whose contrast term holds
the covariance)::

    SSIM = (2 mx my + c1) (2 sxy + c2) / ((mx^2 + my^2 + c1) (sx^2 + sy^2 + c2)),   c1 = (0.01 L)^2, c2 =
    (0.03 L)^2

averaged over all windows that lie wholly inside the picture. L is the data range, which must always be given:
guessed from a dtype it makes unrelated pictures look alike.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

_SIGMA = 1.5
_WINDOW = 11
_K1, _K2 = 0.01, 0.03
#: Pairs whose products are held at once: 256 pictures of 32 x 32 in float64 take 2 MB and stay in cache.
_BATCH = 256


@dataclass(frozen=True)
class Pictures:
    """Pictures with the local moments that every comparison needs: each picture is filtered only once.

    `values` is (n, h, w) float64 with NaN set to zero, `mean` and `variance` are (n, windows_y, windows_x),
    `usable` is False for windows that hold a NaN, `flat` is (n,) and True for pictures without any contrast.
    """

    values: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    usable: np.ndarray
    flat: np.ndarray
    data_range: float

    def __len__(self) -> int:
        return len(self.values)


def prepare(pictures: np.ndarray, data_range: float) -> Pictures:
    """Filter pictures once for any number of comparisons.

    Parameters
    ----------
    pictures : array, shape (n, h, w), any real dtype
        NaN marks samples without a value.
    data_range : float
        Distance between the smallest and the largest value that a sample can take (255 for uint8 pictures).

    Raises
    ------
    ValueError
        If the array is not three-dimensional, a picture is smaller than the 11 x 11 window, or the data range
        is not a positive number.
    """
    pictures = np.asarray(pictures)
    if pictures.ndim != 3 or min(pictures.shape[1:]) < _WINDOW:
        msg = f"pictures have shape {pictures.shape}; need (n, h, w) with h and w of at least {_WINDOW}."
        raise ValueError(msg)
    if not (np.isfinite(data_range) and data_range > 0):
        msg = f"data_range is {data_range}; need the positive span of a sample's values, 255 for uint8."
        raise ValueError(msg)
    values = pictures.astype(np.float64)
    missing = ~np.isfinite(values)
    flat = _without_contrast(values, missing)
    values[missing] = 0.0
    mean = _windowed(values)
    variance = np.maximum(_windowed(values * values) - mean * mean, 0.0)
    # A window is spoiled by any sample that it lacks, however small that sample's weight.
    usable = np.ones(mean.shape, dtype=bool)
    if missing.any():
        usable = _windowed(missing.astype(np.float64)) == 0.0
    return Pictures(values, mean, variance, usable, flat, float(data_range))


def ssim_pairs(a: Pictures, b: Pictures, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Structural similarity of the pairs (a[first[k]], b[second[k]]).

    Parameters
    ----------
    a, b : Pictures
        From `prepare`, with pictures of one size and one data range.
    first, second : int arrays, shape (k,)
        Numbers of the pictures to compare.

    Returns
    -------
    similarity : array, shape (k,), float64
        From -1 to 1; 1 only for equal pictures; the same when the two are swapped. NaN where either picture
        has no contrast at all (a constant, which has no structure to compare) or where every window holds a
        NaN.

    Raises
    ------
    ValueError
        If sizes or data ranges differ.
    """
    if a.values.shape[1:] != b.values.shape[1:] or a.data_range != b.data_range:
        msg = (
            f"pictures of {a.values.shape[1:]} with data range {a.data_range} cannot be compared with "
            f"{b.values.shape[1:]} and {b.data_range}; resample and scale them alike first."
        )
        raise ValueError(msg)
    first, second = np.asarray(first), np.asarray(second)
    similarity = np.empty(len(first))
    for start in range(0, len(first), _BATCH):
        part = slice(start, start + _BATCH)
        similarity[part] = _compare(a, b, first[part], second[part])
    return similarity


def ssim_matrix(a: np.ndarray, b: np.ndarray, data_range: float) -> np.ndarray:
    """Structural similarity of every picture of `a` (n, h, w) with every one of `b` (m, h, w): (n, m).

    NaN and errors as in `ssim_pairs` and `prepare`.
    """
    left, right = prepare(a, data_range), prepare(b, data_range)
    first, second = np.indices((len(left), len(right))).reshape(2, -1)
    return ssim_pairs(left, right, first, second).reshape(len(left), len(right))


def ssim(a: np.ndarray, b: np.ndarray, data_range: float) -> np.ndarray | float:
    """Structural similarity of pictures one to one: of (h, w) a float, of (n, h, w) an array (n,).

    NaN and errors as in `ssim_pairs` and `prepare`; shapes that differ are an error too.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        msg = f"pictures have shapes {a.shape} and {b.shape}; need equal shapes."
        raise ValueError(msg)
    if a.ndim == 2:
        return float(ssim(a[None], b[None], data_range)[0])
    left, right = prepare(a, data_range), prepare(b, data_range)
    every = np.arange(len(left))
    return ssim_pairs(left, right, every, every)


def one_window_ssim(a: np.ndarray, b: np.ndarray, data_range: float) -> np.ndarray:
    """Similarity with the whole picture as the only window: coarse, and one matrix product.

    Parameters
    ----------
    a, b : arrays, shapes (n, h, w) and (m, h, w)
        Pictures without NaN.
    data_range : float
        As in `prepare`.

    Returns
    -------
    similarity : array, shape (n, m), float64
    """
    a, b = (np.asarray(p, dtype=np.float64).reshape(len(p), -1) for p in (a, b))
    mean_a, mean_b = a.mean(1)[:, None], b.mean(1)[None, :]
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    covariance = a @ b.T / a.shape[1] - mean_a * mean_b
    variances = a.var(1)[:, None] + b.var(1)[None, :]
    lightness = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return lightness * (2 * covariance + c2) / (variances + c2)


def _compare(a: Pictures, b: Pictures, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mean of the similarity map of each pair; all arrays are (k, windows_y, windows_x)."""
    mean_a, mean_b = a.mean[first], b.mean[second]
    covariance = _windowed(a.values[first] * b.values[second]) - mean_a * mean_b
    c1, c2 = (_K1 * a.data_range) ** 2, (_K2 * a.data_range) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity /= (mean_a**2 + mean_b**2 + c1) * (a.variance[first] + b.variance[second] + c2)
    usable = a.usable[first] & b.usable[second]
    windows = usable.sum(axis=(1, 2))
    known = (windows > 0) & ~a.flat[first] & ~b.flat[second]
    return np.where(known, (similarity * usable).sum(axis=(1, 2)) / np.maximum(windows, 1), np.nan)


def _windowed(pictures: np.ndarray) -> np.ndarray:
    """Gaussian-weighted mean in every window inside the picture: (n, h, w) to (n, h - 10, w - 10)."""
    rows, columns = (_band(size) for size in pictures.shape[1:])
    return rows @ pictures @ columns.T


@cache
def _band(size: int) -> np.ndarray:
    """Matrix (size - 10, size) that takes the Gaussian mean of a line of `size` samples."""
    offset = np.arange(size)[None, :] - np.arange(size - _WINDOW + 1)[:, None] - _WINDOW // 2
    weight = np.where(np.abs(offset) <= _WINDOW // 2, np.exp(-0.5 * (offset / _SIGMA) ** 2), 0.0)
    return weight / weight.sum(axis=1, keepdims=True)


def _without_contrast(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Whether all samples of a picture that have a value have the same one: (n,) bool."""
    if not missing.any():
        return values.max(axis=(1, 2)) <= values.min(axis=(1, 2))
    low = np.where(missing, np.inf, values).min(axis=(1, 2))
    return np.where(missing, -np.inf, values).max(axis=(1, 2)) <= low
