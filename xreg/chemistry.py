"""Chemistry of particles: combinations of reference spectra, oxidation states, and a particle's pattern over time."""

import warnings
from collections.abc import Mapping, Sequence

import dask.array as da
import numpy as np
import xarray as xr
from scipy.interpolate import CubicSpline

from xreg.kernels.preedge import SMALLEST_EV, merge_repeats, to_electronvolts
from xreg.kernels.spectra import combine_references, combine_shifted, particle_chemistry, scale_offset
from xreg.scans import alike, by_scan, energy_blocks, outline_blocks
from xreg.schema import RESULT, check_alike, check_array, check_dims, check_number, check_some

_SHELLS = 5


def fit_references(
    norm: xr.DataArray,
    references: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    energy_range: tuple[float, float] | None = None,
    max_shift: float = 0.0,
) -> xr.Dataset:
    """Map each pixel's spectrum as a combination of references, with weights of at least zero that sum to one.

    Parameters
    ----------
    norm : DataArray, dims (particle, frame, y, x)
        Normalised spectra, see `normalize_stack`, with coordinates `energy` (eV) and `scan` on `frame`.
    references : mapping of name to (energy, norm)
        Normalised reference spectra; energies in eV (keV is converted with a warning) on the data's energy scale, see
        `calibrate_energy`. They are interpolated to the data's energies by cubic splines.
    energy_range : (float, float), optional
        Part of the energies (eV) to fit; by default all that every reference covers.
    max_shift : float
        Largest shift (eV) between data and references that is fitted along, per pixel; 0 fits none.

    Returns
    -------
    Dataset, lazy, dims (particle, scan, y, x)
        `weight` and `weight_sigma` with a dimension `reference` in front of y, x; `rfactor`, the sum of squared
        residuals over the sum of squares; with `max_shift` also `energy_shift` (eV, positive where data lie above the
        references). A pixel is fitted with the energies that it has; NaN where these are fewer than k + 2.

    Warns
    -----
    UserWarning
        When computed without `max_shift`, if the mean spectrum of a particle in a scan fits the references far better
        at energies moved by more than 1 eV: data and references then lie on different energy scales.

    Raises
    ------
    ValueError
        If there is no reference, one is not a spectrum, a setting is no number or out of range, or in some scan fewer
        than k + 2 energies are covered by all k references.
    """
    if not isinstance(references, Mapping) or not all(isinstance(r, Sequence | np.ndarray) and len(r) == 2
                                                      for r in references.values()):
        msg = "references are no names with spectra; need a dict such as {'Ni2+': (energy, norm)}."
        raise ValueError(msg)
    if not references:
        msg = "references is empty; need at least one name with its energies and normalised spectrum."
        raise ValueError(msg)
    check_number("max_shift", max_shift, "a number of eV, 0 or more", least=0)
    if energy_range is not None and not _ascends(energy_range):
        msg = f"energy_range is {energy_range!r}; need (lowest, highest) energy in eV."
        raise ValueError(msg)
    stack, energies, scans = by_scan(norm, "norm")
    splines = [_spline(name, *reference) for name, reference in references.items()]
    low, high = max(s.x[0] for s in splines) + max_shift, min(s.x[-1] for s in splines) - max_shift
    if energy_range is not None:
        low, high = max(low, energy_range[0]), min(high, energy_range[1])
    for scan, energy in zip(scans, energies, strict=True):
        covered = np.count_nonzero((energy >= low) & (energy <= high))
        if covered < len(splines) + 2:
            msg = (f"scan {scan} has {covered} energies between {low:g} and {high:g} eV, where all references reach; "
                   f"need {len(splines) + 2}. Check that data and references share one energy scale.")
            raise ValueError(msg)
    fields = 2 * len(splines) + 1 + (max_shift > 0)
    chunks = (*(stack.chunks[0], (1,) * len(scans)), (fields,), *stack.chunks[2:])
    maps = da.map_blocks(_reference_task, stack.data, energy_blocks(energies), splines=splines, limits=(low, high),
                         max_shift=max_shift, new_axis=2, chunks=chunks, dtype=np.float64, meta=np.empty((0,) * 5))
    k, grid = len(splines), ("particle", "scan", "y", "x")
    weights = ("particle", "scan", "reference", "y", "x")
    out = xr.Dataset(
        {"weight": (weights, maps[:, :, :k], {"units": "1", "long_name": "share of the reference"}),
         "weight_sigma": (weights, maps[:, :, k : 2 * k], {"units": "1", "long_name": "standard error of the share"}),
         "rfactor": (grid, maps[:, :, 2 * k], {"units": "1", "long_name": "squared residuals over squares"})},
        coords={"scan": scans, "reference": list(references), **_places(stack)},
    )
    if max_shift > 0:
        out["energy_shift"] = (grid, maps[:, :, 2 * k + 1], {
            "units": "eV", "long_name": "energy shift", "comment": "positive where data lie above the references"})
    return out


