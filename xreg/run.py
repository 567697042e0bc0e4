"""The out-of-core driver: the whole chain over windows of blocks, with markers, so that a killed run can go on.

Four passes go over the measurement. The first looks at every frame and keeps a table of its regions; linking, the one
barrier, turns the tables of all frames into tracks. The second pass fits every particle's position to its template, the
third cuts the particles out of every frame, the fourth fits the edge of one particle in one scan at a time. Nothing but
small tables is ever held for all frames at once.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xreg import chunks, files, store
from xreg.barrier import check_reference, divide_motion, link_particles, measure_tracks
from xreg.journal import FOLDER, Journal
from xreg.result import open_result
from xreg.schema import RAW, RESULT, ROIS, SHARPNESS, FitStatus, FrameStatus, frames_name
from xreg.tasks import CANDIDATES, ROI_GROUP, Job, Setup, key_of, perform, save_setup

if TYPE_CHECKING:
    from distributed import Client

    from xreg.workers import Pool

#: Called with the name of a stage, the number of finished tasks and the number of all.
Progress = Callable[[str, int, int], None]
#: Attributes of a raw store that its result does not keep: its result has its own.
_NOT_KEPT = ("source", "notices")
#: Packages whose versions are written into the result.
_PACKAGES = ("xreg", "numpy", "scipy", "scikit-image", "torch", "dask", "zarr", "xarray")


@dataclass(frozen=True)
class Settings:
    """Settings of the stages; whatever changes a result is here and is written into it.

    `link` and `fit` are keyword arguments of `link_rois` and `fit_edges`; `detector` and `refiner` are weights that
    `xreg train` wrote, None for those that came with xreg.
    """

    link: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    detector: str | None = None
    refiner: str | None = None


def register(
    raw: str | Path, out: str | Path, *, lazy: bool = False, resume: bool = False,
    scheduler: "str | Client | None" = None, workers: int | None = None, device: str = "auto",
    frames: str | None = None, link: dict[str, Any] | None = None, fit: dict[str, Any] | None = None,
    reference_particle: int | None = None, detector: str | Path | None = None, refiner: str | Path | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Register all frames of a raw store and write the result store.

    Work goes on under ``<out>.partial`` and gets its final name at the end; behind a URL, where nothing can be renamed,
    it goes on in its place, which `open_result` refuses to read until the end. Every finished block leaves a marker
    there, so that a run that was killed goes on with `resume`. Memory is that of one block of frames per worker, for
    measurements of any length. The answer is the same for every number of workers and every chunking of the raw store.

    Parameters
    ----------
    raw : path or URL
        Raw store.
    out : path or URL
        Result store to write, on a disk that all workers share, or behind a URL such as s3://bucket/out.zarr.
    lazy : bool
        Whether to stop after the tracks; `aligned` and the maps are then computed from the raw store when asked for.
    resume : bool
        Whether to go on with an interrupted run, or to try again the blocks that failed in a finished one. Where
        there is neither, the run begins.
    scheduler : str or distributed.Client, optional
        A running Dask cluster.
    workers : int, optional
        Processes of this machine to start; 0 or None for threads of this process. Processes are started anew, so that
        a script needs ``if __name__ == "__main__":``.
    device : str
        "auto", "cpu" or "cuda", where the networks run.
    frames : str, optional
        "A:B" for frames A up to, not including, B, of which either may be missing. The result has just these frames,
        scans and all, and its coordinate `frame` holds their numbers in the raw store.
    link, fit : dict, optional
        Settings of `link_rois` and `fit_edges`.
    reference_particle : int, optional
        Number of the particle that defines the rigid part of the motion (see `measure_motion`). Numbers are known once
        the particles have been linked: register first, look at the report, then call again with `resume` and this;
        only the two parts of the motion are then written anew. Without it they become again what they are by default.
    detector, refiner : path, optional
        Weights to use instead of those that came with xreg.
    progress : callable, optional
        Called with (stage, tasks done, tasks in all).

    Returns
    -------
    Dataset
        The result as `open_result` gives it. `failures` lists what failed.

    Raises
    ------
    ValueError
        If the raw store cannot be registered, a result is there already, another run is writing it, or a run is to be
        resumed with another input or other settings. Nothing is created then. If the reference particle is not
        among those that were found; the run can then be resumed with another one.
    OSError
        If the disk is full, or the scheduler goes away; the run can be resumed.
    """
    settings = Settings(dict(link or {}), dict(fit or {}), *(str(w) if w else None for w in (detector, refiner)))
    run = _Run.prepare(raw, out, settings, frames=frames, device=device, lazy=lazy, reference=reference_particle)
    if store.exists(out) and not resume:
        msg = f"{out} exists already; choose another name, delete it, or use --resume to try failed blocks again."
        raise ValueError(msg)
    from xreg.workers import open_pool

    with ExitStack() as stack:
        # Workers first: where there are none, nothing of an earlier result is touched.
        pool = stack.enter_context(open_pool(workers, scheduler))
        run.begin(resume)
        check = stack.enter_context(run.journal.lock())

        def told(stage: str, done: int, total: int) -> None:
            check()
            if progress:
                progress(stage, done, total)

        try:
            run.go(pool, told)
        except OSError as error:
            if isinstance(error, ConnectionError) or error.errno is None:
                raise
            msg = f"{run.part} cannot be written ({error.strerror}); mend that and run again with --resume."
            raise OSError(msg) from error
        run.finish()
    return open_result(out)


