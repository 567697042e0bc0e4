"""Smoothed curves by local polynomials, and where they pass zero or are largest, for many spectra at once.

A local fit is a fixed linear operator for given energies. Positions come with their standard error per unit of noise,
propagated through the operator's rows.
"""

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


def crossing(values: np.ndarray, rows: np.ndarray, nodes: np.ndarray):
    """Where each column of `values` (m, pixels), a curve at equally spaced `nodes` (m,), rises through zero.

    Returns energy (NaN where there is no passage), and the standard error of that energy per unit noise, given the
    norm of the operator's `rows` (m,).
    """
    pixel = np.arange(values.shape[1])
    start = np.clip(_change_point(values), 1, len(nodes) - 3)
    v0, v1, v2, v3 = (values[start + k, pixel] for k in (-1, 0, 1, 2))
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
        spread = (rows[start] * (1 - t) + rows[start + 1] * t) / np.where(slope > 0, slope, np.nan)
    energy = nodes[start] + t * (nodes[1] - nodes[0])
    return np.where(found, energy, np.nan), np.where(found, spread, np.nan)


def _change_point(values: np.ndarray) -> np.ndarray:
    """Row (pixels,) after which the running sum of `values` (m, pixels) is lowest; row by row, to stay in cache."""
    total, lowest = np.zeros(values.shape[1]), np.full(values.shape[1], np.inf)
    where = np.zeros(values.shape[1], dtype=np.intp)
    for k, row in enumerate(values):
        total += row
        np.copyto(where, k, where=total < lowest)
        np.minimum(lowest, total, out=lowest)
    return where


def maximum(values: np.ndarray, rows: np.ndarray, nodes: np.ndarray):
    """Where each column of `values` (m, pixels), a curve at `nodes` (m,), is largest, by a parabola through 3 nodes.

    `rows` (m, n) is the operator that gave the values. Returns energy (NaN where the largest value is the first or
    last), its standard error per unit noise, and the largest value.
    """
    top = np.argmax(values, axis=0)
    found = (top > 0) & (top < len(nodes) - 1)
    top = np.clip(top, 1, len(nodes) - 2)
    pixel = np.arange(values.shape[1])
    left, centre, right = (values[top + k, pixel] for k in (-1, 0, 1))
    a, b = nodes[top] - nodes[top - 1], nodes[top + 1] - nodes[top]
    with np.errstate(invalid="ignore", divide="ignore"):
        rise, fall = (centre - left) / a, (right - centre) / b
        curvature = (fall - rise) / (0.5 * (a + b))
        slope = (rise * b + fall * a) / (a + b)
        shift = np.clip(-slope / curvature, -a, b)
        found &= curvature < 0
        steps = np.linalg.norm(rows[2:] - rows[:-2], axis=1) / (nodes[2:] - nodes[:-2])
        spread = steps[top - 1] / np.abs(curvature)
        height = centre + 0.5 * slope * np.where(found, shift, 0.0)
    return np.where(found, nodes[top] + shift, np.nan), np.where(found, spread, np.nan), height
