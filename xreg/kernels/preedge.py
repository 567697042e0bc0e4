"""Normalisation of a single XANES spectrum, with Larch's names and meaning.

Larch (xraylarch) is the convention that spectroscopists compare with, so its choices are followed to the number, also
where they surprise: ranges are offsets from `e0`, a range starts at the point at or below its first bound and stops
before the point nearest its second, `edge_step` is taken at the grid point nearest `e0`, and `norm` divides by that one
number. What the published code does (2026.3.1) counts, not its documentation, which names other default ranges.
"""

import warnings
from dataclasses import dataclass, replace

import numpy as np
from scipy.signal import fftconvolve

#: Energies closer than this (eV) are one energy measured twice: no monochromator resolves them, and what is read back
#: from it scatters by some meV. A curve through both would take their noise for a slope.
SAME_ENERGY = 0.05
#: Numbers closer than this (eV) are the same; also where single spectra are treated as Larch treats them.
_ROUNDING = 5e-4
#: No absorption edge that a hard X-ray microscope reaches lies below this number of eV; smaller values are keV.
SMALLEST_EV = 100.0
_HIGHEST_DEGREE = 5


def to_electronvolts(energy: np.ndarray) -> np.ndarray:
    """Return energies as float64 eV; values that can only be keV are converted, and a warning says so.

    Raises
    ------
    ValueError
        If an energy is not finite or not positive, or there is none.
    """
    energy = np.asarray(energy, dtype=np.float64)
    if energy.size == 0 or not np.all(np.isfinite(energy)) or np.min(energy) <= 0:
        msg = f"energy has {energy.size} values, not all of them positive and finite; need photon energies in eV."
        raise ValueError(msg)
    if np.max(energy) >= SMALLEST_EV:
        return energy
    msg = f"energy runs from {energy.min():g} to {energy.max():g}, so it is taken as keV and multiplied by 1000."
    warnings.warn(msg, stacklevel=2)
    return energy * 1000.0


@dataclass(frozen=True)
class Ranges:
    """Resolved normalisation ranges of Larch: offsets from `e0` in eV, and the two polynomial degrees."""

    e0: float
    pre1: float
    pre2: float
    norm1: float
    norm2: float
    nnorm: int
    nvict: int
    npre: int = 1

    def pre_points(self, energy: np.ndarray) -> slice:
        """Points of the ascending `energy` to which the pre-edge line is fitted."""
        start, stop = _at_or_below(energy, self.pre1 + self.e0), _nearest(energy, self.pre2 + self.e0)
        if self.npre == 0:
            return slice(start, stop + 1 if stop == start else stop)
        return slice(start, min(len(energy), start + 2) if stop - start < 2 else stop)

    def post_points(self, energy: np.ndarray) -> tuple[slice, int]:
        """Points to which the post-edge polynomial is fitted, and the degree that so many points can carry."""
        start, stop = _at_or_below(energy, self.norm1 + self.e0), _nearest(energy, self.norm2 + self.e0)
        start = min(start, len(energy) - 3)
        if stop - start < 2:
            return slice(max(start - 2, 0), stop), 0
        return slice(start, stop), min(self.nnorm, 1) if stop - start < 5 else self.nnorm


@dataclass(frozen=True)
class NormalizedSpectrum:
    """One normalised spectrum, with the names that Larch gives its parts.

    `energy` and `e0` in eV; `pre1`, `pre2`, `norm1`, `norm2` in eV from `e0`; `mu`, `edge_step`, `pre_edge` and
    `post_edge` in the unit of the absorption that was given; `norm` and `flat` without unit.
    """

    energy: np.ndarray
    mu: np.ndarray
    e0: float
    edge_step: float
    pre_edge: np.ndarray
    post_edge: np.ndarray
    norm: np.ndarray
    flat: np.ndarray
    pre1: float
    pre2: float
    norm1: float
    norm2: float
    nnorm: int
    nvict: int