def _ascends(pair: object) -> bool:
    """Whether something is two numbers, the lower one first."""
    try:
        low, high = map(float, pair)
    except (TypeError, ValueError):
        return False
    return low < high


def _spline(name: str, energy: np.ndarray, norm: np.ndarray) -> CubicSpline:
    """Cubic spline through a reference spectrum, energies (eV) in any order; repeats are averaged, NaN left out."""
    energy, norm = np.asarray(energy, dtype=np.float64), np.asarray(norm, dtype=np.float64)
    if energy.ndim != 1 or energy.shape != norm.shape:
        msg = f"reference {name} has energies of shape {energy.shape}, values of shape {norm.shape}; need (n,) twice."
        raise ValueError(msg)
    good = np.isfinite(energy) & np.isfinite(norm)
    order = np.argsort(energy[good], kind="stable")
    energy, norm = merge_repeats(to_electronvolts(energy[good])[order], norm[good][order])
    if energy.size < 4:
        msg = f"reference {name} has {energy.size} different energies with a value; need at least 4."
        raise ValueError(msg)
    return CubicSpline(energy, norm)


def oxidation_state(
    edge_energy: xr.DataArray,
    points: Sequence[tuple[float, ...]],
    edge_energy_sigma: xr.DataArray | None = None,
) -> xr.Dataset:
    """Turn edge energies into oxidation states by a straight line through calibration points.

    Parameters
    ----------
    edge_energy : DataArray, any dims
        Edge energies in eV. The calibration must use the same definition of the edge energy.
    points : sequence of (float, float) or (float, float, float)
        Two or more calibration points: edge energy (eV), oxidation state, and the energy's standard error (eV), which
        all points have or none. More than two are fitted by least squares, weighted where there are errors.
    edge_energy_sigma : DataArray, optional
        Standard errors in eV.

    Returns
    -------
    Dataset, lazy where the input is
        `oxidation_state`, NaN where the edge energy is, not limited to the range of the points;
        `oxidation_state_sigma` where errors are given, from these alone; and `calibration_sigma`, the calibration's own
        standard error there, which all pixels share, so that it cancels in differences between like pixels. It comes
        from the points' errors or, without those, from how far three or more points lie off the line; with two points
        without errors it is not known and left out.

    Raises
    ------
    ValueError
        If there are fewer than two different calibration energies, points of other lengths, or energies that are keV.
    """
    check_array(edge_energy, "edge_energy")
    if edge_energy_sigma is not None:
        check_array(edge_energy_sigma, "edge_energy_sigma")
        check_alike(edge_energy, edge_energy_sigma, *(d for d in edge_energy.dims if d in edge_energy_sigma.dims))
    energy, state, *errors = _calibration(points)
    centre, slope, level, covariance = _line(energy, state, errors[0] if errors else None)
    away = edge_energy - centre
    attrs = {"units": "1", "long_name": "oxidation state", "calibration_energy": energy.tolist(),
             "calibration_state": state.tolist(), "definition": edge_energy.attrs.get("definition", "not stated")}
    out = {"oxidation_state": (level + slope * away).assign_attrs(attrs)}
    if edge_energy_sigma is not None:
        words = {"units": "1", "long_name": "standard error of the oxidation state"}
        out["oxidation_state_sigma"] = (abs(slope) * edge_energy_sigma).assign_attrs(words)
    if covariance is not None:
        variance = covariance[1, 1] + 2 * covariance[0, 1] * away + covariance[0, 0] * away**2
        words = {"units": "1", "long_name": "standard error of the calibration", "comment": "common to all pixels"}
        out["calibration_sigma"] = np.sqrt(variance).assign_attrs(words)
    return xr.Dataset(out)


