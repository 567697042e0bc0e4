"""Figures of motion against the frame number."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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
        The quantity, `rigid` and `position_sigma` (drawn as a band of two standard errors) where they are
        there.
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
