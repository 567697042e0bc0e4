"""Which region of one frame is which region of another.

Two steps. The stage may jump by more than the spacing of the particles, so the displacement that most pairs
of similar regions agree on is found first, by voting. Once it is taken off, a region must be found within a
distance set by its own size; appearance (structural similarity), size and distance together make a cost, and
the cheapest assignment of all regions at once decides, each link against the choice of no link.
"""

from dataclasses import dataclass, replace
from functools import cache

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
#: Steps in which a peak is followed to its top.
_STEPS = 5
#: Votes with less than this part of the strongest one's weight are not counted.
_FEEBLE = 0.2
#: Regions whose displacements tell where the one amid them went, and how often that is tried.
_NEIGHBOURS, _LOCAL_PASSES = 5, 4
#: Motion of the middle region, in radii, below which frames differ by the rigid jump alone.
_AS_ONE = 0.2
_TENT = np.array([0.5, 1.0, 0.5])
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


def rigid_jump(first: Regions, second: Regions, settings: MatchSettings | None = None) -> np.ndarray:
    """Find the displacement (2,), in px, that most regions of `first` share on their way to `second`.

    Every pair of regions votes for its displacement with a weight for similarity of picture and of size;
    votes are gathered over about one particle radius, so that particles may move on their own by half a
    diameter. Displacements larger than the spacing of the particles are found as long as most particles stay
    in view. Where several displacements have votes, that of the best assignment is taken. Zero if there is
    none.
    """
    none = np.zeros(2)
    if not len(first) or not len(second):
        return none
    alike = one_window_ssim(_smooth(first.thumbnail), _smooth(second.thumbnail), THUMBNAIL_RANGE)
    mismatch = _size_mismatch(first, second) * np.where(_loose(first, second), _CUT, 1.0)
    weight = np.maximum(alike - _UNLIKE, 0) / (1 - _UNLIKE)
    weight *= np.exp(-0.5 * (mismatch / _VOTE_SIZE_TOLERANCE) ** 2)
    displacement = second.position[None, :, :] - first.position[:, None, :]
    width = float(np.median(np.concatenate([first.radius, second.radius])))
    jumps, support = vote(displacement.reshape(-1, 2), weight.ravel(), width)
    # One pair alone outvotes nothing: a particle that left and another that came look like a jump as well.
    jumps = jumps[(support >= 1.5) | (support > _SURE)]
    if len(jumps) < 2:
        return jumps[0] if len(jumps) else none
    wide = settings or MatchSettings()
    narrow = replace(wide, reach=_SHARP * wide.reach)
    return max(jumps, key=lambda jump: sum(_assign(first, second, jump, 1, s)[2] for s in (wide, narrow)))


