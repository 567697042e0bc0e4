"""Lines below and above the edge as linear operators, so that all pixels of a block share one matrix product.

A line of every pixel's own follows Larch. Lines shared by a particle keep the shapes of its mean spectrum and leave a
pixel two numbers, which is what makes thin pixels fit. Arrays of spectra have the shape (energies, pixels).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from xreg.kernels.preedge import Ranges


@dataclass(frozen=True)
class Baseline:
    """Lines below and above the edge as linear functions of a spectrum: `coefficients` (r, n) @ spectrum.

    Row vectors `step` (r,) and the rows of `pre` and `post` (energies, r) turn the coefficients into edge step and
    curves; `pre_at(energy)` gives the pre-edge rows at other energies.
    """

    coefficients: np.ndarray
    step: np.ndarray
    pre: np.ndarray
    post: np.ndarray
    pre_at: Callable[[np.ndarray], np.ndarray] = field(repr=False)


def pixel_baseline(energy: np.ndarray, ranges: Ranges) -> Baseline:
    """Line and polynomial of Larch, fitted to each spectrum by itself."""
    e0 = ranges.e0

    def powers(at, degree):
        return ((at[:, None] - e0) / 100.0) ** np.arange(degree + 1)

    def victoreen(at):
        return (at[:, None] / e0) ** (-ranges.nvict)

    below, (above, degree) = ranges.pre_points(energy), ranges.post_points(energy)
    line = np.zeros((ranges.npre + 1, len(energy)))
    line[:, below] = np.linalg.pinv(powers(energy[below], ranges.npre)) / victoreen(energy[below])[:, 0]
    pre = powers(energy, ranges.npre) * victoreen(energy)
    post = powers(energy, degree)
    remainder = np.eye(len(energy)) - pre @ line
    curve = np.linalg.pinv(post[above]) @ remainder[above]
    blank_line, blank_curve = np.zeros((len(energy), degree + 1)), np.zeros((len(energy), ranges.npre + 1))
    return Baseline(
        coefficients=np.concatenate((line, curve)),
        step=np.concatenate((np.zeros(ranges.npre + 1), post[np.abs(energy - e0).argmin()])),
        pre=np.hstack((pre, blank_line)),
        post=np.hstack((pre, blank_line)) + np.hstack((blank_curve, post)),
        pre_at=lambda at: np.hstack((powers(at, ranges.npre) * victoreen(at), np.zeros((len(at), degree + 1)))),
    )


def particle_baseline(energy: np.ndarray, ranges: Ranges, mean: np.ndarray) -> Baseline | None:
    """Lines of the particle's mean spectrum (n,), which each pixel may only scale and offset.

    By Beer and Lambert a pixel's spectrum is its thickness times the material's, plus an offset. Extrapolating a line
    of its own from far below the edge multiplies a pixel's noise; the mean spectrum has hardly any.
    Returns None where the mean spectrum has no rising edge.
    """
    known = np.isfinite(mean)
    own = pixel_baseline(energy[known], ranges)
    fit = own.coefficients @ mean[known]
    step = own.step @ fit
    if not step > 0:
        return None
    foot = (own.pre_at(np.array([ranges.e0])) @ fit)[0]

    def pre_at(at):
        return np.stack((np.ones(len(at)), (own.pre_at(at) @ fit - foot) / step), axis=1)

    post = np.ones((len(energy), 2))
    post[known, 1] = (own.post @ fit - foot) / step
    pre = pre_at(energy)
    below, (above, _) = ranges.pre_points(energy), ranges.post_points(energy)
    points = np.zeros(len(energy), dtype=bool)
    points[below] = points[above] = True
    points &= known
    shape = np.where((energy > ranges.e0)[:, None], post, pre)
    coefficients = np.zeros((2, len(energy)))
    coefficients[:, points] = np.linalg.pinv(shape[points])
    return Baseline(coefficients, np.array([0.0, 1.0]), pre, post, pre_at)
