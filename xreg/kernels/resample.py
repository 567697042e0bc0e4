"""Square windows of a picture sampled on another grid."""

import numpy as np


def tent_weights(size: int, positions: np.ndarray, spacing: float) -> np.ndarray:
    """Weights that sample one axis of a picture at real positions.

    Linear interpolation where samples are closer than pixels, and a tent as wide as the spacing where they are farther
    apart, so that nothing between samples is lost.

    Parameters
    ----------
    size : int
        Number of pixels along the axis.
    positions : ndarray, shape (n,)
        Where to sample, px.
    spacing : float
        Distance of the samples, px.

    Returns
    -------
    ndarray, shape (n, size), float32
        Rows sum to 1, or to the share of the tent that lies on the picture.
    """
    width = max(spacing, 1.0)
    reach = int(np.ceil(width))
    every = np.arange(-reach, reach + 1) + np.round(positions)[:, None]
    total = np.maximum(1 - np.abs(every - positions[:, None]) / width, 0).sum(1, keepdims=True)
    weights = np.maximum(1 - np.abs(np.arange(size) - positions[:, None]) / width, 0)
    return (weights / total).astype(np.float32)


def window_positions(centre: float, spacing: float, n: int) -> np.ndarray:
    """Positions (px) of n samples with the given spacing about a centre."""
    return centre + (np.arange(n) - (n - 1) / 2) * spacing


def sample_window(picture: np.ndarray, window: np.ndarray, n: int) -> np.ndarray:
    """Sample a square window of a picture on n x n points.

    Parameters
    ----------
    picture : ndarray, shape (..., H, W), float32
        Finite values; outside it counts as 0.
    window : ndarray, shape (3,)
        Centre y, centre x and spacing of the samples, px.
    n : int
        Samples per side.

    Returns
    -------
    ndarray, shape (..., n, n), float32
    """
    height, width = picture.shape[-2:]
    y, x = (window_positions(c, window[2], n) for c in window[:2])
    reach = max(window[2], 1.0)
    rows = slice(max(int(np.floor(y[0] - reach)), 0), max(min(int(np.ceil(y[-1] + reach)) + 1, height), 0))
    columns = slice(max(int(np.floor(x[0] - reach)), 0), max(min(int(np.ceil(x[-1] + reach)) + 1, width), 0))
    patch = picture[..., rows, columns]
    if 0 in patch.shape[-2:]:
        return np.zeros((*picture.shape[:-2], n, n), np.float32)
    wy = tent_weights(patch.shape[-2], y - rows.start, window[2])
    wx = tent_weights(patch.shape[-1], x - columns.start, window[2])
    return wy @ patch.astype(np.float32, copy=False) @ wx.T
