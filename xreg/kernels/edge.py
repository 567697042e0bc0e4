"""Edge energies of many spectra at once: every step is a fixed linear operator, applied as one matrix product.

With fixed ranges the pre-edge line, the edge step, a smoothed curve and its noise are all linear in the measured
optical densities, so that thousands of pixels cost one product of small matrices. Arrays of spectra have the shape
(energies, pixels), energies ascending.

The half-step energy is where the spectrum passes half of its edge step above the pre-edge line. Noise makes a spectrum
pass that level several times, so it is read from a local cubic fit, and the passage is chosen as the change point that
best parts "below" from "above": the minimum of the running integral of (spectrum - half step).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from xreg.kernels.baseline import particle_baseline
from xreg.kernels.localfit import crossing, gains, maximum, slopes, slow_noise
from xreg.kernels.operators import (
    ENOUGH,
    NO_EDGE,
    NODE_STEP,
    OK,
    OUT_OF_RANGE,
    SLOW_REACH,
    THIN,
    TOO_FEW_ENERGIES,
    EdgeSettings,
    Plan,
    plan_fit,
)
from xreg.kernels.preedge import fixed_ranges, lorentzian_smooth, smoothing_width

_BATCH = 1024    # pixels per matrix product: a few MB, so that the work stays in the processor's cache
_BELOW = (-20.0, -6.0)    # eV from the half-step energy between which slow disturbances are measured


def edge_energies(
    energy: np.ndarray,
    mu: np.ndarray,
    settings: EdgeSettings | None = None,
    mean: np.ndarray | None = None,
    count: int | None = None,
    drift: float = 0.0,
) -> dict[str, np.ndarray]:
    """Measure the edge of every spectrum of `mu`.

    Parameters
    ----------
    energy : ndarray, shape (n,)
        Photon energies in eV, strictly ascending.
    mu : ndarray, shape (n, pixels)
        Optical densities without NaN.
    settings : EdgeSettings
        Definitions, ranges and limits.
    mean : ndarray, shape (n,), optional
        Mean spectrum of the particle, NaN at energies where it is not known; by default the mean of `mu`.
    count : int, optional
        How many spectra `mean` is the mean of; with fewer than 50 its noise would enter the edge energies, and it
        serves for the lines below and above the edge alone.
    drift : float
        Variance of disturbances that last over the whole edge, see `drift_variance`.

    Returns
    -------
    dict of ndarray, shape (pixels,)
        `edge_energy`, `edge_energy_sigma` (standard error from the pixel's own noise about the edge, and from `drift`),
        `edge_step`, `whiteline_energy`, `fit_status`, and for each further definition asked for `<name>_energy` and
        `<name>_energy_sigma`. Energies in eV, NaN wherever `fit_status` is not 0; `edge_step` is kept where it could be
        measured.
    """
    settings = settings or EdgeSettings()
    if mean is None:
        mean, count = mu.mean(axis=1, dtype=np.float64), mu.shape[1]
    plan = plan_fit(energy, mean, settings, count)
    if isinstance(plan, int):
        return blank_fit(mu.shape[1:], settings, plan)
    # The same buffers serve all batches: fresh memory for each would cost more time than the arithmetic.
    size, (rows, columns) = min(_BATCH, mu.shape[1]), plan.operator.shape
    values, near, answer = np.empty((len(energy), size)), np.empty((columns, size)), np.empty((size, rows))
    width = columns - len(plan.baseline.coefficients)
    maps = blank_fit(mu.shape[1:], settings, OK)
    for k in range(0, mu.shape[1], size or 1):
        part = slice(k, min(k + size, mu.shape[1]))
        m = part.stop - k
        np.copyto(values[:, :m], mu[:, part])
        np.copyto(near[:width, :m], values[plan.curves.window, :m])
        np.matmul(plan.baseline.coefficients, values[:, :m], out=near[width:, :m])
        np.matmul(near[:, :m].T, plan.operator.T, out=answer[:m])
        for name, found in _measure(plan, values[:, :m], near[width:, :m], answer[:m], drift).items():
            maps[name][part] = found
    return maps


def drift_variance(energy: np.ndarray, mu: np.ndarray, mean: np.ndarray, settings: EdgeSettings) -> float:
    """Measure the variance of disturbances that move all energies about the edge together.

    A background that passes beneath the particle, references that drift, frames that are misplaced: none of these shows
    in the scatter between neighbouring energies. What frames just below the edge leave on the particle's mean spectrum
    does show them; the part that independent noise explains is taken off.

    Parameters
    ----------
    energy, mu, mean
        As in `edge_energies`: a sample of one particle's spectra and their mean, neither with NaN.
    settings : EdgeSettings
        With all ranges fixed.

    Returns
    -------
    float
        Variance of the optical density; 0 with fewer than 50 spectra or 4 energies just below the edge.
    """
    low, high = (settings.e0 + bound for bound in settings.search)
    if mu.shape[1] < ENOUGH or not energy[1] <= settings.e0 <= energy[-2]:
        return 0.0
    baseline = particle_baseline(energy, fixed_ranges(energy, settings.e0, **settings.ranges), mean)
    if baseline is None:
        return 0.0
    offset, step = baseline.coefficients @ mean
    unit = (mean - offset) / step
    inside = (energy >= low) & (energy <= high)
    half = energy[np.argmax(inside & (unit - baseline.pre[:, 1] > 0.5))]
    below = (energy > half + _BELOW[0]) & (energy < half + _BELOW[1])
    if np.count_nonzero(below) < 4:
        return 0.0
    row = below / np.count_nonzero(below) - np.array([1.0, unit[below].mean()]) @ baseline.coefficients
    answers = gains(row[None], slow_noise(tuple(energy.tolist()), SLOW_REACH))[:, 0]
    scatter = np.diff(mu[below] - unit[below, None] * (baseline.coefficients[1] @ mu), axis=0)
    noise = 0.5 * np.square(scatter).mean(axis=0)
    return max(0.0, float(np.mean(np.square(row @ mu) - noise * answers[0] ** 2)) / answers[1] ** 2)


def normalize_spectra(
    energy: np.ndarray,
    mu: np.ndarray,
    settings: EdgeSettings | None = None,
    mean: np.ndarray | None = None,
    flat: bool = False,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Normalise every spectrum of `mu` (n, pixels) as `normalize_spectrum` does one; arguments as in `edge_energies`.

    Returns
    -------
    norm : ndarray, shape (n, pixels), float64 or `out`
        Normalised spectra, flattened above `e0` if `flat`; NaN where there is no rising edge.
    edge_step : ndarray, shape (pixels,)
        Height of the edge.
    """
    settings = settings or EdgeSettings()
    norm, step = np.empty(mu.shape) if out is None else out, np.full(mu.shape[1], np.nan)
    plan = plan_fit(energy, mu.mean(axis=1) if mean is None else mean, settings)
    if isinstance(plan, int):
        norm[:] = np.nan
        return norm, step
    b, at_edge = plan.baseline, np.abs(energy - plan.ranges.e0).argmin()
    lines = b.pre.copy()
    if flat:  # what the post-edge curve gains over its value at the edge goes off as well
        gain = (b.post - b.pre)[at_edge:]
        lines[at_edge:] += gain - gain[0]
    buffers = np.empty((2, len(energy), min(_BATCH, mu.shape[1])))
    for k in range(0, mu.shape[1], _BATCH):
        part = slice(k, min(k + _BATCH, mu.shape[1]))
        values, below = buffers[:, :, : part.stop - k]
        np.copyto(values, mu[:, part])
        coefficients = b.coefficients @ values
        height = b.step @ coefficients
        height[~(height > 0)] = np.nan
        np.subtract(values, np.matmul(lines, coefficients, out=below), out=values)
        np.divide(values, height, out=norm[:, part], casting="same_kind")
        step[part] = height
    return norm, step


def field_names(settings: EdgeSettings) -> tuple[str, ...]:
    """Names of the maps that `edge_energies` gives, in order."""
    extra = [f"{name}_energy{end}" for name in settings.also for end in ("", "_sigma")]
    names = ("edge_energy", "edge_energy_sigma", "edge_step", "whiteline_energy", "fit_status", *extra)
    return tuple(dict.fromkeys(names))


def blank_fit(shape: tuple[int, ...], settings: EdgeSettings, status: int) -> dict[str, np.ndarray]:
    """Maps without a single edge energy, all with one status."""
    maps = {name: np.full(shape, np.nan) for name in field_names(settings)}
    maps["fit_status"] = np.full(shape, status, dtype=np.uint8)
    return maps


def _measure(
    plan: Plan, mu: np.ndarray, coefficients: np.ndarray, answer: np.ndarray, drift: float
) -> dict[str, np.ndarray]:
    """All maps of one batch of spectra (n, pixels).

    `coefficients` (r, pixels) are the baseline's, `answer` (pixels, rows) the plan's operator times the batch; its
    peaks are overwritten.
    """
    s, nodes = plan.settings, plan.curves.nodes
    left = answer[:, plan.places["residual"]]
    freedom = plan.curves.freedom[plan.near].sum()
    noise = np.sqrt(np.einsum("pk,pk->p", left, left) / (freedom if freedom >= 2 else np.nan))
    step = plan.baseline.step @ coefficients
    step_sigma = _sigma(plan.noise["step"], noise, drift)
    half, spread = crossing(answer[:, plan.places["half"]], plan.noise["half"], nodes)
    centre = np.where(np.isfinite(half), half, plan.half_step)
    batch = Batch(mu, noise, drift, step, centre)
    white, white_spread, height = _whiteline(plan, batch, answer[:, plan.places["peak"]], plan.noise["peak"])
    measured = {"half_step": (half, _sigma(spread, noise, drift)),
                "whiteline": (white, _sigma(white_spread, noise, drift))}
    for name in (s.definition, *s.also):
        if name not in measured:
            measured[name] = _OTHERS[name](plan, batch, height)
    energy, sigma = measured[s.definition]
    status = np.full(step.shape, OK, dtype=np.uint8)
    with np.errstate(invalid="ignore"):
        status[~np.isfinite(energy)] = OUT_OF_RANGE
        status[(step < s.significance * step_sigma) | (sigma > s.max_sigma)] = THIN
        status[~(step > 0.5 * s.significance * step_sigma) | ~(step > 0)] = NO_EDGE
        status[(status == OK) & _in_gap(plan.energy, energy, s.max_gap)] = TOO_FEW_ENERGIES
    if freedom < 2:  # no noise can be had, and without it no significance
        status[:] = TOO_FEW_ENERGIES
    bad = status != OK
    maps = {"edge_energy": energy, "edge_energy_sigma": sigma, "whiteline_energy": white}
    for name in s.also:
        maps[f"{name}_energy"], maps[f"{name}_energy_sigma"] = measured[name]
    maps = {name: np.where(bad, np.nan, values) for name, values in maps.items()}
    return {**maps, "edge_step": step, "fit_status": status}


@dataclass(frozen=True)
class Batch:
    """Spectra `mu` (n, pixels), their noise, edge steps and half-step energies `centre` (eV), each (pixels,)."""

    mu: np.ndarray
    noise: np.ndarray
    drift: float
    step: np.ndarray
    centre: np.ndarray


def _sigma(spread: np.ndarray, noise: np.ndarray, drift: float) -> np.ndarray:
    """Standard errors from the answers (2, pixels) to independent noise, per pixel, and to a common disturbance."""
    return np.sqrt(np.square(noise * spread[0]) + drift * np.square(spread[1]))


def _in_gap(grid: np.ndarray, energy: np.ndarray, widest: float) -> np.ndarray:
    """Whether the measured energies on either side of `energy` (pixels,) are further apart than `widest` (eV)."""
    right = np.clip(np.searchsorted(grid, energy), 1, len(grid) - 1)
    return grid[right] - grid[right - 1] > widest


def _whiteline(plan: Plan, batch: Batch, values: np.ndarray, noise: np.ndarray):
    """Largest of `values` (pixels, nodes) above the pixel's half-step energy; the values below are overwritten."""
    nodes = plan.curves.nodes[plan.first_peak :]
    np.copyto(values, -np.inf, where=nodes < batch.centre[:, None])
    return maximum(values, noise, nodes, _expected(plan.peak_curvature, batch.step))


def _expected(curvature: float, step: np.ndarray) -> np.ndarray | None:
    """Curvature at the maximum of pixels with edge steps `step`, None where the mean spectrum has no maximum."""
    return curvature * step if np.isfinite(curvature) else None


def _steepest_rise(plan: Plan, batch: Batch, height: np.ndarray):
    """Named energy `e0`: maximum of the derivative with Larch's smoothing, made sub-grid by a parabola."""
    points, inside = plan.curves.points, np.isin(plan.energy, plan.curves.points)
    rows = _derivative(tuple(plan.energy.tolist()), plan.ranges.e0)[inside]
    curvature = _expected(plan.curvature(rows, points), batch.step)
    energy, spread, _ = maximum(batch.mu.T @ rows.T, gains(slopes(rows, points), plan.slow), points, curvature)
    return energy, _sigma(spread, batch.noise, batch.drift)


@lru_cache(maxsize=16)
def _derivative(energy: tuple[float, ...], e0: float) -> np.ndarray:
    """Operator (n, n) of the smoothed derivative of Larch's `find_e0`."""
    # Counted from the first energy and with a rounded width, the result moves exactly as the energies do; Larch's grid
    # hangs on absolute energies.
    grid = np.array(energy) - energy[0]
    slope = np.gradient(np.eye(len(grid)), axis=0) / np.gradient(grid)[:, None]
    return lorentzian_smooth(grid, slope.T, round(smoothing_width(grid, e0), 2)).T


def _half_whiteline(plan: Plan, batch: Batch, height: np.ndarray):
    """Named energy `half_whiteline`: the passage of half the white line's height."""
    rows, peak = plan.rows("edge"), plan.rows("peak")[plan.first_peak :]
    top = peak[np.argmax(peak @ plan.mean)]
    running = np.cumsum(batch.mu.T @ rows.T - 0.5 * height[:, None], axis=1)
    energy, spread = crossing(running, gains(rows - 0.5 * top, plan.slow), plan.curves.nodes)
    return energy, _sigma(spread, batch.noise, batch.drift)


def _raw_whiteline(plan: Plan, batch: Batch, height: np.ndarray):
    """Named energy `whiteline_raw`: as `whiteline`, of the optical density itself (doi:10.1021/photonsci.5c00020)."""
    rows = plan.smooth("peak")[plan.first_peak :]
    answers = gains(slopes(rows, plan.curves.nodes[plan.first_peak :]), plan.slow)
    energy, spread, _ = _whiteline(plan, batch, batch.mu.T @ rows.T, answers)
    return energy, _sigma(spread, batch.noise, batch.drift)


def _centroid(plan: Plan, batch: Batch, height: np.ndarray):
    """Named energy `centroid`: integral of E d(mu) over integral of d(mu), from the first node to the last."""
    rows, away = plan.rows("edge"), plan.curves.nodes - plan.ranges.e0
    weights = np.full(len(away), NODE_STEP)
    weights[[0, -1]] /= 2
    moment = away[-1] * rows[-1] - away[0] * rows[0] - weights @ rows
    total = rows[-1] - rows[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        offset = (moment @ batch.mu) / (total @ batch.mu)
        lever = moment[:, None] - total[:, None] * offset
        answers = gains(lever.T, plan.slow)
        sigma = _sigma(answers / np.abs(total @ batch.mu), batch.noise, batch.drift)
    found = (offset > away[0]) & (offset < away[-1])
    return np.where(found, plan.ranges.e0 + offset, np.nan), np.where(found, sigma, np.nan)


def _shifted_template(plan: Plan, batch: Batch, height: np.ndarray):
    """Named energy `template_shift`: the matched filter that answers most strongly, by a parabola between trials."""
    t = plan.template
    if t is None:
        return np.full((2, batch.mu.shape[1]), np.nan)
    weighted = batch.mu * t.weight[:, None]
    shift, spread, answer = maximum(weighted.T @ t.filters.T, t.noise, t.shifts)
    left = np.square(weighted).sum(axis=0) - np.square(t.projector @ weighted).sum(axis=0) - answer**2
    deviation = np.sqrt(np.maximum(left, 0.0) / (np.count_nonzero(t.weight) - 4))
    return plan.half_step + shift, _sigma(spread, deviation, batch.drift)


_OTHERS = {
    "e0": _steepest_rise,
    "half_whiteline": _half_whiteline,
    "whiteline_raw": _raw_whiteline,
    "centroid": _centroid,
    "template_shift": _shifted_template,
}
