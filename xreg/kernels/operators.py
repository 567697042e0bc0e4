"""The linear operators of an edge fit: all that depends on energies, ranges and a particle's mean spectrum alone."""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from scipy.interpolate import CubicSpline

from xreg.kernels.baseline import Baseline, particle_baseline, pixel_baseline
from xreg.kernels.localfit import crossing, gains, local_polynomial, slopes, slow_noise, top_curvature
from xreg.kernels.preedge import Ranges, find_e0, fixed_ranges, resolve_ranges

OK, OUTSIDE, THIN, NO_EDGE, OUT_OF_RANGE, TOO_FEW_ENERGIES, BAD_FRAMES = range(7)
#: What each named edge energy means.
DEFINITIONS = {
    "half_step": "energy where the spectrum passes half of its edge step above the pre-edge line",
    "e0": "energy of the largest derivative, smoothed with Larch's Lorentzian",
    "half_whiteline": "energy where the spectrum passes half of its white line's height above the pre-edge line",
    "whiteline": "energy of the largest value of a local cubic fit to the spectrum above the pre-edge line",
    "whiteline_raw": "energy of the largest value of a local cubic fit to the optical density, without normalisation",
    "centroid": "centre of mass of the derivative over the search window (integral method)",
    "template_shift": "half-step energy of the particle's mean spectrum plus the maximum-likelihood shift from it",
}
#: Energy (eV) between the nodes of smoothed curves.
NODE_STEP = 0.5
#: Spectra whose mean is taken as free of noise.
ENOUGH = 50
#: Distance (eV) over which slow disturbances are taken to forget themselves.
SLOW_REACH = 15.0
_SHIFT_STEP = 0.2       # eV between the trial shifts of the template
_PEAK_MARGIN = 5.0      # eV by which a pixel's white line may lie below the particle's edge
_LINE_MARGIN = 5.0      # eV from the particle's half-step energy that the lines' ranges must keep
_NOISE_REACH = 10.0     # eV on either side of the particle's edge within which the noise is measured
_LEAST_FREEDOM = 5.0    # degrees of freedom without which the noise is measured in the whole search window


@dataclass(frozen=True)
class EdgeSettings:
    """How edge energies are measured. Energies in eV; ranges are offsets from `e0`, None means Larch's choice.

    `slope` "particle" takes the shapes of the lines below and above the edge from the particle's mean spectrum, so that
    a pixel keeps only an offset and a step (robust where it is thin); "pixel" fits both lines anew in every pixel, as
    Larch does. `bandwidth` and `peak_bandwidth` are half widths of the local cubic fits to edge and white line;
    `search` bounds the window in which the edge is sought, `max_shift` that of `template_shift`. An edge that falls
    into a gap of the energies wider than `max_gap` counts as having too few. A pixel is thin when its step is below
    `significance` standard errors or its edge energy's standard error is above `max_sigma`.
    """

    definition: str = "half_step"
    also: tuple[str, ...] = ()
    e0: float | None = None
    pre1: float | None = None
    pre2: float | None = None
    norm1: float | None = None
    norm2: float | None = None
    nnorm: int | None = None
    nvict: int = 0
    slope: str = "particle"
    bandwidth: float = 3.0
    peak_bandwidth: float = 5.0
    search: tuple[float, float] = (-20.0, 30.0)
    max_gap: float = 5.0
    max_shift: float = 5.0
    significance: float = 5.0
    max_sigma: float = 1.0

    def __post_init__(self):
        for name in (self.definition, *self.also):
            if name not in DEFINITIONS:
                msg = f"definition {name!r} is unknown; choose from {', '.join(DEFINITIONS)}."
                raise ValueError(msg)
        if self.slope not in ("particle", "pixel"):
            msg = f"slope is {self.slope!r}; need 'particle' or 'pixel'."
            raise ValueError(msg)
        if not self.search[0] < 0 < self.search[1]:
            msg = f"search is {self.search}; need offsets (below, above) with below < 0 < above, in eV from e0."
            raise ValueError(msg)
        for name, side, wrong in (("pre1", "below", 1), ("pre2", "below", 1), ("norm1", "above", -1)):
            value = getattr(self, name)
            if value is not None and value * wrong >= 0:
                msg = f"{name} is {value:g}; need an offset {side} e0, that is {'< 0' if wrong > 0 else '> 0'}, in eV."
                raise ValueError(msg)

    @property
    def ranges(self) -> dict[str, float | None]:
        """The keywords of `resolve_ranges`."""
        return {name: getattr(self, name) for name in ("pre1", "pre2", "norm1", "norm2", "nnorm", "nvict")}