def normalize_spectrum(
    energy: np.ndarray,
    mu: np.ndarray,
    *,
    e0: float | None = None,
    step: float | None = None,
    pre1: float | None = None,
    pre2: float | None = None,
    norm1: float | None = None,
    norm2: float | None = None,
    nnorm: int | None = None,
    nvict: int = 0,
) -> NormalizedSpectrum:
    """Normalise one spectrum: a line below the edge, a polynomial above it, and the step between them.

    Parameters
    ----------
    energy, mu : ndarray, shape (n,)
        Photon energies (eV; keV is converted with a warning) in any order, and absorption. Points where either is not
        finite are left out, and repeated energies are averaged (Larch moves the second by 0.0005 eV instead).
    e0 : float, optional
        Edge energy (eV); by default the maximum of the derivative, see `find_e0`.
    step : float, optional
        Edge step to divide by; by default it is measured.
    pre1, pre2, norm1, norm2 : float, optional
        Bounds (eV from `e0`) of the fits below and above the edge; by default Larch's automatic ones.
    nnorm, nvict : int, optional
        Degree of the polynomial above the edge (0 to 5), and the power of the energy with which absorption is
        multiplied for the line below the edge.

    Returns
    -------
    NormalizedSpectrum
        The curves and the resolved ranges. With fewer than three points below the edge the line becomes a constant
        (and `nvict` 0); with fewer than five above it the polynomial becomes at most a line, as in Larch.

    Raises
    ------
    ValueError
        If the shapes differ, fewer than five energies are left, or `e0` lies outside the energies.

    Warns
    -----
    UserWarning
        If a given range or degree cannot be had and another is used, or the spectrum has no edge.
    """
    energy, mu = _clean(energy, mu)
    e0 = find_e0(energy, mu) if e0 is None else float(e0)
    given = {"pre1": pre1, "pre2": pre2, "norm1": norm1, "norm2": norm2, "nnorm": nnorm, "nvict": nvict}
    ranges = resolve_ranges(energy, e0, **given)
    pre = ranges.pre_points(energy)
    if ranges.npre == 0:
        pre_edge = np.full(energy.shape, mu[pre].mean())
    else:
        power = energy**ranges.nvict
        pre_edge = np.polynomial.Polynomial.fit(energy[pre], (mu * power)[pre], 1)(energy) / power
    post, degree = ranges.post_points(energy)
    warn_of_changes(given, replace(ranges, nnorm=degree), energy)
    above = np.polynomial.Polynomial.fit(energy[post], (mu - pre_edge)[post], degree)(energy)
    at_edge = _nearest(energy, e0)
    edge_step = max(1e-12, abs(float(above[at_edge] if step is None else step)))
    if edge_step < 1e-9 * np.abs(mu).max():
        msg = f"the spectrum is flat: its edge step is {edge_step:.1g}, so that norm means nothing."
        warnings.warn(msg, stacklevel=2)
    norm = (mu - pre_edge) / edge_step
    flat = norm.copy()
    flat[at_edge:] -= (above[at_edge:] - above[at_edge]) / edge_step
    return NormalizedSpectrum(
        energy, mu, e0, edge_step, pre_edge, pre_edge + above, norm, flat,
        ranges.pre1, ranges.pre2, ranges.norm1, ranges.norm2, degree, ranges.nvict,
    )


def resolve_ranges(
    energy: np.ndarray,
    e0: float,
    *,
    pre1: float | None = None,
    pre2: float | None = None,
    norm1: float | None = None,
    norm2: float | None = None,
    nnorm: int | None = None,
    nvict: int = 0,
) -> Ranges:
    """Fill in the ranges that were not given, as Larch does for ascending energies (eV).

    Raises
    ------
    ValueError
        If `e0` does not lie between the second and the last but one energy.
    """
    first, last = float(energy[0]), float(energy[-1])
    if not energy[1] <= e0 <= energy[-2]:
        msg = (f"e0 is {e0:g} eV but the energies run from {first:g} to {last:g} eV; need at least two energies on "
               f"either side of the edge. Check the element and edge, or the energy calibration.")
        raise ValueError(msg)
    if pre1 is None:
        # The first energy is skipped because it is often bad; a short run-up is rounded to 2 eV instead of 5.
        unit = 5.0 if _nearest(energy, e0) > 20 else 2.0
        pre1 = unit * round((energy[1] - e0) / unit)
    pre1 = float(max(pre1, first - e0))
    pre2 = 0.5 * pre1 if pre2 is None else float(pre2)
    pre1, pre2 = min(pre1, pre2), max(pre1, pre2)
    if norm2 is None:
        norm2 = 5.0 * round((last - e0) / 5.0)
    # A negative norm2 means "to the end" in Larch, whatever its size.
    norm2 = float(min(norm2, last - e0)) if norm2 >= 0 else last - e0
    norm1 = min(25.0, 5.0 * round(norm2 / 15.0)) if norm1 is None else float(norm1)
    norm1, norm2 = min(norm1, norm2), max(norm1, norm2)
    norm1 = min(norm1, norm2 - 2)
    if nnorm is None:
        span = norm2 - norm1
        nnorm = 0 if span < 30 else 1 if span < 300 else 2
    return fixed_ranges(energy, e0, pre1, pre2, norm1, norm2, nnorm, nvict)


