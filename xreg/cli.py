"""The command line. Every command is a thin layer over a function that Python users call too.

Exit codes: 0 done; 2 bad usage or bad input, one sentence on stderr; 3 done, but some frames, files or blocks failed
and are listed. Heavy modules are imported inside the commands, so that ``xreg --help`` is quick.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xreg.plainly import plain_errors

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client

SOME_FAILED = 3
#: Items of a list that are shown before the rest is only counted.
_SHOWN = 20


class _Place(click.ParamType):
    """A path, or a URL such as s3://bucket/raw.zarr as it is."""

    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if "://" in str(value) else Path(value)


class _Path(click.Path):
    """A path on a disk of this machine."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "://" in str(value):
            self.fail(f"{value} is a URL; need a path on a disk.", param, ctx)
        return Path(value)


_device = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
                       help="Where the networks run.")
_workers = click.option("--workers", type=click.IntRange(min=0), metavar="N",
                        help="Processes of this machine; 0 for threads of one process. Default: one per core.")
_scheduler = click.option("--scheduler", metavar="ADDRESS", help="Address of a running Dask scheduler, tcp://...")


class _Commands(click.Group):
    """Commands in the order in which a newcomer needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="xreg")
def main() -> None:
    """Register operando X-ray microscopy stacks particle by particle, out of core."""


def _plain_errors(command: Callable) -> Callable:
    """Turn errors that a user can mend into one sentence on stderr and exit code 2."""
    go_on = "go on with the same command and --resume" if command.__name__ == "run" else ""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        with plain_errors("xreg", go_on):
            return command(*args, **kwargs)

    return guarded


# -- the commands ----------------------------------------------------------------------------------------------------


