"""Sub-pixel position of a particle from its own picture: a fit of each frame to the particle's template.

The contour's centre of mass starts it. Then a frame's window is modelled as the template, shifted, times a contrast
that is free in every frame (it changes by a factor of three over the edge) and may vary linearly and quadratically over
the particle (oxidation from one side or from the rim), on a background with a free offset and tilt. The particle may
also turn and be strained a little; else one that grows would be placed by its strongest edge. What is left to tell the
shift is the outline and the inner structure, neither of which changes with energy.

Beyond Su et al. 2024, who stop at the contour's centre of mass.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy import ndimage

#: Rim (px) around the outline that belongs to the fit, so that the background is known.
RIM = 5
#: Pixels about what is not known of a picture whose slopes are not known either.
_UNSURE = 3
#: Steps of at most this length (px) are taken; a fit that wants more is started in the wrong place.
_LONGEST_STEP = 1.5
#: Steps shorter than this (px) end the fit.
_CONVERGED = 0.004
#: Fits that end farther (px) from where they began, large particles excepted, have lost their way.
_FARTHEST = 4.0
#: Fits that go to and fro by more (px) do not settle.
_LONGEST_SWING = 0.3
#: A last step within this part of the standard error is as good.
_WITHIN = 0.3
#: Radius (px) from which a particle may be strained; a smaller, blurred one that grows looks like one of more contrast.
_LEAST_STRAINED = 10
#: Place of the template among the columns of the fit, and the least that is taken for a particle.
_CONTRAST, _LEAST_CONTRAST = 3, 0.05


class Fit(NamedTuple):
    """What one frame says about one particle; all NaN where nothing can be said.

    Attributes
    ----------
    position : ndarray, shape (2,)
        Raw px.
    sigma : ndarray, shape (2,)
        Standard error of the position, raw px, from what the fit leaves over.
    contrast, contrast_sigma : float
        Of the particle over that of its template, and its standard error.
    """

    position: np.ndarray
    sigma: np.ndarray
    contrast: float
    contrast_sigma: float


NO_FIT = Fit(np.full(2, np.nan), np.full(2, np.nan), np.nan, np.nan)


@dataclass(frozen=True)
class Template:
    """A particle's picture and what a frame's window is fitted with.

    Attributes
    ----------
    half : int
        Windows reach from -half to +half px, as far as the mask does: n = 2 half + 1.
    mask : ndarray, shape (n, n), bool
        The particle with a rim of background.
    picture : ndarray, shape (n, n), float64
        Optical density of the particle above its surroundings.
    basis : ndarray, shape (n, n, 9 or 13), float64
        The columns of the fit: background (1, y, x), contrast (template times 1, y, x, r2), but for small particles
        strain and rotation (slopes of the template times y, x), and shift (slopes of the template).
    """

    half: int
    mask: np.ndarray
    picture: np.ndarray
    basis: np.ndarray

    @classmethod
    def of(cls, picture: np.ndarray, contour: np.ndarray) -> "Template":
        """Template from a particle's mean picture (NaN where not seen) and its outline, squares of one odd size."""
        mask = ndimage.binary_dilation(contour, iterations=RIM)
        middle = len(picture) // 2
        half = min(int(np.abs(np.argwhere(mask) - middle).max(initial=0)) + 1, middle)
        inner = slice(middle - half, middle + half + 1)
        picture, contour, mask = picture[inner, inner], contour[inner, inner], mask[inner, inner]
        # Slopes at the end of what is known are none of the particle's.
        mask = mask & ndimage.binary_erosion(np.isfinite(picture), iterations=_UNSURE, border_value=1)
        around = mask & ~ndimage.binary_dilation(contour, iterations=2)
        level = np.median(picture[around]) if around.any() else 0.0
        picture = np.where(np.isfinite(picture), picture - level, 0.0)
        y, x = np.mgrid[-half:half + 1, -half:half + 1] / max(np.sqrt(contour.sum() / np.pi), 1.0)
        bent = picture * (y * y + x * x - 0.5)
        down, right = np.gradient(picture)
        strain = [down * y, down * x, right * y, right * x] if contour.sum() >= np.pi * _LEAST_STRAINED**2 else []
        columns = [np.ones_like(picture), y, x, picture, picture * y, picture * x, bent, *strain, down, right]
        return cls(half, mask, picture, np.stack(columns, axis=-1))

    @cached_property
    def columns(self) -> np.ndarray:
        """The basis in the mask, (pixels, columns)."""
        return self.basis[self.mask]

    @cached_property
    def inverse(self) -> np.ndarray | None:
        """Inverse of the normal matrix where the whole mask is valid, square; None where it has none."""
        return _inverse(self.columns)


