"""A particle's window cut out of a frame at a real position."""

import numpy as np
from scipy import ndimage

#: Pixels beyond a window that a cubic spline needs to be as exact as on the whole frame (0.27 ** 8 < 1e-4).
_MARGIN = 8


def cut_window(density: np.ndarray, centre: np.ndarray, step: float, half: int) -> np.ndarray:
    """Window of a frame about a real position, by one cubic spline interpolation.

    Parameters
    ----------
    density : ndarray, shape (y, x), float32
        NaN where invalid.
    centre : ndarray, shape (2,)
        Middle of the window (y, x), px.
    step : float
        Distance of the window's samples, px.
    half : int
        Samples on either side of the middle.

    Returns
    -------
    ndarray, shape (2 half + 1, 2 half + 1), float32
        NaN off the frame and next to invalid pixels.
    """
    side = 2 * half + 1
    first = centre - half * step
    low = np.maximum(np.floor(first).astype(int) - _MARGIN, 0)
    high = np.minimum(np.ceil(centre + half * step).astype(int) + _MARGIN + 1, density.shape)
    if (high - low < 2).any():
        return np.full((side, side), np.nan, np.float32)
    patch = density[low[0]:high[0], low[1]:high[1]]
    invalid = ~np.isfinite(patch)
    where = {"matrix": np.array([step, step]), "offset": first - low, "output_shape": (side, side)}
    filled = np.where(invalid, np.nanmedian(patch) if not invalid.all() else 0.0, patch)
    window = ndimage.affine_transform(filled, **where, order=3, mode="mirror").astype(np.float32)
    # Samples off the frame, and those that an invalid pixel had a part in.
    unseen = ndimage.affine_transform(invalid.astype(np.float32), **where, order=1, mode="constant", cval=1.0)
    for axis in (0, 1):
        along = first[axis] + np.arange(side) * step
        off = (along < 0) | (along > density.shape[axis] - 1)
        unseen[(off, slice(None)) if axis == 0 else (slice(None), off)] = 1.0
    window[unseen > 1e-3] = np.nan
    return window