def _calibration(points: Sequence[tuple[float, ...]]) -> np.ndarray:
    """Energies, states and, if given, errors of calibration points, one row each; raises as `oxidation_state`."""
    shape = "(energy, state) or (energy, state, error) for all of them"
    try:
        lengths = {len(p) for p in points}
        if isinstance(points, Mapping) or any(isinstance(p, str) for p in points):
            raise TypeError
        table = np.asarray(list(points), dtype=float).T if lengths in ({2}, {3}) else None
    except (TypeError, ValueError) as error:
        msg = f"points are {points!r}; need {shape}, in a list, in numbers."
        raise ValueError(msg) from error
    if table is None:
        msg = f"points have lengths {sorted(lengths)}; need {shape}."
        raise ValueError(msg)
    if not np.isfinite(table).all():
        msg = f"points hold {np.count_nonzero(~np.isfinite(table))} values that are not finite; need numbers."
        raise ValueError(msg)
    if np.unique(table[0]).size < 2:
        msg = f"points hold {np.unique(table[0]).size} different edge energies; need two or more (energy, state) pairs."
        raise ValueError(msg)
    if table[0].min() < SMALLEST_EV:
        msg = (f"points hold edge energies from {table[0].min():g} to {table[0].max():g}, which are not in eV; need "
               f"(energy in eV, state): multiply keV by 1000.")
        raise ValueError(msg)
    return table


def _line(energy: np.ndarray, state: np.ndarray, sigma: np.ndarray | None):
    """Straight line state = level + slope (energy - centre): centre, slope, level, covariance of (slope, level).

    The covariance is None where neither errors nor a third point tell it.
    """
    if sigma is not None and not np.all(sigma > 0):
        msg = f"points have energy errors {sigma.tolist()}; need positive ones in eV."
        raise ValueError(msg)
    weight = np.ones_like(energy) if sigma is None else 1.0 / sigma
    centre = np.average(energy, weights=weight**2)
    design = np.stack((energy - centre, np.ones_like(energy)), axis=1) * weight[:, None]
    inverse = np.linalg.pinv(design)
    slope, level = inverse @ (weight * state)
    if sigma is not None:  # an error of the energy counts as one of the state, by the slope
        return centre, slope, level, inverse @ inverse.T * slope**2
    if len(energy) == 2:
        return centre, slope, level, None
    left = np.square(state - design @ (slope, level)).sum() / (len(energy) - 2)
    return centre, slope, level, inverse @ inverse.T * left


