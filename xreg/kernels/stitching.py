"""Joins pieces of a particle's path that are separated by long absences.

Once most particles have been followed from frame to frame, their common motion is known for every frame, and
a particle that comes back after a beam dump, or after it left the field of view, comes back to where it was
among the others. So pieces are joined by place (common motion taken off) and size alone; pictures are not
needed.
"""

import numpy as np

from xreg.kernels.matching import vote

#: Sightings over which a piece's place is averaged at either end.
_END = 15
#: Shortest piece, in sightings, that is joined to others; shorter ones are too often inventions.
_SHORTEST = 3
#: Largest ratio of areas of two pieces of one particle; larger for pieces that the border cuts throughout.
_SIZE_RATIO, _SIZE_RATIO_CUT = 1.6, 3.0
#: Farthest that a particle may have moved among the others while it was away, in radii.
_REACH = 1.25


def stitch(
    frame: np.ndarray,
    position: np.ndarray,
    area: np.ndarray,
    cut: np.ndarray,
    previous: np.ndarray,
    piece: np.ndarray,
) -> np.ndarray:
    """Join pieces that are the same particle before and after a long absence.

    Parameters
    ----------
    frame, area, cut : arrays, shape (n,)
        Frame number, area in px2, and whether the border cuts it, of every sighting, in order of frames.
    position : array, shape (n, 2)
        Where it is, in reference px.
    previous : int array, shape (n,)
        Number of the sighting before it on the same piece, or -1.
    piece : int array, shape (n,)
        Piece of path, 0...p-1, to which each sighting belongs.

    Returns
    -------
    joined : int array, shape (p,)
        For every piece the lowest-numbered piece of the same particle. Two pieces that overlap in time are
        never joined.
    """
    count = int(piece.max(initial=-1)) + 1
    motion, span = _common_motion(frame, position, previous)
    pieces = _Pieces(frame, position, area, cut, piece, count)
    if span.max(initial=0) > 0:
        motion = _bridge_spans(pieces, motion, span)
    start, end = pieces.places(motion)
    return _join(pieces, start, end, count)


def _common_motion(
    frame: np.ndarray, position: np.ndarray, previous: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Follow the median particle: its motion (frames, 2) and the spans (frames,) over which it is known."""
    frames = int(frame.max(initial=-1)) + 1
    motion = np.zeros((frames, 2))
    bounds = np.searchsorted(frame, np.arange(frames + 1))
    for f in range(1, frames):
        here = np.arange(bounds[f], bounds[f + 1])
        linked = here[previous[here] >= 0]
        before = previous[linked]
        steps = position[linked] - position[before] + motion[frame[before]]
        motion[f] = np.median(steps, axis=0) if linked.size else motion[f - 1]
    return motion, _spans(frame, previous, frames)


def _spans(frame: np.ndarray, previous: np.ndarray, frames: int) -> np.ndarray:
    """Find the spans of frames between which no link passes: number of every frame's span (frames,)."""
    linked = np.flatnonzero(previous >= 0)
    opened = np.bincount(frame[previous[linked]] + 1, minlength=frames + 2)
    closed = np.bincount(frame[linked] + 1, minlength=frames + 2)
    passing = np.cumsum(opened - closed)[:frames]
    seen = np.bincount(frame, minlength=frames) > 0
    return np.maximum(np.cumsum(seen & (passing == 0)) - 1, 0)


class _Pieces:
    """Sightings sorted by piece; number, first and last frame and area of each piece that is long enough."""

    def __init__(self, frame, position, area, cut, piece, count):
        order = np.argsort(piece, kind="stable")
        self.frame, self.position, self.cut = frame[order], position[order], cut[order]
        bounds = np.searchsorted(piece[order], np.arange(count + 1))
        self.number = np.flatnonzero(np.diff(bounds) >= _SHORTEST)
        self.begin, self.stop = bounds[self.number], bounds[self.number + 1]
        self.first, self.last = self.frame[self.begin], self.frame[self.stop - 1]
        area = area[order]
        # The largest areas are those of the whole particle, the rest may be cut by the border.
        areas = [np.quantile(area[a:b], 0.75) for a, b in zip(self.begin, self.stop, strict=True)]
        self.area = np.array(areas, dtype=np.float64)
        whole = [not self.cut[a:b].all() for a, b in zip(self.begin, self.stop, strict=True)]
        self.whole = np.array(whole, dtype=bool)

    def places(self, motion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find where every piece starts and ends, common motion taken off: two arrays (pieces, 2)."""
        still = self.position - motion[self.frame]
        ends = np.empty((2, len(self.number), 2))
        for k, (a, b) in enumerate(zip(self.begin, self.stop, strict=True)):
            whole = np.arange(a, b)[~self.cut[a:b]]
            whole = whole if whole.size else np.arange(a, b)
            ends[0, k] = np.median(still[whole[:_END]], axis=0)
            ends[1, k] = np.median(still[whole[-_END:]], axis=0)
        return ends[0], ends[1]


def _bridge_spans(pieces: _Pieces, motion: np.ndarray, span: np.ndarray) -> np.ndarray:
    """Shift the motion (frames, 2) of every span so that most pieces go on where they had ended."""
    motion = motion.copy()
    for number in range(1, int(span.max()) + 1):
        before, after = span[pieces.last] < number, span[pieces.first] == number
        before[before] = pieces.last[before] >= np.max(pieces.last[before], initial=0) - _END
        if not before.any() or not after.any():
            continue
        start, end = pieces.places(motion)
        ratio = np.log(pieces.area[before])[:, None] - np.log(pieces.area[after])[None, :]
        weight = np.exp(-0.5 * (ratio / np.log(_SIZE_RATIO)) ** 2).ravel()
        displacement = (start[after][None, :, :] - end[before][:, None, :]).reshape(-1, 2)
        width = float(np.sqrt(np.median(pieces.area) / np.pi))
        jumps, support = vote(displacement, weight, width)
        if support.size and support[0] >= 1.5:
            motion[span >= number] += jumps[0]
    return motion


def _join(pieces: _Pieces, start: np.ndarray, end: np.ndarray, count: int) -> np.ndarray:
    """Join ends to later starts, the earliest starts first, each of them once: (count,) lowest piece of each."""
    joined = np.arange(count)
    if not len(pieces.number):
        return joined
    radius = np.sqrt(pieces.area / np.pi)
    distance = np.linalg.norm(start[None, :, :] - end[:, None, :], axis=-1) / np.minimum.outer(radius, radius)
    mismatch = np.abs(np.log(pieces.area)[:, None] - np.log(pieces.area)[None, :])
    later = pieces.first[None, :] > pieces.last[:, None]
    limit = np.where(np.logical_and.outer(pieces.whole, pieces.whole), _SIZE_RATIO, _SIZE_RATIO_CUT)
    i, j = np.nonzero(later & (distance < _REACH) & (mismatch < np.log(limit)))
    cost = (distance[i, j] / _REACH) ** 2 + mismatch[i, j]
    ended, started = set(), set()
    # In order of time, so that a particle that left twice is not joined across its own second stay.
    for k in np.lexsort((j, i, cost, pieces.first[j])):
        if i[k] not in ended and j[k] not in started:
            ended.add(i[k])
            started.add(j[k])
            joined[pieces.number[j[k]]] = pieces.number[i[k]]
    while not np.array_equal(joined, joined[joined]):
        joined = joined[joined]
    return joined
