"""The one barrier of a run: from the table of regions of all frames to tracks, outlines, motion and empty stacks.

Only here is the number of particles known, and with it the shape of everything that follows, and only here can a frame
be told from sharper ones of its energy. Positions of all frames are held at once, pictures of a few. It has two halves:
`link_particles` leaves blurred frames out, follows the particles by their contours and makes the layers; once all
frames have been fitted to these, `measure_tracks` says which particles are confirmed and how they moved.
"""

from collections.abc import Callable

import dask.array as da
import numpy as np
import xarray as xr

from xreg import store
from xreg.kernels.geometry import pixel_scale
from xreg.schema import NORMALIZED, RESULT, FrameStatus, describe, flag_attrs
from xreg.tasks import CANDIDATES, ROI_GROUP, Job, normalized_frame, save_layers


def link_particles(job: Job, settings: dict, told: Callable[[int, int], None]) -> None:
    """Link the regions, write the candidates for particles, make the layers that frames will be fitted to.

    Parameters
    ----------
    job : Job
        The run; its table of regions is complete.
    settings : dict
        Keyword arguments of `link_rois`.
    told : callable
        Called with the number of steps done, and of all: the linking is one, and so is each round of `make_layers`.
    """
    from xreg.align import outline_particles
    from xreg.kernels.separation import ROUNDS, make_layers
    from xreg.link import gather_tracks, link_rois
    from xreg.locate import choose_template_frames, frames_that_fit, propose_particles
    from xreg.sharpness import reject_blurred

    told(0, ROUNDS + 1)
    rois = reject_blurred(open_rois(job))
    links = link_rois(rois, **settings)
    attrs, energy = rois.attrs, rois["energy"].values
    scale = pixel_scale(energy, attrs["magnification"], attrs.get("pixel_size_energy_ev"))
    tables = propose_particles(gather_tracks(rois, links), outline_particles(rois, links)).assign(
        scale=("frame", scale, {"units": "1", "long_name": "pixel size over that at pixel_size_energy_ev"}),
        frame_status=("frame", rois["frame_status"].values, flag_attrs(FrameStatus)),
        noise=rois["noise"], background=rois["background"],
    )
    store.create_group(f"{job.out}/{CANDIDATES}")
    store.write_tables(f"{job.out}/{CANDIDATES}", describe(tables, RESULT))

    shape, n = attrs["frame_shape"], tables.sizes
    chosen = choose_template_frames(tables["contrast"].values, energy, frames_that_fit(shape))
    frames = np.array([normalized_frame(job, k).optical_density for k in chosen], np.float32).reshape(-1, *shape)
    expected = (tables[name].values[:, chosen] for name in ("start", "guessed", "doubtful"))
    stage, contour = tables["stage"].values[chosen], tables["contour"].values
    layers = make_layers(frames, *expected, stage, scale[chosen], contour, told=lambda k: told(k + 1, ROUNDS + 1))
    save_layers(job.out, layers)
    spec = store.Spec(("row", "frame", "value"), (n["particle"] + 1, n["frame"], 6), np.float64,
                      (n["particle"] + 1, job.block, 6), np.nan)
    store.create_arrays(f"{job.out}/{CANDIDATES}", {"located": spec})


def measure_tracks(job: Job, *, lazy: bool, reference_particle: int | None = None) -> None:
    """Confirm the particles, measure their motion, and create the stacks and maps that are to be filled.

    Parameters
    ----------
    job : Job
        The run; all blocks have been located, or have failed and keep their centres of mass.
    lazy : bool
        Whether the run stops here, so that no stacks are created.
    reference_particle : int, optional
        As in `measure_motion`.

    Raises
    ------
    ValueError
        If the reference particle was not found. Nothing is written then.
    """
    tables, motion = _measure(job, reference_particle)
    tables = tables.merge(motion, compat="override", join="exact")
    kept = [name for name in tables if name in RESULT or name in ("scale", "noise", "background")]
    tables = tables[kept].assign_attrs(half=tables.sizes["y"] // 2, lazy=lazy)
    # Of an earlier measurement, before some block was done again, nothing is kept.
    store.clear_arrays(job.out)
    store.write_tables(job.out, describe(tables, NORMALIZED | RESULT))
    if not lazy:
        _create_stacks(job, tables)


def divide_motion(job: Job, reference_particle: int | None) -> None:
    """Divide the motion anew into a rigid part, now that of a particle (None: as by default), and the non-rigid one.

    Nothing else of the result depends on it, so that nothing else is done again.
    """
    _, motion = _measure(job, reference_particle)
    store.write_tables(job.out, describe(motion[["rigid", "nonrigid"]].drop_vars(motion.coords), RESULT))


def _measure(job: Job, reference_particle: int | None) -> tuple[xr.Dataset, xr.Dataset]:
    """Confirmed particles with their paths, and their motion."""
    from xreg.locate import confirm_particles
    from xreg.motion import measure_motion
    from xreg.smooth import smooth_tracks

    candidates = store.open_store(f"{job.out}/{CANDIDATES}").load()
    tables = smooth_tracks(confirm_particles(candidates.drop_vars("located"), candidates["located"]))
    if reference_particle is not None:
        check_reference(tables, reference_particle)
    return tables, measure_motion(tables, reference_particle=reference_particle)


def check_reference(tables: xr.Dataset, particle: int) -> None:
    """Refuse a reference particle that was not found, in words for a user who has waited for it."""
    if not 0 <= particle < tables.sizes["particle"]:
        found = tables.sizes["particle"]
        numbers = f"particles 0 to {found - 1} were" if found > 1 else f"{'only particle 0' if found else 'none'} was"
        msg = (f"reference particle {particle} is not there, {numbers} found; choose one of them (their numbers stand "
               "in the report), and go on with --resume.")
        raise ValueError(msg)


def open_rois(job: Job) -> xr.Dataset:
    """The table of regions, lazily, as `link_rois` wants it."""
    rois = store.open_store(f"{job.out}/{ROI_GROUP}")
    return rois.set_coords([n for n in ("energy", "scan", "time", "frame") if n in rois.variables])


def _create_stacks(job: Job, tables: xr.Dataset) -> None:
    """Create `aligned` and the maps, empty, in the chunks in which they will be written."""
    from dataclasses import asdict

    from xreg.xanes import fit_edges

    n = {dim: tables.sizes[dim] for dim in ("particle", "frame", "y", "x")}
    grid = (1, job.block, n["y"], n["x"])
    shape = tuple(n[d] for d in RESULT["aligned"].dims)
    stack = xr.DataArray(da.zeros(shape, dtype=np.float32, chunks=(1, *shape[1:])), dims=RESULT["aligned"].dims,
                         coords={"energy": tables["energy"], "scan": tables["scan"]}, attrs=tables.attrs)
    maps = fit_edges(stack, tables["contour"].drop_vars(["y", "x"]), incomplete=True, **asdict(job.fit))
    edge = {name: tables.attrs[name] for name in ("element", "edge") if name in tables.attrs}
    specs = {"aligned": store.Spec(stack.dims, shape, np.float32, grid, np.nan, {**RESULT["aligned"].attrs, **edge})}
    for name, example in maps.data_vars.items():
        fill = np.nan if example.dtype.kind == "f" else 0
        specs[str(name)] = store.Spec(example.dims, example.shape, example.dtype, (1, 1, n["y"], n["x"]), fill,
                                      example.attrs)
    store.create_arrays(job.out, specs)
