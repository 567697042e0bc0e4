"""Figures on the frames themselves: particles, paths, deformation, and what registration leaves."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from scipy import ndimage

from xreg.plot import parts

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes


def plot_frame(
    result: "xr.Dataset",
    frame: int,
    *,
    optical_density: np.ndarray | None = None,
    counts: np.ndarray | None = None,
) -> Figure:
    """Draw one frame, raw and as optical density, with every particle's contour and number.

    Parameters
    ----------
    result : Dataset
        `position` and, for the outlines, `contour`.
    frame : int
        Number of the frame.
    optical_density, counts : array, shape (y, x), optional
        The pictures; at least one.

    Raises
    ------
    ValueError
        If neither picture is given.
    """
    named = {"detector counts": counts, "optical density": optical_density}
    pictures = [(name, image) for name, image in named.items() if image is not None]
    if not pictures:
        msg = "no picture was given; need optical_density or counts, shape (y, x)."
        raise ValueError(msg)
    fig = Figure(figsize=_size(pictures[0][1].shape, len(pictures)), layout="constrained")
    for ax, (name, image) in zip(fig.subplots(1, len(pictures), squeeze=False)[0], pictures, strict=True):
        _show_frame(ax, image, result, frame)
        _outline_particles(ax, result, frame)
        parts.fit_frame(ax, image.shape)
        ax.set_title(f"{name}, frame {frame}{parts.energy_text(result, frame)}")
    return fig


def plot_tracks(result: "xr.Dataset", frame: int, optical_density: np.ndarray) -> Figure:
    """Draw the path of every particle over a frame, lengthened about its place in that frame to be seen.

    Parameters
    ----------
    result : Dataset
        `position`, `displacement`.
    frame : int
        Number of the frame that is drawn, in which the particles stand where they are.
    optical_density : array, shape (y, x)
    """
    fig = Figure(figsize=_size(optical_density.shape), layout="constrained")
    ax = fig.subplots()
    _show_frame(ax, optical_density, result, frame, strength=0.5)
    position, moved = result["position"].values, result["displacement"].values
    moved = moved - moved[:, frame : frame + 1]
    times = _lengthening(moved, optical_density.shape)
    for p, colour in enumerate(parts.particle_colours(len(position))):
        path = position[p, frame] + times * moved[p]
        ax.plot(path[:, 1], path[:, 0], color=colour, lw=0.8)
        parts.number(ax, position[p, frame], p, shift=18)
    parts.fit_frame(ax, optical_density.shape)
    ax.set_title(f"paths of the particles, drawn {times:g} times as long")
    return fig


def plot_nonrigid(result: "xr.Dataset", frame: int, optical_density: np.ndarray) -> Figure:
    """Draw the non-rigid displacement of every particle as an arrow over a frame; a key gives its length.

    Parameters
    ----------
    result : Dataset
        `position`, `nonrigid`.
    frame : int
        Number of the frame.
    optical_density : array, shape (y, x)
    """
    fig = Figure(figsize=_size(optical_density.shape), layout="constrained")
    ax = fig.subplots()
    _show_frame(ax, optical_density, result, frame)
    position, vector = result["position"].values[:, frame], result["nonrigid"].values[:, frame]
    times = _lengthening(vector, optical_density.shape)
    arrows = ax.quiver(
        position[:, 1], position[:, 0], vector[:, 1] * times, vector[:, 0] * times, angles="xy",
        scale_units="xy", scale=1, color=parts.particle_colours(len(position)), width=0.006, headwidth=3.5,
        headlength=4, headaxislength=4, edgecolor="black", linewidth=0.4,
    )
    for p, place in enumerate(position):
        parts.number(ax, place, p, shift=-18 if vector[p, 0] < 0 else 18)
    longest = np.nanmax(np.linalg.norm(vector, axis=-1), initial=0)
    key = parts.round_down(longest) if longest > 0 else 1.0
    ax.quiverkey(arrows, 0.6, -0.02, key * times, _length_text(result, key), labelpos="E", color="black",
                 fontproperties={"size": 9})
    ax.set_xlabel(" ")
    parts.fit_frame(ax, optical_density.shape)
    ax.set_title(f"non-rigid displacement, frame {frame}{parts.energy_text(result, frame)}")
    return fig


def plot_differences(
    result: "xr.Dataset", frames: tuple[int, int], images: tuple[np.ndarray, np.ndarray]
) -> Figure:
    """Draw last less first optical density around every particle, before and after registration.

    The first frame is multiplied by the ratio of the particle's contrasts in both (a fit inside its contour,
    the same for before and after), since otherwise the absorption edge between the two energies would hide
    what the eye should judge. All panels share one range that is symmetric about 0.

    Parameters
    ----------
    result : Dataset
        `position`, `aligned`, `contour`.
    frames : (first, last)
    images : two arrays, shape (y, x)
        Optical density of the two frames.

    Raises
    ------
    ValueError
        If no particle is seen in both frames.
    """
    panels = {p: _differences(result, p, frames, images) for p in parts.drawn_particles(result)}
    panels = {p: pair for p, pair in panels.items() if pair is not None}
    parts.need(len(panels), f"no particle is seen in both frame {frames[0]} and frame {frames[1]}")
    limit = max(float(np.nanpercentile(np.abs(before), 99)) for before, _ in panels.values())
    fig = Figure(figsize=(1.3 * len(panels) + 1.3, 2.95), layout="constrained")
    axes = fig.subplots(2, len(panels), squeeze=False)
    for column, (p, pair) in zip(axes.T, panels.items(), strict=True):
        column[0].set_title(f"particle {p}", fontsize=10)
        for ax, image in zip(column, pair, strict=True):
            shown = ax.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
            parts.bare(ax)
    axes[0, 0].set_ylabel("before")
    axes[1, 0].set_ylabel("after")
    fig.colorbar(shown, ax=axes, label="difference in\noptical density")
    return fig


def _size(shape: tuple[int, ...], pictures: int = 1) -> tuple[float, float]:
    """Width and height in inches of a figure with pictures of `shape` beside each other."""
    return 5.4 * pictures, 5.2 * shape[0] / shape[1] + 0.85


def _show_frame(
    ax: "Axes", image: np.ndarray, result: "xr.Dataset", frame: int, strength: float = 1.0
) -> None:
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, [0.5, 99.8]) if finite.size else (0, 1)
    ax.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest", alpha=strength)
    parts.bare(ax)
    parts.scale_bar(ax, result, image.shape, parts.scale_at(result, frame))


def _outline_particles(ax: "Axes", result: "xr.Dataset", frame: int) -> None:
    position = result["position"].values[:, frame]
    scale = parts.scale_at(result, frame)
    for p, colour in enumerate(parts.particle_colours(len(position))):
        if not np.isfinite(position[p]).all():
            continue
        if "contour" in result:
            y, x = (position[p, i] + result[name].values / scale for i, name in enumerate("yx"))
            inside = result["contour"].isel(particle=p).values
            if inside.any() and not inside.all():
                ax.contour(x, y, inside, levels=[0.5], colors=[colour], linewidths=1.5)
        parts.number(ax, position[p], p)


def _lengthening(vectors: np.ndarray, shape: tuple[int, ...]) -> float:
    """Factor by which the longest of vectors (..., axis) becomes a fifth of the frame at most, at least 1."""
    longest = np.nanmax(np.linalg.norm(vectors, axis=-1), initial=0)
    return max(1.0, parts.round_down(min(shape) / 5 / longest)) if longest > 0 else 1.0


def _length_text(result: "xr.Dataset", pixels: float) -> str:
    pixel = result.attrs.get("pixel_size_nm")
    return f"{pixels:g} px" + (f" = {pixels * float(pixel):.3g} nm" if pixel else "")


def _differences(
    result: "xr.Dataset", p: int, frames: tuple[int, int], images: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Last less first of one particle before and after registration; None where either does not show it."""
    place = result["position"].values[p, frames[0]]
    first, last = (result["aligned"].isel(particle=p, frame=f).values.astype(np.float64) for f in frames)
    inside = result["contour"].isel(particle=p).values & np.isfinite(first) & np.isfinite(last)
    if not inside.any() or not np.isfinite(place).all():
        return None
    gain = float((first * last)[inside].sum() / max((first[inside] ** 2).sum(), 1e-12))
    points = np.meshgrid(*(place[i] + result[n].values for i, n in enumerate("yx")), indexing="ij")
    fixed = [ndimage.map_coordinates(image, points, order=1, cval=np.nan) for image in images]
    return fixed[1] - gain * fixed[0], last - gain * first
