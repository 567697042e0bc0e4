"""Motion of particles from their positions: rates, path, and the part that all of them share."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.sparse.csgraph import connected_components

from xreg.kernels.absorption import changing

#: Frames, evenly spread, on which particles are compared with each other, and particles that are so compared.
_COMPARED_FRAMES, _COMPARED_PARTICLES = 300, 200
#: Two particles move as one if their distance varies by no more than this many times its own noise.
_AGREE = 1.5
#: Part of the particles that must move as one to be taken for undeformed.
_QUORUM = 0.1
#: Frames seen together, and part of the frames in which the one to compare with is seen, below which nothing
#: is said about two particles: over a short while everything moves alike.
_FEWEST_FRAMES, _FEWEST_SHARED = 12, 0.33
#: 80 % quantile of the distance from the centre of a two-dimensional normal distribution of unit width.
_RAYLEIGH_80 = float(np.sqrt(-2 * np.log(0.2)))
#: Frames of at least this share of the highest contrast show particles best; the usual area is the median of these
#: sightings, an eighth of them to either side, but so many at least and at most, and so many at the ends; it is the
#: same up to this part, if they do not scatter more.
_BEST_SEEN, _USUAL_OVER, _AT_ENDS, _SAME_AREA = 0.6, (7, 50), 3, 0.03
#: Part of the frames that show a particle best in which it must be whole, so that these alone say what is usual.
_LEAST_WHOLE = 0.25
#: Farthest growth (logarithm of the area) of a region from one sighting to the next that is taken for motion.
_MOST_GROWTH = 0.3
#: Weight, in the fit, of particles that deform: they decide only where no other is seen.
_OUTSIDER = 1e-6
#: Smallest noise of a position that is believed, and that which is assumed where it cannot be had, in px.
_LEAST_NOISE, _USUAL_NOISE = 0.01, 0.1
_ITERATIONS = 30
#: Sightings that a group needs for an error of its own.
_FEWEST_GROUPED = 40


def first_sighting(position: np.ndarray) -> np.ndarray:
    """First frame in which each particle is seen: (particles, frames, 2) to (particles,) int, -1 for never."""
    seen = np.isfinite(position).all(axis=-1)
    return np.where(seen.any(axis=1), seen.argmax(axis=1), -1)


def since_first(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Subtract from each particle's row its value at its first sighting.

    Parameters
    ----------
    values : array, shape (particles, frames, 2)
    first : int array, shape (particles,)
        From `first_sighting`; -1 gives NaN throughout.
    """
    start = np.take_along_axis(values, np.maximum(first, 0)[:, None, None], axis=1)
    return np.where(first[:, None, None] < 0, np.nan, values - start)