def warn_of_changes(given: dict[str, float | None], used: Ranges, energy: np.ndarray) -> None:
    """Warn where `used` ranges are not those `given` (None: none was), because the ascending `energy` forbids them."""
    changed = [f"{name} {value:g} -> {getattr(used, name):g}" for name, value in given.items()
               if value is not None and abs(getattr(used, name) - value) > _ROUNDING]
    # A negative norm2 asks for the end of the data.
    changed = [text for text in changed if not text.startswith("norm2 -")]
    if changed:
        msg = (f"the energies run from {energy[0] - used.e0:+g} to {energy[-1] - used.e0:+g} eV about e0, so that not "
               f"all given ranges can be used: {', '.join(changed)}.")
        warnings.warn(msg, stacklevel=3)


def fixed_ranges(
    energy: np.ndarray, e0: float, pre1: float, pre2: float, norm1: float, norm2: float, nnorm: int, nvict: int
) -> Ranges:
    """Ranges as given; the ascending `energy` (eV) only decides between a line and a constant below the edge.

    Larch takes a constant, and `nvict` 0, where fewer than three points lie below the edge.
    """
    few = _at_or_below(energy - e0, pre2) - _at_or_below(energy - e0, pre1) < 3
    nnorm = int(min(max(nnorm, 0), _HIGHEST_DEGREE))
    return Ranges(float(e0), float(pre1), float(pre2), float(norm1), float(norm2), nnorm,
                  0 if few else int(nvict), 0 if few else 1)


def find_e0(energy: np.ndarray, mu: np.ndarray) -> float:
    """Energy (eV) of the largest derivative of absorption, a point of the energy grid, as Larch finds it.

    A first pass without smoothing finds the neighbourhood; a second one there, with the derivative smoothed by a
    Lorentzian of about half an eV, finds the point. A point counts only if its neighbours are high as well, which keeps
    single glitches out. Use the sub-grid energies of `edge_energies` for maps: this one jumps by whole grid steps.

    Parameters
    ----------
    energy, mu : ndarray, shape (n,)
        Energies (eV) in any order and absorption; points that are not finite are left out.

    Raises
    ------
    ValueError
        If fewer than five energies are left.
    """
    energy, mu = _clean(energy, mu)
    n = len(energy)
    first = _steepest(energy, np.gradient(mu) / np.gradient(energy))
    middle, start, stop = energy[first], max(3, first - 75), min(first + 75, n - 3)
    if first < 0.05 * n:  # a glitch at the very beginning: look everywhere
        middle, start, stop = energy.mean(), max(3, first - 20), n - 3
    if stop - start < 5:  # too short for the second pass
        return float(energy[first])
    part = energy[start:stop]
    # Both passes of Larch leave out the last point of what they are given.
    slope = np.gradient(mu[start:stop][:-1]) / np.gradient(part[:-1])
    best = _steepest(part, lorentzian_smooth(part[:-1], slope, smoothing_width(energy, middle)))
    return float(part[best] if best else energy[min(start + 2, n - 1)])


def smoothing_width(energy: np.ndarray, near: float) -> float:
    """Width (eV) of Larch's Lorentzian: the mean of a typical small energy step and of `near` / 25000."""
    steps = np.diff(energy[:-2])
    skip = int(0.01 * (len(energy) - 1))
    # With fewer than about 100 energies Larch's estimate of the step is void, and 1 eV stands in for it.
    step = np.sort(steps[skip : len(steps) - skip])[skip : skip + 10].mean() if skip else 1.0
    return 0.5 * (float(np.clip(step, 0.01, 1.0)) + float(np.clip(near / 25000.0, 0.01, 1.0)))


