"""Paths that go on as they did: a local linear trend with white disturbances, filtered and smoothed.

One path per particle and axis: its place goes on by its speed plus `level`, its speed by `slope`, both white noise of
given variances, and positions are seen with errors of given variances. The Kalman filter says how likely positions are
under that; the smoother what the path most likely was, and what it takes to explain each step and each position. Errors
that are the same up to a known factor in each frame are regressed on, in the same pass.

Arrays are (particles, 2, frames); all particles run together.

Reference: Durbin and Koopman 2012, Time Series Analysis by State Space Methods, 2nd ed.: local linear trend (3.2), fast
state smoothing (4.4, 4.5), regression on the innovations (6.2), auxiliary residuals (7.5).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

#: Variances of a place and a speed (per frame) of which nothing is known, over the usual variance of the positions.
_ANY_PLACE, _ANY_SPEED = 1e10, 1e6
#: Numbers that a pass may keep in memory.
MOST_NUMBERS = 2**25


class Likelihood(NamedTuple):
    """How well models predict each position from those before it.

    Attributes
    ----------
    squares, logs, count : ndarray, shape (models, particles)
        Sums over both axes of squared innovations over their variances, of these' logarithms, and of their number.
    products, pulls : ndarray, shape (models, particles, 2)
        Sums of the innovations' products with those of the pull, and of the squares of the latter, over the variances.
    """

    squares: np.ndarray
    logs: np.ndarray
    count: np.ndarray
    products: np.ndarray
    pulls: np.ndarray

    def with_bias(self, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums of squares and of logarithms where each axis has an unknown multiple of the pull, of given variance."""
        factor = 1 + variance * self.pulls
        return (self.squares - (variance * self.products**2 / factor).sum(axis=-1),
                self.logs + np.log(factor).sum(axis=-1))

    def bias(self, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The most likely multiple of the pull, and its variance."""
        factor = 1 + variance * self.pulls
        return variance * self.products / factor, variance / factor


@dataclass(frozen=True)
class Path:
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


def smooth(
    y: np.ndarray, variance: np.ndarray, used: np.ndarray, cut: np.ndarray, level: np.ndarray, slope: np.ndarray,
    share: np.ndarray,
) -> Path:
    """Paths of all particles by one model each, some particles at a time.

    Parameters
    ----------
    y, variance : ndarray, shape (particles, 2, frames)
        Positions and the variances of their errors.
    used : ndarray, shape (particles, frames), bool
        Which positions count.
    cut : ndarray, shape (particles, frames), bool
        Where the step to the next frame may be any.
    level, slope : ndarray, shape (particles, 2)
        Variances of the disturbances for a share of 1.
    share : ndarray, shape (particles,)
        All variances are this many times as large.
    """
    most = max(MOST_NUMBERS // (32 * y.shape[-1]), 1)
    parts = [_smooth_some(*(a[low : low + most] for a in (y, variance, used, cut, level, slope)))
             for low in range(0, len(y), most)]
    place, error, score, weight, steps = (np.concatenate(a) for a in zip(*parts, strict=True))
    share = share[:, None, None]
    positions = score**2 / np.where(weight > 0, weight, np.inf)
    return Path(place, share * error, score / share, weight / share, (steps / share).sum(axis=1),
                (positions / share).sum(axis=1))


def _start(y: np.ndarray, variance: np.ndarray, used: np.ndarray) -> tuple[tuple, np.ndarray]:
    """State of every particle before its first position is known, (n, 2) each, and the frame of that, (n, 1)."""
    first = used.argmax(axis=1)[:, None]
    usual = np.nanmedian(np.where(used[:, None], variance, np.nan), axis=-1)
    nothing = np.zeros_like(usual)
    place = np.take_along_axis(y, first[..., None], axis=-1)[..., 0]
    return (place, nothing, _ANY_PLACE * usual, nothing, _ANY_SPEED * usual), first


def _ahead(place: np.ndarray, speed: np.ndarray, gain: tuple, innovation: np.ndarray) -> tuple:
    """The next frame's place and speed from this one's, the innovation taken up."""
    speed = speed + gain[1] * innovation
    return place + gain[0] * innovation + speed, speed


def _step(state: tuple, gain: tuple, innovation: np.ndarray, level: np.ndarray, slope: np.ndarray) -> tuple:
    """The next frame's prediction from this one's (Kalman filter): place, speed and their covariance (3)."""
    place, speed, p00, p01, p11 = state
    k0, k1 = gain
    p00, p01, p11 = p00 - k0 * p00, p01 - k0 * p01, p11 - k1 * p01
    return (*_ahead(place, speed, gain, innovation), p00 + 2 * p01 + p11 + level + slope / 3, p01 + p11 + slope / 2,
            p11 + slope)


def likelihood(
    y: np.ndarray, pull: np.ndarray, variance: np.ndarray, used: np.ndarray, cut: np.ndarray, level: np.ndarray,
    slope: np.ndarray,
) -> Likelihood:
    """How likely positions are under models (models, particles, 2), for a share of 1.

    `pull` (particles, frames) is how much an error that stays moves each position; other arguments as for `smooth`.
    """
    begin, first = _start(y, variance, used)
    pull = pull[:, None]
    here = np.take_along_axis(pull, first[:, None], axis=-1)[..., 0]
    state = begin = tuple(np.broadcast_to(a, level.shape) for a in begin)
    pulled = pulled_begin = tuple(np.broadcast_to(a, level.shape) for a in (here, np.zeros_like(here)))
    squares, logs, count, sightings, products, pulls = (np.zeros(level.shape) for _ in range(6))
    for t in range(y.shape[-1]):
        seen = used[:, t, None]
        spread = np.where(seen, state[2] + variance[..., t], 1.0)
        innovation = np.where(seen, y[..., t] - state[0], 0.0)
        new_pull = np.where(seen, pull[..., t] - pulled[0], 0.0)
        # The first two say where a path begins and how fast, one after a cut where it goes on.
        counted = seen & (sightings >= 2)
        squares += np.where(counted, innovation**2 / spread, 0.0)
        logs += np.where(counted, np.log(spread), 0.0)
        count += counted
        products += np.where(counted, innovation * new_pull / spread, 0.0)
        pulls += np.where(counted, new_pull**2 / spread, 0.0)
        sightings = np.where(cut[:, t, None], 1, sightings + seen)
        gain = tuple(np.where(seen, p / spread, 0.0) for p in state[2:4])
        state = _step(state, gain, innovation, level + np.where(cut[:, t, None], begin[2], 0.0), slope)
        pulled = _ahead(*pulled, gain, new_pull)
        state, pulled = (tuple(np.where(t < first, b, s) for b, s in zip(*pair, strict=True))
                         for pair in ((begin, state), (pulled_begin, pulled)))
    return Likelihood(squares.sum(axis=-1), logs.sum(axis=-1), count.sum(axis=-1), products, pulls)


def _smooth_some(
    y: np.ndarray, variance: np.ndarray, used: np.ndarray, cut: np.ndarray, level: np.ndarray, slope: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Path, its variance, score and weight of every position, squares of the auxiliary residuals of steps: (n, 2, f).

    For a share of 1. Kalman filter forwards, then backwards the recursion for r and its variance N (sections 4.4 and
    4.5).
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