# -- one run -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """A run that has been found possible: what to do, on what, and where the result grows."""

    raw: xr.Dataset
    job: Job
    out: str
    settings: Settings
    plan: dict[str, Any]
    first: int
    lazy: bool
    reference: int | None

    @classmethod
    def prepare(cls, raw: str | Path, out: str | Path, settings: Settings, *, frames: str | None, device: str,
                lazy: bool, reference: int | None = None) -> "_Run":
        """Check everything that can be checked before anything is created."""
        from xreg.link import check_link_settings
        from xreg.models.infer import choose_device
        from xreg.models.weights import Weights
        from xreg.normalize import check_raw
        from xreg.xanes import check_energies, edge_settings

        choose_device(device)
        check_link_settings(settings.link)
        if files.lies_in(out, raw):
            msg = f"{out} lies inside of the raw store {raw}, which would change with it; choose a place outside."
            raise ValueError(msg)
        whole = store.open_frames(raw)
        first, stop = frame_range(frames, whole.sizes["frame"])
        check_raw(whole)
        whole = whole.assign_attrs(reference_energy(whole))
        check_energies(whole["energy"].values, whole["scan"].values, whole.attrs, **settings.fit)
        part = whole.isel(frame=slice(first, stop))
        pictures = frames_name(part)
        block = whole[pictures].data.chunks[0][0]
        weights = {role: Weights.chosen(getattr(settings, role), role) for role in ("detector", "refiner")}
        example = xr.DataArray(np.empty((0, 0, 0, 0), np.float32), attrs=part.attrs)
        job = Job(raw=files.absolute(raw), out=store.growing(out), pictures=pictures, first=first,
                  n_frames=stop - first, block=min(block, stop - first), device=device,
                  **{name: astuple(w) for name, w in weights.items()}, fit=edge_settings(example, **settings.fit))
        plan = {"input": store.fingerprint(raw), "frames": [first, stop], "block": job.block, "device": device,
                "settings": {"link": settings.link, "fit": asdict(job.fit)},
                "weights": {name: w.sha256 for name, w in weights.items()}, "xreg": _version("xreg")}
        return cls(part, job, files.absolute(out), settings, store.to_plain(plan), first, lazy, reference)

    @property
    def part(self) -> str:
        """Where the result grows until it is complete."""
        return self.job.out

    @property
    def journal(self) -> Journal:
        return self.job.journal

    @property
    def blocks(self) -> list[chunks.Block]:
        return chunks.frame_blocks(self.job.n_frames, self.job.block)

    def begin(self, resume: bool) -> None:
        """Take up what an earlier run has left, or make a fresh start."""
        if resume and not files.is_url(self.out) and store.exists(self.out) and self._is_under_way():
            msg = f"{self.out} and {self.part} are both there; delete the one that you do not want to go on with."
            raise ValueError(msg)
        if resume and store.exists(self.out) and not self._is_under_way():
            if not Journal.of(self.out).has_plan():
                msg = f"{self.out} is no result of xreg run; choose another name."
                raise ValueError(msg)
            _compare_plans(Journal.of(self.out).plan(), self.plan)
            if self.reference is not None:
                check_reference(store.open_store(self.out), self.reference)
            store.reopen(self.out)
        elif self._is_first():
            store.begin(self.out)
            store.create_group(f"{self.part}/{FOLDER}")
            try:
                self.journal.write_plan(self.plan)
            except FileExistsError as error:
                msg = f"another run is writing {self.part}; wait for it or stop it."
                raise ValueError(msg) from error
        elif resume:
            _compare_plans(self.journal.plan(), self.plan)
        else:
            with self.journal.lock():
                msg = f"{self.part} was left by a run that was interrupted; go on with --resume, or delete it."
                raise ValueError(msg)

    def _is_under_way(self) -> bool:
        """Whether an earlier run, or one that goes on, has left something where the result grows."""
        return not store.exists(self.out) if files.is_url(self.out) else Path(self.part).exists()

    def _is_first(self) -> bool:
        """Whether nothing is where the result will grow; of several runs on a disk this is true for one."""
        if files.is_url(self.out):
            return not store.is_group(self.part)
        try:
            Path(self.part).mkdir(parents=True)
        except FileExistsError:
            return False
        return True

    def go(self, pool: "Pool", progress: Progress) -> None:
        """Do all passes; what is done already is checked and left.

        A block that is done takes away the marker of what was made from all blocks of its stage before it leaves its
        own (see `tasks.perform`), so that this is made anew whenever the run goes on.
        """
        journal = self.journal
        if journal.done("setup", "0") is None:
            self._set_up()
        self._pass(pool, "observe", self.blocks, progress)
        if not self.journal.any_done("observe"):
            reason = next(iter(self.journal.failed("observe").values()))
            msg = f"not one block of frames could be worked through: {reason}"
            raise ValueError(msg)
        if journal.done("link", "0") is None:
            for later in ("locate", "measure", "align", "stacks", "fit"):
                journal.forget(later)
            link_particles(self.job, self.settings.link, partial(progress, "link"))
            journal.mark("link", "0", {})
        progress("link", 1, 1)
        self._pass(pool, "locate", self.blocks, progress)
        measured = journal.done("measure", "0")
        if measured is None or (measured["lazy"] and not self.lazy):
            for later in ("align", "stacks", "fit"):
                journal.forget(later)
            measure_tracks(self.job, lazy=self.lazy, reference_particle=self.reference)
            journal.mark("measure", "0", {"lazy": self.lazy, "reference": self.reference})
        elif measured.get("reference") != self.reference:
            # Whoever is killed in between must not find what was there before.
            journal.mark("measure", "0", {**measured, "reference": "changing"})
            divide_motion(self.job, self.reference)
            journal.mark("measure", "0", {**measured, "reference": self.reference})
        # Stacks that a run without `lazy` has begun are finished: a result has them whole or not at all.
        if self.lazy and (measured is None or measured["lazy"]):
            return
        self._pass(pool, "align", self.blocks, progress)
        if journal.done("stacks", "0") is None:
            journal.forget("fit")
            journal.mark("stacks", "0", {})
        (particles, scans, _, _), _ = store.declared(self.part, "edge_energy")
        self._pass(pool, "fit", [(p, s) for p in range(particles) for s in range(scans)], progress)

    def _pass(self, pool: "Pool", stage: str, tasks: list, progress: Progress) -> None:
        """Have all tasks of a stage done."""
        from xreg.workers import Lost

        progress(stage, 0, len(tasks))
        for done, (task, outcome) in enumerate(pool.each(partial(perform, self.job, stage), tasks), start=1):
            if isinstance(outcome, Lost):
                self._refuse_to_go_on(outcome.error)
                self.journal.fail(stage, key_of(task), f"{type(outcome.error).__name__}: {outcome.error}")
            progress(stage, done, len(tasks))

    @staticmethod
    def _refuse_to_go_on(error: BaseException) -> None:
        """Raise what no other block would fare better with; a task whose workers died is a failed block."""
        from distributed import KilledWorker

        if not isinstance(error, KilledWorker):
            raise error

    def _set_up(self) -> None:
        """Survey the measurement, create the table of regions."""
        from xreg.kernels.sharpness import BANDS
        from xreg.normalize import survey
        from xreg.refine import empty_rois

        # The whole measurement is surveyed, so that a part of it gives what it gives within the whole.
        looked = survey(self._with_sound_darks(store.open_frames(self.job.raw, block=1, forgiving=True)))
        if looked.choice is not None:
            recipe = looked.choice.recipe[self.first : self.first + self.job.n_frames]
            looked = replace(looked, choice=replace(looked.choice, recipe=recipe))
        n, block = self.job.n_frames, self.job.block
        status = self.raw["frame_status"].values if "frame_status" in self.raw else np.zeros(n, np.int8)
        timed = "exposure" in self.raw and "flat_exposure" in self.raw
        times = [self.raw[name].values if timed else None for name in ("exposure", "flat_exposure")]
        save_setup(self.part, Setup(looked, status, *times))
        empty = empty_rois(1)
        specs = {name: store.Spec(ROIS[name].dims, (n, *empty[name].shape[1:]), empty[name].dtype,
                                  (block, *empty[name].shape[1:]), attrs=ROIS[name].attrs,
                                  fill=np.nan if name == "roi_position" else 0) for name in ROIS}
        specs |= {
            "noise": store.Spec(("frame",), (n,), np.float32, (block,), fill=np.nan),
            "background": store.Spec(("frame", "coefficient"), (n, 3), np.float32, (block, 3), fill=np.nan),
            "frame_status": store.Spec(("frame",), (n,), np.int8, (block,), fill=int(FrameStatus.FAILED)),
            SHARPNESS.name: store.Spec(SHARPNESS.dims, (n, BANDS), np.float32, (block, BANDS), attrs=SHARPNESS.attrs,
                                       fill=np.nan),
        }
        store.create_group(f"{self.part}/{ROI_GROUP}")
        store.create_arrays(f"{self.part}/{ROI_GROUP}", specs)
        store.write_tables(f"{self.part}/{ROI_GROUP}", self._coordinates())
        self.journal.mark("setup", "0", {})

    def _with_sound_darks(self, raw: xr.Dataset) -> xr.Dataset:
        """Leave out darks that are damaged, or not there while others are, and note which."""
        if "darks" not in raw:
            return raw
        darks, damaged = store.read_sound_rows(self.job.raw, "darks", np.arange(raw.sizes["dark"]))
        empty = ~darks.any(axis=(1, 2))
        damaged |= empty & (not empty.all())
        for dark in np.flatnonzero(damaged):
            self.journal.fail("darks", str(dark), "damaged, left out")
        return raw.drop_vars("darks") if damaged.all() else raw.isel(dark=~damaged)

    def _coordinates(self) -> xr.Dataset:
        """Energy, scan and time of every frame, and its number in the raw store."""
        kept = {k: v for k, v in self.raw.attrs.items() if k not in _NOT_KEPT}
        coords = {name: ("frame", self.raw[name].values, self.raw[name].attrs)
                  for name in ("energy", "scan", "time") if name in self.raw.coords}
        coords["frame"] = ("frame", np.arange(self.first, self.first + self.job.n_frames),
                           {"long_name": "number of the frame in the raw store"})
        return xr.Dataset(coords=coords, attrs={"magnification": "constant", **kept,
                                                "frame_shape": list(self.raw[self.job.pictures].shape[1:])})

    def finish(self) -> None:
        """Write the run's record into the result and give it its name."""
        stages = "darks", "flats", "observe", "locate", "align", "fit"
        failed = {stage: self.journal.failed(stage) for stage in stages}
        tables = store.open_store(self.part)
        # As judged from the frames; what is there may tell of failures that have been mended since.
        status = store.read_block(self.part, f"{CANDIDATES}/frame_status", ...).copy()
        for stage in ("observe", "locate", "align"):
            for key in failed[stage]:
                status[self.blocks[int(key)].region] = FrameStatus.FAILED
        for key in failed["fit"]:
            particle, scan = map(int, key.split("-"))
            outline = tables["contour"].isel(particle=particle).values
            unfitted = np.where(outline, FitStatus.FAILED, FitStatus.OUTSIDE).astype(tables["fit_status"].dtype)
            store.write_block(self.part, "fit_status", (particle, scan, 0, 0), unfitted[None, None])
        attrs = {
            "failed_tasks": [f"{stage} {key}: {why}" for stage, tasks in failed.items() for key, why in tasks.items()],
            "raw": {"path": self.job.raw, "frames": self.plan["frames"], "block": self.job.block, **self.plan["input"]},
            "settings": {**self.plan["settings"], "reference_particle": self.reference},
            "weights": self.plan["weights"],
            "versions": {name: _version(name) for name in _PACKAGES},
        }
        record = xr.Dataset({"frame_status": ("frame", status, tables["frame_status"].attrs)},
                            attrs={**tables.attrs, **attrs})
        # What a user knows about every frame (voltage, temperature) is wanted beside its motion.
        known = {*RAW, *RESULT, *tables.variables}
        own = [n for n, v in self.raw.variables.items() if v.dims == ("frame",) and n not in known]
        record = record.assign({n: self.raw[n].variable for n in own if not store.is_time(self.raw[n].attrs)})
        store.write_tables(self.part, record)
        store.finish(self.out)


