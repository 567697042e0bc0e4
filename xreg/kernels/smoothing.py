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

What lies behind a weak particle, or its own template, may pull it to one side by the same length in many frames, the
more the weaker it is: before the edge, say. Such an error looks like a step of the particle at the edge. It is told
from one by all frames together: `pull` says how strong it is in each of them, and its length, about a standard error
times that, is estimated with the path where this is surely more likely than none.

References: Durbin and Koopman 2012, Time Series Analysis by State Space Methods, 2nd ed. (see `kernels.trend`); Harvey
and Koopman 1992, doi:10.1080/07350015.1992.10509913 (auxiliary residuals).
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.ndimage import convolve1d

from xreg.kernels.trend import MOST_NUMBERS, Path, likelihood, smooth

#: Variances of level and slope that are tried, over the usual variance of the positions: smooth paths, with or without
#: some shaking, and paths that shake.
_MODELS = np.array([*product((0.0, *10.0 ** np.arange(-3, 3)), (0.0, *10.0 ** np.arange(-8, 1))),
                    *product(10.0 ** np.arange(3, 9), (0.0,))])
#: Variances of the pulls that are tried, over the same (a pull is an error of the fit, and no larger than those are; in
#: a single scan a larger one could be motion as well), and by how much twice the logarithm of the likelihood must be
#: larger than without, so that none is found where there is none.
_BIASES, _BIAS_COST = np.array([0.0, 1.0]), 6.0
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
#: Rounds of models, at least and at most: they end when twice the logarithm of the likelihood grows by less. In each
#: so many turns of paths and shared motion.
_ROUNDS, _SETTLED, _TURNS = (3, 12), 10.0, 6
#: Part of the way that is gone in one turn: neighbouring frames answer to each other's steps, so that whole ones may
#: never settle.
_PART = 0.6
#: A jump, or an error of the fit, is one of which the square over both axes is this many times its variance: for noise
#: alone the odds are 3e-7 for each position.
_EVENT = 30.0
#: Frames to either side in which errors are compared, and events are the shadow of the largest; so many together are
#: errors at most.
_APART, _SHORT = 3, 3
#: A position is left out only if the path there has no more than so many times its variance.
_TOLD = 9.0


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


def smooth_paths(
    position: np.ndarray, sigma: np.ndarray, starts: np.ndarray, pull: np.ndarray | None = None
) -> Paths:
    """Most likely paths of particles and background.

    Parameters
    ----------
    position, sigma : arrays, shape (n, frames, 2), px
        In reference coordinates, and standard errors; NaN where not seen.
    starts : array, shape (k, frames, 2), px
        Guesses of the motion that all share; NaN where it is not known. The one that leads to the likeliest paths
        counts.
    pull : array, shape (n, frames), optional
        By how much an error that stays moves each position, up to a factor; none by default.

    Returns
    -------
    Paths
        What has fewer than twenty sightings, or is the only one that has more, stays as it is.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        sure = np.isfinite(sigma**2) & (sigma**2 > 0)
    known = np.isfinite(position).all(-1) & sure.all(-1) & np.isfinite(starts).all(axis=(0, -1))
    rows = np.flatnonzero(known.sum(axis=1) >= _FEWEST)
    if len(rows) < 2:
        return Paths(position, sigma, starts[0])
    known = known[rows]
    # Axes are rows of their own from here on: (n, 2, frames).
    place, error = (np.moveaxis(np.where(known[..., None], a[rows], np.nan), -1, 1) for a in (position, sigma))
    sightings = _Sightings(place, error**2, known, np.zeros(known.shape) if pull is None else pull[rows])
    found = min((_solve(sightings, start.T) for start in starts), key=lambda solution: solution.cost)
    placed, error = _standard_errors(sightings, found)
    smoothed, wide = position.copy(), sigma.copy()
    smoothed[rows] = np.where(placed[..., None], np.moveaxis(found.path.place + found.motion, 1, -1), position[rows])
    wide[rows] = np.where(placed[..., None], np.moveaxis(error, 1, -1), sigma[rows])
    return Paths(smoothed, wide, found.motion.T)


@dataclass(frozen=True)
class _Sightings:
    """Places and variances of their errors, (n, 2, f); where they are known and how strongly pulled, (n, f)."""

    place: np.ndarray
    variance: np.ndarray
    known: np.ndarray
    pull: np.ndarray


@dataclass(frozen=True)
class _Solution:
    """Shared motion (2, f), paths beside it, and what they leave: events, (n, f) bool; less is likelier (`cost`)."""

    motion: np.ndarray
    total: np.ndarray
    bias: np.ndarray
    bias_variance: np.ndarray
    model: "_Model"
    path: Path
    cut: np.ndarray
    left_out: np.ndarray
    cost: float


def _solve(given: _Sightings, motion: np.ndarray) -> _Solution:
    """Shared motion, models and paths, each from the others in turn."""
    known, free = given.known, np.ones(given.place.shape)
    cut, left_out = np.zeros(known.shape, dtype=bool), np.zeros(known.shape, dtype=bool)
    nothing = np.zeros(len(known))
    model = _Model.of(np.broadcast_to(_BEGUN_BY, (len(known), 2)), nothing, given.variance, nothing + 1)
    least, most = _ROUNDS
    cost = np.inf
    for number in range(1 + most):
        used = known & ~left_out
        if number:
            likeliest, now = _most_likely(given, given.place - motion, used, cut, free)
            now += _EVENT * (cut.sum() + left_out.sum())
            if number > least and now > cost - _SETTLED:
                break
            model, cost = likeliest, now
        for _ in range(_TURNS):
            bias, _ = _biases(given, given.place - motion, used, cut, model)
            path = _smooth(given.place - motion - bias, given.variance, used, cut, model)
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
    used = known & ~left_out
    bias, bias_variance = _biases(given, given.place - motion, used, cut, model)
    path = _smooth(given.place - motion - bias, given.variance, used, cut, model)
    return _Solution(motion, total, bias, bias_variance, model, path, cut, left_out, cost)


def _standard_errors(given: _Sightings, found: _Solution) -> tuple[np.ndarray, np.ndarray]:
    """Which positions the paths replace, (n, f) bool, and the paths' standard errors there, (n, 2, f)."""
    variance, known, left_out = given.variance, given.known, found.left_out
    share = found.model.share[:, None, None]
    pulled = _smooth(np.repeat(given.pull[:, None], 2, axis=1), variance, known & ~left_out, found.cut, found.model)
    error = found.path.variance + 1 / found.total
    error = np.where(left_out[:, None], error, np.minimum(error, share * variance))
    # What single frames claim does not hold what is the same in all of them.
    error += pulled.place**2 * found.bias_variance
    error += np.maximum(_STAYS * (1 - share), _LEAST_STAYS) * np.minimum(variance, _nearby(variance, known))
    away = given.place - found.motion - found.bias - found.path.place
    off = np.nan_to_num((away**2 / variance).sum(axis=1)) > _EVENT
    # A position is left out only where the others say about as well as it would where it should be.
    told = (found.path.variance < _TOLD * np.where(known[:, None], variance, 0.0)).all(axis=1)
    placed = known & ~((off | left_out) & ~(left_out & told & _few(off | left_out, found.cut)))
    return placed, np.sqrt(error)


