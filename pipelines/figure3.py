"""Remake Fig. 3 of Su et al. 2024 (doi:10.1107/S1600577524000146): nine particles, 143 energies, several registrations.

    python pipelines/figure3.py FOLDER [--methods absolute-template relative-template sift optical-flow-ilk]

Simulates the stack, registers it with xreg and with conventional methods, and writes figure3.png, quality.csv (SSIM
mean and variance, residual energy of the differential map) and motion.csv (cumulative displacement and velocity). What
is in FOLDER already is used. In a differential map the frame of more contrast is scaled to the other; the paper does
not say how it does that. `truth` is the stack aligned by the known positions: what noise and chemistry leave.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import xreg
from xreg import baselines, record, store
from xreg.kernels.agreement import difference_map
from xreg.kernels.scoring import constant_offset, match_tracks
from xreg.plainly import folder_type, plain_errors
from xreg.plot.parts import bare, particle_colours
from xreg.synthetic import PhantomConfig

METHODS = ("absolute-template", "relative-template", "sift", "optical-flow-ilk")


def positions(density, result, truth, method):
    """Where a method puts the particles of `result`, (particle, frame, 2)."""
    ours = result["position"].values
    if method == "xreg":
        return ours
    if method == "truth":
        found, true = np.full_like(ours, np.nan), truth["position"].values
        for q, r in match_tracks(ours, true, truth["radius"].values).items():
            found[r] = true[q] + constant_offset(ours[r] - true[q])
        return found
    # As in the paper, a conventional method moves frames as a whole. Particles start where xreg sees them first.
    shift = baselines.register(density, method)
    first = np.isfinite(ours).all(-1).argmax(axis=1)
    return np.stack([path[k] - shift[k] + shift for path, k in zip(ours, first, strict=True)])


def main(folder, methods=METHODS, config=None):
    """Write the figure and its two tables into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    raw, truth, out = (folder / f"{name}.zarr" for name in ("raw", "truth", "result"))
    if not raw.exists():
        record.simulate(config or PhantomConfig(n_scans=1), raw, truth)
    result = xreg.open_result(out) if out.exists() else xreg.register(raw, out, lazy=True)
    normalized = xreg.normalize_frames(xreg.open_frames(raw)).load()
    density, known = normalized["optical_density"].values, store.open_store(truth)

    # Every method's positions cut the same windows out of the same frames; only the positions differ.
    aligned, quality = {}, {}
    for method in ("xreg", *methods, "truth"):
        tracks = result[["position"]].assign(
            position=result["position"].copy(data=positions(density, result, known, method)))
        stacks = xreg.align_stacks(normalized, tracks, result.sizes["y"] // 2)["aligned"]
        aligned[method] = stacks[:, [0, -1]].compute()
        quality[method] = xreg.measure_quality(stacks, result["contour"], flow=False).compute()

    with (folder / "quality.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("method", "particle", "ssim_mean", "ssim_variance", "difference_energy"))
        for method, q in quality.items():
            numbers = np.stack([q["ssim"].mean("frame"), q["ssim"].var("frame"), q["difference"]], axis=1)
            table.writerows((method, p, *(f"{v:.6f}" for v in row)) for p, row in enumerate(numbers))
    with (folder / "motion.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("particle", "frame", "energy_eV", "distance_px", "velocity_y_px", "velocity_x_px"))
        for p in range(result.sizes["particle"]):
            motion = np.stack([result["energy"], result["distance"][p], *result["velocity"].values[p].T], axis=1)
            table.writerows((p, k, *(f"{v:.4f}" for v in row)) for k, row in enumerate(motion))
    draw(result, density, aligned, quality).savefig(folder / "figure3.png", dpi=130)
    return quality


def draw(result, density, aligned, quality):
    """Frames, differential maps, motion and similarity on one page."""
    particles, methods = result.sizes["particle"], list(aligned)
    fig = Figure(figsize=(12, 5 + 1.15 * len(methods)), layout="constrained")
    top, middle, bottom = fig.subfigures(3, 1, height_ratios=[2.6, 1.15 * len(methods), 2.6])
    frames, distance, similarity = top.subplots(1, 3, width_ratios=[2, 1.5, 1.5])
    pair = np.hstack([density[0], density[-1]])
    frames.imshow(pair, cmap="gray", vmin=np.nanpercentile(pair, 1), vmax=np.nanpercentile(pair, 99.8))
    frames.set_title("(a) first and last frame")
    bare(frames)
    maps = {(m, p): difference_map(*aligned[m].values[p], result["contour"].values[p])
            for m in methods for p in range(particles)}
    limit = np.nanpercentile(np.abs(list(maps.values())), 99)
    axes = middle.subplots(len(methods), particles, squeeze=False)
    for (m, p), picture in maps.items():
        ax = axes[methods.index(m), p]
        shown = ax.imshow(picture, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        bare(ax)
        if p == 0:
            ax.set_ylabel(m.replace("-", "\n"), fontsize=8)
    middle.suptitle("(b) first less last frame, scaled to the fainter one's contrast", fontsize=11)
    middle.colorbar(shown, ax=axes, shrink=0.6)

    colours, every = particle_colours(particles), np.arange(result.sizes["frame"])
    rigid = np.diff(result["rigid"].values, axis=0, prepend=0 * result["rigid"].values[:1])
    velocities = bottom.subplots(1, 2, sharey=True)
    for p in range(particles):
        distance.plot(every, result["distance"].values[p], color=colours[p], lw=0.9)
        for ax, velocity in zip(velocities, result["velocity"].values[p].T, strict=True):
            ax.plot(every, velocity, color=colours[p], lw=0.6)
    distance.plot(every, np.nancumsum(np.linalg.norm(rigid, axis=-1)), color="black", lw=2.4, zorder=0)
    for ax, moved, name in zip(velocities, np.gradient(np.nancumsum(rigid, axis=0), axis=0).T, "yx", strict=True):
        ax.plot(every, moved, color="black", lw=2.0, zorder=0)
        ax.set(title=f"({'d' if name == 'y' else 'e'}) velocity along {name}", xlabel="frame", ylabel="px/frame")
    distance.set(title="(c) cumulative displacement; black: rigid", xlabel="frame", ylabel="px")
    similarity.boxplot([q["ssim"].values[np.isfinite(q["ssim"].values)] for q in quality.values()], showfliers=False)
    similarity.set_xticks(range(1, len(methods) + 1), methods, rotation=30, ha="right", fontsize=7)
    similarity.set(title="(f) SSIM with the scaled mean picture")
    return fig


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=folder_type)
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=sorted(baselines.METHODS))
    options = parser.parse_args()
    with plain_errors(go_on="go on with the same command"):
        main(options.folder, options.methods)
