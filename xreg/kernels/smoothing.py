"""Paths from positions: what the frames before and after say of a particle's place in a frame.

A frame says where a particle is to within its photons. Deformation takes many frames, so that a particle's neighbours
in time say it, too, once the motion that all share in a frame, which may be as jumpy as it likes, has been taken off;
and all particles together say what that is. With position p, shared motion m and own motion d, for each particle i,
frame t and axis::

    p[i, t] = m[t] + d[i, t] + e[i, t]      d[i, t + 1] = d[i, t] + v[i, t] + level,      v[i, t + 1] = v[i, t] + slope

The background is one of those that move; m is free in every frame. `level` and `slope` are white noise, and how large
they are is what is most likely for this particle: its path may be a straight line, a smooth curve or a random walk, and
where its positions say that it moves from frame to frame by more than their errors, nothing is smoothed. A particle
that jumps, once, is recognised by the disturbance that this takes, and its path is cut there; a position far off the
path, which those before and behind do not follow, is an error of the fit and is left out (auxiliary residuals), also
two or three that do not agree with each other. Several that agree are a motion: they stay where they were measured.

Errors e come in two parts. One is another in every frame and is averaged out: `share` of the variance that the fit
claims, again what is most likely. Of the rest most, such as errors of the templates, is the same for many frames; it
stays, and is added to the standard error of the path.

References: Durbin and Koopman 2012, Time Series Analysis by State Space Methods, 2nd ed. (local linear trend, fast
state smoothing); Harvey and Koopman 1992, doi:10.1080/07350015.1992.10509913 (auxiliary residuals).
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.ndimage import convolve1d

#: Variances of level and slope that are tried, over the usual variance of the positions: smooth paths, with or without
#: some shaking, and paths that shake.
_MODELS = np.array([*product((0.0, *10.0 ** np.arange(-3, 3)), (0.0, *10.0 ** np.arange(-8, 1))),
                    *product(10.0 ** np.arange(3, 9), (0.0,))])
#: The path by which the shared motion is begun.
_BEGUN_BY = (0.0, 0.01)
#: Least and most of the claimed variance that may be different in every frame; the latter where there are so many
#: sightings, and 1 where there are few, which cannot tell errors from motion. A particle that scatters more moves: no
#: position is taken farther than its standard error explains.
_SHARES, _MANY = (0.3, 2.0), 100
#: Of the claimed variance that is not different in every frame, this part is taken to stay the same over many (fits
#: claim a little too much where nothing disturbs them); of all of it at least the second.
_STAYS, _LEAST_STAYS = 0.7, 0.05
#: Sightings that a path needs.
_FEWEST = 20
#: Rounds of models, after the first, and in each so many of paths and shared motion.
_ROUNDS, _TURNS = 3, 6
#: Part of the way that is gone in one turn: neighbouring frames answer to each other's steps, so that whole ones may
#: never settle.
_PART = 0.6
#: A jump, or an error of the fit, is one of which the square over both axes is this many times its variance: for noise
#: alone the odds are 3e-7 for each position.
_EVENT = 30.0
#: Frames to either side in which errors are compared, and events are the shadow of the largest; so many together are
#: errors at most.
_APART, _SHORT = 3, 3
#: Variances of a place and a speed (per frame) of which nothing is known, over the usual variance of the positions.
_ANY_PLACE, _ANY_SPEED = 1e10, 1e6
#: A position is left out only if the path there has no more than so many times its variance.
_TOLD = 9.0
#: Numbers that a pass may keep in memory.
_MOST_NUMBERS = 2**25


@dataclass(frozen=True)
class Paths:
    """Paths of all that moves.

    position, sigma : arrays, shape (n, frames, 2), px
        Place and its standard error; as given where no path could be made.
    shared : array, shape (frames, 2), px
        Motion that all share.
    """

    position: np.ndarray
    sigma: np.ndarray
    shared: np.ndarray


def smooth_paths(position: np.ndarray, sigma: np.ndarray, shared: np.ndarray) -> Paths:
    """Most likely paths of particles and background.

    Parameters
    ----------
    position, sigma : arrays, shape (n, frames, 2), px
        In reference coordinates, and standard errors; NaN where not seen.
    shared : array, shape (frames, 2), px
        Motion that all share, to start with; NaN where it is not known.

    Returns
    -------
    Paths
        What has fewer than twenty sightings, or is the only one that has more, stays as it is.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        sure = np.isfinite(sigma**2) & (sigma**2 > 0)
    known = np.isfinite(position).all(-1) & sure.all(-1) & np.isfinite(shared).all(-1)
    rows = np.flatnonzero(known.sum(axis=1) >= _FEWEST)
    if len(rows) < 2:
        return Paths(position, sigma, shared)
    known = known[rows]
    # Axes are rows of their own from here on: (n, 2, frames).
    place, error = (np.moveaxis(np.where(known[..., None], a[rows], np.nan), -1, 1) for a in (position, sigma))
    variance = error**2
    motion, free = shared.T.copy(), np.ones(place.shape)
    cut, left_out = np.zeros(known.shape, dtype=bool), np.zeros(known.shape, dtype=bool)
    model = _Model.of(np.broadcast_to(_BEGUN_BY, (len(rows), 2)), variance, np.ones(len(rows)))
    for number in range(1 + _ROUNDS):
        if number:
            model = _most_likely(place - motion, variance, known & ~left_out, cut, free)
        for _ in range(_TURNS):
            path = _smooth(place - motion, variance, known & ~left_out, cut, model)
            # One step towards the most likely shared motion: every position that its own path does not explain speaks
            # for it, as loudly as the path's prediction of it is good.
            total = path.weight.sum(axis=0)
            total[total <= 0] = np.inf
            motion = motion + _PART * path.score.sum(axis=0) / total
            free = 1 - path.weight / total
        # What looks like an event before the shared motion is known is none.
        if number:
            new_cut, new_out = _events(path, known)
            cut, left_out = cut | new_cut, left_out | new_out
    path = _smooth(place - motion, variance, known & ~left_out, cut, model)
    share = model.share[:, None, None]
    error = path.variance + 1 / total
    error = np.where(left_out[:, None], error, np.minimum(error, share * variance))
    error += np.maximum(_STAYS * (1 - share), _LEAST_STAYS) * np.minimum(variance, _nearby(variance, known))
    off = np.nan_to_num(((place - motion - path.place) ** 2 / variance).sum(axis=1)) > _EVENT
    # A position is left out only where the others say about as well as it would where it should be.
    told = (path.variance < _TOLD * np.where(known[:, None], variance, 0.0)).all(axis=1)
    placed = known & ~((off | left_out) & ~(left_out & told & _few(off | left_out, cut)))
    smooth, wide = position.copy(), sigma.copy()
    smooth[rows] = np.where(placed[..., None], np.moveaxis(path.place + motion, 1, -1), position[rows])
    wide[rows] = np.where(placed[..., None], np.moveaxis(np.sqrt(error), 1, -1), sigma[rows])
    return Paths(smooth, wide, motion.T)


