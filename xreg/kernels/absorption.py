"""Absorption edges of the elements, how much of a particle's contrast comes from one, and how contrasts run over it."""

import numpy as np

#: Tabulated energies (eV), J. A. Bearden and A. F. Burr 1967, doi:10.1103/RevModPhys.39.125.
EDGES = {
    ("Ti", "K"): 4966.0, ("V", "K"): 5465.0, ("Cr", "K"): 5989.0, ("Mn", "K"): 6539.0, ("Fe", "K"): 7112.0,
    ("Co", "K"): 7709.0, ("Ni", "K"): 8333.0, ("Cu", "K"): 8979.0, ("Zn", "K"): 9659.0, ("Ga", "K"): 10367.0,
    ("Ge", "K"): 11103.0, ("As", "K"): 11867.0, ("Se", "K"): 12658.0, ("W", "L3"): 10207.0, ("Pt", "L3"): 11564.0,
    ("Au", "L3"): 11919.0, ("Pb", "L3"): 13035.0,
}
#: Frames farther than this (eV) below or above the tabulated edge are before or behind it: oxides have theirs up to
#: 13 eV higher.
BEFORE, BEHIND = 5.0, 15.0


def tabulated_edge(attrs: dict) -> float | None:
    """Edge (eV) of the attributes `element` and `edge`; None where it is not tabulated."""
    element, line = (str(attrs.get(name, "")) for name in ("element", "edge"))
    return EDGES.get((element.capitalize(), line.upper()))


def edge_jump(
    contrast: np.ndarray, sigma: np.ndarray, energy: np.ndarray, e0: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Share of each particle's contrast that the edge gives: 1 - (contrast before the edge) / (contrast behind it).

    Nickel oxides have 0.6 to 0.8 at the Ni K edge; carbon, binder, other metals and ghosts of the background have 0 or
    a little less, since absorption falls with energy.

    Parameters
    ----------
    contrast, sigma : ndarray, shape (particle, frame)
        Contrast in any unit, and its standard error; NaN where unknown.
    energy : ndarray, shape (frame,), eV
    e0 : float or None, eV
        Tabulated edge.

    Returns
    -------
    jump, sigma : ndarray, shape (particle,)
        NaN where frames before or behind the edge are missing, or `e0` is.
    """
    known = np.isfinite(contrast) & np.isfinite(sigma) & (sigma > 0)
    weight = np.where(known, 1 / np.where(known, sigma, 1) ** 2, 0.0)
    value = np.where(known, contrast, 0.0)
    sides = (energy < e0 - BEFORE, energy > e0 + BEHIND) if e0 else (np.zeros(len(energy), bool),) * 2
    with np.errstate(all="ignore"):
        (before, error_before), (behind, error_behind) = (
            ((weight * value)[:, side].sum(1) / weight[:, side].sum(1), weight[:, side].sum(1) ** -0.5)
            for side in sides)
        behind = np.where(behind > 0, behind, np.nan)
        spread = np.hypot(error_before, before / behind * error_behind) / behind
        return 1 - before / behind, np.where(np.isfinite(before / behind), spread, np.nan)


def expected_contrast(contrast: np.ndarray) -> np.ndarray:
    """Contrast that every particle should have in every frame, as far as others tell: (particles, frames) as given.

    Contrasts run alike: the frame's median over particles, times the particle's own median factor; NaN where nothing is
    known.
    """
    if not contrast.size:
        return contrast
    with np.errstate(all="ignore"):
        frame = _nanmedian(contrast, 0)
        own = _nanmedian(contrast / frame, 1)
    return own[:, None] * frame


def _nanmedian(values: np.ndarray, axis: int) -> np.ndarray:
    """Median of what is known; NaN where nothing is."""
    known = np.isfinite(values).any(axis=axis)
    filled = np.where(np.expand_dims(known, axis), values, 0)
    return np.where(known, np.nanmedian(filled, axis=axis), np.nan)
