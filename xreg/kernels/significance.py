"""Whether the data show what a network drew: contrast over noise, and over the background's own texture."""

import numpy as np
from scipy import ndimage
from skimage.measure import block_reduce

from xreg.kernels.rois import BIN, covered_bins

#: Side (samples) of the blocks that unevenness around a contour is measured by.
_BLOCK = 4
#: Bins about contours that are no open background, and places below which its unevenness is not known.
_ASIDE, _FEWEST_PLACES = 2, 50


def contour_contrast(
    density: np.ndarray, contour: np.ndarray, valid: np.ndarray, noise: float
) -> tuple[float, float]:
    """How much a contour's inside differs from its surroundings, and that over its standard error.

    The error counts photon noise, and what else varies between neighbouring blocks of 4 x 4 samples outside the
    contour: noise that is stronger here than elsewhere or alike in neighbouring pixels, and fine background texture.
    The detector picks the places where noise looks most like a particle, so that what it invents reaches several
    standard errors.

    Parameters
    ----------
    density : ndarray, shape (n, n)
        Picture of the region, n a multiple of 4.
    contour : ndarray, shape (n, n)
        Soft contour, 0 to 1.
    valid : ndarray, shape (n, n)
        Share of valid pixels in each sample.
    noise : float
        Standard deviation of one sample of `density`, were samples independent: that of a pixel over their spacing.

    Returns
    -------
    contrast, significance : float
        Both 0 where the contour or its surroundings are empty.
    """
    usable = valid > 0.5
    inside = (contour > 0.5) & usable
    far = ndimage.distance_transform_edt(contour <= 0.5)
    ring = (far > 2) & (far < 0.12 * len(contour)) & usable
    means, outside, lit = (block_reduce(a, (_BLOCK, _BLOCK), np.mean) for a in (density, contour, valid))
    free = (outside < 0.02) & (lit > 0.9)
    steps = np.concatenate([(means[1:] - means[:-1])[free[1:] & free[:-1]],
                            (means[:, 1:] - means[:, :-1])[free[:, 1:] & free[:, :-1]]])
    if inside.sum() < 16 or ring.sum() < 16 or len(steps) < 6:
        return 0.0, 0.0
    contrast = float(density[inside].mean() - np.median(density[ring]))
    uneven = 1.4826 * np.median(np.abs(steps)) / np.sqrt(2) * _BLOCK
    error = np.hypot(noise, uneven) * np.sqrt(1 / inside.sum() + 1 / ring.sum())
    return contrast, float(contrast / max(error, 1e-6))


def background_unevenness(
    optical_density: np.ndarray, windows: np.ndarray, contours: np.ndarray, areas: np.ndarray
) -> np.ndarray:
    """How much the open background of a frame varies from place to place, over places of the size of each contour.

    A network draws particles where the background's own texture is as bright as particles are; among as many places in
    the frame, one of a few standard deviations is nothing.

    Parameters
    ----------
    optical_density : ndarray, shape (H, W), float32
        NaN where invalid.
    windows : ndarray, shape (regions, 3)
        From `region_windows`.
    contours : ndarray, shape (regions, n, n), float32
        Soft contour of each region, 0 to 1.
    areas : ndarray, shape (regions,)
        Of the contours, square px.

    Returns
    -------
    ndarray, shape (regions,)
        Robust standard deviation of the mean over a place less the mean around it; 0 where hardly any background is
        open.
    """
    valid = np.isfinite(optical_density)
    share = block_reduce(valid.astype(np.float32), (BIN, BIN), np.mean)
    total = block_reduce(np.where(valid, optical_density, 0).astype(np.float32), (BIN, BIN), np.mean)
    aside = ~ndimage.binary_dilation(covered_bins(share.shape, windows, contours), iterations=_ASIDE)
    # Sizes by octaves, which are few.
    octaves = np.round(np.log2(np.sqrt(np.maximum(areas, 1) / np.pi) / BIN))
    of = {octave: _unevenness(total * aside, share * aside, 2.0**octave) for octave in np.unique(octaves)}
    return np.array([of[octave] for octave in octaves])


def _unevenness(total: np.ndarray, share: np.ndarray, radius: float) -> float:
    """As `background_unevenness` for one radius; all in bins, of which `share` says how much is open."""
    coarse = max(int(radius / 4), 1)
    total, share = (block_reduce(a, (coarse, coarse), np.mean) for a in (total, share))
    near, wide = (np.stack([ndimage.gaussian_filter(a, sigma) for a in (total, share)])
                  for sigma in (radius / 2 / coarse, radius / coarse))
    known = (share > 0.5) & (near[1] > 0.5)
    if known.sum() < _FEWEST_PLACES:
        return 0.0
    differs = (near[0] / np.maximum(near[1], 1e-3) - wide[0] / np.maximum(wide[1], 1e-3))[known]
    return float(1.4826 * np.median(np.abs(differs - np.median(differs))))
