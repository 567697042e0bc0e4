"""The linear operators of an edge fit: all that depends on energies, ranges and a particle's mean spectrum alone."""

from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np
from scipy.interpolate import CubicSpline

from xreg.kernels.baseline import Baseline, particle_baseline, pixel_baseline
from xreg.kernels.localfit import crossing, local_polynomial
from xreg.kernels.preedge import Ranges, find_e0, fixed_ranges, resolve_ranges

OK, OUTSIDE, THIN, NO_EDGE, OUT_OF_RANGE, TOO_FEW_ENERGIES = range(6)
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
_SHIFT_STEP = 0.2   # eV between the trial shifts of the template
_ENOUGH = 50        # spectra whose mean is taken as free of noise


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

    @property
    def ranges(self) -> dict[str, float | None]:
        """The keywords of `resolve_ranges`."""
        return {name: getattr(self, name) for name in ("pre1", "pre2", "norm1", "norm2", "nnorm", "nvict")}


@dataclass(frozen=True)
class Curves:
    """Local fits of given energies (n,): operators that depend on nothing else.

    `edge` and `peak` (nodes, n) give the smoothed spectrum at `nodes` (eV) with the narrow and the wide window;
    `residual` (points, n) what a local fit leaves of the measured values at `points` (eV), and `freedom` (points,)
    the share of the noise variance that is left there.
    """

    nodes: np.ndarray
    edge: np.ndarray
    peak: np.ndarray
    points: np.ndarray
    residual: np.ndarray
    freedom: np.ndarray


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
    return Curves(
        nodes=nodes,
        edge=local_polynomial(energy, nodes, settings.bandwidth),
        peak=local_polynomial(energy, nodes, settings.peak_bandwidth),
        points=energy[inside],
        residual=residual,
        freedom=np.square(residual).sum(axis=1),
    )


@dataclass(frozen=True)
class Plan:
    """All operators for one set of energies and one mean spectrum."""

    settings: EdgeSettings
    energy: np.ndarray
    ranges: Ranges
    baseline: Baseline
    curves: Curves
    residual: np.ndarray
    lost: dict[str, np.ndarray] = field(default_factory=dict)
    template: "Template | None" = None

    @cached_property
    def stacked(self) -> dict[str, tuple[np.ndarray, slice]]:
        """The operators that every fit needs, by name, and the rows that each takes in `operator`."""
        parts = {"step": (self.baseline.step @ self.baseline.coefficients)[None], "half": self.rows("edge", 0.5),
                 "peak": self.rows("peak"), "residual": self.residual}
        ends = np.cumsum([len(rows) for rows in parts.values()]).tolist()
        return {name: (parts[name], slice(end - len(parts[name]), end)) for name, end in zip(parts, ends, strict=True)}

    @cached_property
    def operator(self) -> np.ndarray:
        """All of `stacked` in one matrix (rows, n), so that a batch of pixels costs one product."""
        return np.concatenate([rows for rows, _ in self.stacked.values()])

    def rows(self, name: str, level: float = 0.0) -> np.ndarray:
        """Operator (nodes, n) of the curve `name` ("edge", "peak") less the pre-edge line and `level` edge steps."""
        lines = self.baseline.pre_at(self.curves.nodes) + level * self.baseline.step
        return self.smooth(name) - lines @ self.baseline.coefficients

    def smooth(self, name: str) -> np.ndarray:
        """Operator (nodes, n) of the smoothed curve `name`."""
        curve = getattr(self.curves, name)
        if not self.lost:
            return curve
        return curve + np.outer(self.lost[name], self.baseline.step @ self.baseline.coefficients)


@dataclass(frozen=True)
class Template:
    """The particle's mean spectrum at trial shifts: matched filters (shifts, n) for weighted spectra."""

    shifts: np.ndarray
    filters: np.ndarray
    weight: np.ndarray
    projector: np.ndarray
    half_step: float


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
    plan = Plan(settings, energy, ranges, baseline, curves, curves.residual)
    if settings.slope == "particle" and (count is None or count >= _ENOUGH):
        plan = _relative_to_mean(plan, CubicSpline(energy[known], mean[known]))
    if "template_shift" in (settings.definition, *settings.also):
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
    return replace(settings, e0=e0, pre1=r.pre1, pre2=r.pre2, norm1=r.norm1, norm2=r.norm2, nnorm=r.nnorm)


def _relative_to_mean(plan: Plan, mean: CubicSpline) -> Plan:
    """Let the local fits smooth only what sets a pixel apart from its particle's mean spectrum.

    Smoothing flattens a sharp edge and moves its half-step energy. What it takes from the mean spectrum of unit step is
    known, and is given back to each pixel in proportion to its own step.
    """
    c, known = plan.curves, mean(plan.energy)
    known = known / (plan.baseline.step @ plan.baseline.coefficients @ known)
    unit = CubicSpline(plan.energy, known)
    lost = {name: unit(c.nodes) - getattr(c, name) @ known for name in ("edge", "peak")}
    step_row = plan.baseline.step @ plan.baseline.coefficients
    return replace(plan, lost=lost, residual=c.residual - np.outer(c.residual @ known, step_row))


def settings_key(settings: EdgeSettings) -> EdgeSettings:
    """The part of the settings on which `Curves` depend, so that the cache is not missed for the rest."""
    return EdgeSettings(
        bandwidth=settings.bandwidth, peak_bandwidth=settings.peak_bandwidth, search=settings.search)


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
    filled = np.interp(plan.energy, plan.energy[known], mean[known])
    rows = plan.rows("edge", 0.5)
    half_step = crossing(rows @ filled[:, None], np.zeros(len(rows)), plan.curves.nodes)[0][0]
    steps = int(np.ceil(s.max_shift / _SHIFT_STEP))
    shifts = _SHIFT_STEP * np.arange(-steps, steps + 1)
    inner = known & (plan.energy >= plan.energy[0] + shifts[-1]) & (plan.energy <= plan.energy[-1] - shifts[-1])
    if inner.sum() < 6 or not np.isfinite(half_step):
        return None
    spline = CubicSpline(plan.energy[known], mean[known])
    # Counting statistics: the variance of an optical density grows like its exponential. The bound keeps the weights
    # usable for spectra that are no optical densities.
    weight = np.where(inner, np.exp(-0.5 * np.clip(filled - filled.min(), 0.0, 5.0)), 0.0)
    weight /= weight[inner].mean()
    tilt = np.stack((np.ones(len(weight)), (plan.energy - plan.ranges.e0) / 100.0), axis=1) * weight[:, None]
    basis, _ = np.linalg.qr(tilt)
    trial = spline(plan.energy[:, None] - shifts) * weight[:, None]
    trial -= basis @ (basis.T @ trial)
    return Template(shifts, (trial / np.linalg.norm(trial, axis=0)).T, weight, basis.T, float(half_step))
