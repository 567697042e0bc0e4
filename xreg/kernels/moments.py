"""Moments of soft contours: area and centre of mass (Su et al. 2024, equations 2 to 5)."""

import numpy as np
from scipy import ndimage


def centre_of_mass(contours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Zeroth moment and centre of mass of pictures.

    M00 = sum I, M10 = sum x I, M01 = sum y I; the centre is (M01, M10) / M00. (The paper's text divides M10 by M00 once
    more than its equations; the equations hold.)

    Parameters
    ----------
    contours : ndarray, shape (..., H, W)
        Weights, 0 or more.

    Returns
    -------
    mass : ndarray, shape (...), float64
        M00.
    centre : ndarray, shape (..., 2), float64
        y and x, px from the first pixel; NaN where the mass is zero.
    """
    weights = np.asarray(contours, dtype=float)
    mass = weights.sum((-2, -1))
    m01 = (weights.sum(-1) * np.arange(weights.shape[-2])).sum(-1)
    m10 = (weights.sum(-2) * np.arange(weights.shape[-1])).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return mass, np.stack([m01, m10], axis=-1) / mass[..., None]


def single_contour(contour: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """The one connected piece (above one half) of a soft contour that shares most with `seed`; the rest is emptied.

    Parameters
    ----------
    contour, seed : ndarray, shape (H, W)
        Soft contour (0 to 1), and the picture that says which piece is meant.
    """
    pieces, n = ndimage.label(contour > 0.5)
    if n == 0:
        return np.zeros_like(contour)
    shared = ndimage.sum_labels(seed, pieces, np.arange(1, n + 1))
    own = pieces == 1 + int(np.argmax(shared))
    near = ndimage.binary_dilation(own, iterations=3)
    if n > 1:
        near &= (pieces == 0) | own
    return np.where(near, contour, 0)
