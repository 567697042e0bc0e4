"""Motion: how far, how fast and along which path every particle moves, and how much of it is its own."""

import numpy as np
import xarray as xr

from xreg.kernels.geometry import pixel_scale, to_reference
from xreg.kernels.kinematics import common_motion, first_sighting, path_length, position_noise, rates, since_first
from xreg.schema import AXES, RESULT, describe, validate

#: Part of the frames that must tell the stage's place for the background to define the rigid motion.
_LEAST_STAGE = 0.5
_VECTOR = ("particle", "frame", "axis")


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
          first sighting); NaN where nothing is seen or no chain of particles leads back to the first frame;
        * `nonrigid` (particle, frame, axis), displacement less the rigid motion since the particle's own first
          sighting, so zero there.

        Where `pixel_size_nm` is known also `distance_nm`, and with `time` also `velocity_nm_s` and
        `acceleration_nm_s2` from the true times; NaN next to frames whose time is unknown or does not ascend.

    Raises
    ------
    ValueError
        If `position` is missing or has other dims; if the magnification changes and `energy` or `frame_shape`
        is missing; if the reference particle is not among the tracks; if the pixel size is not positive.
    """
    validate(tracks, RESULT, "position")
    place = _reference_position(tracks)
    first = first_sighting(place)
    displacement = since_first(place, first)
    velocity, acceleration = rates(place, np.arange(place.shape[1], dtype=np.float64))
    distance = path_length(place)
    rigid, fixed = _rigid(tracks, place, displacement, reference_particle)
    still = since_first(np.broadcast_to(rigid, place.shape), first)
    noise = position_noise(place, tracks["contrast"].values if "contrast" in tracks else None)
    sigma = np.repeat(noise[..., None], 2, axis=-1)
    if "position_sigma" in tracks:
        sigma = np.where(np.isfinite(tracks["position_sigma"].values), tracks["position_sigma"].values, sigma)
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
    motion["rigid"].attrs["particles"] = fixed
    return describe(motion, RESULT)


def _reference_position(tracks: xr.Dataset) -> np.ndarray:
    """Positions with the magnification undone: (particles, frames, 2)."""
    magnification = tracks.attrs.get("magnification", "constant")
    position = np.asarray(tracks["position"].values, dtype=np.float64)
    # A vector is known or not: half a position is none.
    position = np.where(np.isfinite(position).all(axis=-1, keepdims=True), position, np.nan)
    if magnification == "constant":
        return position
    for holder, name in ((tracks.coords, "energy"), (tracks.attrs, "frame_shape")):
        if name not in holder:
            msg = f"tracks have magnification {magnification!r} but no {name}; need it to undo the magnification."
            raise ValueError(msg)
    scale = pixel_scale(tracks["energy"].values, magnification, tracks.attrs.get("pixel_size_energy_ev"))
    return to_reference(position, scale, tuple(tracks.attrs["frame_shape"]))


def _rigid(
    tracks: xr.Dataset, place: np.ndarray, displacement: np.ndarray, reference_particle: int | None
) -> tuple[np.ndarray, list[int]]:
    """Rigid motion (frames, 2) and the labels of the particles that define it; none if all do, or the background."""
    labels = _particles(tracks)
    if reference_particle is None:
        rigid, undeformed = common_motion(place)
        on_stage = _of_stage(tracks["stage"].values, rigid) if "stage" in tracks else None
        return (rigid, labels[undeformed].tolist()) if on_stage is None else (on_stage, [])
    row = np.flatnonzero(labels == reference_particle)
    if not row.size:
        msg = f"reference particle {reference_particle} is not tracked; choose one of {labels.tolist()}."
        raise ValueError(msg)
    return displacement[row[0]], [int(reference_particle)]


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
    if not size > 0:
        msg = f"pixel_size_nm is {size}; need a positive number of nanometres, or leave it out."
        raise ValueError(msg)
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