@main.command()
@click.argument("out", type=_Path(), default="xreg-demo")
@click.option("--scans", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--energies", type=click.IntRange(min=1), default=143, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@_workers
@_device
@_plain_errors
def demo(out: Path, scans: int, energies: int, seed: int, workers: int | None, device: str) -> None:
    """Simulate a small dataset, run everything, and write a report into the folder OUT."""
    from xreg import record
    from xreg.synthetic import PhantomConfig, ni_energies
    from xreg.workers import open_pool

    record.refuse_existing(out)
    out.mkdir(parents=True)
    raw, truth, result = out / "raw.zarr", out / "truth.zarr", out / "result.zarr"
    config = PhantomConfig(n_scans=scans, energies=tuple(ni_energies(energies)), seed=seed)
    with _progress() as progress, open_pool(_local_workers(workers, device)) as pool:
        record.simulate(config, raw, truth, scheduler=pool.client, progress=progress)
        found = _register(raw, result, workers=None, scheduler=pool.client, device=device, progress=progress)
    _print_errors(result, truth)
    _write_report(result, out / "report.html", truth)
    _finish(found)


@main.command()
@click.argument("raw", type=_Place())
@click.option("--truth", type=_Place(), help="Store to write the truth into.")
@click.option("--scans", "n_scans", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--energies", type=click.IntRange(min=1), default=143, show_default=True)
@click.option("--size", type=click.IntRange(min=64), nargs=2, default=(460, 460), show_default=True, metavar="NY NX")
@click.option("--particles", "n_particles", type=click.IntRange(min=0), default=9, show_default=True)
@click.option("--radius", type=float, nargs=2, default=(18.0, 42.0), show_default=True, help="px, smallest and largest")
@click.option("--elongation", type=float, nargs=2, default=(1.0, 1.0), show_default=True,
              help="Times that particles are longer for their width, least and most.")
@click.option("--counts", type=float, default=9000.0, show_default=True, help="Open-beam counts per pixel.")
@click.option("--touching", type=click.IntRange(min=0), default=1, show_default=True)
@click.option("--overlapping", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--cut", type=click.IntRange(min=0), default=0, show_default=True, help="Cut by the field of view.")
@click.option("--bad-frames", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Share of bad frames.")
@click.option("--magnification/--no-magnification", default=False, show_default=True,
              help="Pixel size proportional to the energy.")
@click.option("--only", multiple=True, metavar="DISTORTION", help="Switch on this distortion alone; may be repeated.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@_workers
@_scheduler
@_plain_errors
def simulate(raw: Path, truth: Path | None, energies: int, size: tuple[int, int], only: tuple[str, ...],
             bad_frames: float, magnification: bool, workers: int | None, scheduler: str | None,
             **settings: Any) -> None:
    """Write synthetic raw counts with known truth into the store RAW."""
    from xreg import record
    from xreg.synthetic import PhantomConfig, ni_energies

    settings |= {"energies": tuple(ni_energies(energies)), "shape": tuple(size)}
    # `only` chooses the distortions; without it all are there and two of them can be set.
    if only and (bad_frames or magnification):
        msg = "--only switches on the named distortions alone; give it without --bad-frames and --magnification."
        raise ValueError(msg)
    if only:
        config = PhantomConfig.only(*only, **settings)
    else:
        config = PhantomConfig(bad_frames=bad_frames, magnification=magnification, **settings)
    with _progress() as progress:
        record.simulate(config, raw, truth, workers=_local_workers(workers, "cpu", scheduler), scheduler=scheduler,
                        progress=progress)
    _print_notices(raw)


@main.command()
@click.argument("source", type=_Path())
@click.argument("raw", type=_Place())
@_workers
@_scheduler
@_plain_errors
def ingest(source: Path, raw: Path, workers: int | None, scheduler: str | None) -> None:
    """Write the beamline files at SOURCE into the store RAW."""
    from xreg import record

    with _progress() as progress:
        faults = record.ingest(source, raw, workers=_local_workers(workers, "cpu", scheduler), scheduler=scheduler,
                               progress=progress)
    ds = _print_notices(raw)
    click.echo(f"{raw}: {ds.sizes['frame']} frames, {ds.sizes.get('flat', 0)} open-beam references")
    if faults:
        _list("files that could not be read", [f"{name}: {reason}" for name, reason in faults.items()])
    # A reference that is lost is replaced by its neighbours; a lost frame is lost.
    if "frame_status" in ds and ds["frame_status"].any():
        sys.exit(SOME_FAILED)


@main.command()
@click.argument("raw", type=_Place())
@_device
@_plain_errors
def check(raw: Path, device: str) -> None:
    """Say what is in the store RAW, what is wrong with it, and what a run will take."""
    from xreg.check import check_raw_store

    report = check_raw_store(raw, device=device)
    _table(report.contents)
    if report.problems:
        _list("problems", report.problems)
        sys.exit(SOME_FAILED)
    click.echo("nothing wrong found")


@main.command()
@click.argument("raw", type=_Place())
@click.argument("out", type=_Place())
@click.option("--lazy", is_flag=True, help="Stop after the tracks; pictures and maps are computed when asked for.")
@click.option("--resume", is_flag=True, help="Go on with a run that was interrupted.")
@click.option("--frames", metavar="A:B", help="Only frames A up to, not including, B.")
@click.option("--reference-particle", type=click.IntRange(min=0), metavar="N",
              help="Take the motion of particle N for the rigid part. Numbers stand in the report of a first run; with "
                   "--resume a finished run changes over in seconds.")
@click.option("--detector", type=_Path(), help="Weights that `xreg train detect` wrote.")
@click.option("--refiner", type=_Path(), help="Weights that `xreg train refine` wrote.")
@_workers
@_scheduler
@_device
@_plain_errors
def run(raw: Path, out: Path, **options: Any) -> None:
    """Register the frames of the store RAW and write the result store OUT."""
    from xreg.result import rigid_part

    with _progress() as progress:
        found = _register(raw, out, progress=progress, **options)
    found_particles, frames = found.sizes["particle"], found.sizes["frame"]
    click.echo(f"{out}: {found_particles} particles in {frames} frames")
    if options["reference_particle"] is not None:
        click.echo(rigid_part(found))
    _finish(found)


@main.command()
@click.argument("network", type=click.Choice(["detect", "refine"]))
@click.argument("folder", type=_Path())
@click.option("--preset", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True)
@click.option("--frames", "own", type=_Place(), metavar="RAW",
              help="Adapt the detector to the frames of this raw store too; no annotations are needed.")
@click.option("--detector", type=_Path(), help="Detector whose regions the refiner learns on.")
@click.option("--start", type=_Path(), help="Weights to go on from; by default from nothing.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the random numbers.")
@_device
@_plain_errors
def train(network: str, folder: Path, preset: str, own: Path | None, detector: Path | None, start: Path | None,
          seed: int | None, device: str) -> None:
    """Train a network on simulated frames; settings, log and weights go into FOLDER."""
    import dataclasses

    from xreg.models.weights import Weights

    for option, given, wanted in (("--frames", own, "detect"), ("--detector", detector, "refine")):
        if given and network != wanted:
            msg = f"{option} is for xreg train {wanted}, not for xreg train {network}; leave it out."
            raise ValueError(msg)
    changed = {} if seed is None else {"seed": seed}
    command = " ".join(["xreg", *sys.argv[1:]])
    earlier = Weights.of(start, {"detect": "detector", "refine": "refiner"}[network]) if start else None
    if network == "detect":
        from xreg.training.detector import PRESETS, train_detector

        frames = _own_frames(own) if own else None
        weights = train_detector(folder, dataclasses.replace(PRESETS[preset], **changed), device=device,
                                 own_frames=frames, start=earlier, command=command)
    else:
        from xreg.training.refiner import PRESETS, train_refiner

        weights = train_refiner(folder, dataclasses.replace(PRESETS[preset], **changed), device=device,
                                detector=Weights.of(detector, "detector") if detector else None, start=earlier,
                                command=command)
    click.echo(f"{weights.path} (sha256 {weights.sha256})")


@main.command()
@click.argument("out", type=_Place())
@click.argument("truth", type=_Place())
@click.option("--particles", is_flag=True, help="Also one row per particle.")
@_plain_errors
def evaluate(out: Path, truth: Path, particles: bool) -> None:
    """Print the errors of the result OUT against the TRUTH of a simulation."""
    _print_errors(out, truth, particles=particles)


@main.command()
@click.argument("out", type=_Place())
@click.argument("html", type=_Path(), required=False)
@click.option("--truth", type=_Place(), help="Truth of a simulation, to be shown beside.")
@_plain_errors
def report(out: Path, html: Path | None, truth: Path | None) -> None:
    """Write a page of pictures of the result OUT."""
    html = html or _beside(out)
    _write_report(out, html / _beside(out).name if html.is_dir() else html, truth)


# -- what several commands share -------------------------------------------------------------------------------------


def _local_workers(workers: int | None, device: str, scheduler: "str | Client | None" = None) -> int | None:
    """Processes to start: as asked for, else one per core, else threads where a GPU is shared by all."""
    if scheduler is not None or workers is not None:
        return workers
    from xreg.workers import cores

    if device != "cpu":
        from xreg.models.infer import choose_device

        if choose_device(device) == "cuda":
            return 0
    return cores()


def _register(raw: Path, out: Path, *, workers: int | None, device: str, scheduler: "str | Client | None" = None,
              **options: Any) -> "xr.Dataset":
    from xreg.run import register

    return register(raw, out, workers=_local_workers(workers, device, scheduler), scheduler=scheduler, device=device,
                    **options)


def _own_frames(raw: Path | str, most: int = 64) -> list:
    """Normalised frames of a raw store, those that can be used of some that are evenly spread over it."""
    import numpy as np

    from xreg import store
    from xreg.normalize import normalize_frames, survey

    opened = store.open_frames(raw, block=1, forgiving=True)
    chosen = np.unique(np.linspace(0, opened.sizes["frame"] - 1, most).astype(int))
    normalized = normalize_frames(opened, survey(opened)).isel(frame=chosen)[["optical_density", "frame_status"]]
    frames = [normalized.isel(frame=[k]).compute() for k in range(len(chosen))]
    usable = [f["optical_density"].values[0] for f in frames if not f["frame_status"].any()]
    if not usable:
        msg = f"none of {len(chosen)} frames of {raw} can be used; xreg check {raw} says what is wrong with them."
        raise ValueError(msg)
    return usable


def _print_errors(out: Path, truth: Path, *, particles: bool = False) -> None:
    from xreg import store
    from xreg.evaluation import evaluate as compare
    from xreg.result import open_result, rigid_part

    result = open_result(out)
    errors = compare(result, store.open_store(truth))
    _table(errors.table())
    if rigid_part(result):
        click.echo(rigid_part(result))
    if particles:
        head, *rows = errors.particle_table()
        _table(rows, head)


def _write_report(out: Path, html: Path, truth: Path | None) -> None:
    from xreg import store
    from xreg.report import write_report
    from xreg.result import open_raw_of, open_result

    result = open_result(out)
    raw = open_raw_of(result)
    if raw is None:
        click.echo("note: the raw store is not there or has changed; pictures that show frames are left out")
    write_report(result, html, raw=raw, truth=store.open_store(truth) if truth else None)
    click.echo(f"report: {html}")


def _print_notices(raw: Path | str) -> "xr.Dataset":
    """Print what whoever made a raw store has to say of it; returns its frames."""
    from xreg import store

    ds = store.open_frames(raw)
    for notice in ds.attrs.get("notices", []):
        click.echo(f"note: {notice}")
    return ds


def _finish(result: "xr.Dataset") -> None:
    """List what failed and leave with the exit code for it."""
    from xreg.result import failures

    lost = result.attrs.get("corrupt_files")
    if lost:
        _list("files that could not be read when the raw store was made", lost if isinstance(lost, list) else [lost])
    failed = failures(result)
    if failed:
        _list("frames and blocks that failed", failed)
        sys.exit(SOME_FAILED)


def _beside(out: Path | str) -> Path:
    """Where a report is written by default: beside a result on a disk, here for one behind a URL."""
    return (out if isinstance(out, Path) else Path(out.rstrip("/").rpartition("/")[2])).with_suffix(".html")


def _list(title: str, items: list[str]) -> None:
    click.echo(f"{title}: {len(items)}", err=True)
    for item in items[:_SHOWN]:
        click.echo(f"  {item}", err=True)
    if len(items) > _SHOWN:
        click.echo(f"  and {len(items) - _SHOWN} more", err=True)


def _table(rows: list[tuple[str, ...]], head: tuple[str, ...] | None = None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*(head or [""] * (len(rows[0]) if rows else 2)), show_header=head is not None, box=None)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar per stage on a terminal, plain lines elsewhere."""
    if not sys.stderr.isatty():
        yield _PlainProgress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bars: dict[str, Any] = {}
    with Progress(*columns, console=Console(stderr=True)) as shown:

        def update(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = shown.add_task(stage, total=total)
            shown.update(bars[stage], completed=done, total=total)

        yield update


class _PlainProgress:
    """One line per stage and tenth of it, with the time that has passed."""

    def __init__(self) -> None:
        import time

        self._clock, self._start, self._last = time.monotonic, time.monotonic(), ("", -1)

    def __call__(self, stage: str, done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if (stage, tenth) != self._last:
            self._last = (stage, tenth)
            click.echo(f"{self._clock() - self._start:7.1f} s  {stage} {done}/{total}", err=True)


if __name__ == "__main__":
    main()