def _inverse(columns: np.ndarray) -> np.ndarray | None:
    normal = columns.T @ columns
    normal[np.diag_indices(len(normal))] *= 1 + 1e-9
    try:
        return np.linalg.inv(normal)
    except np.linalg.LinAlgError:
        return None


def measure_shift(window: np.ndarray, template: Template, *, errors: bool = True) -> Fit:
    """How far a particle lies from the middle of a window, by one linear fit.

    Parameters
    ----------
    window : ndarray, shape (n, n)
        Optical density; NaN where invalid.
    template : Template
        Of the particle.
    errors : bool
        Whether standard errors are wanted; they take time.

    Returns
    -------
    Fit
        `position` is the shift (y, x) from the middle, px of the window. NaN where less than half of the particle is
        seen or it cannot be told from its background.
    """
    values = window[template.mask].astype(np.float64)
    known = np.isfinite(values)
    columns, inverse = template.columns, None
    if known.all():
        inverse = template.inverse
    elif known.sum() >= max(0.5 * len(values), 2 * columns.shape[1]):
        columns, values = columns[known], values[known]
        inverse = _inverse(columns)
    if inverse is None:
        return NO_FIT
    found = inverse @ (columns.T @ values)
    contrast, sigma = float(found[_CONTRAST]), np.full(len(found), np.nan)
    if errors:
        left = values - columns @ found
        spread = np.abs(np.diag(inverse)) * (left @ left) / max(len(values) - len(found), 1)
        sigma = np.sqrt(spread * likeness_of_neighbours(left, template.mask, known))
    if contrast < _LEAST_CONTRAST:
        return NO_FIT._replace(contrast=contrast, contrast_sigma=float(sigma[_CONTRAST]))
    return Fit(-found[-2:] / contrast, sigma[-2:] / contrast, contrast, float(sigma[_CONTRAST]))


def likeness_of_neighbours(left: np.ndarray, mask: np.ndarray, known: np.ndarray) -> float:
    """Sum of the correlations of what a fit leaves over, of a pixel with itself and its eight neighbours; at least 1.

    Independent pixels would give 1. Interpolation and what is left of the background make neighbours alike, so that
    there are fewer independent values than pixels.
    """
    picture, valid = np.zeros(mask.shape), np.zeros(mask.shape, bool)
    valid[mask] = known
    picture[valid] = left
    power, total = (left @ left) / len(left), 1.0
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        a, b = (p[dy:, max(dx, 0):p.shape[1] + min(dx, 0)] for p in (picture, valid))
        c, d = (p[:p.shape[0] - dy, max(-dx, 0):p.shape[1] - max(dx, 0)] for p in (picture, valid))
        total += 2 * float((a * c).sum()) / max(int((b & d).sum()), 1) / max(power, 1e-30)
    return max(total, 1.0)


def refine_position(cut, start: np.ndarray, scale: float, template: Template, steps: int = 20) -> Fit:
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
    steps : int
        At most so many.

    Returns
    -------
    Fit
        Position NaN where the fit fails, strays or does not settle; the contrast is then that at the start.
    """
    position = start.copy()
    farthest = max(_FARTHEST, 0.04 * template.half)
    part, before = 1.0, np.zeros(2)
    for _ in range(steps):
        fit = measure_shift(cut(position), template, errors=False)
        # Where the frame cuts a particle rows come into view and go out again, and fits may go to and fro with them.
        part, before = part / 2 if fit.position @ before < 0 else part, fit.position
        shift = part * np.clip(fit.position, -_LONGEST_STEP, _LONGEST_STEP)
        position = position + shift / scale
        if not np.abs(position - start).max() < farthest or np.abs(shift).max() < _CONVERGED:
            break
    there = np.abs(position - start).max() < farthest
    fit = measure_shift(cut(position if there else start), template)
    # Faint particles settle slowly; a last step well within the standard error does not matter.
    there &= bool((np.abs(shift) < np.fmax(10 * _CONVERGED, _WITHIN * fit.sigma)).all())
    # One that goes to and fro lies anywhere between.
    between = np.abs(fit.position) if part < 1 else np.zeros(2)
    there &= bool((between < _LONGEST_SWING).all())
    return fit._replace(position=position if there else np.full(2, np.nan),
                        sigma=np.hypot(fit.sigma, between) / scale if there else np.full(2, np.nan))
