"""How well stacks are aligned, judged without any truth: by how far their pictures agree.

The measures that Su et al. 2024 show in Fig. 3 (doi:10.1107/S1600577524000146), made blind to what is not alignment:
each picture is compared with the mean of its particle's stack after that has been scaled to the picture's contrast (see
`kernels.agreement`). Photon noise, and chemistry that changes a particle's picture, keep even a perfectly aligned stack
from agreeing fully, so that a number says more beside another alignment of the same frames than alone.
"""

import dask.array as da
import numpy as np
import xarray as xr

from xreg.kernels.agreement import agreement, difference_energy
from xreg.kernels.scoring import rms
from xreg.schema import AXES, RESULT, check_alike, check_dataset, check_number, check_some, check_variable

#: What each number of `summarize_quality` means, in one sentence.
MEANINGS = {
    "ssim": "Mean structural similarity of each picture with its particle's mean picture, scaled to its contrast: 1 "
            "where all are alike; noise lowers it in faint frames, misalignment in all.",
    "ssim_variance": "Variance of that similarity over the frames of a particle: small where no frame stands out.",
    "difference": "Energy of the first-last differential map over that of the fainter picture: 0 if they differ in "
                  "contrast alone, 1 if they have nothing in common; motion that is left shows as pairs of bright and "
                  "dark rims.",
    "correlation": "Mean correlation of each picture with its particle's mean picture, which no change of contrast "
                   "alters.",
    "flow": "Root mean square of the motion that an optical flow still finds in each picture against the mean "
            "picture, px: what the registration has left, plus the flow's own noise.",
}
_VARIABLES = {
    "ssim": (("particle", "frame"), "1", "structural similarity with the scaled mean picture"),
    "correlation": (("particle", "frame"), "1", "correlation with the mean picture"),
    "flow": (("particle", "frame", "axis"), "px", "residual optical flow against the scaled mean picture"),
    "difference": (("particle",), "1", "relative energy of the first-last differential map"),
}