def lorentzian_smooth(energy: np.ndarray, values: np.ndarray, width: float) -> np.ndarray:
    """Convolve `values` (..., n) on the ascending `energy` (n,) with a Lorentzian of half width `width` (eV).

    The curve is put on a grid of step `width` with five steps to spare at each end, mirrored at its ends, convolved,
    and read off at `energy` again, which is the recipe of Larch.
    """
    low, high = (width * int((end + pad * width) / width) for end, pad in ((energy[0], -5), (energy[-1], 5)))
    count = min(1 + int(abs(high - low + 0.1 * width) / width), 50 * len(energy))
    grid = np.linspace(low, high, count)
    window = 1.0 / (1.0 + np.square(np.arange(2 * count) - float(count)))
    window /= window.sum()
    rows = np.atleast_2d(values)
    smooth = np.empty(rows.shape)
    for k, row in enumerate(rows):
        fine = np.interp(grid, energy, row)
        mirrored = np.concatenate((fine[count:0:-1], fine, fine[::-1]))
        smooth[k] = np.interp(energy, grid, fftconvolve(mirrored, window, mode="valid"))
    return smooth.reshape(np.shape(values))


def _steepest(energy: np.ndarray, slope: np.ndarray) -> int:
    """Index of the highest point of `slope` whose two neighbours are high too; 0 if there is none."""
    n = len(energy) - 1  # the last point is never looked at
    slope = np.where(np.isfinite(slope[:n]), slope[:n], -1.0)
    skip = max(3, int(0.02 * n))
    inner = slope[skip:-skip] if n > 2 * skip else slope
    slope = (slope - inner.min()) / max(1e-10, np.ptp(inner))
    limit = 0.60 if n > 20 else 0.30
    for _ in range(2):
        if np.count_nonzero(slope > limit) >= 3:
            break
        limit *= 0.5
    high = slope > limit
    if np.count_nonzero(high) < 3:
        high = np.ones(n, dtype=bool)
    backed = high.copy()
    backed[:-1] &= high[1:]
    backed[1:] &= high[:-1]
    index = np.arange(n)
    backed &= (index >= skip) & (index <= n - skip) & (index < n - 1) & (slope > 0)
    return int(np.argmax(np.where(backed, slope, -np.inf))) if backed.any() else 0


def _clean(energy: np.ndarray, mu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finite points in ascending order of energy (eV), repeats averaged."""
    energy, mu = np.asarray(energy, dtype=np.float64), np.asarray(mu, dtype=np.float64)
    if energy.ndim != 1 or energy.shape != mu.shape:
        msg = f"energy has shape {energy.shape} and mu {mu.shape}; need two one-dimensional arrays of one length."
        raise ValueError(msg)
    good = np.isfinite(energy) & np.isfinite(mu)
    order = np.argsort(energy[good], kind="stable")
    energy, mu = energy[good][order], mu[good][order]
    if energy.size:
        energy = to_electronvolts(energy)
        energy, mu = merge_repeats(energy, mu, within=_ROUNDING)
    if energy.size < 5:
        msg = f"the spectrum has {energy.size} different energies with finite absorption; need at least 5."
        raise ValueError(msg)
    return energy, mu


def merge_repeats(
    energy: np.ndarray, values: np.ndarray, within: float = SAME_ENERGY
) -> tuple[np.ndarray, np.ndarray]:
    """Average the rows of `values` (n, ...) that share one of the ascending energies; NaN are left out of the mean."""
    if (np.diff(energy) > within).all():
        return energy, values
    first = [0]
    for k in range(1, len(energy)):
        if energy[k] - energy[first[-1]] > within:
            first.append(k)
    finite = np.isfinite(values)
    total = np.add.reduceat(np.where(finite, values, 0.0), first, axis=0)
    count = np.add.reduceat(finite.astype(np.float64), first, axis=0)
    lengths = np.diff([*first, len(energy)])
    start = energy[first]
    mean = start + np.add.reduceat(energy - np.repeat(start, lengths), first) / lengths
    return mean, np.where(count > 0, total / np.maximum(count, 1), np.nan)


def distinct_energies(energy: np.ndarray) -> np.ndarray:
    """Ascending energies of a scan (n,), those that were measured twice once."""
    energy = np.sort(energy)
    return merge_repeats(energy, energy)[0]


def _at_or_below(energy: np.ndarray, value: float) -> int:
    return max(int(np.searchsorted(energy, value, side="right")) - 1, 0)


def _nearest(energy: np.ndarray, value: float) -> int:
    return int(np.abs(energy - value).argmin())
