"""Local deformation of a cloud of points: the affine map that carries each point's neighbours along."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.spatial import Delaunay, KDTree, QhullError

#: Points, the particle's own among them, that an affine map needs, and least ratio of the minor to the major axis of
#: their spread; along a line nothing is said of what is across it.
FEWEST, ELONGATION = 3, 0.05


class Deformation(NamedTuple):
    """Deformation about every particle in every frame; NaN where it is not known.

    Attributes
    ----------
    gradient : array, shape (particles, frames, 2, 2)
        Displacement gradient du_i / dX_j, axes (y, x).
    covariance : array, shape (particles, frames, 2, 2, 2)
        Of the gradient's rows: [..., i, j, k] is the covariance of du_i / dX_j and du_i / dX_k. Rows of different i
        are independent.
    residual : array, shape (particles, frames)
        Root mean square, over the points and per point, of the distance from the affine map, px; NaN for three points,
        which always lie on one.
    points : int array, shape (particles, frames)
        Number of points used, the particle's own among them; 0 where the particle itself is not known.
    """

    gradient: np.ndarray
    covariance: np.ndarray
    residual: np.ndarray
    points: np.ndarray


def neighbour_lists(place: np.ndarray, nearest: int | None = None) -> list[np.ndarray]:
    """Numbers of every point's neighbours.

    Parameters
    ----------
    place : array, shape (particles, 2)
        NaN for a point that has no neighbours and is none.
    nearest : int, optional
        That many nearest points; by default the neighbours in the Delaunay triangulation, the nearest on all sides.

    Returns
    -------
    list of int arrays
        Ascending. All others where there are too few points, or they lie too straight, for a triangulation.
    """
    known = np.flatnonzero(np.isfinite(place).all(axis=-1))
    lists = [known[:0]] * len(place)
    if nearest is None:
        try:
            start, around = Delaunay(place[known]).vertex_neighbor_vertices
            found = [around[a:b] for a, b in pairwise(start)]
        except (QhullError, ValueError):
            found = [np.delete(np.arange(len(known)), k) for k in range(len(known))]
    else:
        count = min(nearest + 1, len(known))
        around = KDTree(place[known]).query(place[known], k=np.arange(1, count + 1))[1] if count else []
        found = [row[row != k][:nearest] for k, row in enumerate(around)]
    for k, row in zip(known, found, strict=True):
        lists[k] = np.sort(known[row])
    return lists


def local_deformation(
    home: np.ndarray, displacement: np.ndarray, sigma: np.ndarray, neighbours: list[np.ndarray]
) -> Deformation:
    """Fit an affine map to the displacements of each particle and its neighbours, by weighted least squares.

    u = u0 + G (X - X0), with u0 free. Falk and Langer (1998), eqs 2.11 to 2.14, take all displacements relative to the
    particle's own, whose error then spoils every one of them alike; with u0 free it is one point among the others.

    Parameters
    ----------
    home : array, shape (particles, 2), px
        Places before the deformation (X); NaN where not known.
    displacement : array, shape (particles, frames, 2), px
        NaN where not known.
    sigma : array, shape (particles, frames, 2), px
        Standard error of the displacement; points where it is not known or not positive are left out.
    neighbours : list of int arrays
        From `neighbour_lists`.

    Returns
    -------
    Deformation
        Errors are those that `sigma` gives; that the deformation between neighbours is not affine is not in them, but
        in `residual`.

    References
    ----------
    Falk and Langer 1998, doi:10.1103/PhysRevE.57.7192.
    """
    particles, frames = displacement.shape[:2]
    gradient = np.full((particles, frames, 2, 2), np.nan)
    covariance = np.full((particles, frames, 2, 2, 2), np.nan)
    residual, points = np.full((particles, frames), np.nan), np.zeros((particles, frames), dtype=int)
    usable = np.isfinite(displacement).all(-1) & (sigma > 0).all(-1) & np.isfinite(home).all(-1)[:, None]
    for p, others in enumerate(neighbours):
        members = np.append(others, p)
        arms = home[members] - home[p]
        here = usable[members] & usable[p]
        points[p] = here.sum(axis=0)
        solved = _spread_out(arms, here)
        if not solved.any():
            continue
        here = here[:, solved].T
        design = np.concatenate([np.ones((len(members), 1)), arms], axis=1)
        square = np.zeros(here.shape)
        for axis in (0, 1):
            u = np.where(here, displacement[members][:, solved, axis].T, 0.0)
            weight = np.where(here, 1 / np.where(here, sigma[members][:, solved, axis].T, 1.0) ** 2, 0.0)
            inverse = np.linalg.inv(np.einsum("fn,ni,nj->fij", weight, design, design))
            fitted = np.einsum("fij,fn,nj,fn->fi", inverse, weight, design, u)
            gradient[p, solved, axis] = fitted[:, 1:]
            covariance[p, solved, axis] = inverse[:, 1:, 1:]
            square += np.where(here, (u - fitted @ design.T) ** 2, 0.0)
        count = here.sum(axis=1)
        residual[p, solved] = np.where(count > FEWEST, np.sqrt(square.sum(axis=1) / count), np.nan)
    return Deformation(gradient, covariance, residual, points)


def _spread_out(arms: np.ndarray, here: np.ndarray) -> np.ndarray:
    """In which frames (f,) the points (n, 2) that are `here` (n, f) are enough and do not lie on a line."""
    count = here.sum(axis=0)
    mean = (here[..., None] * arms[:, None]).sum(axis=0) / np.maximum(count, 1)[:, None]
    away = np.where(here[..., None], arms[:, None] - mean, 0.0)
    axes = np.sqrt(np.maximum(np.linalg.eigvalsh(np.einsum("nfi,nfj->fij", away, away)), 0))
    return (count >= FEWEST) & (axes[:, 0] > ELONGATION * axes[:, 1])


def finite_strain(gradient: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Green-Lagrange strain, rotation and change of area of a displacement gradient, and their standard errors.

    With F = 1 + G: strain (F^T F - 1) / 2, which no rotation changes; rotation the angle of R in F = R U; change of
    area det F - 1. Errors are propagated to first order.

    Parameters
    ----------
    gradient : array, shape (..., 2, 2)
    covariance : array, shape (..., 2, 2, 2)
        As in `Deformation`.

    Returns
    -------
    value, error : arrays, shape (..., 5)
        Strain yy, xx and yx, rotation (rad, from +y towards +x: with y down it turns the picture anticlockwise),
        relative change of area.
    """
    f = gradient + np.eye(2)
    (yy, yx), (xy, xx) = (f[..., 0, 0], f[..., 0, 1]), (f[..., 1, 0], f[..., 1, 1])
    value = np.stack([(yy**2 + xy**2 - 1) / 2, (yx**2 + xx**2 - 1) / 2, (yy * yx + xy * xx) / 2,
                      np.arctan2(xy - yx, yy + xx), yy * xx - yx * xy - 1], axis=-1)
    zero, norm = np.zeros_like(yy), (xy - yx) ** 2 + (yy + xx) ** 2
    turn, along = (yy + xx) / norm, -(xy - yx) / norm
    # Derivatives by the row (F_yy, F_yx) and by the row (F_xy, F_xx): (..., 5, 2) each.
    by_y = np.stack([yy, zero, zero, yx, yx / 2, yy / 2, along, -turn, xx, -xy], axis=-1)
    by_x = np.stack([xy, zero, zero, xx, xx / 2, xy / 2, turn, along, -yx, yy], axis=-1)
    variance = sum(
        np.einsum("...qi,...ij,...qj->...q", rows.reshape(*rows.shape[:-1], 5, 2), covariance[..., k, :, :],
                  rows.reshape(*rows.shape[:-1], 5, 2))
        for k, rows in enumerate((by_y, by_x)))
    return value, np.sqrt(np.maximum(variance, 0))
