"""Arithmetic on normalised spectra: combinations of references, energy calibration, clusters, a particle's chemistry.

Arrays of spectra have the shape (energies, pixels).
"""

import warnings
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.ndimage import distance_transform_edt
from scipy.optimize import least_squares

from xreg.kernels.preedge import NormalizedSpectrum, normalize_spectrum, to_electronvolts

_MOST_REFERENCES = 8
#: An edge rises, from below to above it within this many eV, by more than so many standard errors and by more than this
#: share of its step, and is so many times as steep as spectra usually are: a background's curve is not.
_NEARBY, _LEAST_RISE, _LEAST_SHARE, _STEEP = 30.0, 4.0, 0.3, 2.0


def combine_references(norm: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
    """Fit each spectrum by references with weights that are not negative and sum to one.

    The problem is convex, so the best of the fits over all subsets of references whose weights come out non-negative is
    the solution, exactly. Each of these is one matrix product for all pixels.

    Parameters
    ----------
    norm : ndarray, shape (n, pixels)
        Normalised spectra without NaN.
    references : ndarray, shape (n, k)
        Normalised reference spectra at the same energies; at most 8.

    Returns
    -------
    dict
        `weight` and `weight_sigma` (k, pixels), the errors from the residual's variance and 0 for a weight that the
        bounds fix; `rfactor` (pixels,), sum of squared residuals over sum of squares; `residual` (pixels,), the sum of
        squared residuals.

    Raises
    ------
    ValueError
        If there are more than 8 references or not more energies than references.
    """
    n, k = references.shape
    if k > _MOST_REFERENCES or n <= k:
        msg = f"{k} references at {n} energies; need at most {_MOST_REFERENCES} references and more energies than that."
        raise ValueError(msg)
    power = np.square(norm).sum(axis=0)
    best = np.full(norm.shape[1], np.inf)
    weight, sigma = np.zeros((k, norm.shape[1])), np.zeros((k, norm.shape[1]))
    for size in range(k, 0, -1):
        for subset in combinations(range(k), size):
            part = references[:, subset]
            solve, offset = _sum_to_one(part)
            w = solve @ norm + offset[:, None]
            residual = np.maximum(power + ((part.T @ part) @ w * w - 2 * w * (part.T @ norm)).sum(axis=0), 0.0)
            # A subset's fit is never better than a larger one's; the margin settles ties for the larger.
            better = (w >= -1e-12).all(axis=0) & (residual < best * (1 - 1e-12))
            best = np.where(better, residual, best)
            spread = np.sqrt(np.square(solve).sum(axis=1))[:, None] * np.sqrt(residual / max(n - size + 1, 1))
            for array, values in ((weight, np.maximum(w, 0.0)), (sigma, spread)):
                array[:, better] = 0.0
                array[np.ix_(subset, np.flatnonzero(better))] = values[:, better]
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"weight": weight, "weight_sigma": sigma, "rfactor": best / power, "residual": best}


