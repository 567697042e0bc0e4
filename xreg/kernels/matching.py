"""Which region of one frame is which region of another.

Two steps. The stage may jump by more than the spacing of the particles, so the displacement that most pairs
of similar regions agree on is found first, by voting. Once it is taken off, a region must be found within a
distance set by its own size; appearance (structural similarity), size and distance together make a cost, and
the cheapest assignment of all regions at once decides, each link against the choice of no link.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import convolve1d, maximum_filter
from scipy.optimize import linear_sum_assignment

from xreg.kernels.ssim import one_window_ssim, prepare, ssim_pairs

#: Thumbnails are 8-bit pictures, each scaled to the whole range.
THUMBNAIL_RANGE = 255.0
#: Relative tolerance (natural logarithm of the ratio of areas) of the vote.
_VOTE_SIZE_TOLERANCE = 0.25
#: Weight of a difference in size where the border cuts one of the regions.
_CUT = 0.25
#: Similarity, over the whole smoothed picture, below which a pair has no vote.
_UNLIKE = 0.6
#: Weight above which a single pair is enough for a jump.
_SURE = 0.9
#: How much less a jump across the whole field is believed than no jump at all; decides between equal votes.
_FAR_PENALTY = 0.1
#: Width (standard deviation, in samples) by which thumbnails are smoothed before they are compared.
_SMOOTHING = 2.0
#: Peaks of the ballot that are looked at closely.
_PEAKS = 6
#: Width, relative to that of the vote, within which displacements of particles that hardly move agree.
_SHARP = 0.2
_TENT = np.array([1.0, 2.0, 3.0, 2.0, 1.0]) / 3.0
#: Cells of the ballot along one axis at most: bounds its memory for tiny particles in a large field.
_MOST_CELLS = 1024


@dataclass(frozen=True)
class MatchSettings:
    """What may be the same region in two frames.

    `reach` is the farthest motion from frame to frame on top of the rigid jump, in particle diameters: half a
    diameter of motion and half as much again for the error of the jump. It grows with the square root of the
    number of frames between. `size_ratio` is the largest ratio of areas, for regions that the border does not
    cut. A link may cost `no_link` between neighbouring frames and `no_link_far` at long gaps, where chance
    offers more wrong candidates. See `match_regions` for the cost.
    """

    reach: float = 0.75
    size_ratio: float = 3.0
    no_link: float = 1.3
    no_link_far: float = 0.8


@dataclass(frozen=True)
class Regions:
    """Regions of one frame.

    `position` (n, 2) in reference px, `area` (n,) in px2, `cut` (n,) bool: by the border, `thumbnail`
    (n, h, w) uint8.
    """

    position: np.ndarray
    area: np.ndarray
    cut: np.ndarray
    thumbnail: np.ndarray

    def __len__(self) -> int:
        return len(self.position)

    def take(self, index: np.ndarray) -> "Regions":
        """Only the regions numbered `index`."""
        return Regions(self.position[index], self.area[index], self.cut[index], self.thumbnail[index])

    @property
    def radius(self) -> np.ndarray:
        """Radius of the disc of equal area (n,), px."""
        return np.sqrt(self.area / np.pi)


def rigid_jump(first: Regions, second: Regions) -> np.ndarray:
    """Find the displacement (2,), in px, that most regions of `first` share on their way to `second`.

    Every pair of regions votes for its displacement with a weight for similarity of picture and of size;
    votes are gathered over about one particle radius, so that particles may move on their own by half a
    diameter. Displacements larger than the spacing of the particles are found as long as most particles stay
    in view.
    """
    if not len(first) or not len(second):
        return np.zeros(2)
    alike = one_window_ssim(_smooth(first.thumbnail), _smooth(second.thumbnail), THUMBNAIL_RANGE)
    mismatch = _size_mismatch(first, second) * np.where(_loose(first, second), _CUT, 1.0)
    weight = np.maximum(alike - _UNLIKE, 0) / (1 - _UNLIKE)
    weight *= np.exp(-0.5 * (mismatch / _VOTE_SIZE_TOLERANCE) ** 2)
    displacement = second.position[None, :, :] - first.position[:, None, :]
    width = float(np.median(np.concatenate([first.radius, second.radius])))
    jump, support = vote(displacement.reshape(-1, 2), weight.ravel(), width)
    # One pair alone outvotes nothing: a particle that left and another that came look like a jump as well.
    return jump if support >= 1.5 or support > _SURE else np.zeros(2)


def vote(displacement: np.ndarray, weight: np.ndarray, width: float) -> tuple[np.ndarray, float]:
    """Find the densest place among weighted displacements.

    Parameters
    ----------
    displacement : array, shape (n, 2), px
    weight : array, shape (n,), not negative
    width : float, px
        Displacements this close count as the same.

    Returns
    -------
    mode : array, shape (2,), px
        Zero if no vote has a weight. Of peaks of like height the sharper one wins, because particles in a
        lattice agree nearly as well on a jump that is wrong by a lattice spacing; then the one nearer to zero.
    support : float
        Sum of the weights that agree with it, so about the number of perfect pairs.
    """
    counts = weight > 0.02 * weight.max(initial=0.0)
    if not counts.any():
        return np.zeros(2), 0.0
    displacement, weight = displacement[counts], weight[counts]

    def settle(mode: np.ndarray, spread: float) -> tuple[np.ndarray, float]:
        for _ in range(8):
            near = weight * np.exp(-0.5 * np.sum((displacement - mode) ** 2, axis=1) / spread**2)
            mode = near @ displacement / max(near.sum(), 1e-300)
        return mode, float(near.sum())

    best = (-1.0, np.zeros(2), 0.0)
    for start in _densest_cells(displacement, weight, width):
        mode, support = settle(start, width)
        sharp, agreeing = settle(mode, _SHARP * width)
        near = 1 - _FAR_PENALTY * min(1.0, float(np.hypot(*mode) / np.abs(displacement).max(initial=1e-9)))
        score = near * (support + 2 * agreeing)
        if score > best[0]:
            best = (score, sharp if agreeing > 0.5 * support else mode, support)
    return best[1:]


def match_regions(
    first: Regions,
    second: Regions,
    jump: np.ndarray,
    gap: int = 1,
    settings: MatchSettings | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Assign regions of one frame to regions of a later one.

    Parameters
    ----------
    first, second : Regions
        The regions that are still free to be linked.
    jump : array, shape (2,), px
        Displacement common to all (`rigid_jump`).
    gap : int
        Number of frames from the first to the second; 1 for neighbours.
    settings : MatchSettings, optional
        The cost of a link is 2 (1 - SSIM of the smoothed thumbnails) + |ln(ratio of areas)| + (distance over
        the largest allowed)^2, to be less than that of no link. So a region in its place is linked however
        noisy its picture, a displaced one only if it looks right, and among look-alikes the nearest is taken.

    Returns
    -------
    i, j : int arrays, shape (k,)
        Linked regions, in ascending order of i; none occurs twice.
    similarity : array, shape (k,), float64
        Structural similarity of each linked pair; NaN where a thumbnail has no contrast.
    """
    settings = settings or MatchSettings()
    distance, mismatch = _distance(first, second, jump, gap, settings), _size_mismatch(first, second)
    loose = _loose(first, second)
    i, j = np.nonzero((distance < 1) & ((mismatch < np.log(settings.size_ratio)) | loose))
    unlike = 1 - np.nan_to_num(_similarity(_smooth(first.thumbnail), _smooth(second.thumbnail), i, j))
    cost = 2 * unlike + mismatch[i, j] * np.where(loose[i, j], _CUT, 1.0) + distance[i, j] ** 2
    limit = settings.no_link_far + (settings.no_link - settings.no_link_far) / gap
    # No link is worth nothing, so the rectangular assignment fills up with zeros where linking is worse.
    gain = np.zeros(distance.shape)
    gain[i, j] = np.minimum(cost - limit, 0.0)
    i, j = linear_sum_assignment(gain)
    linked = gain[i, j] < 0
    i, j = i[linked], j[linked]
    return i, j, _similarity(first.thumbnail, second.thumbnail, i, j)


