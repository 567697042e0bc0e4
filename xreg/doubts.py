"""What a result leaves uncertain, in sentences: missing or unlike sightings, errors, what cannot be told apart."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from xreg import plot
from xreg.kernels.scoring import robust_sigma
from xreg.result import rigid_part
from xreg.schema import FitStatus

if TYPE_CHECKING:
    import xarray as xr

#: Sightings less similar to the previous one than this are worth a look.
_LOW_SIMILARITY = 0.5


def doubts(result: "xr.Dataset", truth: "xr.Dataset | None" = None) -> Iterable[str]:
    """Say in sentences what a reader of a result should not take for certain.

    Parameters
    ----------
    result : Dataset
        From `open_result`. Read one map at a time.
    truth : Dataset, optional
        Truth store, where there is one.

    Yields
    ------
    str
    """
    if truth is None:
        yield "No truth is known for these data: the numbers below come from the data themselves."
    yield from _position_doubts(result)
    yield from _motion_doubts(result)
    yield from _without_edge(result)
    if "edge_energy" in result:
        yield from _edge_doubts(result)


def _position_doubts(result: "xr.Dataset") -> Iterable[str]:
    seen = np.isfinite(result["position"].values).all(-1)
    share = seen.mean(axis=1) if seen.size else np.empty(0)
    if share.size and share.min() < 1:
        worst = int(np.argmin(share))
        yield (
            f"{(~seen).sum()} of {seen.size} positions are missing; particle {worst} is seen in only "
            f"{share[worst]:.1%} of the frames."
        )
    sigma = result["position_sigma"].values if "position_sigma" in result else np.empty(0)
    sigma = sigma[np.isfinite(sigma)]
    if sigma.size:
        low, high = np.percentile(sigma, [50, 95])
        yield f"Positions have standard errors of {low:.3f} px in the median and below {high:.3f} px in 95%."
    else:
        yield "No standard errors of the positions are stored."
    if "similarity" in result:
        low = result["similarity"].values < _LOW_SIMILARITY
        if low.any():
            particles = ", ".join(map(str, np.flatnonzero(low.any(axis=1))[:20]))
            yield (
                f"{low.sum()} sightings are less than {_LOW_SIMILARITY} similar to the one before (particles "
                f"{particles}): look whether their tracks jump there."
            )


def _motion_doubts(result: "xr.Dataset") -> Iterable[str]:
    if "nonrigid" in result:
        # White errors of standard deviation s give second differences of standard deviation s * sqrt(6).
        scatter = robust_sigma(np.diff(result["nonrigid"].values, n=2, axis=1))
        if scatter is not None:
            yield (
                f"The non-rigid motion scatters by {scatter / np.sqrt(6):.3f} px from frame to frame and "
                "axis, an upper bound of the positions' random error as long as the deformation is slow."
            )
        yield _rigid_doubt(result)
    kind = result.attrs.get("magnification")
    if kind == "constant" or kind is None:
        yield "The magnification is taken as the same at all energies."
    else:
        yield "The change of magnification with energy is computed from the energies, not measured."


def _rigid_doubt(result: "xr.Dataset") -> str:
    """What defines the rigid part, and what can therefore not be told from it."""
    what = {
        "background": "a motion of the electrode against its substrate counts as deformation.",
        "reference particle": "its own deformation, and the error of its positions, count as rigid and are in the "
                              "non-rigid motion of all others.",
    }.get(result["rigid"].attrs.get("definition") if "rigid" in result else None,
          "a deformation common to all of them cannot be told from motion of the stage.")
    said = rigid_part(result) or f"Rigid is what most of the {result.sizes['particle']} particles share."
    return f"{said.rstrip('.')}; {what}"


def _edge_doubts(result: "xr.Dataset") -> Iterable[str]:
    definition = result["edge_energy"].attrs.get("definition", "not stated")
    yield (
        f"Edge energies are defined by: {definition}. Their absolute scale is that of the monochromator; "
        "other definitions differ by some eV."
    )
    if "fit_status" in result:
        counts = np.zeros(len(FitStatus), dtype=np.int64)
        for p in range(result.sizes["particle"]):
            for s in range(result.sizes["scan"]):
                status = result["fit_status"].isel(particle=p, scan=s).values
                counts += [np.count_nonzero(status == flag) for flag in FitStatus]
        inside = counts.sum() - counts[FitStatus.OUTSIDE]
        reasons = [f"{counts[f] / inside:.1%} {f.name.lower().replace('_', ' ')}" for f in FitStatus
                   if inside and counts[f] and f not in (FitStatus.OK, FitStatus.OUTSIDE)]
        if reasons:
            yield f"Not all pixels inside the contours could be fitted: {', '.join(reasons)}."
    if "edge_energy_sigma" in result and result["edge_energy_sigma"].size:
        medians = [_median(result["edge_energy_sigma"].isel(particle=p, scan=0).values)
                   for p in plot.drawn_particles(result)]
        if np.isfinite(medians).any():
            yield f"Edge energies have a standard error of {np.nanmedian(medians):.2f} eV in the median pixel."


def _without_edge(result: "xr.Dataset") -> Iterable[str]:
    """What has surely less than a quarter of the edge that most particles have."""
    if "edge_jump" in result and np.isfinite(result["edge_jump"].values).any():
        jump, sigma = result["edge_jump"].values, result["edge_jump_sigma"].values
        lacking = np.flatnonzero(jump + 3 * sigma < np.nanmedian(jump) / 4)
        if lacking.size:
            element = result.attrs.get("element", "")
            yield (f"Hardly any {element} edge in {', '.join(map(str, lacking))} (edge_jump below a quarter of the "
                   "median): other material, or background that was taken for a particle.")


def _median(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else np.nan
