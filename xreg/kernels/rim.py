"""Where a particle begins: thickness falls to nothing at the rim, and contours that are drawn where it shows are small.

The mean optical density at each distance from the contour is compared with what particles of many shapes would show,
from plates to cones, blurred more or less::

    density(d) = outside + contrast * blur[(1 - rho ** p) ** q],    rho = 1 + (d - offset) / r

with d the distance from the contour, positive outside, and r its radius. All that is not known (shape p and q, blur,
contrast, background) is averaged over, each by how well it explains the picture, so that where noise leaves it open
the contour stays where it is.
"""

from functools import lru_cache
from itertools import product

import numpy as np
from scipy import ndimage

#: Shapes, and blurs in samples, that are tried: q = 0 would be a plate, p = 2 and q = 0.5 a ball, p = 2 and q = 1 a
#: paraboloid.
_ROUND, _STEEP, _BLUR = (2.0, 3.0, 4.5, 6.0), (0.1, 0.25, 0.4, 0.55, 0.7, 0.85), (0.5, 1.0, 2.0, 3.5)
#: Farthest that a rim is looked for, in radii, and the standard error of a contour that nothing is known of.
_FARTHEST, _USUAL = 0.16, 0.05
#: How far inside (radii) and outside (samples) of the contour the picture is compared.
_INSIDE, _OUTSIDE = 0.4, 6
#: Samples that one bin of distances must have.
_FEWEST = 12
#: Samples that are alike, by blur and texture; and the part of the contrast by which no particle is like the model.
_ALIKE, _UNLIKE = 50.0, 0.01


def extend_to_rim(density: np.ndarray, contour: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """A contour moved to where the particle begins.

    Parameters
    ----------
    density : ndarray, shape (n, n)
        Optical density.
    contour : ndarray, shape (n, n)
        Soft contour, 0 to 1.
    usable : ndarray, shape (n, n), bool
        Samples that are valid and show no other particle.

    Returns
    -------
    ndarray, shape (n, n)
        Soft contour, 0 to 1; as it was where too little of the rim is usable.
    """
    inside = contour > 0.5
    radius = round(float(np.sqrt(inside.sum() / np.pi)))
    if radius < _OUTSIDE:
        return contour
    distance = np.where(inside, 0.5 - ndimage.distance_transform_edt(inside),
                        ndimage.distance_transform_edt(~inside) - 0.5)
    return _moved(contour, distance, _offset(density, distance, usable, radius))


def _offset(density: np.ndarray, distance: np.ndarray, usable: np.ndarray, radius: int) -> float:
    """How far outside of a contour the particle begins, samples; negative where the contour is too large."""
    edges, offsets, models = _models(radius)
    index = np.digitize(distance, edges) - 1
    seen = usable & (index >= 0) & (index < len(edges) - 1)
    index, values = index[seen], density[seen].astype(float)
    count, total, square = (np.bincount(index, w, len(edges) - 1) for w in (None, values, values**2))
    known = count >= _FEWEST
    middle = (edges[1:] + edges[:-1]) / 2
    if (known & (middle > 2)).sum() < 2 or (known & (middle < -2)).sum() < 4:
        return 0.0
    mean = total[known] / count[known]
    scatter = np.maximum(square[known] / count[known] - mean**2, 0) * _ALIKE / count[known]
    weight = 1 / (scatter + (_UNLIKE * np.ptp(mean)) ** 2 + 1e-12)
    weight_sum = weight.sum()
    # Background and contrast are those that fit each model best.
    shape = models[:, known]
    shape -= (shape @ weight / weight_sum)[:, None]
    curve = mean - mean @ weight / weight_sum
    shared = shape @ (weight * curve)
    gained = np.where(shared > 0, shared**2 / np.maximum(shape**2 @ weight, 1e-12), 0.0)
    likely = (gained / 2).reshape(-1, len(offsets)) - (offsets / (_USUAL * radius)) ** 2 / 2
    share = np.exp(likely - likely.max())
    return float((share @ offsets).sum() / share.sum())


def _moved(contour: np.ndarray, distance: np.ndarray, offset: float) -> np.ndarray:
    """A soft contour whose edge lies so many samples farther out, also where it meets another particle.

    To leave it where it is there costs 0.002 of the overlap with the truth of touching particles.
    """
    slope = np.stack(np.gradient(ndimage.gaussian_filter(distance, 1.0)))
    # Where distances to two sides meet there is no normal, and far inside nothing to move.
    normal = slope / np.maximum(np.linalg.norm(slope, axis=0), 0.3)
    return ndimage.map_coordinates(contour, np.indices(contour.shape) - offset * normal, order=1, mode="nearest")


@lru_cache(maxsize=128)
def _models(radius: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges of the bins of distance, samples; offsets that are tried; curves (shapes x offsets, bins)."""
    edges = np.arange(-round(_INSIDE * radius), _OUTSIDE + 1, dtype=float)
    offsets = np.linspace(-_FARTHEST * radius, _FARTHEST * radius, 41)
    fine = np.arange(-2.0 * radius, 1.5 * radius, 0.1)
    rho = np.clip((radius + fine) / radius, 0, 1)
    middle = (edges[1:] + edges[:-1]) / 2
    curves = [np.interp(middle[None] - offsets[:, None], fine,
                        ndimage.gaussian_filter1d((1 - rho**p) ** q, blur / 0.1))
              for p, q, blur in product(_ROUND, _STEEP, _BLUR)]
    return edges, offsets, np.concatenate(curves)