def _distance(first: Regions, second: Regions, jump: np.ndarray, gap: int, s: MatchSettings) -> np.ndarray:
    """Distance left after the jump over the distance allowed: (n, m)."""
    residual = second.position[None, :, :] - first.position[:, None, :] - jump
    radius = 0.5 * (first.radius[:, None] + second.radius[None, :])
    # The centre of what is visible of a cut particle strays from the particle's own by up to a radius.
    slack = 0.5 * radius * _loose(first, second)
    allowed = 2 * s.reach * radius * np.sqrt(gap) + slack
    return np.linalg.norm(residual, axis=-1) / np.maximum(allowed, 1e-9)


def _loose(first: Regions, second: Regions) -> np.ndarray:
    """Whether the border cuts either region, so that it shows neither its whole size nor its centre: (n, m)."""
    return first.cut[:, None] | second.cut[None, :]


def _size_mismatch(first: Regions, second: Regions) -> np.ndarray:
    """Absolute logarithm of the ratio of areas: (n, m)."""
    return np.abs(np.log(first.area)[:, None] - np.log(second.area)[None, :])


def _similarity(first: np.ndarray, second: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Compare the pairs (first[i[k]], second[j[k]]); pictures that are in no pair are not filtered."""
    if not i.size:
        return np.empty(0)
    rows, i = np.unique(i, return_inverse=True)
    columns, j = np.unique(j, return_inverse=True)
    left, right = prepare(first[rows], THUMBNAIL_RANGE), prepare(second[columns], THUMBNAIL_RANGE)
    return ssim_pairs(left, right, i, j)


def _smooth(thumbnail: np.ndarray) -> np.ndarray:
    """Thumbnails without pixel noise at half their size: (n, h, w) to (n, h / 2, w / 2) float64.

    The similarity of noisy pictures tells hardly anything; smoothed, pictures of one particle stay alike down
    to a contrast-to-noise ratio of one per sample.
    """
    rows, columns = (_half_size(n) for n in thumbnail.shape[1:])
    return rows @ thumbnail.astype(np.float64) @ columns.T


def _half_size(size: int) -> np.ndarray:
    """Matrix (size // 2, size) that smooths a line of samples by a Gaussian and takes every other one."""
    offset = np.arange(size)[None, :] - (2 * np.arange(size // 2)[:, None] + 0.5)
    weight = np.exp(-0.5 * (offset / _SMOOTHING) ** 2)
    return weight / weight.sum(axis=1, keepdims=True)


def _densest_cells(displacement: np.ndarray, weight: np.ndarray, width: float) -> np.ndarray:
    """Find the highest peaks of a smoothed histogram with cells of half the width: (peaks, 2)."""
    low = displacement.min(axis=0)
    cell = max(0.5 * width, float(np.ptp(displacement, axis=0).max()) / _MOST_CELLS)
    index = np.floor((displacement - low) / cell).astype(np.int64)
    rows, columns = index.max(axis=0) + 1
    ballot = np.bincount(index[:, 0] * columns + index[:, 1], weight, rows * columns).reshape(rows, columns)
    for axis in (0, 1):
        ballot = convolve1d(ballot, _TENT, axis=axis, mode="constant")
    peaks = np.flatnonzero((ballot == maximum_filter(ballot, 3, mode="constant")) & (ballot > 0))
    highest = peaks[np.argsort(-ballot.ravel()[peaks], kind="stable")[:_PEAKS]]
    return low + (np.column_stack([highest // columns, highest % columns]) + 0.5) * cell
