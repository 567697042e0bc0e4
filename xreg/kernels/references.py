"""Which open-beam references make the reference of each frame: by energy, then by scan, then by time."""

from dataclasses import dataclass

import numpy as np

#: Flats within this many eV of a frame are of its energy.
ENERGY_TOLERANCE = 0.25
#: Flats averaged for one frame at the most, per energy.
MOST_FLATS = 16
#: Flats count as equally near in time when they are no farther than this many s more than the nearest, or
#: thrice it.
NEAR_S = 60.0


@dataclass(frozen=True)
class FlatChoice:
    """Which open-beam references make the reference of each frame.

    Attributes
    ----------
    recipe : ndarray, shape (frame,), int
        Number of the frame's recipe in the two lists below; -1 where there is no reference for the frame.
    flats : list of ndarray, int
        Flats of each recipe, ascending.
    weights : list of ndarray, float32
        Their weights, which sum to 1.
    """

    recipe: np.ndarray
    flats: tuple[np.ndarray, ...]
    weights: tuple[np.ndarray, ...]

    def needed(self, frames: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flats that some frames need, and each one's weight in each frame's reference.

        Returns
        -------
        flats : ndarray, shape (m,), int, ascending
        weights : ndarray, shape (n, m), float32
            A row of zeros where the frame has no reference.
        """
        recipes = self.recipe[frames]
        used = [self.flats[r] for r in np.unique(recipes[recipes >= 0])]
        flats = np.unique(np.concatenate(used)) if used else np.zeros(0, dtype=int)
        weights = np.zeros((len(recipes), len(flats)), dtype=np.float32)
        for row, recipe in zip(weights, recipes, strict=True):
            if recipe >= 0:
                row[np.searchsorted(flats, self.flats[recipe])] = self.weights[recipe]
        return flats, weights


def choose_flats(
    energy: np.ndarray,
    flat_energy: np.ndarray,
    *,
    scan: np.ndarray | None = None,
    flat_scan: np.ndarray | None = None,
    time: np.ndarray | None = None,
    flat_time: np.ndarray | None = None,
) -> FlatChoice:
    """Choose the open-beam references of every frame, by energy and then by scan and time.

    Flats of the frame's own energy (within 0.25 eV) serve if there are any; else those of the nearest
    energies below and above, weighted by the distance, and beyond the last energy those of the last. Of
    several at one energy those of the frame's own scan are preferred, and then those nearest in time: all
    that are no farther than thrice the nearest one, or a minute more. Flats of an unknown scan and time all
    serve. At most 16 are averaged at one energy.

    Parameters
    ----------
    energy : ndarray, shape (frame,), eV
        NaN for a frame that needs no reference.
    flat_energy : ndarray, shape (flat,), eV
    scan, flat_scan : ndarray, shape (frame,) and (flat,), int, optional
        Ignored unless both are given.
    time, flat_time : ndarray, shape (frame,) and (flat,), s, optional
        On one clock; ignored unless both are given. NaN where unknown.

    Returns
    -------
    choice : FlatChoice
    """
    order = np.argsort(flat_energy, kind="stable")
    ladder = flat_energy[order]
    recipes: dict[tuple, int] = {}
    recipe = np.full(len(energy), -1)
    for i in np.flatnonzero(np.isfinite(energy)):
        parts: dict[int, float] = {}
        for low, high, share in _energies_about(ladder, energy[i]):
            flats = np.sort(order[low:high])
            if scan is not None and flat_scan is not None and (flat_scan[flats] == scan[i]).any():
                flats = flats[flat_scan[flats] == scan[i]]
            timed = time is not None and flat_time is not None and np.isfinite(time[i])
            flats = _nearest(flats, np.abs(flat_time[flats] - time[i]) if timed else None)
            parts |= {int(f): share / len(flats) for f in flats}
        if parts:
            recipe[i] = recipes.setdefault(tuple(sorted(parts.items())), len(recipes))
    flats = tuple(np.array([f for f, _ in key], dtype=int) for key in recipes)
    weights = tuple(np.array([w for _, w in key], dtype=np.float32) for key in recipes)
    return FlatChoice(recipe, flats, weights)


def _energies_about(ladder: np.ndarray, energy: float) -> list[tuple[int, int, float]]:
    """Ranges of the sorted flat energies that serve an energy, and the share of each."""
    if not len(ladder):
        return []
    low, high = np.searchsorted(ladder, [energy - ENERGY_TOLERANCE, energy + ENERGY_TOLERANCE], "left")
    if high > low:
        return [(low, high, 1.0)]
    below = (np.searchsorted(ladder, ladder[low - 1] - ENERGY_TOLERANCE), low) if low else None
    above = (low, np.searchsorted(ladder, ladder[low] + ENERGY_TOLERANCE)) if low < len(ladder) else None
    if below is None or above is None:
        return [(*(below or above), 1.0)]
    share = (energy - ladder[low - 1]) / (ladder[low] - ladder[low - 1])
    return [(*below, 1 - share), (*above, share)]


def _nearest(flats: np.ndarray, away: np.ndarray | None) -> np.ndarray:
    """At most MOST_FLATS of the flats: those nearest in time, or evenly chosen where times are unknown."""
    if away is not None and np.isfinite(away).any():
        closest = np.nanmin(away)
        order = np.argsort(away, kind="stable")  # NaN last
        near = away[order] <= max(3 * closest, closest + NEAR_S)
        return np.sort(flats[order][near][:MOST_FLATS])
    if len(flats) > MOST_FLATS:
        return flats[np.linspace(0, len(flats) - 1, MOST_FLATS).round().astype(int)]
    return flats
