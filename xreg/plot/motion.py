"""Figures of motion: against the frame number, its spectrum, and the strain in one frame."""

from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from xreg.motion import measure_strain, measure_vibration
from xreg.plot import parts

if TYPE_CHECKING:
    import xarray as xr

#: More particles than this are drawn without naming their colours.
MOST_NAMED = 20
_LABELS = {"displacement": "displacement", "nonrigid": "non-rigid"}


def plot_trajectories(result: "xr.Dataset", quantity: str = "displacement") -> Figure:
    """Draw where every particle moves along y and x against the frame; the rigid part is black.

    Parameters
    ----------
    result : Dataset
        The quantity; where they are there `rigid`, `position_sigma` (drawn as a band of two standard errors) and, with
        the non-rigid motion, `position` and `measured_position`: dots are what single frames say.
    quantity : {"displacement", "nonrigid"}

    Raises
    ------
    ValueError
        If the quantity is another one.
    """
    if quantity not in _LABELS:
        msg = f"quantity is {quantity!r}; need one of {', '.join(map(repr, _LABELS))}."
        raise ValueError(msg)
    fig = Figure(figsize=(9, 5.2), layout="constrained")
    axes = fig.subplots(2, 1, sharex=True)
    moved = result[quantity].values
    sigma = result["position_sigma"].values if "position_sigma" in result else np.full(moved.shape, np.nan)
    frame = np.arange(moved.shape[1])
    for i, (ax, name) in enumerate(zip(axes, "yx", strict=True)):
        for p, colour in enumerate(parts.particle_colours(len(moved))):
            line, band = moved[p, :, i], 2 * sigma[p, :, i]
            ax.plot(frame, line, color=colour, lw=0.9, label=f"{p}")
            ax.fill_between(frame, line - band, line + band, color=colour, alpha=0.25, lw=0)
            if quantity == "nonrigid" and "measured_position" in result:
                off = (result["measured_position"] - result["position"]).values[p, :, i]
                ax.plot(frame, line + off, ".", color=colour, ms=1.5, alpha=0.5)
        if quantity == "displacement" and "rigid" in result:
            ax.plot(frame, _since_first(result["rigid"].values)[:, i], color="black", lw=1.3, label="rigid")
        ax.set_ylabel(f"{_LABELS[quantity]} {name} (px)")
    _finish(fig, axes, result)
    return fig


def plot_motion(result: "xr.Dataset") -> Figure:
    """Draw path length and velocity along y and x of every particle; the rigid part is black.

    Parameters
    ----------
    result : Dataset
        `distance`, `velocity`, and `rigid` where it is there.
    """
    fig = Figure(figsize=(9, 6.6), layout="constrained")
    axes = fig.subplots(3, 1, sharex=True)
    distance, velocity = result["distance"].values, result["velocity"].values
    frame = np.arange(distance.shape[1])
    for p, colour in enumerate(parts.particle_colours(len(distance))):
        axes[0].plot(frame, distance[p], color=colour, lw=1, label=f"{p}")
        for i in (0, 1):
            axes[i + 1].plot(frame, velocity[p, :, i], color=colour, lw=0.7)
    if "rigid" in result and frame.size > 1:
        rigid = result["rigid"].values
        steps = np.nan_to_num(np.linalg.norm(np.diff(rigid, axis=0), axis=-1))
        axes[0].plot(frame, np.concatenate([[0], np.cumsum(steps)]), color="black", lw=1.3, label="rigid")
        for i in (0, 1):
            axes[i + 1].plot(frame, np.gradient(rigid[:, i]), color="black", lw=0.9)
    labels = ("path length (px)", "velocity y (px/frame)", "velocity x (px/frame)")
    for ax, label in zip(axes, labels, strict=True):
        ax.set_ylabel(label)
    _finish(fig, axes, result)
    return fig