def _sum_to_one(references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares under a unit sum as w = solve @ y + offset: (k, n) and (k,)."""
    last, free = references[:, -1], references[:, :-1] - references[:, -1:]
    pseudo = np.linalg.pinv(free) if free.shape[1] else np.zeros((0, len(last)))
    solve = np.concatenate((pseudo, -pseudo.sum(axis=0, keepdims=True)))
    start = -pseudo @ last
    return solve, np.concatenate((start, [1.0 - start.sum()]))


def combine_shifted(
    energy: np.ndarray, norm: np.ndarray, references: list[CubicSpline], max_shift: float, step: float = 0.25
) -> dict[str, np.ndarray]:
    """Fit as `combine_references` with one more unknown per pixel: a shift (eV) of all references together.

    Trial shifts every `step` eV are compared, and a parabola through the best and its neighbours gives the shift, to
    which the weights are interpolated. A positive shift means that the data lie at higher energies than the references.

    Returns
    -------
    dict
        As `combine_references`, and `shift` (pixels,), NaN where the best trial is the first or the last.
    """
    count = int(np.ceil(max_shift / step))
    shifts = step * np.arange(-count, count + 1)
    trials = [combine_references(norm, np.stack([r(energy - s) for r in references], axis=1)) for s in shifts]
    residual = np.stack([t["residual"] for t in trials])
    top, pixel = np.argmin(residual, axis=0), np.arange(norm.shape[1])
    inner = np.clip(top, 1, len(shifts) - 2)
    left, centre, right = (residual[inner + k, pixel] for k in (-1, 0, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        t = np.clip(0.5 * (left - right) / (left - 2 * centre + right), -0.5, 0.5)
    t = np.where(np.isfinite(t), t, 0.0)
    near = inner + np.where(t < 0, -1, 1)
    out = {}
    for name in ("weight", "weight_sigma"):
        values = np.stack([trial[name] for trial in trials])
        out[name] = values[inner, :, pixel].T * (1 - np.abs(t)) + values[near, :, pixel].T * np.abs(t)
    out["residual"] = centre - 0.25 * (left - right) * t
    out["rfactor"] = out["residual"] / np.square(norm).sum(axis=0)
    out["shift"] = np.where(top == inner, shifts[inner] + t * step, np.nan)
    return out


def scale_offset(energy: np.ndarray, mean: np.ndarray, references: list[CubicSpline]) -> float:
    """Shift (eV) that a mean spectrum (n,) plainly asks of its references; 0 where they fit well enough without one.

    Plainly: by more than 1 eV, and leaving less than a quarter of the squares that are left without a shift. That is
    what another energy scale looks like. Shifts of up to 10 eV are tried, as far as the references reach.
    """
    low, high = max(r.x[0] for r in references), min(r.x[-1] for r in references)
    least = max(len(references) + 2, len(energy) // 2)
    left = {}
    for shift in np.arange(-10.0, 10.25, 0.5):
        use = (energy - shift >= low) & (energy - shift <= high)
        if use.sum() >= least:
            known = np.stack([r(energy[use] - shift) for r in references], axis=1)
            left[shift] = combine_references(mean[use, None], known)["residual"][0] / use.sum()
    best = min(left, key=left.__getitem__, default=0.0)
    return float(best) if abs(best) > 1.0 and left[best] < 0.25 * left.get(0.0, 0.0) else 0.0


@dataclass(frozen=True)
class Calibration:
    """Correction of an energy axis: true = centre + scale * (measured - centre) + offset, all in eV.

    `offset_sigma` is the offset's standard error, `misfit` the root-mean-square difference of the normalised spectra.
    """

    offset: float
    scale: float
    centre: float
    offset_sigma: float
    misfit: float

    def apply(self, energy: np.ndarray) -> np.ndarray:
        """Corrected energies in eV; keV is converted with a warning."""
        return self.centre + self.scale * (to_electronvolts(energy) - self.centre) + self.offset


def calibrate_energy(
    energy: np.ndarray,
    mu: np.ndarray,
    reference_energy: np.ndarray,
    reference_mu: np.ndarray,
    *,
    window: tuple[float, float] = (-30.0, 70.0),
    stretch: bool = False,
) -> Calibration:
    """Find the offset (and scale) that brings a measured spectrum of a known substance onto its reference.

    Both are normalised first, so that thickness and detector do not matter.

    Parameters
    ----------
    energy, mu : ndarray, shape (n,)
        Measured spectrum, for example of a foil, in eV (keV is converted with a warning).
    reference_energy, reference_mu : ndarray, shape (m,)
        The same substance on the trusted energy axis.
    window : (float, float)
        Part of the reference that is compared, eV from its edge.
    stretch : bool
        Whether to fit the scale as well as the offset.

    Returns
    -------
    Calibration

    Raises
    ------
    ValueError
        If a spectrum cannot be normalised or has no edge, or fewer than 8 points lie in the window.
    """
    mine = _with_edge("spectrum", energy, mu)
    known = _with_edge("reference", reference_energy, reference_mu)
    use = (known.energy >= known.e0 + window[0]) & (known.energy <= known.e0 + window[1])
    if use.sum() < 8:
        msg = f"the reference has {use.sum()} energies within {window} eV of its edge at {known.e0:g} eV; need 8."
        raise ValueError(msg)
    at, wanted = known.energy[use], known.norm[use]
    curve = CubicSpline(mine.energy, mine.norm)

    def difference(p):
        back = known.e0 + (at - known.e0 - p[0]) / (p[1] if stretch else 1.0)  # undoes `Calibration.apply`
        return curve(np.clip(back, mine.energy[0], mine.energy[-1])) - wanted

    # The difference has several minima: the best of a row of offsets about that of the edges is the start.
    starts = known.e0 - mine.e0 + np.arange(-8.0, 8.25, 0.5)
    start = min(starts, key=lambda s: np.square(difference([s, 1.0])).sum())
    fit = least_squares(difference, [start, 1.0] if stretch else [start])
    misfit = float(np.sqrt(np.mean(fit.fun**2)))
    covariance = np.linalg.pinv(fit.jac.T @ fit.jac) * np.sum(fit.fun**2) / max(len(at) - len(fit.x), 1)
    scale = float(fit.x[1]) if stretch else 1.0
    return Calibration(float(fit.x[0]), scale, float(known.e0), float(np.sqrt(covariance[0, 0])), misfit)


def _with_edge(name: str, energy: np.ndarray, mu: np.ndarray) -> NormalizedSpectrum:
    """Normalise a spectrum; raise ValueError where no edge rises out of what scatters about the line below it."""
    with warnings.catch_warnings():
        # What it warns of is refused here.
        warnings.filterwarnings("ignore", message="the spectrum is flat")
        spectrum = normalize_spectrum(energy, mu)
    away, height = spectrum.energy - spectrum.e0, spectrum.mu - spectrum.pre_edge
    below, above = (height[(side > 0) & (side <= _NEARBY)] for side in (-away, away))
    rise = above.mean() - below.mean() if below.size and above.size else 0.0
    far = away < spectrum.pre2
    error = np.std(height[far]) * np.sqrt(1 / below.size + 1 / above.size) if far.any() and rise else 0.0
    slope = np.abs(np.gradient(spectrum.mu, spectrum.energy))
    least = max(_LEAST_RISE * error, _LEAST_SHARE * spectrum.edge_step, 1e-9 * np.abs(spectrum.mu).max())
    if not rise > least or slope.max() < _STEEP * np.median(slope):
        msg = (f"the {name} has no edge: about {spectrum.e0:g} eV, where it is steepest, it rises by {rise:.2g} with a "
               f"standard error of {error:.2g}; need energies before and behind the edge of the substance.")
        raise ValueError(msg)
    return spectrum


def kmeans(points: np.ndarray, k: int, seed: int = 0, rounds: int = 100) -> np.ndarray:
    """Centres (k, dims) of k clusters of `points` (n, dims), largest cluster first; seeded, started by k-means++.

    Raises
    ------
    ValueError
        If there are fewer different points than clusters.
    """
    if len(points) < k:
        msg = f"{len(points)} points for {k} clusters; need at least as many points as clusters."
        raise ValueError(msg)
    rng = np.random.default_rng(seed)
    centres = points[[rng.integers(len(points))]]
    distance = np.square(points - centres).sum(axis=1)
    while len(centres) < k:
        if not distance.sum() > 0:
            msg = f"the points hold only {len(centres)} different values; need at least {k} for {k} clusters."
            raise ValueError(msg)
        chosen = points[rng.choice(len(points), p=distance / distance.sum())]
        centres = np.vstack((centres, chosen))
        distance = np.minimum(distance, np.square(points - chosen).sum(axis=1))
    for _ in range(rounds):
        label = nearest_centre(points, centres)
        count = np.bincount(label, minlength=k)
        total = np.stack([np.bincount(label, points[:, d], minlength=k) for d in range(points.shape[1])], axis=1)
        moved = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres[np.argsort(-np.bincount(nearest_centre(points, centres), minlength=k), kind="stable")]


def nearest_centre(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Number of the centre (k, dims) nearest to each of `points` (n, dims)."""
    return np.argmin(np.square(centres).sum(axis=1) - 2.0 * points @ centres.T, axis=1)


def particle_chemistry(values: np.ndarray, contour: np.ndarray, shells: int = 5, core: float = 0.75) -> dict:
    """Numbers for the map of one particle: its spread, its radial profile, its gradient, and where its core lies.

    Parameters
    ----------
    values : ndarray, shape (y, x)
        Map, for example of edge energies; NaN pixels are left out.
    contour : ndarray, shape (y, x), bool
        Outline of the particle.
    shells : int
        Number of shells of equal width in depth, the distance from the outline over the largest such distance.
    core : float
        Quantile of the values above which a pixel belongs to the oxidised core.

    Returns
    -------
    dict
        `mean`, `median`, `std`, `count`; `profile` (shells,), the mean from rim to centre; `gradient` and
        `gradient_sigma` (y, x), slope of the best plane and its standard error per px; `core_offset` (y, x), px from
        the centre of all fitted pixels to that of the core's. NaN with fewer than 6 fitted pixels.
    """
    good = np.isfinite(values) & contour
    v = values[good]
    nothing = np.full(2, np.nan)
    out = {"mean": np.nan, "median": np.nan, "std": np.nan, "count": float(v.size), "profile": np.full(shells, np.nan),
           "gradient": nothing, "gradient_sigma": nothing, "core_offset": nothing}
    if v.size < 6:
        return out
    place = np.argwhere(good).astype(np.float64)
    middle = place.mean(axis=0)
    design = np.column_stack((np.ones(v.size), place - middle))
    inverse = np.linalg.pinv(design)
    plane = inverse @ v
    variance = np.sum((v - design @ plane) ** 2) / (v.size - 3)
    # The outline may touch the window's border, which is outside too.
    depth = distance_transform_edt(np.pad(contour, 1))[1:-1, 1:-1]
    shell = np.minimum((depth[good] / depth.max() * shells).astype(int), shells - 1)
    inside = np.bincount(shell, minlength=shells)
    with np.errstate(invalid="ignore", divide="ignore"):
        out["profile"] = np.bincount(shell, v, minlength=shells) / inside
    return out | {
        "mean": v.mean(), "median": np.median(v), "std": v.std(), "gradient": plane[1:],
        "gradient_sigma": np.sqrt(variance * np.square(inverse[1:]).sum(axis=1)),
        "core_offset": place[v >= np.quantile(v, core)].mean(axis=0) - middle,
    }