# -- models ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Model:
    """Variances of level and slope for a share of 1, px2, (n, 2) each, and the errors' share, (n,)."""

    level: np.ndarray
    slope: np.ndarray
    share: np.ndarray

    @classmethod
    def of(cls, ratios: np.ndarray, variance: np.ndarray, share: np.ndarray) -> "_Model":
        """Model of each particle from ratios (n, 2) of level and slope to the usual variance of its positions."""
        usual = np.nanmedian(variance, axis=-1)
        return cls(*(ratios[:, k, None] * usual for k in (0, 1)), share)


def _most_likely(
    own: np.ndarray, variance: np.ndarray, used: np.ndarray, cut: np.ndarray, free: np.ndarray
) -> _Model:
    """The most likely model of every particle, the same for both axes but for the scale of their errors.

    `free` is what each position has not given to the shared motion, which would make errors look smaller.
    """
    best, share = np.empty(len(own), dtype=int), np.empty(len(own))
    most = max(_MOST_NUMBERS // (64 * len(_MODELS)), 1)
    for low in range(0, len(own), most):
        part = slice(low, low + most)
        usual = np.nanmedian(variance[part], axis=-1)
        squares, logs, count = _likelihood(own[part], variance[part], used[part], cut[part],
                                           *(_MODELS[:, k, None, None] * usual for k in (0, 1)))
        count = count * np.maximum([f[:, u].mean() for f, u in zip(free[part], used[part], strict=True)], 0.1)
        least, most_likely = _SHARES
        limit = 1 + (most_likely - 1) * np.minimum(used[part].sum(axis=1) / _MANY, 1.0)
        shares = np.clip(squares / np.maximum(count, 1), least, limit)
        best[part] = (count * np.log(shares) + logs + squares / shares).argmin(axis=0)
        share[part] = np.take_along_axis(shares, best[None, part], axis=0)[0]
    return _Model.of(_MODELS[best], variance, share)


# -- paths -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Path:
    """Own motion and its variance, (n, 2, f), and how each position fits to it.

    What the other positions predict differs from it by score / weight, with the variance 1 / weight, (n, 2, f); `steps`
    and `positions` are the squares over both axes, (n, f), of what it takes to explain each step to the next frame and
    each position, over their variances.
    """

    place: np.ndarray
    variance: np.ndarray
    score: np.ndarray
    weight: np.ndarray
    steps: np.ndarray
    positions: np.ndarray


def _events(path: _Path, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps at which a path is to be cut and positions that are to be left out, (p, f) bool each."""
    cut, left_out = np.zeros(known.shape, dtype=bool), np.zeros(known.shape, dtype=bool)
    for p in range(len(known)):
        largest = np.maximum(path.steps[p], path.positions[p])
        for t in np.argsort(-largest, kind="stable"):
            if largest[t] < _EVENT:
                break
            about = slice(max(t - _APART, 0), t + _APART + 1)
            if not (cut[p, about] | left_out[p, about]).any():
                (cut if path.steps[p, t] >= path.positions[p, t] else left_out)[p, t] = True
    return cut, left_out


def _nearby(variance: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Harmonic mean of variances (n, 2, f) over some frames: of errors that stay no frame has its own."""
    around = np.ones(2 * _APART + 1)
    total, count = (convolve1d(np.where(known[:, None], a, 0.0), around, axis=-1, mode="constant")
                    for a in (1 / variance, np.ones_like(variance)))
    return np.where(count > 0, count, np.nan) / np.where(count > 0, total, 1.0)


def _few(errors: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Where at most three of (n, f) errors, and no cut of the path, happen within some frames."""
    around = np.ones(2 * _APART + 1, dtype=int)
    near, cuts = (convolve1d(a.astype(int), around, axis=-1, mode="constant") for a in (errors, cut))
    return (near <= _SHORT) & (cuts == 0)


def _smooth(own: np.ndarray, variance: np.ndarray, used: np.ndarray, cut: np.ndarray, model: _Model) -> _Path:
    """Paths of all particles by one model each, some particles at a time."""
    most = max(_MOST_NUMBERS // (32 * own.shape[-1]), 1)
    parts = [_smooth_some(*(a[low : low + most] for a in (own, variance, used, cut, model.level, model.slope)))
             for low in range(0, len(own), most)]
    place, error, score, weight, steps = (np.concatenate(a) for a in zip(*parts, strict=True))
    share = model.share[:, None, None]
    positions = score**2 / np.where(weight > 0, weight, np.inf)
    return _Path(place, share * error, score / share, weight / share, (steps / share).sum(axis=1),
                 (positions / share).sum(axis=1))


def _start(y: np.ndarray, variance: np.ndarray, used: np.ndarray) -> tuple[tuple, np.ndarray]:
    """State of every particle before its first position is known, (n, 2) each, and the frame of that, (n, 1)."""
    first = used.argmax(axis=1)[:, None]
    usual = np.nanmedian(np.where(used[:, None], variance, np.nan), axis=-1)
    nothing = np.zeros_like(usual)
    place = np.take_along_axis(y, first[..., None], axis=-1)[..., 0]
    return (place, nothing, _ANY_PLACE * usual, nothing, _ANY_SPEED * usual), first


def _step(state: tuple, gain: tuple, innovation: np.ndarray, level: np.ndarray, slope: np.ndarray) -> tuple:
    """The next frame's prediction from this one's (Kalman filter): place, speed and their covariance (3)."""
    place, speed, p00, p01, p11 = state
    k0, k1 = gain
    place, speed = place + k0 * innovation, speed + k1 * innovation
    p00, p01, p11 = p00 - k0 * p00, p01 - k0 * p01, p11 - k1 * p01
    return place + speed, speed, p00 + 2 * p01 + p11 + level + slope / 3, p01 + p11 + slope / 2, p11 + slope


def _likelihood(
    y: np.ndarray, variance: np.ndarray, used: np.ndarray, cut: np.ndarray, level: np.ndarray, slope: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How well models (models, n, 2) predict each position from those before it, for every model and particle.

    Over both axes: sums of squared innovations over their variances, of these' logarithms, and of their number.
    """
    begin, first = _start(y, variance, used)
    state = begin = tuple(np.broadcast_to(a, level.shape) for a in begin)
    squares, logs, count, sightings = (np.zeros(level.shape) for _ in range(4))
    for t in range(y.shape[-1]):
        seen = used[:, t, None]
        spread = np.where(seen, state[2] + variance[..., t], 1.0)
        innovation = np.where(seen, y[..., t] - state[0], 0.0)
        # The first two say where a path begins and how fast, one after a cut where it goes on.
        counted = seen & (sightings >= 2)
        squares += np.where(counted, innovation**2 / spread, 0.0)
        logs += np.where(counted, np.log(spread), 0.0)
        count += counted
        sightings = np.where(cut[:, t, None], 1, sightings + seen)
        gain = tuple(np.where(seen, p / spread, 0.0) for p in state[2:4])
        state = _step(state, gain, innovation, level + np.where(cut[:, t, None], begin[2], 0.0), slope)
        state = tuple(np.where(t < first, b, s) for b, s in zip(begin, state, strict=True))
    return squares.sum(axis=-1), logs.sum(axis=-1), count.sum(axis=-1)


def _smooth_some(
    y: np.ndarray, variance: np.ndarray, used: np.ndarray, cut: np.ndarray, level: np.ndarray, slope: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Path, its variance, score and weight of every position, squares of the auxiliary residuals of steps: (n, 2, f).

    For a share of 1. Kalman filter forwards, then backwards the recursion for r and its variance N (Durbin and Koopman,
    sections 4.4 and 4.5).
    """
    begin, first = _start(y, variance, used)
    state, kept = begin, []
    for t in range(y.shape[-1]):
        seen = used[:, t, None]
        precision = np.where(seen, 1 / np.where(seen, state[2] + variance[..., t], 1.0), 0.0)
        innovation = np.where(seen, y[..., t] - state[0], 0.0)
        gain = state[2] * precision, state[3] * precision
        kept.append((state, gain, innovation, precision))
        state = _step(state, gain, innovation, level + np.where(cut[:, t, None], begin[2], 0.0), slope)
        state = tuple(np.where(t < first, b, s) for b, s in zip(begin, state, strict=True))
    path, error, scores, weights, steps = (np.zeros(y.shape) for _ in range(5))
    r0 = r1 = n00 = n01 = n11 = np.zeros_like(begin[0])
    for t in range(y.shape[-1] - 1, -1, -1):
        (place, _, p00, p01, _), (k0, k1), innovation, precision = kept.pop()
        steps[..., t] = np.where(cut[:, t, None] | (t < first), 0.0, r0**2 / np.where(n00 > 0, n00, np.inf))
        # L, the transition of the prediction's error, is [[1 - k, 1], [-k1, 1]].
        k = k0 + k1
        scores[..., t] = precision * innovation - k * r0 - k1 * r1
        weights[..., t] = precision + k**2 * n00 + 2 * k * k1 * n01 + k1**2 * n11
        r0, r1 = precision * innovation + (1 - k) * r0 - k1 * r1, r0 + r1
        a0, a1 = (1 - k) * n00 - k1 * n01, (1 - k) * n01 - k1 * n11
        n00, n01, n11 = precision + a0 * (1 - k) - a1 * k1, a0 + a1, n00 + 2 * n01 + n11
        path[..., t] = place + p00 * r0 + p01 * r1
        error[..., t] = p00 - (p00**2 * n00 + 2 * p00 * p01 * n01 + p01**2 * n11)
    seen = used[:, None]
    return path, np.maximum(error, 0.0), np.where(seen, scores, 0.0), np.where(seen, weights, 0.0), steps