@dataclass(frozen=True)
class Curves:
    """Local fits of given energies (n,): operators that depend on nothing else.

    `edge` and `peak` (nodes, n) give the smoothed spectrum at `nodes` (eV) with the narrow and the wide window;
    `residual` (points, n) what a local fit leaves of the measured values at `points` (eV), and `freedom` (points,)
    the share of the noise variance that is left there. All of them look only at the energies of `window`.
    """

    nodes: np.ndarray
    edge: np.ndarray
    peak: np.ndarray
    points: np.ndarray
    residual: np.ndarray
    freedom: np.ndarray
    window: slice


@lru_cache(maxsize=64)
def _curves(energy: tuple[float, ...], e0: float, settings: EdgeSettings) -> Curves:
    """Local fits for one set of energies; cached, because scans share theirs."""
    energy = np.array(energy)
    low, high = max(e0 + settings.search[0], energy[0]), min(e0 + settings.search[1], energy[-1])
    # Nodes lie at fixed offsets from e0, so that moving the energy axis moves the result by exactly as much.
    first, last = np.ceil((low - e0) / NODE_STEP - 1e-9), np.floor((high - e0) / NODE_STEP + 1e-9)
    nodes = e0 + NODE_STEP * np.arange(first, last + 1)
    inside = (energy >= low) & (energy <= high)
    residual = np.eye(len(energy))[inside] - local_polynomial(energy, energy[inside], settings.bandwidth)
    edge, peak = (local_polynomial(energy, nodes, width) for width in (settings.bandwidth, settings.peak_bandwidth))
    used = np.flatnonzero(np.concatenate((edge, peak, residual)).any(axis=0))
    return Curves(nodes, edge, peak, energy[inside], residual, np.square(residual).sum(axis=1),
                  slice(int(used[0]), int(used[-1]) + 1))