def rates(position: np.ndarray, when: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Velocity and acceleration by finite differences over the frames in which a particle is seen.

    Both are exact for uniform acceleration, however unevenly the sightings are spaced: across a gap the true
    lapse counts. The velocity at the first and last sighting is that of the nearest interval.

    Parameters
    ----------
    position : array, shape (particles, frames, 2)
        NaN where not seen.
    when : array, shape (frames,)
        Frame number, or time; ascending. NaN where unknown.

    Returns
    -------
    velocity, acceleration : arrays, shape (particles, frames, 2)
        Per unit of `when` and its square. NaN where not seen; the velocity also if the particle is seen only
        once, the acceleration also at the first and last sighting; both where `when` is unknown or does not
        ascend.
    """
    velocity, acceleration = np.full(position.shape, np.nan), np.full(position.shape, np.nan)
    for track, speed, gain in zip(position, velocity, acceleration, strict=True):
        seen = np.flatnonzero(np.isfinite(track).all(axis=-1))
        if seen.size < 2:
            continue
        lapse = np.diff(np.asarray(when, dtype=np.float64)[seen])[:, None]
        lapse = np.where(lapse > 0, lapse, np.nan)
        slope = np.diff(track[seen], axis=0) / lapse
        before, after = lapse[:-1], lapse[1:]
        speed[seen[0]], speed[seen[-1]] = slope[0], slope[-1]
        speed[seen[1:-1]] = (after * slope[:-1] + before * slope[1:]) / (before + after)
        gain[seen[1:-1]] = 2 * np.diff(slope, axis=0) / (before + after)
    return velocity, acceleration


def path_length(position: np.ndarray) -> np.ndarray:
    """Length of the path since the first sighting, straight across gaps.

    Parameters
    ----------
    position : array, shape (particles, frames, 2)
        NaN where not seen.

    Returns
    -------
    length : array, shape (particles, frames)
        0 at the first sighting, NaN where not seen. Noise of the positions lengthens it: by about 1.8 of its
        standard deviation per sighting for a particle at rest.
    """
    length = np.full(position.shape[:2], np.nan)
    for track, path in zip(position, length, strict=True):
        seen = np.flatnonzero(np.isfinite(track).all(axis=-1))
        steps = np.linalg.norm(np.diff(track[seen], axis=0), axis=-1)
        path[seen] = np.concatenate([[0.0], np.cumsum(steps)])[: seen.size]
    return length


def common_motion(position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Motion that all particles share, told apart from their own.

    Position = common motion of the frame + place of the particle + its own motion, for all frames and particles
    together, so particles may be missing from any frame. If some particles move as one to within their noise
    (at least two, and a tenth of all), they are taken for undeformed and decide. If there are none, the sum of
    the distances left over is made smallest, so that a few particles that deform strongly count little. Motion
    that no particle is free of cannot be told from common motion by positions alone.

    Parameters
    ----------
    position : array, shape (particles, frames, 2), px
        In reference coordinates; NaN where not seen.

    Returns
    -------
    common : array, shape (frames, 2), px
        Zero in the first frame that shows a particle. NaN in frames that show none, and in frames that no chain
        of particles connects with the first one.
    undeformed : bool array, shape (particles,)
        The particles that decided; all False if there were none.
    """
    seen = np.isfinite(position).all(axis=-1)
    common = np.full(position.shape[1:], np.nan)
    undeformed = np.zeros(len(position), dtype=bool)
    rows = np.flatnonzero(seen.any(axis=1))
    if not rows.size:
        return common, undeformed
    seen = seen[rows]
    place = np.where(seen[..., None], position[rows], 0.0)
    group = connected_components(seen.astype(np.float64) @ seen.T.astype(np.float64) > 0, directed=False)[1]
    noise = _noise(position[rows])
    chosen = _moving_as_one(position[rows], noise)
    weight = seen * np.where(chosen, (noise.min() / noise) ** 2, _OUTSIDER if chosen.any() else 1.0)[:, None]
    motion = _fit_robustly(place, weight, group, noise)
    first = int(seen.any(axis=0).argmax())
    reached = seen[group == group[seen[:, first].argmax()]].any(axis=0)
    common[reached] = motion[reached] - motion[first]
    undeformed[rows] = chosen
    return common, undeformed


def doubtful_sightings(area: np.ndarray, contrast: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """How far the centre of each sighting may be off the particle's, since the region seen is another than usual.

    The field of view cuts it, or its area is not what it is, at that time, where the particle is seen best: a region
    that takes a little of a neighbour, or leaves a little to it, has its centre elsewhere. A share s of the area, lost
    or won at the rim, moves the centre by s times the radius; twice that, and half a pixel, is allowed for.

    Parameters
    ----------
    area : array, shape (particles, frames)
        Px at the reference energy, squared; NaN where not seen.
    contrast : array, shape (particles, frames)
        Optical density over the surroundings.
    cut : bool array, shape (particles, frames)

    Returns
    -------
    array, shape (particles, frames), px
        0 where the region is the usual one or nothing is seen; infinite where the field of view cuts it.
    """
    doubt, every = np.where(cut & np.isfinite(area), np.inf, 0.0), np.arange(area.shape[1])
    strong = _strong_frames(contrast)
    for ours, row in zip(area, doubt, strict=True):
        known = np.flatnonzero((ours > 0) & (row == 0))
        if not known.size:
            continue
        best = known[strong[known]]
        # Few that the field of view has left whole, of many it has cut, are as likely to be divided otherwise.
        if len(best) < max(_LEAST_WHOLE * (strong & (ours > 0)).sum(), 1):
            best = known
        usual = np.interp(every, best, _running_median(ours[best]))
        off = np.abs(ours / usual - 1)
        odd = known[off[known] > max(_SAME_AREA, 3 * 1.4826 * np.median(off[best]))]
        row[odd] = 0.5 + 2 * off[odd] * np.sqrt(usual[odd] / np.pi)
    return doubt


def _strong_frames(contrast: np.ndarray) -> np.ndarray:
    """Frames (f,) in which particles stand out best, by how they do beside what each of them (p, f) usually does."""
    seen = contrast[changing(contrast)]
    seen = seen[np.isfinite(seen).any(axis=1)]
    usual = np.nanmedian(seen, axis=1, keepdims=True) if seen.size else np.zeros((len(seen), 1))
    if not (usual > 0).any():
        return np.ones(contrast.shape[1], dtype=bool)
    relative = seen[usual[:, 0] > 0] / usual[usual > 0][:, None]
    shown = np.isfinite(relative).any(axis=0)
    frame = np.full(shown.shape, -np.inf)
    frame[shown] = np.nanmedian(relative[:, shown], axis=0)
    return frame >= _BEST_SEEN * np.quantile(frame[shown], 0.95)


def _running_median(values: np.ndarray) -> np.ndarray:
    """Median of the values (n,) about each; at either end of fewer, so that it follows what grows."""
    n = len(values)
    inner = int(np.clip(n // 8, *_USUAL_OVER))
    place, medians = np.arange(n), np.empty(n)
    for half, where in ((_AT_ENDS, slice(None)), (inner, (place >= inner) & (place < n - inner))):
        width = min(2 * half + 1, n)
        about = np.median(sliding_window_view(values, width), axis=1)
        medians[where] = about[np.clip(place[where] - half, 0, n - width)]
    return medians


def whole_places(position: np.ndarray, doubt: np.ndarray, area: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where particles are if all of them were seen as well as where they are seen well, and the motion that all share.

    A doubtful sighting is put where the common motion of the others says, plus the particle's own motion as between its
    own other sightings, unless that is farther away than the region explains. One of which all are doubtful, since the
    field of view cuts it always, is put where `uncut_path` says.

    Parameters
    ----------
    position : array, shape (particles, frames, 2), px
        In reference coordinates; NaN where not seen.
    doubt : array, shape (particles, frames), px
        From `doubtful_sightings`.
    area : array, shape (particles, frames)
        Of the regions, px squared.

    Returns
    -------
    place : array, shape (particles, frames, 2), px
        NaN where not seen.
    common : array, shape (frames, 2), px
        From `common_motion`, of sightings that are not doubtful where there are enough.
    """
    seen, doubtful = np.isfinite(position).all(axis=-1), doubt > 0
    common, _ = common_motion(np.where(doubtful[..., None], np.nan, position))
    if np.isnan(common[seen.any(axis=0)]).any():
        common, _ = common_motion(position)
    place, every = position.copy(), np.arange(position.shape[1])
    for own, row, ours, odd, most, size in zip(position - common, place, seen, doubtful, doubt, area, strict=True):
        known = np.isfinite(own).all(axis=-1)
        put, sure = ours & odd & known, np.flatnonzero(known & ~odd)
        if not put.any():
            continue
        if not sure.size:
            row[put] = uncut_path(row, size, common)[put]
            continue
        moved = np.stack([np.interp(every, sure, own[sure, axis]) for axis in (0, 1)], axis=-1)
        put &= np.linalg.norm(common + moved - row, axis=-1) <= most
        row[put] = (common + moved)[put]
    return place, common


def uncut_path(centre: np.ndarray, area: np.ndarray, common: np.ndarray) -> np.ndarray:
    """Path of a particle that the field of view always cuts, from the centre and the area of what is seen of it.

    Let the particle move by du across the line that cuts it, and let the centre of what is seen lie x behind that line.
    The moment x A of what is seen then grows by A du, so that du = dx + x d(ln A): the centre moves less than the
    particle. Where the line lies is told by the motion that all particles share: from one sighting to the next most of
    it is the stage's, and x is what makes up best for what the centre lacks of it. Where the region is suddenly another
    one, as behind the edge, its centre and area say nothing, and the particle is taken to move as all do. Areas are
    noisy: of what it moves beside the others the running median counts.

    Parameters
    ----------
    centre : array, shape (frames, 2), px
        NaN where not seen.
    area : array, shape (frames,), px squared
    common : array, shape (frames, 2), px
        From `common_motion`.

    Returns
    -------
    array, shape (frames, 2), px
        NaN where not seen; on average about where the centres are.
    """
    seen = np.flatnonzero(np.isfinite(centre).all(-1) & (area > 0))
    path = np.full_like(centre, np.nan)
    if not seen.size:
        return path
    step, shared = np.diff(np.log(area[seen])), np.diff(common[seen], axis=0)
    moved = np.diff(centre[seen], axis=0)
    known = np.isfinite(shared).all(-1)
    told = known & (np.abs(step) < _MOST_GROWTH)
    behind = step[told] @ (shared - moved)[told] / max(step[told] @ step[told], 1e-12)
    radius = np.sqrt(np.median(area[seen]) / np.pi)
    behind *= min(1.0, radius / max(np.hypot(*behind), 1e-12))
    moved = np.where((told | ~known)[:, None], moved + step[:, None] * behind, shared)
    path[seen] = np.concatenate([np.zeros((1, 2)), np.cumsum(moved, axis=0)])
    path[seen] += centre[seen].mean(axis=0) - path[seen].mean(axis=0)
    beside = seen[np.isfinite(common[seen]).all(-1)]
    if beside.size:
        own = (path - common)[beside]
        path[beside] = common[beside] + np.stack([_running_median(own[:, axis]) for axis in (0, 1)], axis=-1)
    return path


def _fit(place: np.ndarray, weight: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted least squares of place (p, f, 2) = motion (f, 2) + home (p, 2).

    Motion is eliminated, which leaves one equation per particle; homes average to zero in each group (p,) of
    particles that frames connect.
    """
    total = np.maximum(weight.sum(axis=0), 1e-300)
    share = weight / total
    mean = np.einsum("pf,pfa->fa", share, place)
    matrix = np.diag(weight.sum(axis=1)) - weight @ share.T
    gauge = (group[:, None] == group[None, :]) * np.mean(np.diag(matrix) + 1e-12)
    known = np.einsum("pf,pfa->pa", weight, place - mean)
    home = np.linalg.solve(matrix + gauge, known)
    return mean - share.T @ home, home


def _fit_robustly(
    place: np.ndarray, weight: np.ndarray, group: np.ndarray, noise: np.ndarray
) -> np.ndarray:
    """Motion (f, 2) of the least sum of distances, by reweighting; distances within the usual noise count squared.

    The usual noise, not each particle's own: one that jumps about must not be excused for it.
    """
    factor = np.ones(weight.shape)
    usual = np.median(noise)
    for _ in range(_ITERATIONS):
        motion, home = _fit(place, weight * factor, group)
        left = np.linalg.norm(place - motion[None] - home[:, None], axis=-1)
        factor = usual / np.maximum(left, usual)
    return motion


def position_noise(position: np.ndarray, contrast: np.ndarray | None = None) -> np.ndarray:
    """Standard error of every position, from how much neighbouring positions scatter.

    Deformation is smooth from frame to frame and common motion is what the median particle does, so that second
    differences less their median are noise. A particle's error grows where its contrast is low, so that its sightings
    are sorted by contrast into up to four groups, each with an error of its own. Errors that change slowly (a
    background that pulls the contour) do not show in second differences and are not in it.

    Parameters
    ----------
    position : array, shape (particles, frames, 2)
        Reference px, NaN where not seen.
    contrast : array, shape (particles, frames), optional
        By which sightings are grouped; by default each particle has one error.

    Returns
    -------
    array, shape (particles, frames), px
        Standard error per axis; NaN where not seen.
    """
    bend = np.full(position.shape[:2], np.nan)
    bend[:, 1:-1] = np.linalg.norm(_bends(position), axis=-1)
    seen = np.isfinite(position).all(axis=-1)
    usual = _noise(position)
    noise = np.where(seen, usual[:, None], np.nan)
    for particle in range(len(position)) if contrast is not None else ():
        known = np.flatnonzero(seen[particle] & np.isfinite(bend[particle]) & np.isfinite(contrast[particle]))
        groups = min(4, len(known) // _FEWEST_GROUPED)
        if groups > 1:
            limits = np.quantile(contrast[particle, known], np.arange(1, groups) / groups)
            group = np.digitize(contrast[particle], limits)
            for k in range(groups):
                width = _quantile(bend[particle, known][None, group[known] == k], 0.8)[0]
                noise[particle, seen[particle] & (group == k)] = width / (_RAYLEIGH_80 * np.sqrt(6))
    return np.where(seen, np.maximum(noise, _LEAST_NOISE), np.nan)


def scatter(path: np.ndarray) -> np.ndarray:
    """Standard error of the points of one path, from its second differences, the same for all.

    Parameters
    ----------
    path : array, shape (frames, 2), px
        NaN where not known.

    Returns
    -------
    array, shape (frames, 2), px
        NaN where the path is, or where it has no three points in a row.
    """
    bend = path[:-2] - 2 * path[1:-1] + path[2:]
    bend = np.abs(bend[np.isfinite(bend)])
    noise = max(1.4826 * float(np.median(bend)) / np.sqrt(6), _LEAST_NOISE) if bend.size else np.nan
    return np.where(np.isfinite(path), noise, np.nan)


def _bends(position: np.ndarray) -> np.ndarray:
    """Second differences (p, f - 2, 2) of positions (p, f, 2), less those of the median particle."""
    bend = position[:, :-2] - 2 * position[:, 1:-1] + position[:, 2:]
    known = np.isfinite(bend).any(axis=(0, 2))
    if known.any():
        bend[:, known] -= np.nanmedian(bend[:, known], axis=0)
    return bend


def _noise(position: np.ndarray) -> np.ndarray:
    """Noise of each particle's position per axis (p,), from second differences of positions (p, f, 2)."""
    bend = np.linalg.norm(_bends(position), axis=-1)
    noise = _quantile(bend[:, np.isfinite(bend).any(axis=0)], 0.8) / (_RAYLEIGH_80 * np.sqrt(6))
    usual = np.median(noise[np.isfinite(noise)]) if np.isfinite(noise).any() else _USUAL_NOISE
    return np.maximum(np.where(np.isfinite(noise), noise, usual), _LEAST_NOISE)


def _moving_as_one(position: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The largest set of particles that keep their distance to one of them, to within noise: (p,) bool."""
    none = np.zeros(len(position), dtype=bool)
    sightings = np.isfinite(position).all(axis=-1).sum(axis=1)
    step = max(1, position.shape[1] // _COMPARED_FRAMES)
    thinned = position[:, ::step]
    candidates = np.argsort(-sightings, kind="stable")[:_COMPARED_PARTICLES]
    best, chosen = (0, 0.0), none
    for p in np.sort(candidates):
        spread = _spread(thinned[candidates], thinned[p])
        agree = spread < _AGREE * np.hypot(noise[candidates], noise[p])
        rank = (int(agree.sum()), -float(spread[agree].sum()))
        if rank > best:
            best, chosen = rank, p
    if best[0] < max(2, np.ceil(_QUORUM * len(position))):
        return none
    return _spread(thinned, thinned[chosen]) < _AGREE * np.hypot(noise, noise[chosen])


def _spread(position: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Robust standard deviation per axis of the distance of each (p, f, 2) from another (f, 2): (p,).

    NaN where they are seen together too rarely.
    """
    apart = position - other
    shared = np.isfinite(apart).all(axis=-1).sum(axis=1)
    enough = max(_FEWEST_FRAMES, _FEWEST_SHARED * np.isfinite(other).all(axis=-1).sum())
    centre = np.stack([_quantile(apart[..., axis], 0.5) for axis in (0, 1)], axis=-1)
    spread = _quantile(np.linalg.norm(apart - centre[:, None], axis=-1), 0.8) / _RAYLEIGH_80
    return np.where(shared >= enough, spread, np.nan)


def _quantile(values: np.ndarray, part: float) -> np.ndarray:
    """Quantile of each row (p, f) without its NaN: (p,), NaN for empty rows. Faster than numpy.nanquantile."""
    count = np.isfinite(values).sum(axis=1)
    if not values.shape[1]:
        return np.full(len(values), np.nan)
    index = np.maximum(np.rint(part * (count - 1)), 0).astype(np.int64)
    return np.take_along_axis(np.sort(values, axis=1), index[:, None], axis=1)[:, 0]
