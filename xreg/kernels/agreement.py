"""How well the pictures of one registered stack agree with each other, whatever contrast the energy gives them.

Over an edge a particle's contrast changes several-fold, which is no misalignment. So a picture is never compared as it
is: the other one is first scaled to it, by the factor and offset that fit best in the compared pixels. What is left is
motion, noise, and real change inside the particle (chemistry); the latter two are there in a perfectly aligned stack
too.
"""

import numpy as np
from scipy import ndimage
from skimage.registration import optical_flow_ilk

from xreg.kernels import ssim

#: Pixels around an outline that are compared too: misalignment shows most at the rim.
RIM_PX = 3
#: An SSIM window reaches so far (px) beyond its middle.
_REACH = 5
#: Half side (px) of the windows of the optical flow, and its iterations; what is left of the motion is small.
_FLOW_RADIUS, _FLOW_WARPS = 7, 3
#: Fewer pixels than this are not compared.
_LEAST_PIXELS = 50


def compared_pixels(contour: np.ndarray) -> np.ndarray:
    """Pixels of a window that are compared: the outline and a rim, (h, w) bool."""
    return ndimage.binary_dilation(contour, np.ones((3, 3)), iterations=RIM_PX)


def scale_to(picture: np.ndarray, other: np.ndarray, used: np.ndarray) -> np.ndarray:
    """The other picture times a factor plus an offset, as close to `picture` as they make it in the used pixels.

    Parameters
    ----------
    picture, other : ndarray, shape (h, w)
        NaN where unknown; such pixels are not used.
    used : ndarray, shape (h, w), bool

    Returns
    -------
    ndarray, shape (h, w), float64
        All NaN where fewer than 50 pixels can be used or `other` is constant there.
    """
    used = used & np.isfinite(picture) & np.isfinite(other)
    if used.sum() < _LEAST_PIXELS or np.ptp(other[used]) == 0:
        return np.full(picture.shape, np.nan)
    x, y = other[used].astype(np.float64), picture[used].astype(np.float64)
    gain = np.mean((x - x.mean()) * (y - y.mean())) / x.var()
    return y.mean() + gain * (other - x.mean())


def agreement(frames: np.ndarray, reference: np.ndarray, contour: np.ndarray, *, flow: bool = True) -> np.ndarray:
    """Compare every picture of a stack with one reference that is scaled to it.

    Parameters
    ----------
    frames : ndarray, shape (n, h, w)
        Optical density; NaN where unknown.
    reference : ndarray, shape (h, w)
        Mean of the stack.
    contour : ndarray, shape (h, w), bool
        Outline of the particle; it and a rim of 3 px are compared.
    flow : bool
        Whether to measure the optical flow too, which takes most of the time.

    Returns
    -------
    ndarray, shape (n, 4), float64
        SSIM (data range: the reference's span from the 0.5th to the 99.5th percentile, the same for all frames),
        Pearson correlation, and the median (y, x) of the optical flow inside the outline, px: how far the picture lies
        from the reference. NaN for pictures that cannot be compared.
    """
    rows = np.full((len(frames), 4), np.nan)
    shown = ndimage.binary_dilation(compared_pixels(contour), np.ones((3, 3)), iterations=_REACH)
    shown &= np.isfinite(reference)
    used = compared_pixels(contour) & shown
    if used.sum() < _LEAST_PIXELS or min(_box(shown, frames.shape[1:])[1]) < 2 * _REACH + 1:
        return rows
    box = tuple(slice(low, low + size) for low, size in zip(*_box(shown, frames.shape[1:]), strict=True))
    span = float(np.ptp(np.percentile(reference[used], [0.5, 99.5])))
    known = [k for k, f in enumerate(frames) if np.isfinite(f[used]).sum() >= _LEAST_PIXELS]
    if not known or span == 0:
        return rows
    ours = frames[known].astype(np.float64)
    scaled = np.stack([scale_to(f, reference, used) for f in ours])
    masked = [np.where(shown, p, np.nan)[:, *box] for p in (ours, scaled)]
    rows[known, 0] = ssim.ssim(*masked, span)
    for k, a, b in zip(known, ours, scaled, strict=True):
        both = used & np.isfinite(a) & np.isfinite(b)
        if np.ptp(a[both]) > 0:
            rows[k, 1] = np.corrcoef(a[both], reference[both])[0, 1]
        if flow:
            rows[k, 2:] = _flow(a[box], b[box], (contour & both)[box], shown[box], span)
    return rows


def _flow(
    picture: np.ndarray, reference: np.ndarray, inside: np.ndarray, shown: np.ndarray, span: float
) -> np.ndarray:
    """Median optical flow (y, x) inside an outline; beyond the shown pixels both pictures are made the same."""
    if not inside.any():
        return np.full(2, np.nan)
    missing = ~shown | ~np.isfinite(picture)
    still = np.nan_to_num(reference, nan=float(np.nanmean(reference))) / span
    moving = np.where(missing, still, picture / span)
    vectors = optical_flow_ilk(still, moving, radius=_FLOW_RADIUS, num_warp=_FLOW_WARPS, dtype=np.float64)
    return np.median(vectors[:, inside], axis=1)


def _box(shown: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """First pixel and size of the smallest box that holds what is shown; sizes 0 where nothing is."""
    if not shown.any():
        return np.zeros(2, int), np.zeros(2, int)
    places = np.argwhere(shown)
    low = places.min(axis=0)
    return low, np.minimum(places.max(axis=0) + 1, shape) - low


def difference_map(first: np.ndarray, last: np.ndarray, contour: np.ndarray) -> np.ndarray:
    """Differential map of two pictures, the one of more contrast scaled to the other.

    Scaled this way round no noise is magnified.

    Parameters
    ----------
    first, last : ndarray, shape (h, w)
    contour : ndarray, shape (h, w), bool

    Returns
    -------
    ndarray, shape (h, w), float64
        First less last, in the optical density of the weaker one; NaN where either is unknown.
    """
    used = compared_pixels(contour) & np.isfinite(first) & np.isfinite(last)
    if used.sum() < _LEAST_PIXELS:
        return np.full(first.shape, np.nan)
    if first[used].var() <= last[used].var():
        return first - scale_to(first, last, used)
    return scale_to(last, first, used) - last


def difference_energy(first: np.ndarray, last: np.ndarray, contour: np.ndarray) -> float:
    """Energy of the differential map over that of the weaker picture about its mean, both in the compared pixels.

    0 for pictures that are equal but for factor and offset, 1 for those that have nothing in common; NaN where they
    cannot be compared.
    """
    difference = difference_map(first, last, contour)
    used = compared_pixels(contour) & np.isfinite(difference)
    if not used.any():
        return np.nan
    weakest = min(np.asarray(first)[used].var(), np.asarray(last)[used].var())
    return float(np.mean(difference[used].astype(np.float64) ** 2) / weakest) if weakest > 0 else np.nan
