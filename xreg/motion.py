"""Motion: how far, how fast and along which path every particle moves, and how much of it is its own.

`measure_motion` gives these; `measure_vibration` says at which frequencies the stage shakes, and `measure_strain` how
the electrode deforms about every particle.
"""

import numpy as np
import xarray as xr

from xreg.kernels.kinematics import common_motion, first_sighting, path_length, rates, since_first
from xreg.kernels.strain import finite_strain, local_deformation, neighbour_lists
from xreg.kernels.vibration import OVERSAMPLED, false_alarm_power, frequencies, periodogram
from xreg.places import reference_positions, standard_errors
from xreg.schema import AXES, POSITIVE, RESULT, check_number, check_some, describe, validate

#: Part of the frames that must tell the stage's place for the background to define the rigid motion.
_LEAST_STAGE = 0.3
_VECTOR = ("particle", "frame", "axis")
_STRAINS = {"strain": "Green-Lagrange strain", "rotation": "rotation", "area_change": "relative change of area"}


def measure_motion(tracks: xr.Dataset, *, reference_particle: int | None = None) -> xr.Dataset:
    """Measure the motion of every particle.

    Positions are first taken to the reference energy, so that an energy-dependent magnification is no motion.
    Displacement = rigid part + non-rigid part. The rigid part is the motion of the stage as the background shows it,
    where positions were fitted together with the background; else what all particles share, from a joint robust fit of
    all frames and particles (see `kernels.kinematics.common_motion`); or the displacement of one particle that is known
    not to deform. This computes; it is cheap.

    Parameters
    ----------
    tracks : Dataset
        `position` (particle, frame, axis), raw px, NaN where not seen; if at hand `position_sigma`, its standard error,
        `stage` (frame, axis), place of the background in px at the reference energy, and `contrast` (particle, frame),
        by which errors that are not known are told apart; coordinate `energy` (frame) in eV and,
        optionally, `time` (frame), datetime64 or seconds; attributes `magnification` ("constant" if absent),
        `pixel_size_nm`, `pixel_size_energy_ev` and, where the magnification changes, `frame_shape` (ny, nx).
    reference_particle : int, optional
        Label on `particle` of the particle that defines the rigid part, as in Fig. 4(e) of Su et al. 2024.

    Returns
    -------
    motion : Dataset, in memory
        In px at `pixel_size_energy_ev`, NaN where the particle is not seen:

        * `position_sigma` (particle, frame, axis), standard error of the position, raw px, as given, or else from the
          scatter of neighbouring positions (see `kernels.kinematics.position_noise`);
        * `displacement` (particle, frame, axis) since the particle's first sighting;
        * `velocity`, px/frame, by central differences over the sightings on either side (one-sided at the first
          and last) with the true number of frames between them, and `acceleration`, px/frame2, likewise (NaN at
          the first and last sighting);
        * `distance` (particle, frame), length of the path since the first sighting;
        * `rigid` (frame, axis), zero in the first frame that shows a particle (of the reference particle: its
          first sighting); NaN where nothing is seen or no chain of particles leads back to the first frame. Its
          attribute `definition` says what defines it ("background", "particles that move as one", "all particles" or
          "reference particle"), `particles` which ones, if not all;
        * `nonrigid` (particle, frame, axis), displacement less the rigid motion since the particle's own first
          sighting, so zero there.

        Where `pixel_size_nm` is known also `distance_nm`, and with `time` also `velocity_nm_s` and
        `acceleration_nm_s2` from the true times; NaN next to frames whose time is unknown or does not ascend.

    Raises
    ------
    ValueError
        If `position` is missing or has other dims; if the magnification changes and `energy` or `frame_shape`
        is missing; if there is no frame; if the reference particle is not among the tracks; if the pixel size is no
        positive number.
    """
    validate(tracks, RESULT, "position")
    check_some(tracks, "frame")
    place = reference_positions(tracks)
    first = first_sighting(place)
    displacement = since_first(place, first)
    velocity, acceleration = rates(place, np.arange(place.shape[1], dtype=np.float64))
    distance = path_length(place)
    rigid, fixed, definition = _rigid(tracks, place, displacement, reference_particle)
    still = since_first(np.broadcast_to(rigid, place.shape), first)
    sigma = standard_errors(tracks, place)
    motion = xr.Dataset(
        {
            "position_sigma": (_VECTOR, sigma),
            "displacement": (_VECTOR, displacement),
            "velocity": (_VECTOR, velocity),
            "acceleration": (_VECTOR, acceleration),
            "distance": (_VECTOR[:2], distance),
            "rigid": (_VECTOR[1:], rigid),
            "nonrigid": (_VECTOR, displacement - still),
            **_physical(tracks, place, distance),
        },
        coords={"axis": list(AXES), **{k: c for k, c in tracks.coords.items() if c.dims == ("frame",)}},
    )
    motion["particle"] = _particles(tracks)
    motion["rigid"].attrs.update(particles=fixed, definition=definition)
    return describe(motion, RESULT)


