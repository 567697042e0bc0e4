"""Tracks of particles through consecutive frames, grown block by block and joined in any grouping.

`leaf` links a block of consecutive frames, `merge` joins two neighbouring blocks, `finish` names the
particles. Merging associates by construction. Links are made in order of the number of frames they span:
first between neighbouring frames, then, among regions that are still free, from each frame to the next but
one, and so on. Whether two regions are linked across k frames therefore depends on those k + 1 frames alone,
never on where blocks begin, and a link that a block has made can never be undone by its neighbours. A block
must remember only the table of its links and, of its first and last few frames, what its regions look like.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from xreg.kernels.matching import MatchSettings, Regions, match_regions, neighbours_jump, rigid_jump
from xreg.kernels.stitching import stitch

#: Regions followed from one frame to another that tell the displacement common to all without a vote.
_ENOUGH = 3
#: Part of the frames between its ends in which a chain of links must have been seen.
_DENSITY = 0.25


@dataclass(frozen=True)
class LinkSettings:
    """How regions are linked: as `match` says, with up to `max_gap` frames missing between two sightings."""

    max_gap: int = 10
    match: MatchSettings = field(default_factory=MatchSettings)

    @property
    def span(self) -> int:
        """Largest number of frames from one sighting to the next."""
        return self.max_gap + 1


@dataclass(frozen=True)
class Tracks:
    """Links within frames start...stop-1, and what the neighbouring blocks need to go on.

    One row per region that was seen, in order of (frame, slot): `frame`, `slot`, `position` (n, 2) in
    reference px, `area` in reference px2, `cut`, `previous` (row of the sighting before, or -1) and
    `similarity` with it (NaN where there is none). `head` and `tail` are the thumbnails (uint8) of the rows
    in the first and last max_gap + 1 frames.
    """

    start: int
    stop: int
    frame: np.ndarray
    slot: np.ndarray
    position: np.ndarray
    area: np.ndarray
    cut: np.ndarray
    previous: np.ndarray
    similarity: np.ndarray
    head: np.ndarray
    tail: np.ndarray


def leaf(
    position: np.ndarray,
    area: np.ndarray,
    cut: np.ndarray,
    thumbnail: np.ndarray,
    *,
    start: int = 0,
    settings: LinkSettings | None = None,
) -> Tracks:
    """Link the regions of consecutive frames.

    Parameters
    ----------
    position : array, shape (n, roi, 2), px
        (y, x) in reference coordinates; NaN in an empty slot.
    area : array, shape (n, roi), px2
    cut : bool array, shape (n, roi)
    thumbnail : uint8 array, shape (n, roi, h, w)
    start : int
        Number of the first frame.
    settings : LinkSettings, optional

    Returns
    -------
    Tracks
    """
    settings = settings or LinkSettings()
    seen = np.isfinite(position).all(axis=-1) & (area > 0)
    frame, slot = np.nonzero(seen)
    frame, stop, pictures = frame + start, start + len(seen), np.asarray(thumbnail[seen])
    first = np.searchsorted(frame, start + settings.span)
    last = np.searchsorted(frame, stop - settings.span)
    tracks = Tracks(
        start,
        stop,
        frame,
        slot,
        position=np.asarray(position[seen], dtype=np.float64),
        area=np.asarray(area[seen], dtype=np.float64),
        cut=np.asarray(cut[seen], dtype=bool),
        previous=np.full(len(frame), -1, dtype=np.int64),
        similarity=np.full(len(frame), np.nan),
        head=pictures[:first],
        tail=pictures[last:],
    )
    pairs = [(f, f + gap) for gap in range(1, settings.span + 1) for f in range(start, stop - gap)]
    return _close(tracks, 0, pictures, pairs, settings)


def merge(left: Tracks, right: Tracks, settings: LinkSettings | None = None) -> Tracks:
    """Join the links of two neighbouring blocks of frames; associative.

    Raises
    ------
    ValueError
        If `right` does not begin where `left` ends.
    """
    settings = settings or LinkSettings()
    if left.stop != right.start:
        msg = (
            f"tracks of frames {left.start}...{left.stop - 1} and {right.start}...{right.stop - 1} are not "
            "neighbours; merge blocks in order, without a gap."
        )
        raise ValueError(msg)
    shift, border = len(left.frame), left.stop
    previous = np.where(right.previous < 0, -1, right.previous + shift)
    joined = {
        name: np.concatenate([getattr(left, name), getattr(right, name)])
        for name in ("frame", "slot", "position", "area", "cut", "similarity")
    }
    pictures = np.concatenate([left.tail, right.head])
    low = shift - len(left.tail)
    first = np.searchsorted(joined["frame"], left.start + settings.span)
    last = np.searchsorted(joined["frame"], right.stop - settings.span)
    tracks = Tracks(
        left.start,
        right.stop,
        **joined,
        previous=np.concatenate([left.previous, previous]),
        head=np.concatenate([left.head, right.head[: max(first - shift, 0)]]),
        tail=np.concatenate([left.tail[max(last - low, 0) :], right.tail]) if last < shift else right.tail,
    )
    pairs = [
        (f, f + gap)
        for gap in range(1, settings.span + 1)
        for f in range(max(border - gap, left.start), min(border, right.stop - gap))
    ]
    return _close(tracks, low, pictures, pairs, settings)


def finish(tracks: Tracks, min_sightings: int = 2, *, join_pieces: bool = True) -> np.ndarray:
    """Name the particles.

    Parameters
    ----------
    tracks : Tracks
        Of all frames.
    min_sightings : int
        Particles seen in fewer frames are dropped. So are chains of links seen in less than a quarter of the
        frames that they span: inventions that chance has linked across the gaps.
    join_pieces : bool
        Whether a particle that was away for longer than the largest gap gets its number back, if it comes
        back to its place among the others (`kernels.stitching`).

    Returns
    -------
    particle : int32 array, one number per row of `tracks`
        Numbered from 0 by frame, then y, then x (reference px) of the first sighting; -1 where dropped.
    """
    particle = np.full(len(tracks.frame), -1, dtype=np.int32)
    piece = _pieces(tracks.previous)
    row = np.flatnonzero(_dense(tracks.frame, piece)[piece])
    if not row.size:
        return particle
    frame, position = tracks.frame[row], tracks.position[row]
    _, piece = np.unique(piece[row], return_inverse=True)
    if join_pieces:
        before = tracks.previous[row]
        before = np.where(before < 0, -1, np.searchsorted(row, before))
        piece = stitch(frame, position, tracks.area[row], tracks.cut[row], before, piece)[piece]
    _, first, piece, sightings = np.unique(piece, return_index=True, return_inverse=True, return_counts=True)
    kept = np.flatnonzero(sightings >= min_sightings)
    y, x = position[first[kept]].T
    order = np.lexsort((x, y, frame[first[kept]]))
    number = np.full(len(first), -1, dtype=np.int32)
    number[kept[order]] = np.arange(len(kept), dtype=np.int32)
    particle[row] = number[piece]
    return particle


def _pieces(previous: np.ndarray) -> np.ndarray:
    """Find the chain of links that each row belongs to, numbered in order of their first rows: (n,)."""
    root = np.where(previous < 0, np.arange(len(previous)), previous)
    while not np.array_equal(root, root[root]):
        root = root[root]
    return np.unique(root, return_inverse=True)[1]


def _dense(frame: np.ndarray, piece: np.ndarray) -> np.ndarray:
    """Whether each piece was seen in a fair part of the frames that it spans, blank ones not counted."""
    _, shown = np.unique(frame, return_inverse=True)
    count = int(piece.max(initial=-1)) + 1
    first, last = np.full(count, len(frame)), np.full(count, -1)
    np.minimum.at(first, piece, shown)
    np.maximum.at(last, piece, shown)
    return np.bincount(piece, minlength=count) >= _DENSITY * (last - first + 1)


def _close(
    tracks: Tracks, low: int, pictures: np.ndarray, pairs: list[tuple[int, int]], settings: LinkSettings
) -> Tracks:
    """Link free regions of the pairs of frames, in order; `pictures` belong to the rows from `low` on."""
    previous, similarity = tracks.previous.copy(), tracks.similarity.copy()
    stop = low + len(pictures)
    followed = np.zeros(stop, dtype=bool)
    inside = previous[low:stop]
    followed[inside[inside >= 0]] = True
    bounds = np.searchsorted(tracks.frame[:stop], np.arange(tracks.start, tracks.stop + 1))

    def rows(frame: int) -> slice:
        return slice(bounds[frame - tracks.start], bounds[frame - tracks.start + 1])

    def regions(part: slice) -> Regions:
        look = pictures[part.start - low : part.stop - low]
        return Regions(tracks.position[part], tracks.area[part], tracks.cut[part], look)

    for f, g in pairs:
        here, there = rows(f), rows(g)
        ends = np.flatnonzero(~followed[here])
        starts = np.flatnonzero(previous[there] < 0)
        if not ends.size or not starts.size:
            continue
        first, second = regions(here), regions(there)
        jump = _expected_jump(tracks, previous, here, there, ends)
        if jump is None:
            jump = rigid_jump(first, second, settings.match)
        i, j, alike = match_regions(first.take(ends), second.take(starts), jump, g - f, settings.match)
        source, target = here.start + ends[i], there.start + starts[j]
        previous[target], similarity[target], followed[source] = source, alike, True
    return replace(tracks, previous=previous, similarity=similarity)


def _expected_jump(
    tracks: Tracks, previous: np.ndarray, here: slice, there: slice, ends: np.ndarray
) -> np.ndarray | None:
    """Displacement (n, 2) of regions already followed from rows `here` to `there` around each end; None for too few."""
    source = np.arange(there.start, there.stop)
    target = source
    while (source >= here.stop).any():
        source = np.where(source >= here.stop, previous[source], source)
    through = source >= here.start
    if through.sum() < _ENOUGH:
        return None
    start = tracks.position[source[through]]
    return neighbours_jump(tracks.position[here][ends], start, tracks.position[target[through]] - start)