# -- models ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Model:
    """Variances of level, slope and pull for a share of 1, px2, (n, 2) each, and the errors' share, (n,)."""

    level: np.ndarray
    slope: np.ndarray
    bias: np.ndarray
    share: np.ndarray

    @classmethod
    def of(cls, ratios: np.ndarray, bias: np.ndarray, variance: np.ndarray, share: np.ndarray) -> "_Model":
        """Models from ratios of level and slope (n, 2) and pull (n,) to the usual variance of the positions."""
        usual = np.nanmedian(variance, axis=-1)
        return cls(*(ratios[:, k, None] * usual for k in (0, 1)), bias[:, None] * usual, share)


def _smooth(y: np.ndarray, variance: np.ndarray, used: np.ndarray, cut: np.ndarray, model: _Model) -> Path:
    """Paths by one model each."""
    return smooth(y, variance, used, cut, model.level, model.slope, model.share)


def _biases(
    given: _Sightings, own: np.ndarray, used: np.ndarray, cut: np.ndarray, model: _Model
) -> tuple[np.ndarray, np.ndarray]:
    """What stays the same pulls the particles by, (n, 2, f), and the variance of its length, (n, 2, 1)."""
    if not model.bias.any():
        return np.zeros(own.shape), np.zeros((*own.shape[:2], 1))
    found = likelihood(own, given.pull, given.variance, used, cut, model.level[None], model.slope[None])
    length, variance = (a[0][..., None] for a in found.bias(model.bias))
    return length * given.pull[:, None], model.share[:, None, None] * variance


def _most_likely(
    given: _Sightings, own: np.ndarray, used: np.ndarray, cut: np.ndarray, free: np.ndarray
) -> tuple[_Model, float]:
    """The most likely model of every particle, the same for both axes but for the scale of their errors, and -2 log L.

    `free` is what each position has not given to the shared motion, which would make errors look smaller.
    """
    best, share, cost = np.empty(len(own), dtype=int), np.empty(len(own)), 0.0
    dearer = np.where(_BIASES > 0, _BIAS_COST, 0.0).repeat(len(_MODELS))[:, None]
    most = max(MOST_NUMBERS // (64 * len(_MODELS)), 1)
    for low in range(0, len(own), most):
        part = slice(low, low + most)
        usual = np.nanmedian(given.variance[part], axis=-1)
        found = likelihood(own[part], given.pull[part], given.variance[part], used[part], cut[part],
                           *(_MODELS[:, k, None, None] * usual for k in (0, 1)))
        # Every pull with every model of level and slope.
        squares, logs = (a.reshape(-1, len(usual)) for a in found.with_bias(_BIASES[:, None, None, None] * usual))
        count = np.tile(found.count, (len(_BIASES), 1))
        count = count * np.maximum([f[:, u].mean() for f, u in zip(free[part], used[part], strict=True)], 0.1)
        least, most_likely = _SHARES
        limit = 1 + (most_likely - 1) * np.minimum(used[part].sum(axis=1) / _MANY, 1.0)
        shares = np.clip(squares / np.maximum(count, 1), least, limit)
        costs = count * np.log(shares) + logs + squares / shares + dearer
        best[part] = costs.argmin(axis=0)
        share[part] = np.take_along_axis(shares, best[None, part], axis=0)[0]
        cost += float(costs.min(axis=0).sum())
    pulls, models = np.divmod(best, len(_MODELS))
    return _Model.of(_MODELS[models], _BIASES[pulls], given.variance, share), cost


# -- events ------------------------------------------------------------------------------------------------------------


def _events(path: Path, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
