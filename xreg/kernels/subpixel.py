"""Sub-pixel position of a particle from its own picture: a fit of each frame to the particle's template.

The contour's centre of mass starts it. Then a frame's window is modelled as the template, shifted, times a contrast
that is free in every frame (it changes by a factor of three over the edge) and may vary linearly and quadratically over
the particle (oxidation from one side or from the rim), on a background with a free offset and tilt. What is left to
tell the shift is the outline and the inner structure, neither of which changes with energy.

Beyond Su et al. 2024, who stop at the contour's centre of mass.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

#: Rim (px) around the outline that belongs to the fit, so that the background is known.
RIM = 5
#: Steps of at most this length (px) are taken; a fit that wants more is started in the wrong place.
_LONGEST_STEP = 1.5
#: Steps shorter than this (px) end the fit.
_CONVERGED = 0.004


@dataclass(frozen=True)
class Template:
    """A particle's picture and what a frame's window is fitted with.

    Attributes
    ----------
    half : int
        Windows reach from -half to +half px, as far as the mask does: n = 2 half + 1.
    mask : ndarray, shape (n, n), bool
        The particle with a rim of background.
    basis : ndarray, shape (n, n, 9), float64
        The columns of the fit: background (1, y, x), contrast (template times 1, y, x, r2), and slopes of the template.
    """

    half: int
    mask: np.ndarray
    basis: np.ndarray

    @classmethod
    def of(cls, picture: np.ndarray, contour: np.ndarray) -> "Template":
        """Template from a particle's mean picture (NaN where not seen) and its outline, squares of one odd size."""
        mask = ndimage.binary_dilation(contour, iterations=RIM)
        middle = len(picture) // 2
        half = min(int(np.abs(np.argwhere(mask) - middle).max(initial=0)) + 1, middle)
        inner = slice(middle - half, middle + half + 1)
        picture, contour, mask = picture[inner, inner], contour[inner, inner], mask[inner, inner]
        mask = mask & np.isfinite(picture)
        around = mask & ~ndimage.binary_dilation(contour, iterations=2)
        level = np.median(picture[around]) if around.any() else 0.0
        picture = np.where(np.isfinite(picture), picture - level, 0.0)
        y, x = np.mgrid[-half:half + 1, -half:half + 1] / max(np.sqrt(contour.sum() / np.pi), 1.0)
        bent = picture * (y * y + x * x - 0.5)
        columns = [np.ones_like(picture), y, x, picture, picture * y, picture * x, bent, *np.gradient(picture)]
        return cls(half, mask, np.stack(columns, axis=-1))


def measure_shift(window: np.ndarray, template: Template, usable: np.ndarray) -> tuple[np.ndarray, float]:
    """How far a particle lies from the middle of a window, by one linear fit.

    Parameters
    ----------
    window : ndarray, shape (n, n)
        Optical density; NaN where invalid.
    template : Template
        Of the particle.
    usable : ndarray, shape (n, n), bool
        Pixels that no other particle covers.

    Returns
    -------
    shift : ndarray, shape (2,)
        y and x, px; NaN where too few pixels are left or the particle cannot be told from its background.
    contrast : float
        Of the window over that of the template.
    """
    used = template.mask & usable & np.isfinite(window)
    if used.sum() < 0.5 * template.mask.sum():
        return np.full(2, np.nan), np.nan
    columns = template.basis[used]
    normal = columns.T @ columns
    normal[np.diag_indices(len(normal))] *= 1 + 1e-9
    try:
        found = np.linalg.solve(normal, columns.T @ window[used])
    except np.linalg.LinAlgError:
        return np.full(2, np.nan), np.nan
    contrast = found[3]
    if contrast < 0.05:
        return np.full(2, np.nan), float(contrast)
    return np.clip(-found[-2:] / contrast, -_LONGEST_STEP, _LONGEST_STEP), float(contrast)


def refine_position(cut, start: np.ndarray, scale: float, template: Template, usable: np.ndarray, steps: int = 6
                    ) -> np.ndarray:
    """Move a position until the particle lies in the middle of its window.

    Parameters
    ----------
    cut : callable
        Position (y, x) in raw px to window (n, n).
    start : ndarray, shape (2,)
        Where to begin, raw px.
    scale : float
        Pixel size over that of the reference energy.
    template : Template
        Of the particle.
    usable : ndarray, shape (n, n), bool
        Pixels that no other particle covers.
    steps : int
        At most so many.

    Returns
    -------
    ndarray, shape (2,)
        Raw px; NaN where the fit fails, strays or does not settle.
    """
    position = start.copy()
    farthest = max(2.5, 0.04 * template.half)
    for _ in range(steps):
        shift, _ = measure_shift(cut(position), template, usable)
        position = position + shift / scale
        if not np.abs(position - start).max() < farthest:
            return np.full(2, np.nan)
        if np.abs(shift).max() < _CONVERGED:
            return position
    return position if np.abs(shift).max() < 10 * _CONVERGED else np.full(2, np.nan)
