"""Smoothed curves by local polynomials, and where they pass zero or are largest, for many spectra at once.

A local fit is a fixed linear operator for given energies. Positions come with their standard error per unit of noise,
propagated through the operator's rows.
"""

from functools import lru_cache

import numpy as np


def local_polynomial(energy: np.ndarray, nodes: np.ndarray, bandwidth: float, degree: int = 3) -> np.ndarray:
    """Operator (nodes, n) from values at `energy` (n,) to local polynomial fits at `nodes` (m,).

    Weights are Epanechnikov's over `bandwidth` (eV), which make the curve continuous. Where fewer than degree + 2
    energies lie within, the window grows until they do: on a coarse grid the fit tends to interpolation. Where that
    would amplify noise (in a wide gap, beyond the ends) the two neighbouring energies are joined by a straight line.
    """
    distance = energy[None, :] - nodes[:, None]
    nearest = np.sort(np.abs(distance), axis=1)[:, min(degree + 1, len(energy) - 1)]
    reach = np.maximum(bandwidth, 1.2 * nearest)[:, None]
    scaled = distance / reach
    weight = np.clip(1.0 - scaled**2, 0.0, None)
    powers = scaled[:, :, None] ** np.arange(degree + 1)  # (m, n, degree + 1)
    normal = np.einsum("mn,mnp,mnq->mpq", weight, powers, powers)
    first = np.linalg.solve(normal, np.eye(degree + 1)[None, :, :1].repeat(len(nodes), axis=0))[..., 0]
    rows = np.einsum("mn,mnp,mp->mn", weight, powers, first)
    loud = ~(np.square(rows).sum(axis=1) < 1.02)
    rows[loud] = _straight(energy, nodes[loud])
    return rows


