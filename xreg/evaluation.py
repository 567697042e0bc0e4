"""How far a result is from the truth: the table of errors that `xreg evaluate` prints.

Particles are matched by where they are, never by their numbers. Small arrays (positions, contours) are read
whole, maps one particle and scan at a time, and errors of maps are pooled in a histogram, so that memory does
not grow with the number of scans.
"""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from xreg.kernels import scoring
from xreg.schema import RESULT, SAME_ENERGY_EV, check_dataset, check_dims

if TYPE_CHECKING:
    import xarray as xr

#: Frames this far (eV) below the true edge count as pre-edge: there the particles are faintest.
PRE_EDGE_MARGIN_EV = 10.0
#: Width (px) of the rim that is left out of a particle's inner pixels.
RIM_PX = 3
#: Reach (px) within which a result belongs to a true particle whose size is not given.
DEFAULT_RADIUS_PX = 10.0
#: Variables that are compared.
_COMPARED = ("position", "position_sigma", "measured_position", "rigid", "nonrigid", "contour", "edge_energy",
             "edge_energy_sigma")


@dataclass(frozen=True)
class ParticleErrors:
    """Errors of one true particle; None where a quantity is not known.

    `result` is the track that was matched to it, None where there is none.
    """

    truth: int
    result: int | None
    seen_fraction: float
    position_rms: float | None = None
    position_offset: tuple[float, float] | None = None
    contour_iou: float | None = None
    edge_error: float | None = None
    edge_fitted: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Errors of a result against the truth; None where a variable that the number needs is missing.

    Positions are compared in raw pixels, rigid and non-rigid motion in pixels at the reference energy, each
    after the constant offset of every particle (of the rigid motion: of the whole series) has been taken off,
    since where a particle's centre lies is a matter of definition. `position_rms` and `position_p95` are of
    the length of the error (y and x together); `position_rms_y` and `position_rms_x` are of one axis.
    Energies are in eV; those of inner pixels leave out a rim of 3 px.
    """

    particles_true: int
    particles_found: int
    inventions: int
    fragments: int
    identity_switches: int
    frames: int
    seen_fraction: float | None = None
    seen_fraction_min: float | None = None
    position_rms: float | None = None
    position_rms_measured: float | None = None
    position_p95: float | None = None
    position_rms_y: float | None = None
    position_rms_x: float | None = None
    position_rms_pre_edge: float | None = None
    position_sigma_ratio: float | None = None
    rigid_rms: float | None = None
    nonrigid_rms: float | None = None
    contour_iou: float | None = None
    contour_iou_min: float | None = None
    edge_error: float | None = None
    edge_error_centred: float | None = None
    edge_offset: float | None = None
    edge_error_all_pixels: float | None = None
    edge_fitted: float | None = None
    edge_sigma_ratio: float | None = None
    edge_definition: str | None = None
    edge_definition_true: str | None = None
    particles: tuple[ParticleErrors, ...] = ()

    def to_dict(self) -> dict:
        """Return plain numbers, strings, tuples and dicts, fit for JSON."""
        return dataclasses.asdict(self)

    def table(self) -> list[tuple[str, str]]:
        """Rows (quantity, value with its unit) of the quantities that are known."""
        rows = [
            ("particles found", f"{self.particles_found} of {self.particles_true}"),
            ("particles invented", f"{self.inventions}"),
            ("tracks that are pieces of another", f"{self.fragments}"),
            ("identities switched", f"{self.identity_switches}"),
        ]
        for name, label, form in _ROWS:
            value = getattr(self, name)
            if value is not None:
                rows.append((label, form.format(value)))
        ours, theirs = self.edge_definition, self.edge_definition_true
        if ours and theirs and ours != theirs:
            rows.append(("edge energies are defined differently", f"{ours}, in truth {theirs}"))
        return rows

    def particle_table(self) -> list[tuple[str, ...]]:
        """One row per true particle, after a row of headings."""
        rows: list[tuple[str, ...]] = [
            ("true particle", "track", "seen", "position RMS", "contour IoU", "edge error", "pixels fitted")
        ]
        for p in self.particles:
            numbers = (
                _text(p.position_rms, "{:.3f} px"), _text(p.contour_iou, "{:.3f}"),
                _text(p.edge_error, "{:.3f} eV"), _text(p.edge_fitted, "{:.1%}"),
            )
            rows.append((f"{p.truth}", _text(p.result, "{}"), f"{p.seen_fraction:.1%}", *numbers))
        return rows


_ROWS = (
    ("seen_fraction", "frames in which a particle is seen", "{:.2%}"),
    ("seen_fraction_min", "the same, worst particle", "{:.2%}"),
    ("position_rms", "position error, RMS", "{:.4f} px"),
    ("position_rms_measured", "the same of positions from single frames", "{:.4f} px"),
    ("position_p95", "position error, 95th percentile", "{:.4f} px"),
    ("position_rms_y", "position error along y, RMS", "{:.4f} px"),
    ("position_rms_x", "position error along x, RMS", "{:.4f} px"),
    ("position_rms_pre_edge", "position error in pre-edge frames, RMS", "{:.4f} px"),
    ("position_sigma_ratio", "position error over its standard error, robust SD", "{:.2f}"),
    ("rigid_rms", "rigid motion error, RMS", "{:.4f} px"),
    ("nonrigid_rms", "non-rigid motion error, RMS", "{:.4f} px"),
    ("contour_iou", "contour overlap (IoU), mean", "{:.3f}"),
    ("contour_iou_min", "contour overlap (IoU), worst particle", "{:.3f}"),
    ("edge_error", "edge energy error in inner pixels, median absolute", "{:.3f} eV"),
    ("edge_error_centred", "the same, less the maps' common offset", "{:.3f} eV"),
    ("edge_offset", "common offset of the edge energy", "{:+.3f} eV"),
    ("edge_error_all_pixels", "edge energy error in all pixels, median absolute", "{:.3f} eV"),
    ("edge_fitted", "inner pixels fitted", "{:.2%}"),
    ("edge_sigma_ratio", "edge energy error over its standard error, robust SD", "{:.2f}"),
)


def evaluate(result: "xr.Dataset", truth: "xr.Dataset") -> Evaluation:
    """Compare a result with the truth.

    A true particle is found when a track lies within the particle's radius in the median frame; tracks are
    assigned to particles one to one. A track far from every true particle is an invention; a second track on
    a particle that has one already is a fragment. An identity is switched each time the true particle
    nearest to a track changes. A particle is seen in a frame when its track lies within the particle's
    radius of the truth. Each quantity is worked out only where the variables that it needs are in both
    stores.

    Parameters
    ----------
    result, truth : Dataset
        Result store and truth store (the names of `xreg.schema.RESULT`); may be lazy. Frames are matched by
        the `frame` coordinate; where the truth has none it holds all frames from 0, where neither has one they must be
        as many. The windows may differ in size.

    Returns
    -------
    Evaluation
        Errors in px and eV. Memory: positions of all particles, and one map at a time.

    Raises
    ------
    ValueError
        If one is no Dataset, `position` is missing from either, a variable has lost a dimension, the truth has not
        the frames of the result, the numbers of frames differ without a `frame` coordinate, or the energies of
        the same frame differ, so that the two do not belong together.
    """
    for name, ds in (("result", result), ("truth", truth)):
        check_dataset(ds, f"the variables of a {name}")
        if "position" not in ds:
            msg = f"{name} has no position; need position (particle, frame, axis). Run the whole chain first."
            raise ValueError(msg)
        for variable in _COMPARED:
            if variable in ds:
                check_dims(ds[variable], f"{variable} of the {name}", RESULT[variable].dims)
    result, truth = _common_frames(result, truth)
    radius = _radius(truth)
    tracks, true_tracks = _values(result["position"]), _values(truth["position"])
    matches = scoring.match_tracks(tracks, true_tracks, radius)
    maps = _Maps(result, truth)
    for q, r in matches.items():
        maps.add(q, r, scoring.constant_offset(tracks[r] - true_tracks[q]))
    shown = np.flatnonzero(np.isfinite(true_tracks).all(-1).any(-1)).tolist()
    particles = tuple(_particle(q, matches.get(q), tracks, true_tracks, radius, maps) for q in shown)
    seen = [p.seen_fraction for p in particles]
    return Evaluation(
        particles_true=len(shown),
        particles_found=len(matches),
        frames=truth.sizes["frame"],
        seen_fraction=float(np.mean(seen)) if seen else None,
        seen_fraction_min=min(seen, default=None),
        particles=particles,
        **scoring.count_mistakes(tracks, true_tracks, radius, matches),
        **_positions(result, truth, matches),
        **_motion(result, truth, matches),
        **maps.numbers(),
    )


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _values(array: "xr.DataArray") -> np.ndarray:
    return np.asarray(array.values, dtype=np.float64)


def _common_frames(result: "xr.Dataset", truth: "xr.Dataset") -> tuple["xr.Dataset", "xr.Dataset"]:
    """Cut both to the frames that both have; a truth without frame numbers holds all frames from 0."""
    if "frame" in result.coords and "frame" in truth.coords:
        _, ours, theirs = np.intersect1d(result["frame"].values, truth["frame"].values, return_indices=True)
        result, truth = result.isel(frame=ours), truth.isel(frame=theirs)
    elif "frame" in result.coords:
        number, count = result["frame"].values, truth.sizes["frame"]
        if number.dtype.kind not in "iu" or not ((number >= 0) & (number < count)).all():
            msg = (
                f"result has frames {number[0]} to {number[-1]} and truth {count} frames without numbers, which are "
                f"0 to {count - 1}; need a truth that holds the frames of the result."
            )
            raise ValueError(msg)
        truth = truth.isel(frame=number)
    elif result.sizes["frame"] != truth.sizes["frame"]:
        msg = (
            f"result has {result.sizes['frame']} frames and truth {truth.sizes['frame']}; need the same "
            "number, or a frame coordinate in both that says which is which."
        )
        raise ValueError(msg)
    if "energy" in result.variables and "energy" in truth.variables and result.sizes["frame"]:
        # A bad frame's energy may be unknown.
        apart = np.abs(_values(result["energy"]) - _values(truth["energy"]))
        apart = float(np.max(apart[np.isfinite(apart)], initial=0.0))
        if apart > SAME_ENERGY_EV:
            msg = (
                f"energies of result and truth differ by up to {apart:.2f} eV; need those of the same "
                "frames. Give the truth that was written with this raw store."
            )
            raise ValueError(msg)
    return result, truth


def _radius(truth: "xr.Dataset") -> np.ndarray:
    """Reach of every true particle in px, (particle,)."""
    if "radius" in truth:
        return _values(truth["radius"])
    count = truth.sizes["particle"]
    if "contour" not in truth:
        return np.full(count, DEFAULT_RADIUS_PX)
    area = np.array([int(truth["contour"].isel(particle=q).values.sum()) for q in range(count)])
    return np.where(area > 0, np.sqrt(area / np.pi), DEFAULT_RADIUS_PX)


def _centred(difference: np.ndarray) -> np.ndarray:
    """Differences (frame, axis) less their constant part."""
    return difference - scoring.constant_offset(difference)


def _length(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors, axis=-1)


def _positions(result: "xr.Dataset", truth: "xr.Dataset", matches: dict[int, int]) -> dict[str, float | None]:
    """Errors of the positions, pooled over particles and frames."""
    if not matches:
        return {}
    tracks, true_tracks = _values(result["position"]), _values(truth["position"])
    error = np.stack([_centred(tracks[r] - true_tracks[q]) for q, r in matches.items()])
    length = _length(error)
    numbers = {
        "position_rms": scoring.rms(length),
        "position_p95": float(np.nanpercentile(length, 95)),
        "position_rms_y": scoring.rms(error[..., 0]),
        "position_rms_x": scoring.rms(error[..., 1]),
    }
    if "measured_position" in result:
        single = _values(result["measured_position"])
        errors = [_length(_centred(single[r] - true_tracks[q])) for q, r in matches.items()]
        numbers["position_rms_measured"] = scoring.rms(np.concatenate(errors))
    edge = _true_edge(truth)
    if edge is not None and "energy" in truth.variables:
        before = _values(truth["energy"]) < edge - PRE_EDGE_MARGIN_EV
        numbers["position_rms_pre_edge"] = scoring.rms(length[:, before])
    if "position_sigma" in result:
        sigma = _values(result["position_sigma"])[list(matches.values())]
        numbers["position_sigma_ratio"] = scoring.robust_sigma(error / np.where(sigma > 0, sigma, np.nan))
    return numbers


def _true_edge(truth: "xr.Dataset") -> float | None:
    """Median edge energy of the truth's first maps, eV."""
    if "edge_energy" not in truth or not truth["edge_energy"].size:
        return None
    edges = scoring.Histogram(200_000, 0.25)
    for q in range(truth.sizes["particle"]):
        edges.add(_values(truth["edge_energy"].isel(particle=q, scan=0)))
    return edges.median()


