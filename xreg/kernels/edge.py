"""Edge energies of many spectra at once: every step is a fixed linear operator, applied as one matrix product.

With fixed ranges the pre-edge line, the edge step, a smoothed curve and its noise are all linear in the measured
optical densities, so that thousands of pixels cost one product of small matrices. Arrays of spectra have the shape
(energies, pixels), energies ascending.

The half-step energy is where the spectrum passes half of its edge step above the pre-edge line. Noise makes a spectrum
pass that level several times, so it is read from a local cubic fit, and the passage is chosen as the change point that
best parts "below" from "above": the minimum of the running integral of (spectrum - half step).
"""

from functools import lru_cache

import numpy as np

from xreg.kernels.localfit import crossing, maximum
from xreg.kernels.operators import (
    NO_EDGE,
    NODE_STEP,
    OK,
    OUT_OF_RANGE,
    THIN,
    TOO_FEW_ENERGIES,
    Curves,
    EdgeSettings,
    Plan,
    plan_fit,
)
from xreg.kernels.preedge import lorentzian_smooth, smoothing_width

_BATCH = 2048          # pixels per matrix product: a few MB, so that the work stays in the processor's cache
_NOISE_REACH = 10.0    # eV on either side of the edge within which the noise is measured


def edge_energies(
    energy: np.ndarray,
    mu: np.ndarray,
    settings: EdgeSettings | None = None,
    mean: np.ndarray | None = None,
    count: int | None = None,
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

    Returns
    -------
    dict of ndarray, shape (pixels,)
        `edge_energy`, `edge_energy_sigma` (standard error from the pixel's own noise about the edge), `edge_step`,
        `whiteline_energy`, `fit_status`, and for each further definition asked for `<name>_energy` and
        `<name>_energy_sigma`. Energies in eV, NaN wherever `fit_status` is not 0; `edge_step` is kept where it could be
        measured.
    """
    settings = settings or EdgeSettings()
    if mean is None:
        mean, count = mu.mean(axis=1, dtype=np.float64), mu.shape[1]
    plan = plan_fit(energy, mean, settings, count)
    if isinstance(plan, int):
        return blank_fit(mu.shape[1:], settings, plan)
    # Two buffers serve all batches: fresh memory for each would cost more time than the arithmetic.
    size = min(_BATCH, mu.shape[1])
    values, answer = np.empty((len(energy), size)), np.empty((len(plan.operator), size))
    batches = []
    for k in range(0, mu.shape[1], size or 1):
        part = mu[:, k : k + size]
        columns = slice(0, part.shape[1])
        np.copyto(values[:, columns], part)
        np.matmul(plan.operator, values[:, columns], out=answer[:, columns])
        batches.append(_measure(plan, values[:, columns], answer[:, columns]))
    if not batches:
        return blank_fit((0,), settings, OK)
    return {name: np.concatenate([b[name] for b in batches]) for name in field_names(settings)}


def normalize_spectra(
    energy: np.ndarray,
    mu: np.ndarray,
    settings: EdgeSettings | None = None,
    mean: np.ndarray | None = None,
    flat: bool = False,
    dtype: type = np.float64,
) -> tuple[np.ndarray, np.ndarray]:
    """Normalise every spectrum of `mu` (n, pixels) as `normalize_spectrum` does one; arguments as in `edge_energies`.

    Returns
    -------
    norm : ndarray, shape (n, pixels), of the given dtype
        Normalised spectra, flattened above `e0` if `flat`; NaN where there is no rising edge.
    edge_step : ndarray, shape (pixels,)
        Height of the edge.
    """
    settings = settings or EdgeSettings()
    plan = plan_fit(energy, mu.mean(axis=1) if mean is None else mean, settings)
    if isinstance(plan, int):
        return np.full(mu.shape, np.nan), np.full(mu.shape[1:], np.nan)
    norm, step = np.empty(mu.shape, dtype), np.empty(mu.shape[1])
    b, at_edge = plan.baseline, np.abs(energy - plan.ranges.e0).argmin()
    lines = b.pre.copy()
    if flat:  # what the post-edge curve gains over its value at the edge goes off as well
        gain = (b.post - b.pre)[at_edge:]
        lines[at_edge:] += gain - gain[0]
    for k in range(0, mu.shape[1], _BATCH):
        part = np.asarray(mu[:, k : k + _BATCH], dtype=np.float64)
        coefficients = b.coefficients @ part
        height = b.step @ coefficients
        height = np.where(height > 0, height, np.nan)
        part = part - lines @ coefficients
        np.divide(part, height, out=norm[:, k : k + _BATCH], casting="same_kind")
        step[k : k + _BATCH] = height
    return norm, step


def field_names(settings: EdgeSettings) -> tuple[str, ...]:
    """Names of the maps that `edge_energies` gives, in order."""
    extra = tuple(f"{name}_energy{end}" for name in settings.also for end in ("", "_sigma") if name != "whiteline")
    return "edge_energy", "edge_energy_sigma", "edge_step", "whiteline_energy", "fit_status", *extra


def blank_fit(shape: tuple[int, ...], settings: EdgeSettings, status: int) -> dict[str, np.ndarray]:
    """Maps without a single edge energy, all with one status."""
    maps = {name: np.full(shape, np.nan) for name in field_names(settings)}
    maps["fit_status"] = np.full(shape, status, dtype=np.uint8)
    return maps


def _measure(plan: Plan, mu: np.ndarray, answer: np.ndarray) -> dict[str, np.ndarray]:
    """All maps of one batch of spectra (n, pixels), given `answer`, the plan's operator times them (used up here)."""
    s, nodes = plan.settings, plan.curves.nodes
    (step_row, at_step), (half_rows, at_half), (peak_rows, at_peak), (_, at_residual) = plan.stacked.values()
    step = answer[at_step][0].copy()
    half, half_spread = crossing(answer[at_half], np.linalg.norm(half_rows, axis=1), nodes)
    centre = np.where(np.isfinite(half), half, plan.ranges.e0)
    noise = _noise(plan.curves, answer[at_residual], centre)
    step_sigma = noise * np.linalg.norm(step_row)
    white, white_spread, height = _whiteline(peak_rows, answer[at_peak], nodes, centre)
    measured = {"half_step": (half, noise * half_spread), "whiteline": (white, noise * white_spread)}
    for name in (s.definition, *s.also):
        if name not in measured:
            measured[name] = _OTHERS[name](plan, mu, noise, centre, height)
    energy, sigma = measured[s.definition]
    status = np.full(step.shape, OK, dtype=np.uint8)
    with np.errstate(invalid="ignore"):
        status[~np.isfinite(energy)] = OUT_OF_RANGE
        status[(step < s.significance * step_sigma) | (sigma > s.max_sigma)] = THIN
        status[~(step > 0.5 * s.significance * step_sigma) | ~(step > 0)] = NO_EDGE
        status[(status == OK) & _in_gap(plan.energy, energy, s.max_gap)] = TOO_FEW_ENERGIES
    bad = status != OK
    maps = {"edge_energy": energy, "edge_energy_sigma": sigma, "whiteline_energy": white}
    for name in s.also:
        maps[f"{name}_energy"], maps[f"{name}_energy_sigma"] = measured[name]
    maps = {name: np.where(bad, np.nan, values) for name, values in maps.items()}
    return {**maps, "edge_step": step, "fit_status": status}


def _in_gap(grid: np.ndarray, energy: np.ndarray, widest: float) -> np.ndarray:
    """Whether the measured energies on either side of `energy` (pixels,) are further apart than `widest` (eV)."""
    right = np.clip(np.searchsorted(grid, energy), 1, len(grid) - 1)
    return grid[right] - grid[right - 1] > widest


def _whiteline(rows: np.ndarray, values: np.ndarray, nodes: np.ndarray, centre: np.ndarray):
    """Largest of `values` (nodes, pixels) above the edge at `centre` (pixels,); the values below are overwritten."""
    np.copyto(values, -np.inf, where=nodes[:, None] < centre)
    return maximum(values, rows, nodes)


def _noise(curves: Curves, left: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Standard deviation of one measurement about `centre` (eV, per pixel), from what the local fit leaves.

    `left` (points, pixels) is overwritten.
    """
    np.cumsum(np.square(left, out=left), axis=0, out=left)
    freedom = np.concatenate(([0.0], np.cumsum(curves.freedom)))
    low = np.searchsorted(curves.points, centre - _NOISE_REACH)
    high = np.searchsorted(curves.points, centre + _NOISE_REACH, side="right")
    scarce = freedom[high] - freedom[low] < 5
    low, high = np.where(scarce, 0, low), np.where(scarce, len(curves.points), high)
    free, pixel = freedom[high] - freedom[low], np.arange(left.shape[1])
    power = left[high - 1, pixel] - np.where(low > 0, left[low - 1, pixel], 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(free >= 2, np.sqrt(np.maximum(power, 0.0) / free), np.nan)


def _steepest_rise(plan: Plan, mu: np.ndarray, noise: np.ndarray, centre: np.ndarray, height: np.ndarray):
    """Named energy `e0`: maximum of the derivative with Larch's smoothing, made sub-grid by a parabola."""
    c, inside = plan.curves, np.isin(plan.energy, plan.curves.points)
    rows = _derivative(tuple(plan.energy.tolist()), plan.ranges.e0)[inside]
    energy, spread, _ = maximum(rows @ mu, rows, c.points)
    return energy, noise * spread


@lru_cache(maxsize=16)
def _derivative(energy: tuple[float, ...], e0: float) -> np.ndarray:
    """Operator (n, n) of the smoothed derivative of Larch's `find_e0`."""
    # Counted from the first energy and with a rounded width, the result moves exactly as the energies do; Larch's grid
    # hangs on absolute energies.
    grid = np.array(energy) - energy[0]
    slope = np.gradient(np.eye(len(grid)), axis=0) / np.gradient(grid)[:, None]
    return lorentzian_smooth(grid, slope.T, round(smoothing_width(grid, e0), 2)).T


def _half_whiteline(plan: Plan, mu: np.ndarray, noise: np.ndarray, centre: np.ndarray, height: np.ndarray):
    """Named energy `half_whiteline`: the passage of half the white line's height."""
    rows, peak = plan.rows("edge"), plan.rows("peak")
    above = plan.curves.nodes > plan.ranges.e0
    # Edge and white line lie further apart than a fit's window, so that their errors are added as independent.
    size = np.hypot(np.linalg.norm(rows, axis=1), 0.5 * np.median(np.linalg.norm(peak[above], axis=1)))
    energy, spread = crossing(rows @ mu - 0.5 * height, size, plan.curves.nodes)
    return energy, noise * spread


def _raw_whiteline(plan: Plan, mu: np.ndarray, noise: np.ndarray, centre: np.ndarray, height: np.ndarray):
    """Named energy `whiteline_raw`: as `whiteline`, of the optical density itself (doi:10.1021/photonsci.5c00020)."""
    rows = plan.smooth("peak")
    energy, spread, _ = _whiteline(rows, rows @ mu, plan.curves.nodes, centre)
    return energy, noise * spread


def _centroid(plan: Plan, mu: np.ndarray, noise: np.ndarray, centre: np.ndarray, height: np.ndarray):
    """Named energy `centroid`: integral of E d(mu) over integral of d(mu), from the first node to the last."""
    rows, away = plan.rows("edge"), plan.curves.nodes - plan.ranges.e0
    weights = np.full(len(away), NODE_STEP)
    weights[[0, -1]] /= 2
    moment = away[-1] * rows[-1] - away[0] * rows[0] - weights @ rows
    total = rows[-1] - rows[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        offset = (moment @ mu) / (total @ mu)
        spread = np.linalg.norm(moment[:, None] - total[:, None] * offset, axis=0) / np.abs(total @ mu)
    found = (offset > away[0]) & (offset < away[-1])
    return np.where(found, plan.ranges.e0 + offset, np.nan), np.where(found, noise * spread, np.nan)


def _shifted_template(plan: Plan, mu: np.ndarray, noise: np.ndarray, centre: np.ndarray, height: np.ndarray):
    """Named energy `template_shift`: the matched filter that answers most strongly, by a parabola between trials."""
    t = plan.template
    if t is None:
        return np.full(mu.shape[1], np.nan), np.full(mu.shape[1], np.nan)
    weighted = mu * t.weight[:, None]
    shift, spread, answer = maximum(t.filters @ weighted, t.filters, t.shifts)
    left = np.square(weighted).sum(axis=0) - np.square(t.projector @ weighted).sum(axis=0) - answer**2
    deviation = np.sqrt(np.maximum(left, 0.0) / (np.count_nonzero(t.weight) - 4))
    return t.half_step + shift, deviation * spread


_OTHERS = {
    "e0": _steepest_rise,
    "half_whiteline": _half_whiteline,
    "whiteline_raw": _raw_whiteline,
    "centroid": _centroid,
    "template_shift": _shifted_template,
}
