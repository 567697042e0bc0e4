"""Edge energies of registered stacks: aligned (particle, frame, y, x) -> maps (particle, scan, y, x), lazily.

A block is one particle in one scan. It must hold the whole window, because the particle's mean spectrum gives every
pixel the shapes of the lines below and above the edge; so the input is rechunked to that and the answer is the same for
every chunking. Asking for one particle of one scan reads the chunks of that particle and scan alone.
"""

import warnings
from dataclasses import replace

import dask.array as da
import numpy as np
import xarray as xr

from xreg.kernels import edge
from xreg.kernels.absorption import tabulated_edge
from xreg.kernels.operators import (
    BAD_FRAMES,
    DEFINITIONS,
    OUTSIDE,
    TOO_FEW_ENERGIES,
    EdgeSettings,
    fix_ranges,
    grid_supports,
)
from xreg.kernels.preedge import distinct_energies, merge_repeats, resolve_ranges, to_electronvolts, warn_of_changes
from xreg.scans import alike, by_scan, energy_blocks, outline_blocks
from xreg.schema import POSITIVE, RESULT, FitStatus, check_number, flag_attrs

_EV = "a number of eV"
#: What the numbers among the settings of a fit must be: in words, and to `check_number`.
_NUMBERS = {
    "e0": (f"{_EV}, more than 0", {"least": POSITIVE}),
    **dict.fromkeys(("pre1", "pre2", "norm1", "norm2"), (f"{_EV} from e0", {"finite": False})),
    **dict.fromkeys(("nnorm", "nvict"), ("a whole number, 0 or more", {"least": 0, "whole": True})),
    **dict.fromkeys(("bandwidth", "peak_bandwidth"), (f"{_EV}, more than 0", {"least": POSITIVE})),
    **dict.fromkeys(("max_gap", "max_sigma"), (f"{_EV}, more than 0", {"least": POSITIVE, "finite": False})),
    "max_shift": (f"{_EV}, 0 or more", {"least": 0}),
    "significance": ("a number, 0 or more", {"least": 0}),
}
_SAMPLE = 500    # pixels at most from which the slow disturbances of a particle are measured


def fit_edges(
    aligned: xr.DataArray, contour: xr.DataArray | None = None, *, incomplete: bool = False, **settings
) -> xr.Dataset:
    """Map the edge energy of every particle in every scan.

    Parameters
    ----------
    aligned : DataArray, dims (particle, frame, y, x), float
        Registered optical density with coordinates `energy` (eV; keV is converted with a warning) and `scan` on
        `frame`. NaN marks what was not seen: a pixel is fitted with the energies that it has. Frames may come in any
        order, scans may differ in their energies, and an energy taken twice is averaged.
    contour : DataArray, dims (particle, y, x), bool, optional
        Where each particle is; elsewhere nothing is fitted. By default every pixel is.
    incomplete : bool
        Whether energies that lie on one side of `e0` are what is wanted, as of some frames of a scan. They give NaN and
        the status `out_of_range` instead of an error.
    **settings
        Fields of `EdgeSettings`: `definition` ("half_step" unless told otherwise), `also` (further named energies),
        `e0`, `pre1`, `pre2`, `norm1`, `norm2`, `nnorm`, `nvict` with Larch's meaning, `slope` ("particle" or
        "pixel"), and the limits of a fit. Without `e0` the tabulated edge of the attributes `element` and `edge` is
        taken, and without those the largest derivative of each particle's mean spectrum. Tabulated edges are those of
        the elements; an oxide's lies higher (nickel's by 9 to 14 eV), and ranges that shall count from there need `e0`.

    Returns
    -------
    Dataset, lazy, dims (particle, scan, y, x)
        `edge_energy`, `edge_energy_sigma`, `whiteline_energy` (eV, NaN wherever `fit_status` is not 0), `edge_step`,
        `fit_status`, and `<name>_energy` and `<name>_energy_sigma` for each name in `also`. The attributes of
        `edge_energy` hold the definition and the resolved ranges.

    Raises
    ------
    ValueError
        If dims or coordinates are not as above, a setting is unknown or cannot be, or `e0` lies outside all scans'
        energies.

    Warns
    -----
    UserWarning
        If the energies forbid a given range, so that another is used, or the element's edge is not tabulated.

    Notes
    -----
    One task per particle and scan; a task holds that block once in float32, and batches of 1024 spectra in float64.
    Scans with too few energies for a fit, such as two, give NaN and the status `too_few_energies`; where the scan has
    enough of them, but frames that are bad or do not show the pixel took them away, the status is `bad_frames`.
    """
    stack, energies, scans = by_scan(aligned)
    settings = edge_settings(aligned, **settings)
    attrs = _resolved(settings, energies, incomplete)
    names = edge.field_names(settings)
    sizes = stack.sizes
    chunks = ((1,) * sizes["particle"] or (0,), (1,) * len(scans), (len(names),), (sizes["y"],), (sizes["x"],))
    arrays = [] if contour is None else [outline_blocks(contour, stack)]
    maps = da.map_blocks(
        _fit_task, stack.data, energy_blocks(energies), *arrays, settings=settings, new_axis=2, chunks=chunks,
        dtype=np.float64, meta=np.empty((0,) * 5),
    )
    coords = {name: stack.coords[name] for name in ("particle", "y", "x") if name in stack.coords}
    out = xr.Dataset(coords={**coords, "scan": ("scan", scans)})
    for k, name in enumerate(names):
        values = maps[:, :, k].astype(np.uint8) if name == "fit_status" else maps[:, :, k]
        out[name] = (("particle", "scan", "y", "x"), values, _attrs(name, settings, attrs))
    return out