def _motion(result: "xr.Dataset", truth: "xr.Dataset", matches: dict[int, int]) -> dict[str, float | None]:
    """Errors of the rigid and the non-rigid motion."""
    numbers = {}
    if "rigid" in result and "rigid" in truth:
        numbers["rigid_rms"] = scoring.rms(_length(_centred(_values(result["rigid"]) -
        _values(truth["rigid"]))))
    if "nonrigid" in result and "nonrigid" in truth and matches:
        ours, theirs = _values(result["nonrigid"]), _values(truth["nonrigid"])
        errors = [_length(_centred(ours[r] - theirs[q])) for q, r in matches.items()]
        numbers["nonrigid_rms"] = scoring.rms(np.concatenate(errors))
    return numbers


def _particle(
    q: int, r: int | None, tracks: np.ndarray, true_tracks: np.ndarray, radius: np.ndarray, maps: "_Maps"
) -> ParticleErrors:
    """Errors of true particle `q`, which track `r` follows."""
    if r is None:
        return ParticleErrors(q, None, 0.0)
    difference = tracks[r] - true_tracks[q]
    offset = scoring.constant_offset(difference)
    return ParticleErrors(
        truth=q,
        result=r,
        seen_fraction=scoring.seen_fraction(tracks[r], true_tracks[q], radius[q]),
        position_rms=scoring.rms(_length(difference - offset)),
        position_offset=(float(offset[0]), float(offset[1])),
        **maps.rows[q],
    )