def _straight(energy: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Operator (nodes, n) of linear interpolation; the first and last value hold beyond the ends."""
    right = np.clip(np.searchsorted(energy, nodes), 1, len(energy) - 1)
    share = np.clip((nodes - energy[right - 1]) / (energy[right] - energy[right - 1]), 0.0, 1.0)
    rows = np.zeros((len(nodes), len(energy)))
    rows[np.arange(len(nodes)), right - 1] = 1.0 - share
    rows[np.arange(len(nodes)), right] = share
    return rows


def gains(rows: np.ndarray, slow: np.ndarray) -> np.ndarray:
    """How strongly curves `rows` (m, n) @ spectrum answer to noise: (2, m), standard deviations.

    First to independent noise of unit variance at every energy, then to slow disturbances of unit variance, whose
    covariance (n, n) is `slow` @ `slow`.T.
    """
    return np.stack((np.linalg.norm(rows, axis=1), np.linalg.norm(rows @ slow, axis=1)))


@lru_cache(maxsize=8)
def slow_noise(energy: tuple[float, ...], reach: float) -> np.ndarray:
    """Square root (n, n) of the covariance exp(-|distance| / `reach`) between energies (eV), for `gains`.

    It is that of a disturbance that forgets itself over `reach`; cached, because scans share their energies.
    """
    step = np.exp(-np.diff(energy) / reach)
    root = np.zeros((len(energy), len(energy)))
    root[0, 0] = 1.0
    for k in range(1, len(energy)):
        root[k] = step[k - 1] * root[k - 1]
        root[k, k] = np.sqrt(1.0 - step[k - 1] ** 2)
    return root


def slopes(rows: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Operator (m - 2, n) of the derivative at the inner of `nodes` (m,), given the operator `rows` (m, n)."""
    return (rows[2:] - rows[:-2]) / (nodes[2:] - nodes[:-2])[:, None]


def crossing(running: np.ndarray, noise: np.ndarray, nodes: np.ndarray):
    """Where curves at equally spaced `nodes` (m,) rise through zero.

    Parameters
    ----------
    running : ndarray, shape (pixels, m)
        Running sums of the curves' values. Their minimum is the change point that best parts "below" from "above".
    noise : ndarray, shape (k, m)
        The curve's answer to k kinds of noise, see `gains`.
    nodes : ndarray, shape (m,)

    Returns
    -------
    energy : ndarray, shape (pixels,)
        NaN where there is no passage.
    spread : ndarray, shape (k, pixels)
        Standard error of the energy per unit of each kind of noise.
    """
    start = np.clip(np.argmin(running, axis=1), 2, len(nodes) - 3)
    near = np.take_along_axis(running, start[:, None] + np.arange(-2, 3), axis=1)
    v0, v1, v2, v3 = np.diff(near, axis=1).T
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (v1 <= 0) & (v2 > 0)
        # Cubic through four nodes, position t in node steps after v1; Newton from the chord.
        c1 = (-2 * v0 - 3 * v1 + 6 * v2 - v3) / 6
        c2 = (v0 - 2 * v1 + v2) / 2
        c3 = (-v0 + 3 * v1 - 3 * v2 + v3) / 6
        t = np.where(found, -v1 / (v2 - v1), 0.5)
        for _ in range(4):
            slope = c1 + t * (2 * c2 + t * 3 * c3)
            t = np.clip(t - (v1 + t * (c1 + t * (c2 + t * c3))) / np.where(slope > 0, slope, v2 - v1), 0.0, 1.0)
        slope = (c1 + t * (2 * c2 + t * 3 * c3)) / (nodes[1] - nodes[0])
        spread = (noise[:, start] * (1 - t) + noise[:, start + 1] * t) / np.where(found & (slope > 0), slope, np.nan)
    return np.where(found, nodes[start] + t * (nodes[1] - nodes[0]), np.nan), spread


def maximum(values: np.ndarray, noise: np.ndarray, nodes: np.ndarray, curvature: np.ndarray | None = None):
    """Where curves at `nodes` (m,) are largest, by a parabola through three nodes.

    Parameters
    ----------
    values : ndarray, shape (pixels, m)
        The curves.
    noise : ndarray, shape (k, m - 2)
        Answers of their derivatives at the inner nodes to k kinds of noise, see `gains` and `slopes`.
    nodes : ndarray, shape (m,)
    curvature : ndarray, shape (pixels,), optional
        Known curvature at the maximum, negative; by default the parabola's. Among noisy maxima the largest is sharper
        than the true one, so that its own curvature would promise too small an error.

    Returns
    -------
    energy : ndarray, shape (pixels,)
        NaN where the largest value is the first or the last.
    spread : ndarray, shape (k, pixels)
        Standard error of the energy per unit of each kind of noise.
    height : ndarray, shape (pixels,)
        The largest value.
    """
    top = np.argmax(values, axis=1)
    found = (top > 0) & (top < len(nodes) - 1)
    top = np.clip(top, 1, len(nodes) - 2)
    left, centre, right = np.take_along_axis(values, top[:, None] + np.arange(-1, 2), axis=1).T
    a, b = nodes[top] - nodes[top - 1], nodes[top + 1] - nodes[top]
    with np.errstate(invalid="ignore", divide="ignore"):
        rise, fall = (centre - left) / a, (right - centre) / b
        bend = (fall - rise) / (0.5 * (a + b))
        slope = (rise * b + fall * a) / (a + b)
        shift = np.clip(-slope / bend, -a, b)
        found &= bend < 0
        spread = noise[:, top - 1] / np.where(found, np.abs(bend if curvature is None else curvature), np.nan)
        height = centre + 0.5 * slope * np.where(found, shift, 0.0)
    return np.where(found, nodes[top] + shift, np.nan), spread, height


def top_curvature(values: np.ndarray, nodes: np.ndarray) -> float:
    """Curvature of one curve (m,) at its largest value; NaN where that is the first or the last."""
    top = int(np.argmax(values))
    if not 0 < top < len(nodes) - 1:
        return np.nan
    rise, fall = np.diff(values[top - 1 : top + 2]) / np.diff(nodes[top - 1 : top + 2])
    return float(2.0 * (fall - rise) / (nodes[top + 1] - nodes[top - 1]))
