"""What the networks are trained on: pairs of frames and clean particle pictures, regions and their contours.

Nothing is annotated by hand. Domain A is frames, simulated over a wide range of everything that differs between
beamlines (`scenes.py`), or a user's own. Domain B is drawn from a shape prior, the outlines of other phantoms.
"""

import numpy as np
from scipy import ndimage
from skimage.morphology import reconstruction

from xreg.kernels.resample import sample_window
from xreg.kernels.rois import region_pictures, region_windows, split_regions
from xreg.schema import CONTOUR_SIZE
from xreg.training.scenes import simulate_frame

#: Value of a clean picture at the rim of a particle; it rises to 1 at the middle.
RIM = 0.3


def clean_picture(shape: tuple[int, int], coverage: list) -> np.ndarray:
    """Clean particle picture: 0 outside, a cone from `RIM` at the rim to 1 at the middle of every particle, (H, W).

    One of several lobes has one maximum: what rises again behind a saddle is cut off at the saddle's height.
    """
    picture = np.zeros(shape, np.float32)
    for window, share in coverage:
        inside = share > 0.5
        if inside.any():
            # The frame's border is no rim: a particle that it cuts goes on behind it.
            depth = ndimage.distance_transform_edt(np.pad(inside, 1, mode="edge"))[1:-1, 1:-1]
            middle = np.where(depth == depth.max(), depth, 0)
            depth = reconstruction(middle, depth)
            cone = np.where(inside, RIM + (1 - RIM) * depth / depth.max(), 0)
            picture[window] = np.maximum(picture[window], cone)
    return picture


def detection_pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One random frame and its clean picture, both (H, W) float16, at full resolution.

    The frame is NaN where it is not lit.
    """
    rng = np.random.default_rng(seed)
    density, coverage = simulate_frame(rng)
    return density.astype(np.float16), clean_picture(density.shape, coverage).astype(np.float16)


def refinement_samples(seed: int, detector) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Regions that a detector finds in one random frame, and the true soft contours in the same windows.

    Parameters
    ----------
    seed : int
        Of the frame.
    detector : callable
        Optical density (H, W) to particle map (H, W).

    Returns
    -------
    pictures : ndarray, shape (n, 3, N, N), float16
    contours : ndarray, shape (n, N, N), float16
        Visible part of the particle that shares most with the region.
    spacing : ndarray, shape (n,), float32
        Distance of the samples, px.
    """
    rng = np.random.default_rng(seed)
    density, coverage = simulate_frame(rng)
    found = detector(density)
    labels = split_regions(found)
    windows = region_windows(labels, CONTOUR_SIZE)
    windows = _jitter_windows(windows, rng)
    pictures, _ = region_pictures(density, found, labels, windows, CONTOUR_SIZE)
    places = ndimage.find_objects(labels)
    owners = [_owner(labels[place] == k, place, coverage) for k, place in enumerate(places, start=1)]
    kept = [k for k, owner in enumerate(owners) if owner is not None]
    contours = np.zeros((len(kept), CONTOUR_SIZE, CONTOUR_SIZE), np.float16)
    whole = np.zeros(density.shape, np.float32)
    for row, k in enumerate(kept):
        window, share = coverage[owners[k]]
        whole[:] = 0
        whole[window] = share
        contours[row] = sample_window(whole, windows[k], CONTOUR_SIZE)
    return pictures[kept].astype(np.float16), contours, windows[kept, 2].astype(np.float32)


def _jitter_windows(windows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Windows moved and resized a little, as relative shifts and sizes of the paper's augmentation (S2)."""
    side = windows[:, 2:] * CONTOUR_SIZE
    moved = windows.copy()
    moved[:, :2] += side * rng.uniform(-0.08, 0.08, (len(windows), 2))
    moved[:, 2:] *= rng.uniform(0.9, 1.2, (len(windows), 1))
    return moved


def _owner(region: np.ndarray, place: tuple[slice, slice], coverage: list) -> int | None:
    """Index of the particle that shares most with a region; None if they have less than 30 % of their union in common.

    `region` is bool, cut out of the frame at `place`.
    """
    best, owner = 0.3, None
    size = float(region.sum())
    for k, (window, share) in enumerate(coverage):
        low = [max(a.start, b.start) for a, b in zip(window, place, strict=True)]
        high = [min(a.stop, b.stop) for a, b in zip(window, place, strict=True)]
        if any(a >= b for a, b in zip(low, high, strict=True)):
            continue
        ours, theirs = (
            tuple(slice(a - c.start, b - c.start) for a, b, c in zip(low, high, corner, strict=True))
            for corner in (place, window))
        inside = share > 0.5
        common = float((region[ours] & inside[theirs]).sum())
        union = size + float(inside.sum()) - common
        if union and common / union > best:
            best, owner = common / union, k
    return owner