def fit_block(
    aligned: np.ndarray, energy: np.ndarray, contour: np.ndarray | None, settings: EdgeSettings | None = None
) -> dict[str, np.ndarray]:
    """Map the edge energy of some particles in one scan, in memory.

    Parameters
    ----------
    aligned : ndarray, shape (n, frames, y, x)
        Registered optical density of one scan, NaN where not seen.
    energy : ndarray, shape (frames,)
        Photon energy of each frame in eV, in any order, repeats allowed.
    contour : ndarray, shape (n, y, x), bool, or None
        Outline of each particle; None fits every pixel.
    settings : EdgeSettings, optional

    Returns
    -------
    dict of ndarray, shape (n, y, x)
        The maps of `fit_edges`; each particle's depend on that particle alone.
    """
    settings = settings or EdgeSettings()
    shape = (aligned.shape[0], *aligned.shape[2:])
    out = edge.blank_fit(shape, settings, OUTSIDE)
    for p, inside, grid, spectra in _particles(aligned, energy, contour):
        fitted = _fit_particle(grid, spectra, settings)
        for name, values in out.items():
            values[p].reshape(-1)[inside] = fitted[name]
    return out


def normalize_stack(aligned: xr.DataArray, contour: xr.DataArray | None = None, *, flat: bool = False,
                    **settings) -> xr.DataArray:
    """Normalise every pixel's spectrum: no absorption is 0 and the edge step is 1.

    Parameters
    ----------
    aligned, contour, **settings
        As for `fit_edges`.
    flat : bool
        Whether to flatten the spectra above the edge, as Larch's `flat`.

    Returns
    -------
    DataArray `norm`, lazy, dims (particle, frame, y, x), float32
        In the order of scans; NaN outside the contour, where nothing was measured, and where no edge rises.

    Raises
    ------
    ValueError
        As `fit_edges`.
    """
    stack, energies, _ = by_scan(aligned)
    settings = edge_settings(aligned, **settings)
    attrs = _resolved(settings, energies)
    arrays = [] if contour is None else [outline_blocks(contour, stack)]
    norm = da.map_blocks(_normalize_task, stack.data, energy_blocks(energies), *arrays, settings=settings, flat=flat,
                         dtype=np.float32, meta=np.empty((0,) * 4, dtype=np.float32))
    name = "flattened, normalised absorption" if flat else "normalised absorption"
    return stack.copy(data=norm).rename("norm").assign_attrs({"units": "1", "long_name": name, **attrs})


def edge_settings(aligned: xr.DataArray, **settings) -> EdgeSettings:
    """Settings of a fit, with `e0` from the attributes `element` and `edge` where it is not given."""
    known = EdgeSettings.__dataclass_fields__
    unknown = ", ".join(sorted(set(settings) - set(known)))
    if unknown:
        msg = f"fit settings have no {unknown}; choose from {', '.join(known)}."
        raise ValueError(msg)
    settings = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
    if isinstance(settings.get("also"), str):
        settings["also"] = (settings["also"],)
    _check_settings(settings)
    chosen = EdgeSettings(**settings)
    if chosen.e0 is not None:
        return replace(chosen, e0=float(to_electronvolts(np.array([chosen.e0]))[0]))
    tabulated = tabulated_edge(aligned.attrs)
    if tabulated is None and aligned.attrs.get("element"):
        named = f"{aligned.attrs['element']} {aligned.attrs.get('edge', '')}"
        msg = (f"the edge {named} is not tabulated here, so the largest derivative of each particle's mean spectrum "
               f"serves as e0; give e0 to fix it.")
        warnings.warn(msg, stacklevel=3)
    return replace(chosen, e0=tabulated)