def measure_quality(
    aligned: xr.DataArray, contour: xr.DataArray, *, frames: tuple[int, int] = (0, -1), flow: bool = True
) -> xr.Dataset:
    """Compare every picture of every particle's stack with the others, lazily.

    Pictures are compared with the particle's mean, for which its stack waits in memory: one particle's at a time. Works
    on any stack: aligned by xreg, by another method, or by a truth.

    Parameters
    ----------
    aligned : DataArray, dims (particle, frame, y, x)
        Optical density; NaN where unknown; dask-backed or in memory. Choose fewer frames with `isel` for a quick look.
    contour : DataArray, dims (particle, y, x), bool
        Outline of each particle; it and a rim of 3 px are compared.
    frames : (first, last)
        Places along `frame` of the two pictures whose differential map is judged; negative ones count from the end.
    flow : bool
        Whether to measure the residual optical flow, which takes most of the time.

    Returns
    -------
    Dataset, lazy
        * `ssim` (particle, frame), Wang et al. 2004, from -1 to 1. The data range is the span of the particle's mean
          picture, so that faint pictures, which are mostly noise, are not blown up.
        * `correlation` (particle, frame), Pearson's.
        * `flow` (particle, frame, axis), px, if asked for: median inside the outline of the iterative Lucas-Kanade
          flow (Le Besnerais & Champagnat 2005) from the mean picture to this one.
        * `difference` (particle): mean square of the differential map of two frames, the one of more contrast scaled to
          the other by factor and offset, over the variance of the fainter one.

        NaN for pictures that are not there or have no contrast.

    Raises
    ------
    ValueError
        If dims differ, particles or windows do not agree, or there is no particle or no such frame.
    """
    check_variable(aligned, RESULT["aligned"])
    check_variable(contour, RESULT["contour"])
    if any(aligned.sizes[d] != contour.sizes[d] for d in ("particle", "y", "x")):
        msg = (f"aligned has sizes {dict(aligned.sizes)} and contour {dict(contour.sizes)}; "
               "need the same particles and windows.")
        raise ValueError(msg)
    check_alike(aligned, contour, "particle", "y", "x")
    check_some(aligned, "particle")
    n = aligned.sizes["frame"]
    if not isinstance(frames, tuple | list) or len(frames) != 2:
        msg = f"frames is {frames!r}; need (first, last), the places of two frames."
        raise ValueError(msg)
    for place in frames:
        check_number("a place in frames", place, "a whole number", whole=True)
    if not all(-n <= k < n for k in frames):
        msg = f"frames is {frames}, but the stack has {n}; need two of them."
        raise ValueError(msg)
    stack = da.asarray(aligned.data)
    stack = stack.rechunk((1, stack.chunks[1], -1, -1))
    outline = da.asarray(contour.data).rechunk((1, -1, -1))
    reference = da.map_blocks(_mean, *_sums(stack), dtype=np.float64, meta=np.empty((0, 0, 0)))
    measured = da.blockwise(_agreement, "pfm", stack, "pfyx", reference, "pyx", outline, "pyx", new_axes={"m": 4},
                            concatenate=True, dtype=np.float64, meta=np.empty((0, 0, 0)), flow=flow)
    pair = stack[:, [frames[0] % n, frames[1] % n]].rechunk((1, 2, -1, -1))
    energy = da.blockwise(_difference, "p", pair, "pfyx", outline, "pyx", concatenate=True, dtype=np.float64,
                          meta=np.empty(0))
    values = {"ssim": measured[..., 0], "correlation": measured[..., 1], "difference": energy}
    if flow:
        values["flow"] = measured[..., 2:]
    coords = {name: c for name, c in aligned.coords.items() if set(c.dims) <= {"particle", "frame"}}
    found = xr.Dataset(coords=coords | ({"axis": list(AXES)} if flow else {}))
    for name, value in values.items():
        dims, units, words = _VARIABLES[name]
        found[name] = (dims, value, {"units": units, "long_name": words, "comment": MEANINGS[name]})
    return found


def summarize_quality(measured: xr.Dataset) -> dict[str, float]:
    """One number for each measure, over all particles and frames.

    Parameters
    ----------
    measured : Dataset
        From `measure_quality`; computed here if it is lazy.

    Returns
    -------
    dict
        `ssim` and `correlation`, means over all pictures; `ssim_variance`, over frames, mean over particles;
        `difference`, mean over particles; `flow`, px, root mean square length. `MEANINGS` says what they mean. NaN
        where nothing could be compared.

    Raises
    ------
    ValueError
        If it is no Dataset.
    """
    check_dataset(measured, "what measure_quality gives")
    measured = measured.compute()
    numbers = {"ssim": _nanmean(measured["ssim"].values),
               "ssim_variance": _nanmean(measured["ssim"].var("frame").values),
               "difference": _nanmean(measured["difference"].values),
               "correlation": _nanmean(measured["correlation"].values)}
    if "flow" in measured:
        length = rms(np.linalg.norm(measured["flow"].values, axis=-1))
        numbers["flow"] = np.nan if length is None else length
    return numbers


def _nanmean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else np.nan


def _sums(stack: da.Array) -> tuple[da.Array, da.Array]:
    """Sum and number of the finite pictures' values at every pixel, (particle, y, x)."""
    known = da.isfinite(stack)
    return da.where(known, stack, 0).sum(axis=1, dtype=np.float64), known.sum(axis=1)


def _mean(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _agreement(stack: np.ndarray, reference: np.ndarray, contour: np.ndarray, flow: bool) -> np.ndarray:
    return np.stack([agreement(*one, flow=flow) for one in zip(stack, reference, contour, strict=True)])


def _difference(pair: np.ndarray, contour: np.ndarray) -> np.ndarray:
    return np.array([difference_energy(first, last, c) for (first, last), c in zip(pair, contour, strict=True)])