class _Maps:
    """Errors of contours and edge-energy maps, gathered one particle and scan at a time."""

    def __init__(self, result: "xr.Dataset", truth: "xr.Dataset") -> None:
        self.result, self.truth = result, truth
        self.has_window = all(ds.sizes.get(name) for ds in (result, truth) for name in ("y", "x"))
        self.has_contour = self.has_window and "contour" in result and "contour" in truth
        self.has_edges = self.has_window and "edge_energy" in result and "edge_energy" in truth
        self.errors = scoring.Histogram(20, 0.001)
        self.errors_everywhere = scoring.Histogram(20, 0.001)
        self.ratios = scoring.Histogram(50, 0.005)
        self.fitted = self.inner = 0
        self.rows: dict[int, dict[str, float | None]] = {}
        if self.has_window:
            ours, theirs = ([_axis(ds, name) for name in ("y", "x")] for ds in (result, truth))
            self.grid = tuple(scoring.union_axis(a, b) for a, b in zip(ours, theirs, strict=True))
            self.corner, self.true_corner = (tuple(side[0] for side in sides) for sides in (ours, theirs))

    def add(self, q: int, r: int, offset: np.ndarray) -> None:
        """Take in true particle `q` and track `r`, whose centre lies `offset` (y, x) px from the true one."""
        row = self._contour(q, r, offset) if self.has_contour else {}
        self.rows[q] = row | (self._edges(q, r, offset) if self.has_edges else {})

    def _ours(self, name: str, fill: float, **where: int) -> np.ndarray:
        return scoring.place_window(_values(self.result[name].isel(where)), self.corner, self.grid, fill)

    def _theirs(self, name: str, offset: np.ndarray, **where: int) -> np.ndarray:
        window = _values(self.truth[name].isel(where))
        return scoring.sample_window(window, self.true_corner, self.grid, offset)

    def _contour(self, q: int, r: int, offset: np.ndarray) -> dict[str, float | None]:
        ours = self._ours("contour", 0, particle=r) > 0
        theirs = self._theirs("contour", offset, particle=q) >= 0.5
        either = (ours | theirs).sum()
        return {"contour_iou": float((ours & theirs).sum() / either) if either else None}

    def _edges(self, q: int, r: int, offset: np.ndarray) -> dict[str, float | None]:
        errors = scoring.Histogram(20, 0.001)
        fitted = count = 0
        for scan, true_scan in _common_scans(self.result, self.truth):
            theirs = self._theirs("edge_energy", offset, particle=q, scan=true_scan)
            ours = self._ours("edge_energy", np.nan, particle=r, scan=scan)
            inner = ndimage.binary_erosion(np.isfinite(theirs), iterations=RIM_PX)
            error = ours - theirs
            errors.add(error[inner])
            self.errors_everywhere.add(error)
            fitted += int(np.isfinite(ours[inner]).sum())
            count += int(inner.sum())
            if "edge_energy_sigma" in self.result:
                sigma = self._ours("edge_energy_sigma", np.nan, particle=r, scan=scan)[inner]
                self.ratios.add(error[inner] / np.where(sigma > 0, sigma, np.nan))
        self.errors.counts += errors.counts
        self.fitted += fitted
        self.inner += count
        return {"edge_error": errors.spread(0.0), "edge_fitted": fitted / count if count else None}

    def numbers(self) -> dict:
        """Give what all particles together say."""
        overlaps = [row["contour_iou"] for row in self.rows.values() if row.get("contour_iou") is not None]
        numbers: dict = {}
        if overlaps:
            numbers = {"contour_iou": float(np.mean(overlaps)), "contour_iou_min": float(min(overlaps))}
        if not self.has_edges:
            return numbers
        offset, ratio = self.errors.median(), self.ratios.median()
        return numbers | {
            "edge_error": self.errors.spread(0.0),
            "edge_error_centred": None if offset is None else self.errors.spread(offset),
            "edge_offset": offset,
            "edge_error_all_pixels": self.errors_everywhere.spread(0.0),
            "edge_fitted": self.fitted / self.inner if self.inner else None,
            "edge_sigma_ratio": None if ratio is None else scoring.MAD_TO_SIGMA * self.ratios.spread(ratio),
            "edge_definition": _definition(self.result),
            "edge_definition_true": _definition(self.truth),
        }


def _definition(ds: "xr.Dataset") -> str | None:
    """How the edge energy is defined, as the map or its whole store says."""
    return ds["edge_energy"].attrs.get("definition", ds.attrs.get("definition"))


def _scan_numbers(ds: "xr.Dataset") -> np.ndarray:
    """Scan number of every entry along the dimension `scan`."""
    count = ds.sizes["scan"]
    for name in ("scan", "frame_scan"):
        if name in ds.variables and (numbers := np.unique(ds[name].values)).size == count:
            return numbers
    return np.arange(count)


def _common_scans(result: "xr.Dataset", truth: "xr.Dataset") -> list[tuple[int, int]]:
    _, ours, theirs = np.intersect1d(_scan_numbers(result), _scan_numbers(truth), return_indices=True)
    return list(zip(ours.tolist(), theirs.tolist(), strict=True))


def _axis(ds: "xr.Dataset", name: str) -> np.ndarray:
    """Offsets (px) from the centre of mass along one side; a window without coordinates is symmetric."""
    if name in ds.coords:
        return _values(ds[name])
    return np.arange(ds.sizes[name]) - (ds.sizes[name] - 1) / 2