def plot_vibration(result: "xr.Dataset") -> Figure:
    """Draw the spectrum of the rigid motion along y and x, one line per scan, and the level that noise reaches.

    Parameters
    ----------
    result : Dataset
        `rigid`, and the coordinates `time` and `scan` where they are known (see `motion.measure_vibration`).

    Raises
    ------
    ValueError
        If no scan has enough frames for a spectrum.
    """
    vibration = measure_vibration(result)
    amplitude, level = vibration["amplitude"].values, vibration["false_alarm"].values
    known = np.flatnonzero(np.isfinite(amplitude).any(axis=(1, 2)))
    parts.need(known.size, "no scan has enough frames for a spectrum")
    fig = Figure(figsize=(9, 5.2), layout="constrained")
    axes = fig.subplots(2, 1, sharex=True, sharey=True)
    frequency = vibration["frequency"]
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.85, known.size))
    for i, (ax, name) in enumerate(zip(axes, "yx", strict=True)):
        for s, colour in zip(known, shades, strict=True):
            ax.plot(frequency, amplitude[s, i], color=colour, lw=0.8)
            over = amplitude[s, i] > level[s, i]
            ax.plot(frequency[over], amplitude[s, i, over], "o", color="tab:red", ms=3)
        ax.plot(frequency, np.fmax.reduce(level[known, i]), color="black", lw=1.2, ls="--",
                label="noise exceeds this in 1 % of spectra")
        ax.set_ylabel(f"amplitude {name} (px)")
        ax.set_yscale("log")
        ax.margins(x=0.01)
    drawn = amplitude[known][np.isfinite(amplitude[known]) & (amplitude[known] > 0)]
    if drawn.size:
        axes[0].set_ylim(max(np.quantile(drawn, 0.02) / 2, drawn.max() * 1e-4), drawn.max() * 2)
    per = frequency.attrs["units"]
    axes[-1].set_xlabel("frequency (Hz)" if per == "Hz" else "frequency (cycles per frame)")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper right", frameon=False)
    return fig


def plot_strain(result: "xr.Dataset", frame: int) -> Figure:
    """Draw how the electrode is strained about every particle in a frame: change of area, and shear.

    Particles are discs at their places, coloured by the relative change of area about them. A bar along the direction
    of greatest stretch has a length by the difference of the two principal strains. Particles that have too few
    neighbours are hollow.

    Parameters
    ----------
    result : Dataset
        `position` and, where they are known, `position_sigma`, as `motion.measure_strain` wants them.
    frame : int

    Raises
    ------
    ValueError
        If no particle has enough neighbours.
    """
    strain = measure_strain(result).isel(frame=frame)
    change, place = strain["area_change"].values, result["position"].values[:, frame]
    known = np.flatnonzero(np.isfinite(change))
    parts.need(known.size, "no particle has enough neighbours that are seen in both frames")
    shape = tuple(result.attrs.get("frame_shape", np.nanmax(place, axis=0) * 1.1))
    fig = Figure(figsize=(7.4, 6.2), layout="constrained")
    ax = fig.subplots()
    most = max(float(np.quantile(np.abs(change[known]), 0.95)), 1e-6)
    unknown = np.flatnonzero(np.isfinite(place).all(-1) & ~np.isfinite(change))
    ax.scatter(place[unknown, 1], place[unknown, 0], s=160, facecolors="none", edgecolors="0.6")
    discs = ax.scatter(place[known, 1], place[known, 0], s=160, c=change[known], cmap="RdBu_r", vmin=-most, vmax=most,
                       edgecolors="0.4", linewidths=0.5)
    yy, xx, yx = (strain["strain"].values[known, k] for k in range(3))
    half, angle = np.hypot((yy - xx) / 2, yx), np.arctan2(2 * yx, yy - xx) / 2
    # The longest bar is a tenth of the frame.
    length = 0.05 * min(shape) * half / max(float(half.max()), 1e-12)
    dy, dx = length * np.cos(angle), length * np.sin(angle)
    ax.plot(np.stack([place[known, 1] - dx, place[known, 1] + dx]),
            np.stack([place[known, 0] - dy, place[known, 0] + dy]), color="black", lw=1.4)
    parts.fit_frame(ax, shape)
    ax.set_aspect("equal")
    parts.bare(ax)
    ax.set_title(f"frame {frame} since frame {strain.attrs['reference']}; longest bar: principal strains differ by "
                 f"{2 * half.max():.2g}", fontsize=10)
    fig.colorbar(discs, ax=ax, label="relative change of area", shrink=0.8)
    return fig


def _since_first(path: np.ndarray) -> np.ndarray:
    """Path (frame, axis) less its first finite point."""
    seen = np.flatnonzero(np.isfinite(path).all(-1))
    return path - path[seen[0]] if seen.size else path


def _finish(fig: Figure, axes: np.ndarray, result: "xr.Dataset") -> None:
    """Label the frame axis, mark where a new scan begins and name the colours where they are few."""
    axes[-1].set_xlabel("frame")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    scan = parts.frame_scans(result)
    for ax in axes:
        ax.margins(x=0.01)
        for start in np.flatnonzero(np.diff(scan)) + 0.5:
            ax.axvline(start, color="0.75", lw=0.6, ls="--", zorder=0)
    handles, labels = axes[0].get_legend_handles_labels()
    if handles and result.sizes["particle"] <= MOST_NAMED:
        fig.legend(handles, labels, loc="outside right upper", title="particle", frameon=False)