def vote(displacement: np.ndarray, weight: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Find the densest places among weighted displacements.

    Parameters
    ----------
    displacement : array, shape (n, 2), px
    weight : array, shape (n,), not negative
    width : float, px
        Displacements this close count as the same.

    Returns
    -------
    modes : array, shape (k, 2), px
        In order of preference; none if no vote has a weight. The fuller place comes first, but of like ones
        the sharper, because particles in a lattice agree nearly as well on a jump that is wrong by a lattice
        spacing, and then the one nearer to zero. Places of less than a third of the best score are left out.
    support : array, shape (k,)
        Sum of the weights that agree with each, so about the number of perfect pairs.
    """
    counts = weight > _FEEBLE * weight.max(initial=0.0)
    if not counts.any():
        return np.empty((0, 2)), np.empty(0)
    displacement, weight = displacement[counts], weight[counts]
    modes = _densest_cells(displacement, weight, width)
    modes, support = _settle(displacement, weight, modes, width)
    sharp, agreeing = _settle(displacement, weight, modes, _SHARP * width)
    far = np.hypot(*modes.T) / np.abs(displacement).max(initial=1e-9)
    score = (support + 2 * agreeing) * (1 - _FAR_PENALTY * np.minimum(far, 1))
    modes = np.where((agreeing > 0.5 * support)[:, None], sharp, modes)
    order = np.argsort(-score, kind="stable")
    order = order[score[order] > score.max() / 3]
    return modes[order], support[order]


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
    jump : array, shape (2,) or (n, 2), px
        Displacement common to all (`rigid_jump`), or expected of each region of `first` (`neighbours_jump`).
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
        Structural similarity of each linked pair (of the thumbnails as they are); NaN where a thumbnail has
        no contrast.
    """
    settings = settings or MatchSettings()
    i, j, gain = _assign(first, second, jump, gap, settings)
    # Where neighbours move alike, a region is better sought where they went; kept only if it fits better.
    for _ in range(_LOCAL_PASSES if gap == 1 else 0):
        moved = second.position[j] - first.position[i]
        own = np.linalg.norm(moved - jump, axis=-1) / first.radius[i]
        if not len(i) or np.median(own) < _AS_ONE:
            break
        expected = neighbours_jump(first.position, first.position[i], moved)
        again = _assign(first, second, expected, gap, settings)
        if again[2] <= gain:
            break
        i, j, gain = again
    return i, j, _similarity(first.thumbnail, second.thumbnail, i, j)


def neighbours_jump(position: np.ndarray, start: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Displacement of what lies around: the median of the nearest known ones.

    Parameters
    ----------
    position : array, shape (n, 2), px
        Where it is wanted.
    start, moved : arrays, shape (m, 2), px
        Regions of the same frame whose displacement is known, m > 0. One that lies at the very position is the
        region itself and has no vote.

    Returns
    -------
    jump : array, shape (n, 2), px
        The same for all where no more than five are known.
    """
    if len(start) <= _NEIGHBOURS:
        return np.broadcast_to(np.median(moved, axis=0), position.shape)
    apart = np.linalg.norm(position[:, None, :] - start[None, :, :], axis=-1)
    apart[apart == 0] = np.inf
    nearest = np.argsort(apart, axis=1, kind="stable")[:, :_NEIGHBOURS]
    return np.median(moved[nearest], axis=1)


def _assign(
    first: Regions, second: Regions, jump: np.ndarray, gap: int, settings: MatchSettings
) -> tuple[np.ndarray, np.ndarray, float]:
    """Find the cheapest assignment: linked regions i, j, each (k,), and how much they are better than no links."""
    distance, mismatch = _distance(first, second, jump, gap, settings), _size_mismatch(first, second)
    loose = _loose(first, second)
    i, j = np.nonzero((distance < 1) & ((mismatch < np.log(settings.size_ratio)) | loose))
    unlike = 1 - np.nan_to_num(_similarity(_smooth(first.thumbnail), _smooth(second.thumbnail), i, j))
    cost = 2 * unlike + mismatch[i, j] * np.where(loose[i, j], _CUT, 1.0) + distance[i, j] ** 2
    limit = settings.no_link_far + (settings.no_link - settings.no_link_far) / gap
    # No link is worth nothing, so the rectangular assignment fills up with zeros where linking is worse.
    gain = np.zeros(distance.shape)
    gain[i, j] = np.maximum(limit - cost, 0.0)
    i, j = linear_sum_assignment(gain, maximize=True)
    linked = gain[i, j] > 0
    i, j = i[linked], j[linked]
    return i, j, float(gain[i, j].sum())


def _distance(first: Regions, second: Regions, jump: np.ndarray, gap: int, s: MatchSettings) -> np.ndarray:
    """Distance left after the jump over the distance allowed: (n, m)."""
    residual = second.position[None, :, :] - (first.position + jump)[:, None, :]
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


@cache
def _half_size(size: int) -> np.ndarray:
    """Matrix (size // 2, size) that smooths a line of samples by a Gaussian and takes every other one."""
    offset = np.arange(size)[None, :] - (2 * np.arange(size // 2)[:, None] + 0.5)
    weight = np.exp(-0.5 * (offset / _SMOOTHING) ** 2)
    return weight / weight.sum(axis=1, keepdims=True)


def _settle(
    displacement: np.ndarray, weight: np.ndarray, modes: np.ndarray, spread: float
) -> tuple[np.ndarray, np.ndarray]:
    """Move modes (k, 2) to the weighted mean of what is near, repeatedly; support of each (k,)."""
    y, x = displacement.T
    for _ in range(_STEPS):
        near = weight * np.exp(((y - modes[:, :1]) ** 2 + (x - modes[:, 1:]) ** 2) / (-2 * spread**2))
        modes = near @ displacement / np.maximum(near.sum(axis=1, keepdims=True), 1e-300)
    return modes, near.sum(axis=1)


def _densest_cells(displacement: np.ndarray, weight: np.ndarray, width: float) -> np.ndarray:
    """Find the highest peaks of a smoothed histogram with cells as wide as votes agree: (peaks, 2)."""
    low = displacement.min(axis=0)
    cell = max(width, float(np.ptp(displacement, axis=0).max()) / _MOST_CELLS)
    index = np.floor((displacement - low) / cell).astype(np.int64)
    rows, columns = index.max(axis=0) + 1
    ballot = np.bincount(index[:, 0] * columns + index[:, 1], weight, rows * columns).reshape(rows, columns)
    for axis in (0, 1):
        ballot = convolve1d(ballot, _TENT, axis=axis, mode="constant")
    # Agreeing sharply makes a place worth three times its votes at most, so those below a third have lost.
    summits = ballot == maximum_filter(ballot, 3, mode="constant")
    peaks = np.flatnonzero(summits & (ballot > ballot.max() / 3))
    highest = peaks[np.argsort(-ballot.ravel()[peaks], kind="stable")[:_PEAKS]]
    return low + (np.column_stack([highest // columns, highest % columns]) + 0.5) * cell