def reference_energy(raw: xr.Dataset) -> dict[str, float]:
    """The attribute `pixel_size_energy_ev` where it is needed and missing: the median of all energies, eV."""
    if raw.attrs.get("magnification", "constant") == "constant" or "pixel_size_energy_ev" in raw.attrs:
        return {}
    return {"pixel_size_energy_ev": float(np.nanmedian(raw["energy"].values))}


def frame_range(frames: str | None, n_frames: int) -> tuple[int, int]:
    """First frame and the one after the last that "A:B" means.

    Raises
    ------
    ValueError
        If it is not a text "A:B" with whole numbers, or no frame lies between them.
    """
    try:
        parts = (frames or ":").split(":")
        first, stop = (int(text) if text.strip() else default
                       for text, default in zip(parts, (0, n_frames), strict=True))
    except (ValueError, AttributeError):
        msg = f"frames is {frames!r}; need A:B, two whole numbers of which either may be missing, such as 0:143."
        raise ValueError(msg) from None
    if not 0 <= first < stop <= n_frames:
        msg = f"frames is {frames!r}, but the raw store has frames 0 to {n_frames - 1}; need 0 <= A < B <= {n_frames}."
        raise ValueError(msg)
    return first, stop


def _compare_plans(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse to go on with a run whose result would no longer be one of these inputs, settings and weights."""
    words = {"input": "the raw store", "frames": "the choice of frames", "settings": "settings", "weights": "weights",
             "device": "the device", "xreg": "the version of xreg", "block": "the block length"}
    for name, what in words.items():
        if old.get(name) != new[name]:
            detail = _difference(old.get(name), new[name])
            msg = (f"the interrupted run cannot be resumed: {what} changed since ({detail}). "
                   "Restore that, or delete the interrupted run and start anew.")
            raise ValueError(msg)


def _difference(old: Any, new: Any, name: str = "") -> str:
    """First place where two plans differ, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        key = next(k for k in sorted({*old, *new}) if old.get(k) != new.get(k))
        return _difference(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
    shown = [str(v)[:12] + "..." if len(str(v)) > 40 else str(v) for v in (old, new)]
    return f"{name} was {shown[0]}, is {shown[1]}".strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