def measure_vibration(motion: xr.Dataset, *, per_scan: bool = True, probability: float = 0.01) -> xr.Dataset:
    """Spectrum of the rigid motion, such as the vibration of the stage.

    Lomb-Scargle periodogram of the rigid motion less its mean and linear drift: frames without a position are left out
    and times need not be even. Vibrations faster than half the frame rate appear at lower frequencies, and those within
    an exposure blur the frame instead. This computes; it is cheap.

    Parameters
    ----------
    motion : Dataset
        `rigid` (frame, axis), px, NaN where unknown, from `measure_motion` or a result store; coordinates `time`
        (frame), datetime64 or seconds, without which frequencies are per frame, and `scan` (frame).
    per_scan : bool
        Whether every scan has its own spectrum, so that pauses between scans do not count as gaps.
    probability : float
        Of a false alarm in a whole spectrum, for `false_alarm`.

    Returns
    -------
    vibration : Dataset, in memory
        Dims (scan, axis, frequency), without scan if not `per_scan`; `frequency` in Hz, or in cycles per frame where no
        time is known, from one cycle per scan to half the usual frame rate in steps of a quarter cycle per scan (of the
        longest scan):

        * `power_density`, one-sided power spectral density, px2/Hz (or px2 frame): for white noise its integral over
          all frequencies is the variance;
        * `amplitude`, px: that of a sine at that frequency, half of peak to peak;
        * `false_alarm`, px: amplitude that noise alone reaches anywhere in the spectrum with this probability. The
          noise's level is taken from the spectrum about each frequency, so that the stage's slow wandering is no alarm
          (see `kernels.vibration.false_alarm_power`).

        NaN for a scan with fewer than four known frames, and at frequencies that a shorter scan does not resolve.

    Raises
    ------
    ValueError
        If `rigid` is missing or has other dims, the probability is not between 0 and 1, or the times of a spectrum span
        too many of their usual steps.

    References
    ----------
    Lomb 1976, doi:10.1007/BF00648343; Scargle 1982, doi:10.1086/160554.
    """
    validate(motion, RESULT, "rigid")
    if not 0 < probability < 1:
        msg = f"probability is {probability}; need a number between 0 and 1."
        raise ValueError(msg)
    rigid = np.asarray(motion["rigid"].values, dtype=np.float64)
    known = per_scan and "scan" in motion.variables and motion["scan"].dims == ("frame",)
    scan = motion["scan"].values if known else np.zeros(len(rigid), dtype=int)
    when, per = np.arange(len(rigid), dtype=np.float64), "1/frame"
    if "time" in motion.variables and np.isfinite(_seconds(motion["time"].values)).any():
        when, per = _seconds(motion["time"].values), "Hz"
    labels = np.unique(scan) if scan.size else np.zeros(1, dtype=int)
    parts = [_ascending(when, np.flatnonzero(scan == label)) for label in labels]
    grids = [frequencies(when[part]) for part in parts]
    frequency = max(grids, key=len)
    shape = (len(labels), len(AXES), len(frequency))
    values = {name: np.full(shape, np.nan) for name in ("power_density", "amplitude", "false_alarm")}
    for s, (part, grid) in enumerate(zip(parts, grids, strict=True)):
        if not len(grid):
            continue
        # A shorter scan does not resolve the lowest frequencies of the longest.
        own = (frequency >= grid[0] * (1 - 1e-9)) & (frequency <= grid[-1] * (1 + 1e-9))
        step = float(np.median(np.diff(when[part])))
        for a in range(len(AXES)):
            power = periodogram(when[part], rigid[part, a], frequency[own])
            samples = max(int(np.isfinite(rigid[part, a]).sum()), 1)
            values["power_density"][s, a, own] = 2 * step * power
            values["amplitude"][s, a, own] = 2 * np.sqrt(power / samples)
            values["false_alarm"][s, a, own] = 2 * np.sqrt(false_alarm_power(power, probability) / samples)
    dims = ("scan", "axis", "frequency")
    vibration = xr.Dataset({name: (dims, array) for name, array in values.items()},
                           {"scan": labels, "axis": list(AXES), "frequency": ("frequency", frequency, {"units": per})})
    vibration["power_density"].attrs = {"units": "px2/Hz" if per == "Hz" else "px2 frame",
                                        "long_name": "power spectral density of the rigid motion"}
    vibration["amplitude"].attrs = {"units": "px", "long_name": "amplitude of a sine in the rigid motion"}
    vibration["false_alarm"].attrs = {"units": "px", "long_name": "amplitude that noise reaches",
                                      "comment": f"anywhere in the spectrum with probability {probability:g}"}
    vibration.attrs["oversampled"] = OVERSAMPLED
    return vibration if per_scan else vibration.isel(scan=0, drop=True)


