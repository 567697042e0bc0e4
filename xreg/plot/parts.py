"""What the figures share: who is drawn, in which colour, and the marks on a picture."""

from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib import patheffects
from matplotlib.colors import to_rgba_array
from matplotlib.transforms import ScaledTranslation

from xreg.kernels.geometry import pixel_scale
from xreg.schema import FrameStatus

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

#: Most particles and most scans that are drawn in figures with one panel each.
MOST_PARTICLES = 9
MOST_SCANS = 6
OUTLINE = [patheffects.withStroke(linewidth=2.2, foreground="black")]
# No grey (frames are grey) and no black (the rigid part is black).
_COLOURS = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd",
    "#17becf", "#e377c2", "#bcbd22", "#8c564b", "#4b3fd6",
)


def particle_colours(count: int) -> np.ndarray:
    """Give one RGBA colour per particle, shape (count, 4); easily told apart for up to ten."""
    if count <= len(_COLOURS):
        return to_rgba_array(_COLOURS[:count])
    return mpl.colormaps["turbo"](np.linspace(0.03, 0.97, count))


def drawn_particles(result: "xr.Dataset", most: int = MOST_PARTICLES) -> list[int]:
    """Give the numbers of at most `most` particles, those seen in the most frames, in ascending order."""
    seen = np.isfinite(result["position"].values).all(-1).sum(-1)
    order = np.argsort(-seen, kind="stable")[:most]
    return sorted(int(p) for p in order if seen[p])


def drawn_scans(result: "xr.Dataset", most: int = MOST_SCANS) -> list[int]:
    """Give at most `most` entries along `scan`, evenly spread, with the first and the last."""
    count = result.sizes["scan"]
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))


def first_last_frames(result: "xr.Dataset") -> tuple[int, int]:
    """Give the first and the last usable frame in which as many particles are seen as in any.

    Raises
    ------
    ValueError
        If no particle is seen in any usable frame.
    """
    seen = np.isfinite(result["position"].values).all(-1).sum(0)
    if "frame_status" in result:
        seen[result["frame_status"].values != FrameStatus.OK] = 0
    need(seen.any(), "no particle is seen in any usable frame")
    full = np.flatnonzero(seen == seen.max())
    return int(full[0]), int(full[-1])


def frame_scans(result: "xr.Dataset") -> np.ndarray:
    """Give the scan number of every frame, (frame,); zeros where it is not stored."""
    for name in ("scan", "frame_scan"):
        if name in result.variables and result[name].dims == ("frame",):
            return result[name].values
    return np.zeros(result.sizes["frame"], dtype=int)


def need(what: object, otherwise: str) -> None:
    """Raise ValueError with the sentence `otherwise` if there is nothing to draw."""
    if not what:
        msg = f"{otherwise}; need at least one. There is nothing to draw."
        raise ValueError(msg)


def bare(ax: "Axes") -> None:
    """Take the ticks off a picture."""
    ax.set_xticks([])
    ax.set_yticks([])


def scale_at(result: "xr.Dataset", frame: int) -> float:
    """Pixel size in a frame over the pixel size at the reference energy."""
    kind = result.attrs.get("magnification", "constant")
    if kind == "constant":
        return 1.0
    return float(pixel_scale(result["energy"].values, kind, result.attrs.get("pixel_size_energy_ev"))[frame])


def energy_text(result: "xr.Dataset", frame: int) -> str:
    """Energy of a frame as the end of a title; empty where it is not known."""
    return f", {float(result['energy'].values[frame]):.1f} eV" if "energy" in result.variables else ""


def number(ax: "Axes", place: np.ndarray, p: int, shift: int = 0) -> None:
    """Write a particle's number at `place` (y, x), `shift` points above it."""
    if np.isfinite(place).all():
        ax.annotate(
            f"{p}", place[::-1], xytext=(0, shift), textcoords="offset points", color="white", ha="center",
            va="center", fontsize=10, fontweight="bold", path_effects=OUTLINE, annotation_clip=True,
        )


def round_down(value: float) -> float:
    """Give the largest of 1, 2 or 5 times a power of ten that is not above `value` (> 0)."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(max(m for m in (1, 2, 5) if m * power <= value * (1 + 1e-9)) * power)


def scale_bar(ax: "Axes", result: "xr.Dataset", shape: tuple[int, ...], scale: float = 1.0) -> None:
    """Draw a scale bar of a round length under a picture, where it hides nothing.

    Nothing is drawn where the pixel size is not known. `shape` is the picture's, `scale` its pixel size over
    the pixel size at the reference energy.
    """
    pixel_nm = result.attrs.get("pixel_size_nm")
    if not pixel_nm:
        return
    pixel_um = float(pixel_nm) * scale / 1000
    length = round_down(0.3 * shape[1] * pixel_um)
    end = length / pixel_um - 0.5
    # In points below the picture, so that small and large pictures look alike.
    place = ax.get_xaxis_transform() + ScaledTranslation(0, -7 / 72, ax.get_figure().dpi_scale_trans)
    ax.plot([-0.5, end], [0, 0], color="black", lw=2.5, transform=place, clip_on=False, solid_capstyle="butt")
    ax.annotate(
        f"{length:g} µm", (end, 0), xycoords=place, xytext=(4, 0), textcoords="offset points", va="center",
        fontsize=9, annotation_clip=False,
    )


def fit_frame(ax: "Axes", shape: tuple[int, ...]) -> None:
    """Show the whole picture of `shape` and nothing beside it."""
    ax.set_xlim(-0.5, shape[1] - 0.5)
    ax.set_ylim(shape[0] - 0.5, -0.5)
