"""From a particle map to regions of interest, and from a region to the picture that is refined."""

import numpy as np
from scipy import ndimage
from skimage.measure import block_reduce
from skimage.morphology import h_maxima
from skimage.segmentation import watershed

from xreg.kernels.resample import sample_window, tent_weights

#: The map is split at a third of the resolution, since it was drawn there.
BIN = 3
#: A window is this much wider than its region, so that contour and surroundings are in it.
WINDOW_MARGIN = 1.5
#: Part of what a contour leaves over of its region that must be in one piece for it to be another particle.
_ONE_PIECE = 0.75
#: Contours are smoothed by this much (samples) before their width is measured.
_SMOOTH = 1.0


def split_regions(
    particle_map: np.ndarray, *, threshold: float = 0.15, depth: float = 0.09, peak: float = 0.4,
    min_radius: float = 7.0,
) -> np.ndarray:
    """Split a particle map into one region per particle, touching ones too.

    The map rises to 1 at the middle of each particle; a watershed runs down from every maximum that stands `depth`
    above the saddle to a higher one. Regions that never reach `peak`, or are smaller than a disc of `min_radius` px,
    are dropped.

    Returns
    -------
    ndarray, shape (H, W), int32
        0 outside, 1...n inside the regions, numbered by rows.
    """
    small, smooth = _reduced(particle_map)
    mask = small > threshold
    if not mask.any():
        return np.zeros(particle_map.shape, np.int32)
    markers, _ = ndimage.label(h_maxima(smooth, depth), np.ones((3, 3)))
    labels = watershed(-smooth, markers, mask=mask)
    index = np.arange(1, labels.max() + 1)
    area = ndimage.sum_labels(mask, labels, index)
    top = ndimage.maximum(small, labels, index) if len(index) else np.zeros(0)
    keep = (area * BIN**2 >= np.pi * min_radius**2) & (top >= peak)
    number = np.concatenate([[0], np.where(keep, np.cumsum(keep), 0)]).astype(np.int32)
    return _enlarged(number[labels], particle_map.shape)