def summarize_particles(maps: xr.DataArray, contour: xr.DataArray, *, shells: int = _SHELLS) -> xr.Dataset:
    """Follow each particle's chemistry from scan to scan: mean, spread, radial profile, gradient and oxidised core.

    Parameters
    ----------
    maps : DataArray, dims (particle, scan, y, x)
        Edge energies (eV) or any other map; NaN pixels are left out.
    contour : DataArray, dims (particle, y, x), bool
        Outline of each particle.
    shells : int
        Number of shells of equal width between rim and centre.

    Returns
    -------
    Dataset, lazy, dims (particle, scan)
        `mean`, `median`, `std` (in the map's unit) and `count` of its fitted pixels; `profile` (..., shell) from rim to
        centre; `gradient` and `gradient_sigma` (..., axis), the slope of the best plane per px; `core_offset`
        (..., axis), px from the centre of the fitted pixels to that of their most oxidised quarter. NaN with fewer than
        6 pixels.

    Raises
    ------
    ValueError
        If dims or sizes are not as above, there is no particle, or `shells` is not positive.
    """
    check_array(maps, "edge_energy", RESULT["edge_energy"].dims)
    check_dims(maps, "maps", RESULT["edge_energy"].dims)
    check_some(maps, "particle", "scan")
    check_number("shells", shells, "a whole number, 1 or more", least=1, whole=True)
    blocks = maps.chunk({"particle": 1, "scan": 1, "y": -1, "x": -1})
    outline = outline_blocks(contour, blocks)
    table = da.map_blocks(_summary_task, blocks.data, outline, shells=shells, drop_axis=(2, 3), new_axis=2,
                          chunks=(*blocks.chunks[:2], (10 + shells,)), dtype=np.float64, meta=np.empty((0, 0, 0)))
    unit, row = maps.attrs.get("units", "1"), ("particle", "scan")
    name = maps.attrs.get("long_name", maps.name or "map")
    out = xr.Dataset(coords={"axis": ["y", "x"], **{c: maps.coords[c] for c in row if c in maps.coords}})
    for k, word in enumerate(("mean", "median", "std")):
        out[word] = (row, table[:, :, k], {"units": unit, "long_name": f"{word} of the {name}"})
    out["count"] = (row, table[:, :, 3], {"units": "1", "long_name": "pixels with a value"})
    for k, (word, units, text) in enumerate((
        ("gradient", f"{unit}/px", f"slope of the {name}"),
        ("gradient_sigma", f"{unit}/px", f"standard error of the slope of the {name}"),
        ("core_offset", "px", "offset of the most oxidised quarter from the particle's centre"),
    )):
        out[word] = ((*row, "axis"), table[:, :, 4 + 2 * k : 6 + 2 * k], {"units": units, "long_name": text})
    out["profile"] = ((*row, "shell"), table[:, :, 10:], {
        "units": unit, "long_name": f"mean {name} from rim to centre", "comment": "shells of equal width in depth"})
    return out


def _places(stack: xr.DataArray) -> dict[str, xr.DataArray]:
    return {name: stack.coords[name] for name in ("particle", "y", "x") if name in stack.coords}


def _reference_task(norm, energy, *, splines, limits, max_shift, block_id):
    """One block (1, frames, y, x) -> (1, 1, maps, y, x)."""
    energy = energy.ravel()
    use = (energy >= limits[0]) & (energy <= limits[1])
    energy, spectra = energy[use], norm[0, use].reshape(use.sum(), -1).astype(np.float64)
    out = np.full((2 * len(splines) + 1 + (max_shift > 0), spectra.shape[1]), np.nan)
    for rows, columns in alike(np.isfinite(spectra)):
        if rows.sum() < len(splines) + 2:
            continue
        at, part = energy[rows], spectra[np.ix_(rows, columns)]
        if max_shift > 0:
            fit = combine_shifted(at, part, splines, max_shift)
        else:
            fit = combine_references(part, np.stack([s(at) for s in splines], axis=1))
            _warn_of_other_scale(scale_offset(at, part.mean(axis=1), splines), block_id)
        found = [fit["weight"], fit["weight_sigma"], fit["rfactor"][None]]
        out[:, columns] = np.concatenate([*found, fit["shift"][None]] if max_shift > 0 else found)
    return out.reshape(1, 1, len(out), *norm.shape[2:])


def _warn_of_other_scale(offset: float, block_id: tuple[int, ...]) -> None:
    if offset:
        msg = (f"the spectra of particle {block_id[0]} in scan {block_id[1]} fit the references far better when these "
               f"are moved by {offset:+g} eV: data and references seem to lie on different energy scales. Calibrate "
               f"one of them with calibrate_energy, or fit the shift with max_shift.")
        warnings.warn(msg, stacklevel=2)


def _summary_task(values, contour, *, shells):
    """One block (1, 1, y, x) -> (1, 1, numbers)."""
    n = particle_chemistry(values[0, 0], contour[0, 0], shells)
    row = [n["mean"], n["median"], n["std"], n["count"], *n["gradient"], *n["gradient_sigma"], *n["core_offset"]]
    return np.array([*row, *n["profile"]])[None, None]
