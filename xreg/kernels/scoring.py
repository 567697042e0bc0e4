"""How tracks and maps are compared with true ones: matching, counting of mistakes, robust spreads.

Tracks are arrays (particle, frame, 2) of (y, x) positions in px, NaN where a particle is not seen.
"""

import numpy as np
from scipy import ndimage, optimize

#: Standard deviation of a normal distribution over its median absolute deviation.
MAD_TO_SIGMA = 1.4826


def match_tracks(tracks: np.ndarray, true_tracks: np.ndarray, radius: np.ndarray) -> dict[int, int]:
    """Assign tracks to true particles by where they are.

    The cost of a pair is its median distance in radii plus the share of the true particle's frames that the
    track misses, so that a long track wins over a fragment that happens to lie a little nearer. A pair whose
    median distance is more than one radius is never made.

    Parameters
    ----------
    tracks : array, shape (n, frame, 2), px
    true_tracks : array, shape (m, frame, 2), px
    radius : array, shape (m,), px
        Reach of every true particle.

    Returns
    -------
    matches : dict
        True particle -> track, for the pairs that were made.
    """
    unmatched = 1e3
    cost = np.full((len(true_tracks), len(tracks)), unmatched)
    for q, path in enumerate(true_tracks):
        distance = np.linalg.norm(tracks - path, axis=-1)
        seen = np.isfinite(distance)
        visible = np.isfinite(path).all(-1).sum()
        for r in np.flatnonzero(seen.any(-1)):
            median = np.median(distance[r, seen[r]]) / radius[q]
            if median <= 1:
                cost[q, r] = median + 1 - seen[r].sum() / visible
    pairs = zip(*optimize.linear_sum_assignment(cost), strict=True)
    return {int(q): int(r) for q, r in pairs if cost[q, r] < unmatched}


def constant_offset(difference: np.ndarray) -> np.ndarray:
    """Take the median (y, x) of differences (frame, 2) over their finite frames; NaN without any.

    The median, so that a track that follows another particle for a while does not move it.
    """
    both = np.isfinite(difference).all(-1)
    return np.median(difference[both], axis=0) if both.any() else np.full(2, np.nan)


def count_mistakes(
    tracks: np.ndarray, true_tracks: np.ndarray, radius: np.ndarray, matches: dict[int, int]
) -> dict[str, int]:
    """Count inventions, fragments and switched identities.

    Parameters
    ----------
    tracks, true_tracks, radius
        As for `match_tracks`.
    matches : dict
        What `match_tracks` returned.

    Returns
    -------
    counts : dict
        `inventions`: tracks without a match that lie on no true particle in most of their frames;
        `fragments`: tracks without a match that do; `identity_switches`: how often the true particle nearest
        to a track changes, summed over tracks. Frames in which a track lies on no particle do not count as a
        change.
    """
    expected = true_tracks.copy()
    for q, r in matches.items():
        # Where a correct track of this particle would be; else a constant offset between the centres of two
        # overlapping particles could look like a switch.
        expected[q] += constant_offset(tracks[r] - true_tracks[q])
    matched = set(matches.values())
    inventions = fragments = switches = 0
    for r, track in enumerate(tracks):
        distance = np.linalg.norm(expected - track, axis=-1)
        distance[~(distance <= radius[:, None])] = np.inf
        near = np.isfinite(distance).any(axis=0)
        seen = np.isfinite(track).all(-1)
        if r not in matched and seen.any():
            belongs = near.sum() > seen.sum() / 2
            fragments += int(belongs)
            inventions += int(not belongs)
        if near.any():
            owner = np.argmin(distance[:, near], axis=0)
            switches += int(np.count_nonzero(np.diff(owner)))
    return {"inventions": inventions, "fragments": fragments, "identity_switches": switches}


def seen_fraction(track: np.ndarray | None, path: np.ndarray, reach: float) -> float:
    """Share of the frames that show a true particle in which its track lies within `reach` px of it."""
    visible = np.isfinite(path).all(-1)
    if track is None or not visible.any():
        return 0.0
    return float((np.linalg.norm(track - path, axis=-1)[visible] <= reach).mean())


def rms(values: np.ndarray) -> float | None:
    """Take the root mean square of the finite values; None where there are none."""
    values = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(values**2))) if values.size else None


def robust_sigma(values: np.ndarray) -> float | None:
    """Take a standard deviation from the median absolute deviation of the finite values; None without any."""
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    return float(MAD_TO_SIGMA * np.median(np.abs(values - np.median(values))))


class Histogram:
    """Counts of values in narrow bins: medians of any number of values in fixed memory.

    Values beyond the limits fall into the outermost bins, which medians do not mind.
    """

    def __init__(self, limit: float, width: float) -> None:
        self.width = width
        self.centres = np.arange(-round(limit / width), round(limit / width) + 1) * width
        self.counts = np.zeros(self.centres.size, dtype=np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count the finite values."""
        values = values[np.isfinite(values)]
        index = np.clip(np.rint((values - self.centres[0]) / self.width), 0, self.counts.size - 1)
        self.counts += np.bincount(index.astype(np.int64), minlength=self.counts.size)

    def median(self) -> float | None:
        """Median, to half a bin; None where nothing was counted."""
        return self._middle(self.centres)

    def spread(self, about: float) -> float | None:
        """Median absolute distance from `about`; None where nothing was counted."""
        return self._middle(np.abs(self.centres - about))

    def _middle(self, values: np.ndarray) -> float | None:
        if not self.counts.any():
            return None
        order = np.argsort(values, kind="stable")
        half = np.searchsorted(np.cumsum(self.counts[order]), self.counts.sum() / 2)
        return float(values[order][half])


def union_axis(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Continue the offsets `ours` (unit steps, px) on either side until they cover `theirs`."""
    before = max(0, int(np.ceil(ours[0] - theirs[0])))
    after = max(0, int(np.ceil(theirs[-1] - ours[-1])))
    return ours[0] - before + np.arange(ours.size + before + after)


def place_window(window: np.ndarray, corner: tuple, grid: tuple, fill: float) -> np.ndarray:
    """Put a window whose first pixel lies at `corner` onto a larger `grid` without touching its values."""
    placed = np.full((grid[0].size, grid[1].size), fill)
    top, left = (round(float(first - side[0])) for first, side in zip(corner, grid, strict=True))
    placed[top : top + window.shape[0], left : left + window.shape[1]] = window
    return placed


def sample_window(window: np.ndarray, corner: tuple, grid: tuple, offset: np.ndarray) -> np.ndarray:
    """Read a window at the points `grid` + `offset`: linear between its finite pixels, NaN outside them.

    Parameters
    ----------
    window : array, shape (h, w)
        Values; NaN where there are none.
    corner : (y, x), px
        Where its first pixel lies.
    grid : (y, x), each a 1-d array, px
    offset : array, shape (2,), px

    Returns
    -------
    values : array, shape (grid[0].size, grid[1].size)
        NaN where less than half of the interpolation's weight lies on finite pixels.
    """
    rows, columns = (side + shift - first for side, shift, first in zip(grid, offset, corner, strict=True))
    points = np.meshgrid(rows, columns, indexing="ij")
    valid = np.isfinite(window)
    weight = ndimage.map_coordinates(valid.astype(np.float64), points, order=1)
    value = ndimage.map_coordinates(np.where(valid, window, 0.0), points, order=1)
    return np.where(weight >= 0.5, value / np.maximum(weight, 0.5), np.nan)