def _reduced(particle_map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The map as it was drawn, and smoothed."""
    small = block_reduce(particle_map, (BIN, BIN), np.mean)
    return small, ndimage.gaussian_filter(small, 1.0)


def _enlarged(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Labels at the resolution of a frame (H, W)."""
    return np.repeat(np.repeat(labels, BIN, axis=0), BIN, axis=1)[: shape[0], : shape[1]]


def split_left_over(
    labels: np.ndarray, windows: np.ndarray, contours: np.ndarray, *, share: float = 0.2, min_radius: float = 7.0
) -> np.ndarray:
    """Split regions of which their own contours leave a part over that no other contour has either.

    A particle map may not tell two particles from each other where they touch; the contour of their region is then that
    of one of them, and the other is left over in one piece. Of a single, elongated one both ends are left over.

    Parameters
    ----------
    labels : ndarray, shape (H, W), int32
        From `split_regions`.
    windows : ndarray, shape (regions, 3)
        From `region_windows`.
    contours : ndarray, shape (regions, n, n), float32
        Soft contour of each region, 0 to 1; empty ones leave nothing over.
    share, min_radius : float
        What is less than this share of its region, or than a disc of so many px radius, is not split off.

    Returns
    -------
    ndarray, shape (H, W), int32
        Labels as before, and higher ones for what has been split off.
    """
    small = labels[::BIN, ::BIN].copy()
    covered, number = covered_bins(small.shape, windows, contours), small.max()
    for k in 1 + np.flatnonzero(contours.any(axis=(1, 2))):
        own = small == k
        pieces, _ = ndimage.label(ndimage.binary_opening(own & ~covered))
        area = np.bincount(pieces.ravel(), minlength=2)[1:]
        least = max(share * own.sum(), np.pi * (min_radius / BIN) ** 2, _ONE_PIECE * area.sum())
        if area.max() >= least:
            number += 1
            small[pieces == 1 + area.argmax()] = number
    return _enlarged(small, labels.shape)


def split_waists(
    particle_map: np.ndarray, labels: np.ndarray, windows: np.ndarray, contours: np.ndarray, *, waist: float = 0.9,
    depth: float = 0.01, share: float = 0.15,
) -> np.ndarray:
    """Split regions whose contours have a waist where the map has a dip: two particles that were outlined as one.

    Neither alone is enough: many single particles have a waist, and the maps of long ones have dips.

    Parameters
    ----------
    particle_map : ndarray, shape (H, W), float32
        0 to 1.
    labels, windows, contours
        As for `split_left_over`.
    waist : float
        Width of a waist over the smaller of the widths on either side, at most.
    depth : float
        What the map falls by, from the lower of two maxima to the waist, at least.
    share : float
        What is less than this share of its contour is not split off.

    Returns
    -------
    ndarray, shape (H, W), int32
        Labels as before, and higher ones for what has been split off.
    """
    small, height = labels[::BIN, ::BIN].copy(), _reduced(particle_map)[1]
    number = small.max()
    for k, (window, contour) in enumerate(zip(windows, contours, strict=True), start=1):
        inside = ndimage.gaussian_filter(contour, _SMOOTH) > 0.5
        width = ndimage.distance_transform_edt(np.pad(inside, 1, mode="edge"))[1:-1, 1:-1]
        # Smoothed, since of two maxima of one height both would count; of the logarithm, to compare shares of a height.
        width = np.log(np.maximum(ndimage.gaussian_filter(width, _SMOOTH), 1.0))
        markers, n = ndimage.label(h_maxima(width, -np.log(waist)) * inside, np.ones((3, 3)))
        if n < 2:
            continue
        area = np.bincount(watershed(-width, markers, mask=inside)[inside], minlength=n + 1)
        markers[np.isin(markers, np.flatnonzero(area < share * inside.sum()))] = 0
        places, where = _places(window, len(contour), small.shape)
        nearest = np.ix_(*(np.rint(p).astype(int) for p in places))
        pieces = np.where(small[where] == k, watershed(-width, markers)[nearest], 0)
        for piece in np.unique(markers)[2:]:
            own = pieces == piece
            rest = (pieces > 0) & ~own
            border = ndimage.binary_dilation(own) & rest
            if not border.any():
                continue
            heights = [height[where][part].max() for part in (own, rest, border)]
            if min(heights[:2]) - heights[2] >= depth:
                number += 1
                small[where] = np.where(own, number, small[where])
                pieces[own] = 0
    return _enlarged(small, labels.shape)


def covered_bins(shape: tuple[int, int], windows: np.ndarray, contours: np.ndarray) -> np.ndarray:
    """Bins of a frame, (rows, columns), that lie inside of any contour."""
    n, covered = contours.shape[-1], np.zeros(shape, bool)
    for window, contour in zip(windows, contours, strict=True):
        places, inside = _places(window, n, shape)
        rows, columns = (tent_weights(n, p, BIN / window[2]) for p in places)
        covered[inside] |= rows @ contour @ columns.T > 0.5
    return covered


def _places(window: np.ndarray, n: int, shape: tuple[int, int]) -> tuple[list[np.ndarray], tuple]:
    """Samples of a window (row and column, as fractions) at which bins of a frame lie, and the index of these bins."""
    places = [(np.arange(size) * BIN + (BIN - 1) / 2 - centre) / window[2] + (n - 1) / 2
              for size, centre in zip(shape, window, strict=False)]
    inside = [np.flatnonzero((p >= 0) & (p <= n - 1)) for p in places]
    return [p[i] for p, i in zip(places, inside, strict=True)], np.ix_(*inside)


def region_windows(labels: np.ndarray, n: int) -> np.ndarray:
    """Square window about each region: centre y, centre x, spacing of its n samples; shape (regions, 3), px."""
    windows = []
    for rows, columns in ndimage.find_objects(labels):
        side = max(rows.stop - rows.start, columns.stop - columns.start) * WINDOW_MARGIN + 6
        windows.append(((rows.start + rows.stop - 1) / 2, (columns.start + columns.stop - 1) / 2, side / n))
    return np.array(windows, dtype=float).reshape(-1, 3)


def region_levels(optical_density: np.ndarray, particle_map: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Optical density outside and inside each region, shape (regions, 2).

    Outside is the median of the ring of open background nearest to the region, inside the mean of the region's core.
    """
    levels = []
    for k, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        pad = max(rows.stop - rows.start, columns.stop - columns.start) // 4 + 4
        around = tuple(slice(max(side.start - pad, 0), side.stop + pad) for side in (rows, columns))
        density, own = optical_density[around], labels[around]
        open_field = density[(own == 0) & np.isfinite(density)]
        core = density[(own == k) & (particle_map[around] > 0.4) & np.isfinite(density)]
        outside = float(np.median(open_field)) if open_field.size else 0.0
        inside = float(core.mean()) if core.size else outside
        levels.append((outside, inside))
    return np.array(levels, dtype=float).reshape(-1, 2)


def region_pictures(
    optical_density: np.ndarray, particle_map: np.ndarray, labels: np.ndarray, windows: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of all regions of a frame as the Dual U-Net wants them.

    Parameters
    ----------
    optical_density : ndarray, shape (H, W), float32
        NaN where invalid.
    particle_map : ndarray, shape (H, W), float32
        0 to 1.
    labels : ndarray, shape (H, W), int32
        From `split_regions`.
    windows : ndarray, shape (regions, 3)
        From `region_windows`.
    n : int
        Samples per side.

    Returns
    -------
    pictures : ndarray, shape (regions, 3, n, n), float32
        Optical density from 0 (outside) to 1 (inside); particle map of this region alone; share of valid pixels.
    levels : ndarray, shape (regions, 2)
        Optical density outside and inside, by which the first channel was scaled.
    """
    levels = region_levels(optical_density, particle_map, labels)
    valid = np.isfinite(optical_density)
    filled = np.where(valid, optical_density, 0).astype(np.float32)
    pictures = np.zeros((len(windows), 3, n, n), np.float32)
    for k, (window, (outside, inside)) in enumerate(zip(windows, levels, strict=True)):
        density, share = sample_window(np.stack([filled, valid.astype(np.float32)]), window, n)
        contrast = max(inside - outside, 0.02)
        own = np.where(labels == k + 1, particle_map, 0)
        pictures[k, 0] = np.clip((density - outside * share) / contrast, -4, 4)
        pictures[k, 1] = sample_window(own, window, n)
        pictures[k, 2] = share
    return pictures, levels


def other_regions(particle_map: np.ndarray, labels: np.ndarray, windows: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Particle map of all other regions in each region's window, (regions, n, n).

    Arguments as for `region_pictures`, and `own`, the map of each region alone that it gives.
    """
    every = np.where(labels > 0, particle_map, 0).astype(np.float32)
    return np.array([sample_window(every, window, own.shape[-1]) for window in windows]) - own