def measure_strain(tracks: xr.Dataset, *, reference: int | None = None, neighbours: int | None = None) -> xr.Dataset:
    """Local strain, rotation and non-affine motion about every particle, from how its neighbours move.

    An affine map is fitted, by least squares weighted with the standard errors, to the displacements of a particle and
    its neighbours between a reference frame and every other one (see `kernels.strain.local_deformation`). A shift of
    the whole frame does not matter, so that the stage's motion need not be known; an energy-dependent magnification is
    undone first, since what is left of it would be strain. This computes; it takes time proportional to particles
    times frames.

    Parameters
    ----------
    tracks : Dataset
        `position` (particle, frame, axis), raw px; if at hand `position_sigma` and `contrast`; coordinates and
        attributes as for `measure_motion`. A result store will do.
    reference : int, optional
        Number of the frame before the deformation; by default the first one that shows as many particles as any.
    neighbours : int, optional
        Number of nearest particles to take; by default those next to the particle in the Delaunay triangulation of the
        reference frame.

    Returns
    -------
    strain : Dataset, in memory
        With the coordinates of `tracks` on `frame`, and the attribute `reference`:

        * `strain` (particle, frame, component), Green-Lagrange strain: `component` = ["yy", "xx", "yx"]; exact for
          large deformations, and zero for any rotation;
        * `rotation` (particle, frame), rad, from +y towards +x: with y down it turns the picture anticlockwise;
        * `area_change` (particle, frame), relative change of area, det F - 1;
        * `strain_sigma`, `rotation_sigma`, `area_change_sigma`, one standard error each, from those of the positions in
          both frames. That neighbours do not move affinely is not in them, but in
        * `nonaffine` (particle, frame), px, root mean square distance of particle and neighbours from the affine map:
          sqrt(D2min / n) of Falk and Langer 1998, whose sum runs over n particles; NaN for just three;
        * `points` (particle, frame), particles used, the particle itself among them.

        NaN where the particle or all but one of its neighbours are not seen in both frames, or they lie on a line.

    Raises
    ------
    ValueError
        As `measure_motion`; if the reference frame is not among the frames; if `neighbours` is below 2 or not whole.

    References
    ----------
    Falk and Langer 1998, doi:10.1103/PhysRevE.57.7192.
    """
    validate(tracks, RESULT, "position")
    place = reference_positions(tracks)
    seen = np.isfinite(place).all(-1).sum(axis=0)
    if reference is None:
        reference = int(seen.argmax()) if seen.size else 0
    check_number("reference", reference, "the number of a frame", whole=True)
    if not 0 <= reference < max(len(seen), 1):
        msg = f"the reference frame is {reference}; need one of 0 to {len(seen) - 1}."
        raise ValueError(msg)
    if neighbours is not None:
        need = "at least 2, a whole number, or None for those of the Delaunay triangulation"
        check_number("neighbours", neighbours, need, least=2, whole=True)
    before = slice(reference, reference + 1)
    sigma = standard_errors(tracks, place)
    home = place[:, reference] if seen.size else np.full((len(place), 2), np.nan)
    lists = neighbour_lists(home, neighbours)
    found = local_deformation(home, place - home[:, None], np.hypot(sigma, sigma[:, before]), lists)
    value, error = finite_strain(found.gradient, found.covariance)
    # In the reference frame itself nothing has moved, for certain.
    error[:, before] *= 0
    flat = _VECTOR[:2]
    names = {"strain": slice(0, 3), "rotation": 3, "area_change": 4}
    variables = {}
    for name, k in names.items():
        dims = (*flat, "component") if name == "strain" else flat
        unit = {"units": "rad" if name == "rotation" else "1"}
        variables[name] = (dims, value[..., k], {**unit, "long_name": _STRAINS[name]})
        variables[f"{name}_sigma"] = (dims, error[..., k], {**unit, "long_name": f"standard error of {_STRAINS[name]}"})
    variables["nonaffine"] = (flat, found.residual, {"units": "px", "long_name": "motion that is not affine",
                                                     "comment": "root mean square over the particles used"})
    variables["points"] = (flat, found.points, {"units": "1", "long_name": "particles used"})
    coords = {k: c for k, c in tracks.coords.items() if c.dims == ("frame",)}
    strain = xr.Dataset(variables, {"component": ["yy", "xx", "yx"], **coords}, {"reference": reference})
    strain["particle"] = _particles(tracks)
    return strain