@dataclass(frozen=True)
class Plan:
    """All operators for one set of energies and one mean spectrum `mean` (n,), interpolated where it is not known.

    `half_step` (eV) is that of the mean. `lost` (curve -> nodes) and `left` (points,) are what smoothing takes from the
    mean spectrum of unit step; zeros where the mean is not relied upon.
    """

    settings: EdgeSettings
    energy: np.ndarray
    mean: np.ndarray
    ranges: Ranges
    baseline: Baseline
    curves: Curves
    lost: dict[str, np.ndarray]
    left: np.ndarray
    half_step: float = np.nan
    template: "Template | None" = None

    @cached_property
    def first_peak(self) -> int:
        """Node from which the white line is sought: none lies below the edge."""
        below = int(np.searchsorted(self.curves.nodes, self.half_step - _PEAK_MARGIN))
        return min(below, len(self.curves.nodes) - 3)

    @cached_property
    def near(self) -> np.ndarray:
        """Which points are near enough to the edge to measure the noise that matters there, (points,) bool."""
        near = np.abs(self.curves.points - self.half_step) <= _NOISE_REACH
        return near if self.curves.freedom[near].sum() >= _LEAST_FREEDOM else np.ones_like(near)

    @cached_property
    def stacked(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """What every fit needs: operators on the energies of the window, and on the baseline's coefficients.

        "half" is the running sum of (spectrum - half step) over the nodes, "peak" the curve in which the white line is
        sought, "residual" what the local fit leaves of the measured values about the edge.
        """
        w, c = self.curves.window, self.curves
        half, peak = self._lines("edge", 0.5), self._lines("peak")
        left = np.outer(self.left[self.near], self.baseline.step)
        return {"half": (np.cumsum(c.edge[:, w], axis=0), np.cumsum(half, axis=0)),
                "peak": (c.peak[self.first_peak :, w], peak[self.first_peak :]),
                "residual": (c.residual[self.near, w], -left)}

    @cached_property
    def operator(self) -> np.ndarray:
        """All of `stacked` as one matrix on (energies of the window, coefficients), so that a batch is one product."""
        return np.concatenate([np.hstack(pair) for pair in self.stacked.values()])

    @cached_property
    def places(self) -> dict[str, slice]:
        """The rows that each part of `stacked` takes in `operator`."""
        sizes = {name: len(curve) for name, (curve, _) in self.stacked.items()}
        ends = np.cumsum(list(sizes.values())).tolist()
        return {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}

    @cached_property
    def slow(self) -> np.ndarray:
        """Square root (n, n) of the covariance of disturbances that last over several energies."""
        return slow_noise(tuple(self.energy.tolist()), SLOW_REACH)

    @cached_property
    def noise(self) -> dict[str, np.ndarray]:
        """Answers to noise, see `gains`: of the step (2, 1), the half-step curve (2, m) and the white line's slope."""
        rows = {"step": (self.baseline.step @ self.baseline.coefficients)[None], "half": self.rows("edge", 0.5),
                "peak": slopes(self.rows("peak")[self.first_peak :], self.curves.nodes[self.first_peak :])}
        return {name: gains(values, self.slow) for name, values in rows.items()}

    def curvature(self, rows: np.ndarray, nodes: np.ndarray) -> float:
        """Curvature per edge step of the mean spectrum's curve `rows` (m, n) at its maximum."""
        return top_curvature(rows @ self.mean, nodes) / (self.baseline.step @ self.baseline.coefficients @ self.mean)

    @cached_property
    def peak_curvature(self) -> float:
        """Curvature of the mean spectrum's white line per edge step."""
        first = self.first_peak
        return self.curvature(self.rows("peak")[first:], self.curves.nodes[first:])

    def rows(self, name: str, level: float = 0.0) -> np.ndarray:
        """Operator (nodes, n) of the curve `name` ("edge", "peak") less the pre-edge line and `level` edge steps."""
        return getattr(self.curves, name) + self._lines(name, level) @ self.baseline.coefficients

    def smooth(self, name: str) -> np.ndarray:
        """Operator (nodes, n) of the smoothed curve `name`."""
        return getattr(self.curves, name) + np.outer(self.lost[name], self.baseline.step @ self.baseline.coefficients)

    def _lines(self, name: str, level: float = 0.0) -> np.ndarray:
        """What `rows` adds to the curve, as an operator (nodes, r) on the baseline's coefficients."""
        return np.outer(self.lost[name] - level, self.baseline.step) - self.baseline.pre_at(self.curves.nodes)


@dataclass(frozen=True)
class Template:
    """The particle's mean spectrum at trial shifts: matched filters (shifts, n) for weighted spectra.

    `noise` (2, shifts - 2) is how their derivative answers to independent noise of the weighted spectra and to slow
    noise of the plain ones.
    """

    shifts: np.ndarray
    filters: np.ndarray
    weight: np.ndarray
    projector: np.ndarray
    noise: np.ndarray


def plan_fit(energy: np.ndarray, mean: np.ndarray, settings: EdgeSettings, count: int | None = None) -> "Plan | int":
    """Build the operators, or say by a status why these energies or this mean spectrum allow none.

    `mean` (n,) is the mean of `count` spectra at the ascending `energy` (n,), NaN where it is not known.
    """
    settings = fix_ranges(energy, mean, settings)
    if not isinstance(settings, EdgeSettings):
        return settings
    known, e0 = np.isfinite(mean), settings.e0
    if known.sum() < 5:
        return TOO_FEW_ENERGIES
    if not energy[known][1] <= e0 <= energy[known][-2]:
        return OUT_OF_RANGE
    ranges = fixed_ranges(energy[known], e0, **settings.ranges)
    if not supports(energy[known], ranges, settings):
        return TOO_FEW_ENERGIES
    if settings.slope == "pixel":
        baseline = pixel_baseline(energy, ranges)
    else:
        baseline = particle_baseline(energy, ranges, mean)
    if baseline is None:
        return NO_EDGE
    curves = _curves(tuple(energy.tolist()), e0, settings_key(settings))
    lost, left = {name: np.zeros(len(curves.nodes)) for name in ("edge", "peak")}, np.zeros(len(curves.points))
    if settings.slope == "particle" and (count is None or count >= ENOUGH):
        lost, left = _lost_of_mean(energy, mean, baseline, curves)
    filled = np.interp(energy, energy[known], mean[known])
    plan = Plan(settings, energy, filled, ranges, baseline, curves, lost, left)
    running = np.cumsum(plan.rows("edge", 0.5) @ filled)
    half_step = crossing(running[None], np.zeros((0, len(running))), curves.nodes)[0][0]
    # Where the energies end near the edge, or e0 lies far from it, automatic ranges reach into the edge itself.
    if half_step > e0 + ranges.norm1 - _LINE_MARGIN or half_step < e0 + ranges.pre2 + _LINE_MARGIN:
        return TOO_FEW_ENERGIES
    plan = replace(plan, half_step=float(half_step if np.isfinite(half_step) else e0))
    if "template_shift" in (settings.definition, *settings.also) and np.isfinite(half_step):
        plan = replace(plan, template=_template(plan, mean))
    return plan


def fix_ranges(energy: np.ndarray, mean: np.ndarray, settings: EdgeSettings) -> "EdgeSettings | int":
    """Settle `e0` and every range for a particle's mean spectrum (n,), or say by a status why that cannot be.

    Pixels that lack some energies must not get other ranges than their neighbours: they are given these.
    """
    if None not in (settings.e0, *settings.ranges.values()):
        return settings
    known = np.isfinite(mean)
    if known.sum() < 5:
        return TOO_FEW_ENERGIES
    energy = energy[known]
    e0 = find_e0(energy, mean[known]) if settings.e0 is None else settings.e0
    if not energy[1] <= e0 <= energy[-2]:
        return OUT_OF_RANGE
    r = resolve_ranges(energy, e0, **settings.ranges)
    if r.norm1 <= 0 or max(r.pre1, r.pre2) >= 0:
        return TOO_FEW_ENERGIES
    return replace(settings, e0=e0, pre1=r.pre1, pre2=r.pre2, norm1=r.norm1, norm2=r.norm2, nnorm=r.nnorm)


def _lost_of_mean(energy: np.ndarray, mean: np.ndarray, baseline: Baseline, curves: Curves):
    """What the local fits take from the mean spectrum (n,) of unit step: curve -> (nodes,), and (points,).

    Smoothing flattens a sharp edge and moves its half-step energy. What it takes from the mean is known and is given
    back to each pixel in proportion to its own step, so that it smooths only what sets a pixel apart from the mean.
    """
    known = np.isfinite(mean)
    spline = CubicSpline(energy[known], mean[known])
    height = baseline.step @ baseline.coefficients @ spline(energy)
    unit = spline(energy) / height
    lost = {name: spline(curves.nodes) / height - getattr(curves, name) @ unit for name in ("edge", "peak")}
    return lost, curves.residual @ unit


def settings_key(settings: EdgeSettings) -> EdgeSettings:
    """The part of the settings on which `Curves` depend, so that the cache is not missed for the rest."""
    return EdgeSettings(
        bandwidth=settings.bandwidth, peak_bandwidth=settings.peak_bandwidth, search=settings.search)


def grid_supports(energy: np.ndarray, settings: EdgeSettings) -> bool:
    """Whether a scan of these ascending energies (n,) could be fitted if none were missing; no without an `e0`."""
    if settings.e0 is None or len(energy) < 5 or not energy[1] <= settings.e0 <= energy[-2]:
        return False
    return supports(energy, resolve_ranges(energy, settings.e0, **settings.ranges), settings)


def supports(energy: np.ndarray, ranges: Ranges, settings: EdgeSettings) -> bool:
    """Whether there are energies before, in and after the edge, as many as the fits need."""
    # Larch stretches an empty range until it holds points, if need be over the edge itself. Not here.
    below = np.count_nonzero(energy <= ranges.e0 + ranges.pre2)
    above = np.count_nonzero(energy >= ranges.e0 + ranges.norm1)
    low, high = ranges.e0 + settings.search[0], ranges.e0 + settings.search[1]
    inside = np.count_nonzero((energy >= low) & (energy <= high))
    span = min(high, energy[-1]) - max(low, energy[0])
    return bool(below >= 1 and above >= 2 and inside >= 4 and span >= 6 * NODE_STEP)


def _template(plan: Plan, mean: np.ndarray) -> Template | None:
    """Matched filters for shifts of the mean spectrum, free of any offset and tilt of a pixel."""
    known, s = np.isfinite(mean), plan.settings
    steps = int(np.ceil(s.max_shift / _SHIFT_STEP))
    shifts = _SHIFT_STEP * np.arange(-steps, steps + 1)
    inner = known & (plan.energy >= plan.energy[0] + shifts[-1]) & (plan.energy <= plan.energy[-1] - shifts[-1])
    if inner.sum() < 6:
        return None
    spline = CubicSpline(plan.energy[known], mean[known])
    # Counting statistics: the variance of an optical density grows like its exponential. The bound keeps the weights
    # usable for spectra that are no optical densities.
    weight = np.where(inner, np.exp(-0.5 * np.clip(plan.mean - plan.mean.min(), 0.0, 5.0)), 0.0)
    weight /= weight[inner].mean()
    tilt = np.stack((np.ones(len(weight)), (plan.energy - plan.ranges.e0) / 100.0), axis=1) * weight[:, None]
    basis, _ = np.linalg.qr(tilt)
    trial = spline(plan.energy[:, None] - shifts) * weight[:, None]
    trial -= basis @ (basis.T @ trial)
    filters = (trial / np.linalg.norm(trial, axis=0)).T
    steep = slopes(filters, shifts)
    noise = np.stack((gains(steep, plan.slow)[0], gains(steep * weight, plan.slow)[1]))
    return Template(shifts, filters, weight, basis.T, noise)
