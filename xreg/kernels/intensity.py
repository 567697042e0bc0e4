"""Counts to optical density, and what is wrong with single pixels; one frame at a time.

All functions take and return plain arrays of one frame, (y, x), y down. Optical density is the natural
logarithm of the open beam over the transmitted one; NaN marks pixels where the detector gave no valid value.
Negative optical densities are noise about zero and are kept.
"""

import numpy as np
from scipy import ndimage

_EIGHT = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]


def optical_density(rate: np.ndarray, log_reference: np.ndarray) -> np.ndarray:
    """-ln(rate / reference).

    Parameters
    ----------
    rate : array, shape (ny, nx)
        Dark-corrected counts of the sample, per second or per exposure as the reference is.
    log_reference : array, shape (ny, nx), float32
        Natural logarithm of the open beam's dark-corrected counts; NaN where it has none.

    Returns
    -------
    density : array, shape (ny, nx), float32
        NaN where the rate is not a positive number or the reference is unknown; never clipped.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        density = np.log(rate, dtype=np.float32)
    np.subtract(log_reference, density, out=density)
    density[~np.isfinite(density)] = np.nan
    return density


def repair(image: np.ndarray, bad: np.ndarray, fewest: int = 3) -> np.ndarray:
    """Fill bad pixels by the median of their valid neighbours.

    Parameters
    ----------
    image : array, shape (ny, nx), float
    bad : array, shape (ny, nx), bool
        Pixels to fill; they serve as nobody's neighbour. NaN pixels do not either.
    fewest : int
        A pixel with fewer than this many valid neighbours of its 8 becomes NaN.

    Returns
    -------
    repaired : array, shape (ny, nx)
        A new array; pixels that are not bad are untouched.
    """
    repaired = np.where(bad, np.nan, image).astype(image.dtype)
    rows, columns = np.nonzero(bad)
    if not len(rows):
        return repaired
    padded = np.pad(repaired, 1, constant_values=np.nan)
    around = np.stack([padded[rows + 1 + dy, columns + 1 + dx] for dy, dx in _EIGHT])
    enough = np.isfinite(around).sum(axis=0) >= fewest
    repaired[rows, columns] = np.where(enough, median_of_known(around), np.nan)
    return repaired


def median_of_known(pictures: np.ndarray) -> np.ndarray:
    """Median over the first axis of what is not NaN; NaN where nothing is."""
    ordered = np.sort(pictures, axis=0)  # NaN last
    count = len(pictures) - np.isnan(pictures).sum(axis=0)
    low, high = ((np.maximum(count - 1, 0) // 2)[None], (count // 2 % len(pictures))[None])
    return (np.take_along_axis(ordered, low, 0)[0] + np.take_along_axis(ordered, high, 0)[0]) / 2


def mean_of_known(pictures: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN, float32; NaN where nothing is."""
    if pictures.dtype.kind != "f":
        return pictures.mean(axis=0, dtype=np.float32)
    known = ~np.isnan(pictures)
    count = known.sum(axis=0)
    total = np.where(known, pictures, 0).sum(axis=0, dtype=np.float32)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def without_infinities(pictures: np.ndarray) -> np.ndarray:
    """Pictures in which NaN alone marks what is no number."""
    return np.where(np.isfinite(pictures), pictures, np.nan) if pictures.dtype.kind == "f" else pictures


def local_outliers(
    image: np.ndarray, level: np.ndarray | None = None, threshold: float = 8.0, least: float = 0.0
) -> np.ndarray:
    """Find single pixels that stand out from their surroundings.

    A pixel is compared with the median of the 5 x 5 pixels about it. The scatter of that difference is
    measured robustly in ten classes of brightness, as it grows with the counts and with the contrast of the
    illumination.

    Parameters
    ----------
    image : array, shape (ny, nx)
        An average over frames, so that nothing in it is both sharp and real.
    level : array, shape (ny, nx), optional
        Brightness by which pixels are classed; the local median by default.
    threshold : float
        In standard deviations.
    least : float
        Deviation that an outlier must have at the least, as a share of the local median.

    Returns
    -------
    outlier : array, shape (ny, nx), bool
        Non-finite pixels count as outliers.
    """
    finite = np.isfinite(image)
    filled = np.where(finite, image, np.median(image[finite]) if finite.any() else 0).astype(np.float32)
    middle = ndimage.median_filter(filled, 5)
    away = np.abs(filled - middle)
    level = middle if level is None else level
    edges = np.quantile(level, np.linspace(0, 1, 11)[1:-1])
    group = np.searchsorted(edges, level.ravel())
    scatter = np.array([np.median(away.ravel()[group == g]) if (group == g).any() else 0 for g in range(10)])
    # Half of the typical scatter is the floor: a class of saturated or empty pixels has none of its own.
    scatter = 1.4826 * np.maximum(scatter, 0.5 * np.median(scatter))
    limit = threshold * np.maximum(scatter, np.finfo(np.float32).eps * max(1.0, float(np.abs(middle).max())))
    return ~finite | (away > np.maximum(limit[group].reshape(image.shape), least * np.abs(middle)))


def average_dark(darks: np.ndarray) -> np.ndarray:
    """Mean of the darks, with its noise kept down.

    A pixel's own deviation from its neighbourhood is kept as far as it exceeds what the scatter between the
    darks explains (a Wiener estimate): a detector without a fixed pattern gets a smooth dark.

    Parameters
    ----------
    darks : array, shape (m, ny, nx)
        Counts without beam; NaN is left out.

    Returns
    -------
    dark : array, shape (ny, nx), float32
    """
    mean = mean_of_known(darks)
    known = np.isfinite(mean)
    mean[~known] = np.median(mean[known]) if known.any() else 0
    if len(darks) < 2:
        return mean
    noise = float(np.nanmedian(darks.var(axis=0, ddof=1, dtype=np.float32))) / len(darks)
    smooth = ndimage.uniform_filter(ndimage.median_filter(mean, 3), 15)
    own = mean - smooth
    spread = (1.4826 * float(np.median(np.abs(own)))) ** 2
    share = max(0.0, 1 - noise / spread) if spread > 0 else 0.0
    # What stands out by itself (a hot pixel) is no noise, whatever the others do.
    return np.where(np.abs(own) > 6 * np.sqrt(spread), mean, smooth + np.float32(share) * own)


def lit_field(flat: np.ndarray, fraction: float = 0.05) -> np.ndarray:
    """Usefully lit field of view: where an open-beam picture exceeds a fraction of its 99th percentile.

    The largest connected region is kept, its holes are filled, and where it ends inside the frame it is drawn
    in by six pixels, as the edge of a shadow lies elsewhere in another frame. A uniformly lit frame is lit
    everywhere.

    Parameters
    ----------
    flat : array, shape (ny, nx)
        Average of dark-corrected open-beam counts.
    fraction : float

    Returns
    -------
    lit : array, shape (ny, nx), bool
    """
    smooth = ndimage.uniform_filter(np.nan_to_num(flat).astype(np.float32), 9, mode="nearest")
    bright = smooth > fraction * np.percentile(smooth, 99)
    labels, count = ndimage.label(bright)
    if count == 0:
        return bright
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    closed = ndimage.binary_fill_holes(largest)
    return closed if closed.all() else ndimage.binary_erosion(closed, iterations=6, border_value=1)