def _ascending(when: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Those of the frames whose time is known and later than that of all before."""
    part = part[np.isfinite(when[part])]
    latest = np.maximum.accumulate(np.concatenate([[-np.inf], when[part][:-1]]))[: len(part)]
    return part[when[part] > latest]


def _rigid(
    tracks: xr.Dataset, place: np.ndarray, displacement: np.ndarray, reference_particle: int | None
) -> tuple[np.ndarray, list[int], str]:
    """Rigid motion (frames, 2), labels of the particles that define it (none for all, or the background), in words."""
    labels = _particles(tracks)
    if reference_particle is None:
        rigid, undeformed = common_motion(place)
        on_stage = _of_stage(tracks["stage"].values, rigid) if "stage" in tracks else None
        if on_stage is not None:
            return on_stage, [], "background"
        return rigid, labels[undeformed].tolist(), "particles that move as one" if undeformed.any() else "all particles"
    row = np.flatnonzero(labels == reference_particle)
    if not row.size:
        msg = f"reference particle {reference_particle} is not tracked; choose one of {labels.tolist()}."
        raise ValueError(msg)
    return displacement[row[0]], [int(reference_particle)], "reference particle"


def _of_stage(stage: np.ndarray, shared: np.ndarray) -> np.ndarray | None:
    """Motion of the stage (frames, 2) since the first frame that shows a particle; None if most frames do not tell.

    In frames that do not tell it the particles' shared motion is used, less what that is off in frames next to them.
    """
    usable = np.isfinite(shared).all(-1)
    known = np.flatnonzero(usable & np.isfinite(stage).all(-1))
    if known.size <= _LEAST_STAGE * usable.sum() or not known.size:
        return None
    every = np.arange(len(stage))
    off = np.stack([np.interp(every, known, (stage - shared)[known, axis]) for axis in (0, 1)], axis=-1)
    motion = np.where(np.isfinite(stage), stage, shared + off)
    motion[~usable] = np.nan
    return motion - motion[np.flatnonzero(usable)[0]]


def _particles(tracks: xr.Dataset) -> np.ndarray:
    """Labels of the particles; their numbers where there are none."""
    return tracks["particle"].values if "particle" in tracks.coords else np.arange(tracks.sizes["particle"])


def _physical(tracks: xr.Dataset, place: np.ndarray, distance: np.ndarray) -> dict[str, tuple]:
    """Variables in nm and s, as far as pixel size and time are known."""
    size = tracks.attrs.get("pixel_size_nm")
    if size is None:
        return {}
    check_number("pixel_size_nm", size, "a positive number of nanometres, or leave it out", least=POSITIVE)
    physical = {"distance_nm": (_VECTOR[:2], distance * size)}
    if "time" in tracks.coords:
        velocity, acceleration = rates(place * size, _seconds(tracks["time"].values))
        physical["velocity_nm_s"] = (_VECTOR, velocity)
        physical["acceleration_nm_s2"] = (_VECTOR, acceleration)
    return physical


def _seconds(time: np.ndarray) -> np.ndarray:
    """Seconds since the first known time: (frames,), NaN where unknown."""
    if time.dtype.kind != "M":
        return time.astype(np.float64)
    known = ~np.isnat(time)
    seconds = np.full(time.shape, np.nan)
    if known.any():
        seconds[known] = (time[known] - time[known][0]) / np.timedelta64(1, "s")
    return seconds
