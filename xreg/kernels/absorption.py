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
#: Frames of less than this share of the highest contrast (this percentile) are weak; a particle that is off by less
#: than the last part of its contrast there keeps it.
_WEAK, _HIGHEST, _KEPT = 0.6, 90, 0.25
#: Turns of both medians.
_SWEEPS = 8
#: Where some particles' contrasts (this quantile) change by so much, from upper to lower quartile over the upper, those
#: that change by less than the last part of it do not say how contrasts run.
_CHANGE, _SOME, _CHANGES = 0.3, 0.75, 0.5


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


def changing(contrast: np.ndarray) -> np.ndarray:
    """Which particles tell by their contrast how well a frame shows particles, (particles,) bool.

    Where most are matter without the edge, such as specks of the background, most contrasts stay as they are.

    Parameters
    ----------
    contrast : ndarray, shape (particles, frames)
        Any unit; NaN where not known.
    """
    rows = np.flatnonzero(_nanmedian(contrast, 1) > 0)
    if not rows.size:
        return np.ones(len(contrast), dtype=bool)
    low, high = np.nanquantile(contrast[rows], [0.25, 0.75], axis=1)
    change = 1 - low / high
    some = np.quantile(change, _SOME)
    told = np.zeros(len(contrast), dtype=bool)
    told[rows] = change >= (_CHANGES * some if some > _CHANGE else 0.0)
    return told


def expected_contrast(contrast: np.ndarray, fitted: np.ndarray | None = None) -> np.ndarray:
    """Contrast that every particle should have in every frame, as far as others tell.

    Contrasts run alike: a factor of the frame, the median over particles that tell (see `changing`), times one of the
    particle, the median over frames. One that does not hold the element keeps its contrast where the others' fall.

    Parameters
    ----------
    contrast : ndarray, shape (particles, frames)
        Of sure sightings, any unit; NaN where there is none.
    fitted : ndarray, shape (particles, frames), optional
        Of all places where the particle was looked for, by which it is told whether it keeps its contrast; those of the
        sure sightings by default.

    Returns
    -------
    ndarray, shape (particles, frames)
        NaN where nothing is known.
    """
    if not contrast.size:
        return contrast
    fitted = contrast if fitted is None else fitted
    told = changing(contrast)
    with np.errstate(all="ignore"):
        own = np.ones((len(contrast), 1))
        for _ in range(_SWEEPS):
            frame = _nanmedian((contrast / own)[told], 0)
            own = _nanmedian(contrast / frame, 1)[:, None]
        alike = own * frame
        same = np.where(np.isfinite(alike), _nanmedian(contrast, 1)[:, None], np.nan)
        shown = frame[np.isfinite(frame)]
        weak = frame < _WEAK * np.percentile(shown, _HIGHEST) if shown.size else np.zeros(frame.shape, dtype=bool)
        if not weak.any() or weak.all():
            return alike
        # In weak frames and in the others: what is seen in one kind only does not say.
        off_alike, off_same = (
            np.maximum(*(_nanmedian(np.abs(fitted[:, part] / e[:, part] - 1), 1) for part in (weak, ~weak)))
            for e in (alike, same))
        keeps = (off_same < _KEPT) & (off_same < off_alike / 3)
    return np.where(keeps[:, None], same, alike)


def _nanmedian(values: np.ndarray, axis: int) -> np.ndarray:
    """Median of what is known; NaN where nothing is."""
    known = np.isfinite(values).any(axis=axis)
    filled = np.where(np.expand_dims(known, axis), values, 0)
    return np.where(known, np.nanmedian(filled, axis=axis), np.nan)