def _check_settings(settings: dict) -> None:
    """Refuse settings that are not of the kind that `EdgeSettings` needs; that looks at how they fit together."""
    fields = EdgeSettings.__dataclass_fields__
    for name, value in settings.items():
        if name in _NUMBERS and (value is not None or fields[name].default is not None):
            need, limits = _NUMBERS[name]
            check_number(name, value, need, **limits)
    also, search = settings.get("also", ()), settings.get("search", fields["search"].default)
    if not isinstance(also, tuple) or not all(isinstance(name, str) for name in also):
        msg = f"also is {also!r}; need names of further edge energies: some of {', '.join(DEFINITIONS)}."
        raise ValueError(msg)
    if not isinstance(search, tuple) or len(search) != 2:
        msg = f"search is {search!r}; need two offsets (below, above) in eV from e0."
        raise ValueError(msg)
    for end in search:
        check_number("an end of search", end, f"{_EV} from e0")


def check_energies(energy: np.ndarray, scan: np.ndarray, attrs: dict, **settings) -> None:
    """Raise ValueError where `fit_edges` would for frames (n,) of these energies and scans, before there is a stack."""
    stack = xr.DataArray(da.zeros((1, len(energy), 1, 1), dtype=np.float32), dims=RESULT["aligned"].dims,
                         coords={"energy": ("frame", energy), "scan": ("frame", scan)}, attrs=attrs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit_edges(stack, **settings)


def scans_without_edge(energy: np.ndarray, scan: np.ndarray, attrs: dict) -> list[int]:
    """Scans that cannot be fitted even if no frame of them is bad, from the energies (eV) and scans of all frames (n,).

    None where no edge is tabulated: each particle's mean spectrum decides then.
    """
    chosen = EdgeSettings(e0=tabulated_edge(attrs))
    if chosen.e0 is None:
        return []
    order = np.argsort(scan, kind="stable")
    scans, first = np.unique(scan[order], return_index=True)
    parts = np.split(energy[order], first[1:])
    return [int(s) for s, part in zip(scans, parts, strict=True)
            if not grid_supports(distinct_energies(part[~np.isnan(part)]), chosen)]


def _resolved(
    settings: EdgeSettings, energies: tuple[np.ndarray, ...], incomplete: bool = False
) -> dict[str, object]:
    """Attributes that say which ranges hold; one number, or a list where scans differ."""
    if settings.e0 is None:
        return {"e0": "largest derivative of each particle's mean spectrum", "slope": settings.slope}
    grids = [distinct_energies(e) for e in energies]
    inside = [len(g) > 4 and g[1] <= settings.e0 <= g[-2] for g in grids]
    if not any(inside) and any(len(g) > 4 for g in grids) and not incomplete:
        low, high = min(g[0] for g in grids), max(g[-1] for g in grids)
        msg = (f"e0 is {settings.e0:g} eV but the energies run from {low:g} to {high:g} eV; need at least two energies "
               f"on either side of the edge. Check the element and edge, or the energy calibration.")
        raise ValueError(msg)
    attrs = {"e0": settings.e0, "slope": settings.slope, "nvict": settings.nvict}
    ranges = [resolve_ranges(g, settings.e0, **settings.ranges) if ok else None
              for g, ok in zip(grids, inside, strict=True)]
    for grid, used in zip(grids, ranges, strict=True):
        if used is not None:
            warn_of_changes(settings.ranges, used, grid)
    for name in ("pre1", "pre2", "norm1", "norm2", "nnorm"):
        values = [float("nan") if r is None else getattr(r, name) for r in ranges]
        attrs[name] = values[0] if len(np.unique(values)) == 1 else values
    return attrs


def _attrs(name: str, settings: EdgeSettings, ranges: dict[str, object]) -> dict[str, object]:
    if name == "fit_status":
        return {**RESULT[name].attrs, **flag_attrs(FitStatus)}
    if name == "edge_step":
        return {**RESULT[name].attrs, **ranges}
    kind = settings.definition if name.startswith("edge_energy") else name.partition("_energy")[0]
    known = RESULT.get(name)
    spoken = name.replace("_", " ").replace("sigma", "standard error")
    words = known.attrs if known else {"units": "eV", "long_name": spoken}
    return {**words, "definition": kind, "definition_meaning": DEFINITIONS[kind], **ranges}


def _fit_task(aligned, energy, contour=None, *, settings):
    """One block (1, frames, y, x) -> (1, 1, maps, y, x)."""
    outline = None if contour is None else contour[:, 0]
    maps = fit_block(aligned, energy.ravel(), outline, settings)
    return np.stack([maps[name] for name in edge.field_names(settings)], axis=1)[:, None]


def _normalize_task(aligned, energy, contour=None, *, settings, flat):
    """One block (1, frames, y, x) -> the same, normalised."""
    energy = energy.ravel()
    out = np.full(aligned.shape, np.nan, dtype=np.float32)
    for p, inside, grid, spectra in _particles(aligned, energy, None if contour is None else contour[:, 0]):
        finite = np.isfinite(spectra)
        mean, _ = _mean_spectrum(spectra, finite)
        fixed = fix_ranges(grid, mean, settings)
        if not isinstance(fixed, EdgeSettings):
            continue
        target = out[p].reshape(len(energy), -1)
        if contour is None and finite.all() and np.array_equal(grid, energy):
            edge.normalize_spectra(grid, spectra, fixed, mean, flat, target)
            continue
        norm = np.full(spectra.shape, np.nan, dtype=np.float32)
        for rows, columns in alike(finite):
            if rows.sum() >= 5:
                part = _part(spectra, rows, columns)
                norm[np.ix_(rows, columns)], _ = edge.normalize_spectra(grid[rows], part, fixed, mean[rows], flat)
        where = np.abs(energy[:, None] - grid).argmin(axis=1)  # repeats share their average's place
        target[:, inside] = norm[where]
    return out


def _particles(aligned: np.ndarray, energy: np.ndarray, contour: np.ndarray | None):
    """Yield per particle: its number, its pixels (flat), ascending energies (n,) and their spectra (n, pixels)."""
    order = np.argsort(energy, kind="stable")
    sorted_already = bool(np.all(order[1:] > order[:-1]))
    for p, stack in enumerate(aligned):
        flat = stack.reshape(len(stack), -1)
        inside = slice(None) if contour is None else np.flatnonzero(contour[p])
        spectra = flat if contour is None else flat[:, inside]
        grid, spectra = merge_repeats(energy[order], spectra if sorted_already else spectra[order])
        yield p, inside, grid, spectra


def _fit_particle(energy: np.ndarray, spectra: np.ndarray, settings: EdgeSettings) -> dict[str, np.ndarray]:
    """Fit all pixels of one particle in one scan, those with the same missing energies together."""
    finite = np.isfinite(spectra)
    mean, core = _mean_spectrum(spectra, finite)
    fixed = fix_ranges(energy, mean, settings)
    if not isinstance(fixed, EdgeSettings):
        return _name_bad_frames(edge.blank_fit(spectra.shape[1:], settings, fixed), energy, finite, settings)
    known, sample = np.isfinite(mean), core[:: 1 + len(core) // _SAMPLE]
    drift = edge.drift_variance(energy[known], spectra[np.ix_(known, sample)], mean[known], fixed)
    out = edge.blank_fit(spectra.shape[1:], settings, TOO_FEW_ENERGIES)
    for rows, columns in alike(finite):
        if rows.sum() >= 5:
            part = _part(spectra, rows, columns)
            found = edge.edge_energies(energy[rows], part, fixed, mean[rows], len(core), drift)
            for name, values in found.items():
                out[name][columns] = values
    return _name_bad_frames(out, energy, finite, fixed)


def _name_bad_frames(
    maps: dict[str, np.ndarray], energy: np.ndarray, finite: np.ndarray, settings: EdgeSettings
) -> dict[str, np.ndarray]:
    """Tell pixels that lack energies because frames are missing from those whose scan never had enough."""
    short = (maps["fit_status"] == TOO_FEW_ENERGIES) & ~finite.all(axis=0)
    if short.any() and grid_supports(energy, settings):
        maps["fit_status"][short] = BAD_FRAMES
    return maps


def _mean_spectrum(spectra: np.ndarray, finite: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean spectrum (n,) over the pixels that were seen in every well-seen frame, and which pixels these are.

    NaN in the other frames. The same pixels at every energy, so that a frame that misses part of the particle makes no
    step in its spectrum.
    """
    if spectra.size and finite.all():
        return spectra.mean(axis=1, dtype=np.float64), np.arange(spectra.shape[1])
    ever = finite.any(axis=0)
    well = finite[:, ever].mean(axis=1) >= 0.5 if ever.any() else np.zeros(len(spectra), dtype=bool)
    core = np.flatnonzero(finite[well].all(axis=0) & ever)
    mean = np.full(len(spectra), np.nan)
    if well.any() and core.size:
        mean[well] = spectra[np.ix_(well, core)].mean(axis=1, dtype=np.float64)
    return mean, core


def _part(spectra: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Some rows and columns of `spectra`, without a copy where that is all of them."""
    return spectra if rows.all() and len(columns) == spectra.shape[1] else spectra[np.ix_(rows, columns)]
