"""One self-contained page about a result: what was measured and found, how good it is, what is uncertain."""

import base64
import html
import io
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xreg import plot
from xreg.doubts import doubts
from xreg.evaluation import evaluate
from xreg.quality import MEANINGS, measure_quality, summarize_quality
from xreg.schema import FrameStatus

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

_DPI = 110
#: Frames, evenly spread, from which the quality of the alignment is judged.
_JUDGED = 16
#: How each measure of the alignment is called and written.
_MEASURES = {"ssim": ("similarity (SSIM), mean", "{:.2%}"), "ssim_variance": ("its variance over frames", "{:.2g}"),
             "difference": ("energy of the first-last difference", "{:.2%}"),
             "correlation": ("correlation with the mean picture", "{:.4f}"),
             "flow": ("residual optical flow, RMS", "{:.3f} px")}
#: What the title of every page begins with.
_NAME = "xreg report"
#: Longer attributes are cut to this many characters.
_LONGEST = 400
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color:
#222; } h1 { font-size: 1.6em; } h2 { font-size: 1.25em; margin-top: 1.8em; border-bottom: 1px solid #ccc; }
figure { margin: 1.4em 0; } figcaption { color: #444; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; } td, th { padding: 0.15em 0.9em 0.15em 0; text-align: left;
vertical-align: top; } td.value { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; } th { color:
#444; font-weight: 600; }
"""


@dataclass(frozen=True)
class _Picture:
    """A figure, the variables without which it cannot be drawn, and one sentence on how to read it."""

    title: str
    needs: tuple[str, ...]
    draw: Callable[[], "Figure"]
    caption: str
    of_frames: bool = False


@dataclass(frozen=True)
class _Frames:
    """First and last well-filled frame: numbers, optical densities, and the last one's counts where known."""

    first: int
    last: int
    densities: tuple[np.ndarray, np.ndarray]
    counts: np.ndarray | None


def write_report(
    result: "xr.Dataset",
    path: str | os.PathLike,
    *,
    raw: "xr.Dataset | None" = None,
    truth: "xr.Dataset | None" = None,
) -> Path:
    """Write a report as one HTML page with its pictures inside; no other file and no script belongs to it.

    Only what is drawn is read: two frames, some maps, a few particles' mean spectra in slices, and their stacks in
    sixteen frames. A picture
    whose variables are missing is left out, and the page says so.

    Parameters
    ----------
    result : Dataset
        Result store (the names of `xreg.schema.RESULT`); may be lazy.
    path : path
        The page to write. An earlier page is replaced, once the new one is complete.
    raw : Dataset, optional
        Raw store of the result, for the pictures that show frames.
    truth : Dataset, optional
        Truth of a simulated measurement, for the table of errors.

    Returns
    -------
    path : Path

    Raises
    ------
    ValueError
        If the result has no `position`, `evaluate` finds that the truth belongs to another measurement, or the path is
        that of another file or inside of a Zarr store.
    """
    path = Path(path)
    _refuse_to_damage(path)
    if "position" not in result:
        msg = "result has no position; need position (particle, frame, axis). Run the whole chain first."
        raise ValueError(msg)
    frames = _read_frames(result, raw)
    pieces = [
        _heading(result),
        _errors(result, truth),
        _frame_table(result),
        _quality(result),
        *_pictures(result, frames),
        "<h2>What is uncertain</h2>",
        _list(doubts(result, truth)),
        "<h2>How it was made</h2>",
        _rows(_flat(result.attrs)),
    ]
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{_title(result)}</title>'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(pieces) + "\n</body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".partial")
    part.write_text(page, encoding="utf-8")
    os.replace(part, path)
    return path


def _refuse_to_damage(path: Path) -> None:
    """Raise ValueError where a page would take the place of something else, or change a store."""
    if any((folder / "zarr.json").exists() for folder in path.absolute().parents):
        msg = f"{path} lies inside of a Zarr store; choose a place outside."
        raise ValueError(msg)
    if path.exists() and not (path.is_file() and f"<title>{_NAME}".encode() in path.read_bytes()[:1000]):
        msg = f"{path} exists already and is no page of xreg's; choose another name or delete it."
        raise ValueError(msg)


def _title(result: "xr.Dataset") -> str:
    sample = " ".join(str(result.attrs[key]) for key in ("element", "edge") if key in result.attrs)
    return html.escape(f"{_NAME}{': ' if sample else ''}{sample}")


def _heading(result: "xr.Dataset") -> str:
    """Say what the data are, in one paragraph."""
    sizes = result.sizes
    seen = int(np.isfinite(result["position"].values).all(-1).any(-1).sum())
    words = [f"{_many(seen, 'particle')} in {_many(sizes['frame'], 'frame')}"]
    if sizes.get("scan"):
        words.append(_many(sizes["scan"], "scan"))
    if "energy" in result.variables and sizes["frame"]:
        energy = result["energy"].values
        words.append(f"{np.nanmin(energy):.1f} to {np.nanmax(energy):.1f} eV")
    if "frame_shape" in result.attrs:
        words.append(" x ".join(f"{int(n)}" for n in result.attrs["frame_shape"]) + " pixels")
    if "pixel_size_nm" in result.attrs:
        words.append(f"{float(result.attrs['pixel_size_nm']):g} nm per pixel")
    return f"<h1>{_title(result)}</h1>\n<p>{html.escape(', '.join(words))}.</p>"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _errors(result: "xr.Dataset", truth: "xr.Dataset | None") -> str:
    """Table of errors, where there is a truth."""
    if truth is None:
        return ""
    evaluation = evaluate(result, truth)
    head, *rows = evaluation.particle_table()
    return "\n".join([
        "<h2>Errors against the truth</h2>",
        "<p>Positions are compared after each particle's constant offset has been taken off; the length of "
        "an error counts y and x together. Inner pixels leave out a rim of three pixels.</p>",
        _rows(evaluation.table()),
        "<h3>Particle by particle</h3>",
        _rows(rows, head),
    ])


def _frame_table(result: "xr.Dataset") -> str:
    """Numbers of frames by status, which ones were not used, and tasks of the run that failed."""
    failed = [str(task) for task in result.attrs.get("failed_tasks") or []]
    failures = f"<p>{_many(len(failed), 'task')} failed:</p>{_list(failed)}" if failed else ""
    if "frame_status" not in result:
        return failures
    status = result["frame_status"].values
    names = {int(flag): flag.name.lower().replace("_", " ") for flag in FrameStatus}
    rows = []
    for value in np.unique(status).tolist():
        which = np.flatnonzero(status == value)
        listed = "" if value == FrameStatus.OK else _ranges(which)
        rows.append((names.get(value, f"status {value}"), f"{which.size}", listed))
    return "<h2>Frames</h2>\n" + _rows(rows, ("status", "frames", "numbers")) + failures


def _quality(result: "xr.Dataset") -> str:
    """Table of how well the pictures of each aligned stack agree, judged without a truth."""
    particles = plot.drawn_particles(result)
    if not particles or not {"aligned", "contour"} <= set(result.variables):
        return ""
    first, last = plot.first_last_frames(result)
    frames = np.unique(np.linspace(first, last, _JUDGED).round().astype(int))
    few = result[["aligned", "contour"]].isel(particle=particles, frame=frames)
    try:
        numbers = summarize_quality(measure_quality(few["aligned"], few["contour"]))
    except ValueError as error:
        return f"<h2>Quality of the alignment</h2>\n<p>Not judged: {html.escape(str(error))}</p>"
    rows = [(label, form.format(numbers[name]) if np.isfinite(numbers[name]) else "-", MEANINGS[name])
            for name, (label, form) in _MEASURES.items()]
    judged = f"{_many(len(frames), 'frame')} of {_many(len(particles), 'particle')}"
    words = (f"Judged from the stacks themselves, in {judged}. Each picture is compared with the mean picture "
             "scaled to its contrast, so that the absorption edge is no misalignment; photon noise and chemistry keep "
             "even a perfect alignment below 1.")
    return f"<h2>Quality of the alignment</h2>\n<p>{html.escape(words)}</p>\n" + _rows(rows)


def _ranges(numbers: np.ndarray) -> str:
    """Write ascending numbers as ranges: 3, 7-9."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    return ", ".join(f"{run[0]}" if run.size == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _read_frames(result: "xr.Dataset", raw: "xr.Dataset | None") -> _Frames | None:
    """Read the two frames that are drawn; None without raw data or without a particle."""
    if raw is None or not np.isfinite(result["position"].values).all(-1).any():
        return None
    from xreg.normalize import normalize_frames

    first, last = plot.first_last_frames(result)
    density = normalize_frames(raw)["optical_density"]
    # A result of some frames only knows which ones they are in the raw store, unless that has been cut to them.
    whole = "frame" in result.coords and raw.sizes["frame"] != result.sizes["frame"]
    number = result["frame"].values if whole else np.arange(result.sizes["frame"])
    before, after = density.isel(frame=[number[first], number[last]]).values    # at once: they share the survey
    counts = raw["counts"].isel(frame=number[last]).values if "counts" in raw else None
    return _Frames(first, last, (before, after), counts)


def _pictures(result: "xr.Dataset", frames: _Frames | None) -> list[str]:
    """Draw all pictures, one after the other, so that only one figure is in memory."""
    pieces = ["<h2>Pictures</h2>"]
    shown, count = len(plot.drawn_particles(result)), result.sizes["particle"]
    if not shown:
        return [*pieces, "<p>No particle was seen, so there is nothing to draw.</p>"]
    if shown < count:
        pieces.append(f"<p>Figures with one panel each show {shown} of {count} particles.</p>")
    for picture in (*_frame_pictures(result, frames), *_line_pictures(result), *_map_pictures(result)):
        pieces.append(f"<h3>{html.escape(picture.title)}</h3>")
        missing = [name for name in picture.needs if name not in result.variables]
        if picture.of_frames and frames is None:
            pieces.append("<p>Not drawn: the raw frames were not given.</p>")
        elif missing:
            pieces.append(f"<p>Not drawn: the result has no {html.escape(', '.join(missing))}.</p>")
        else:
            pieces.append(_figure(picture))
    return pieces


def _figure(picture: _Picture) -> str:
    try:
        figure = picture.draw()
    except ValueError as error:
        return f"<p>Not drawn: {html.escape(str(error))}</p>"
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    caption = html.escape(picture.caption)
    return (
        f'<figure><img alt="{html.escape(picture.title)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _frame_pictures(result: "xr.Dataset", frames: _Frames | None) -> list[_Picture]:
    def first_and_last() -> "Figure":
        return plot.plot_differences(result, (frames.first, frames.last), frames.densities)

    return [
        _Picture(
            "Particles and their outlines", ("position",),
            lambda: plot.plot_frame(
                result, frames.last, optical_density=frames.densities[1], counts=frames.counts
            ),
            "Each outline should follow the rim of its particle, every particle should have one, and no "
            "outline should lie on empty background.", of_frames=True,
        ),
        _Picture(
            "First-last difference before and after registration", ("aligned", "contour"), first_and_last,
            "Last less first frame, the first one scaled to the last one's contrast: a pair of red and blue "
            "rims is motion that is left, an even panel is none.", of_frames=True,
        ),
        _Picture(
            "Paths", ("displacement",),
            lambda: plot.plot_tracks(result, frames.last, frames.densities[1]),
            "Where each particle has been, lengthened as the title says; paths of the same shape are the "
            "stage's motion.", of_frames=True,
        ),
        _Picture(
            "Non-rigid displacement", ("nonrigid",),
            lambda: plot.plot_nonrigid(result, frames.last, frames.densities[1]),
            "How far each particle has moved besides the motion that all share; arrows that turn smoothly "
            "from neighbour to neighbour are deformation of the electrode.", of_frames=True,
        ),
    ]


def _line_pictures(result: "xr.Dataset") -> list[_Picture]:
    def strained() -> int:
        return plot.first_last_frames(result)[1]

    return [
        _Picture(
            "Displacement", ("displacement",), lambda: plot.plot_trajectories(result),
            "Motion since the first sighting, with bands of two standard errors where known; the black line "
            "is what all particles share, dashed lines separate scans.",
        ),
        _Picture(
            "Non-rigid part", ("nonrigid",), lambda: plot.plot_trajectories(result, "nonrigid"),
            "The same without the shared motion: deformation. Curves are the most likely paths, dots what single "
            "frames say; dots that leave a curve together would be motion that the path does not follow.",
        ),
        _Picture(
            "Path length and velocity", ("distance", "velocity"), lambda: plot.plot_motion(result),
            "A path length grows with every jitter, errors included, so that curves above the black one "
            "show own motion or a less certain position.",
        ),
        _Picture(
            "Vibration", ("rigid",), lambda: plot.plot_vibration(result),
            "Spectrum of the rigid motion of each scan (dark: first, light: last): red points are vibrations of the "
            "stage that noise would show in one of a hundred spectra only; those faster than half the frame rate "
            "appear at lower frequencies.",
        ),
        _Picture(
            "Strain about every particle", ("position",), lambda: plot.plot_strain(result, strained()),
            "How the neighbours of each particle have moved apart (red) or together (blue), and the direction of "
            "greatest stretch; particles with too few neighbours are hollow, and a rotation or shift of the whole is "
            "no strain.",
        ),
    ]


def _map_pictures(result: "xr.Dataset") -> list[_Picture]:
    return [
        _Picture(
            "Edge energy", ("edge_energy",), lambda: plot.plot_edge_maps(result),
            "A higher edge energy means a more oxidised metal; white pixels lie outside the particle or "
            "could not be fitted, and all maps share one range.",
        ),
        _Picture(
            "Edge energies of all pixels", ("edge_energy",), lambda: plot.plot_edge_histograms(result),
            "A shift from scan to scan is a change of the mean oxidation state, a broadening means that "
            "pixels go different ways.",
        ),
        _Picture(
            "Mean spectra of the first scan", ("aligned", "contour", "energy"),
            lambda: plot.plot_spectra(result),
            "Mean optical density inside each contour; the circle marks the particle's median edge energy, "
            "which should lie half way up the edge.",
        ),
    ]


def _flat(attrs: dict, prefix: str = "") -> list[tuple[str, str]]:
    """Rows of nested attributes; texts that hold JSON objects are opened."""
    rows: list[tuple[str, str]] = []
    for key, value in attrs.items():
        name = f"{prefix}{key}"
        if isinstance(value, str) and value.lstrip().startswith("{"):
            try:
                value = json.loads(value)
            except json.JSONDecodeError:
                rows.append((name, value))
                continue
        if isinstance(value, dict):
            rows.extend(_flat(value, f"{name}."))
        else:
            text = str(value)
            rows.append((name, text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ... ({len(text)} characters)"))
    return rows


def _rows(rows: Iterable[tuple[str, ...]], head: tuple[str, ...] = ()) -> str:
    """Write an HTML table; every text is escaped."""
    lines = ["<table>"]
    if head:
        lines.append("<tr>" + "".join(f"<th>{html.escape(text)}</th>" for text in head) + "</tr>")
    for row in rows:
        cells = "".join(f'<td class="value">{html.escape(text)}</td>' for text in row)
        lines.append(f"<tr>{cells}</tr>")
    return "\n".join([*lines, "</table>"])


def _list(sentences: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in sentences) + "</ul>"
