"""Figures of the chemistry: edge-energy maps, their histograms and mean spectra."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from xreg.plot import parts

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

#: Frames that are read at once where a spectrum is taken.
FRAMES_AT_ONCE = 16
#: More scans than this are laid out along the figure's width, fewer along its height.
SCANS_BELOW_EACH_OTHER = 3


def plot_edge_maps(result: "xr.Dataset") -> Figure:
    """Draw the edge-energy map of each particle in each scan; white where there is none, one range for all.

    At most `parts.MOST_PARTICLES` particles and `parts.MOST_SCANS` scans are drawn.

    Raises
    ------
    ValueError
        If there is no particle or no scan.
    """
    particles, scans = parts.drawn_particles(result), parts.drawn_scans(result)
    parts.need(len(particles) * len(scans), "result holds no edge-energy map")
    maps = {(p, s): result["edge_energy"].isel(particle=p, scan=s).values for p in particles for s in scans}
    rows, columns = _crop(maps.values())
    values = np.concatenate([m[np.isfinite(m)] for m in maps.values()])
    low, high = np.percentile(values, [2, 98]) if values.size else (0.0, 1.0)
    high = max(high, low + 0.1)
    kinds, sides = ("particle", "scan"), (particles, scans)
    turned = len(scans) <= SCANS_BELOW_EACH_OTHER
    if turned:
        kinds, sides = kinds[::-1], sides[::-1]
    fig = Figure(figsize=(1.3 * len(sides[1]) + 1.4, 1.3 * len(sides[0]) + 0.65), layout="constrained")
    axes = fig.subplots(len(sides[0]), len(sides[1]), squeeze=False)
    for (p, s), image in maps.items():
        where = (particles.index(p), scans.index(s))
        ax = axes[where[::-1] if turned else where]
        picture = image[rows, columns]
        shown = ax.imshow(picture, cmap="plasma", vmin=low, vmax=high, interpolation="nearest")
        parts.bare(ax)
    for ax, item in zip(axes[:, 0], sides[0], strict=True):
        ax.set_ylabel(f"{kinds[0]} {item}")
    for ax, item in zip(axes[0], sides[1], strict=True):
        ax.set_title(f"{kinds[1]} {item}", fontsize=10)
    parts.scale_bar(axes[-1, 0], result, picture.shape)
    parts.fit_frame(axes[-1, 0], picture.shape)
    fig.colorbar(shown, ax=axes, label=_edge_label(result), format="%.1f", aspect=30)
    return fig


def plot_edge_histograms(result: "xr.Dataset") -> Figure:
    """Draw how the pixels' edge energies are distributed in each drawn scan, all particles together.

    Raises
    ------
    ValueError
        If no pixel has an edge energy.
    """
    scans = parts.drawn_scans(result)
    bins, counts = None, []
    for s in scans:
        count = 0
        for p in range(result.sizes["particle"]):
            values = result["edge_energy"].isel(particle=p, scan=s).values
            values = values[np.isfinite(values)]
            if bins is None and values.size:
                bins = np.median(values) + np.arange(-15, 15.05, 0.1)
            if values.size:
                count = count + np.histogram(values, bins)[0]
        counts.append(count)
    parts.need(bins is not None, "no pixel has an edge energy")
    counts = [np.broadcast_to(count, bins.size - 1) for count in counts]
    fig = Figure(figsize=(6.4, 3.6), layout="constrained")
    ax = fig.subplots()
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.8, len(scans)))
    for s, count, colour in zip(scans, counts, colours, strict=True):
        ax.stairs(count, bins, color=colour, lw=1.3, label=f"scan {s}")
    share = np.cumsum(np.sum(counts, axis=0))
    inside = np.searchsorted(share, share[-1] * np.array([0.002, 0.998]))
    ax.set_xlim(bins[inside[0]] - 0.5, bins[min(inside[1] + 1, bins.size - 1)] + 0.5)
    ax.set_xlabel(_edge_label(result))
    ax.set_ylabel("pixels per 0.1 eV")
    ax.xaxis.get_major_formatter().set_useOffset(False)
    fig.legend(*ax.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return fig


def mean_spectrum(result: "xr.Dataset", particle: int, scan: int) -> tuple[np.ndarray, np.ndarray]:
    """Take the mean optical density inside a particle's contour against energy, in one scan.

    Reads `FRAMES_AT_ONCE` frames of one particle at a time.

    Parameters
    ----------
    result : Dataset
        `aligned`, `contour`, and the coordinates `energy` and `scan` (or `frame_scan`) of the frames.
    particle, scan : int
        Which particle, and which of the scans in ascending order.

    Returns
    -------
    energy, mean : arrays, shape (frames of the scan,), eV and 1
        In ascending order of energy; NaN where the particle is not seen.
    """
    numbers = parts.frame_scans(result)
    frames = np.flatnonzero(numbers == np.unique(numbers)[scan])
    inside = result["contour"].isel(particle=particle).values.astype(bool)
    means = np.full(frames.size, np.nan)
    for start in range(0, frames.size, FRAMES_AT_ONCE):
        some = frames[start : start + FRAMES_AT_ONCE]
        pixels = result["aligned"].isel(particle=particle, frame=some).values[:, inside]
        valid = np.isfinite(pixels)
        total = valid.sum(axis=1)
        mean = np.where(valid, pixels, 0).sum(axis=1, dtype=np.float64) / np.maximum(total, 1)
        means[start : start + some.size] = np.where(total > 0, mean, np.nan)
    energy = result["energy"].values[frames]
    order = np.argsort(energy)
    return energy[order], means[order]


def plot_spectra(result: "xr.Dataset", scan: int = 0) -> Figure:
    """Draw each drawn particle's mean spectrum in one scan; a circle marks its median edge energy.

    Raises
    ------
    ValueError
        If no particle was seen.
    """
    particles = parts.drawn_particles(result)
    parts.need(len(particles), "no particle was seen")
    columns = min(3, len(particles))
    lines = -(-len(particles) // columns)
    fig = Figure(figsize=(3.1 * columns + 0.3, 1.9 * lines + 0.4), layout="constrained")
    axes = fig.subplots(lines, columns, sharex=True, squeeze=False).ravel()
    colours = parts.particle_colours(result.sizes["particle"])
    for ax, p in zip(axes, particles, strict=False):
        energy, mean = mean_spectrum(result, p, scan)
        ax.plot(energy, mean, ".-", color=colours[p], lw=1, ms=3)
        ax.set_title(f"particle {p}", fontsize=10)
        _mark_edge(ax, result, p, scan, energy, mean)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.xaxis.get_major_formatter().set_useOffset(False)
    for ax in axes[len(particles) :]:
        ax.set_axis_off()
    fig.supxlabel("photon energy (eV)", fontsize=10)
    fig.supylabel("mean optical density", fontsize=10)
    return fig


def _mark_edge(
    ax: "Axes", result: "xr.Dataset", p: int, scan: int, energy: np.ndarray, mean: np.ndarray
) -> None:
    if "edge_energy" not in result:
        return
    edge = result["edge_energy"].isel(particle=p, scan=scan).values
    edge = edge[np.isfinite(edge)]
    seen = np.isfinite(mean)
    if edge.size and seen.any():
        middle = float(np.median(edge))
        height = float(np.interp(middle, energy[seen], mean[seen]))
        ax.axvline(middle, color="black", lw=0.7, ls=":")
        ax.plot([middle], [height], "o", color="black", ms=6, mfc="none")
        ax.text(0.97, 0.08, f"{middle:.1f} eV", transform=ax.transAxes, ha="right", va="bottom", fontsize=9)


def _edge_label(result: "xr.Dataset") -> str:
    definition = result["edge_energy"].attrs.get("definition", "half_step")
    return "E(µ = 0.5) (eV)" if definition == "half_step" else f"E({definition}) (eV)"


def _crop(maps: Iterable[np.ndarray]) -> tuple[slice, slice]:
    """Rows and columns outside which every map is empty, with a margin of two pixels."""
    filled = np.logical_or.reduce([np.isfinite(m) for m in maps])
    if not filled.any():
        return slice(0, filled.shape[0]), slice(0, filled.shape[1])
    spans = []
    for axis, size in enumerate(filled.shape):
        where = np.flatnonzero(filled.any(axis=1 - axis))
        spans.append(slice(max(0, where[0] - 2), min(size, where[-1] + 3)))
    return spans[0], spans[1]
