"""The paper's study of epochs (Su et al. 2024, S2): how long to train the Dual U-Net, what fusion buys, and what width.

    python benchmarks/epochs.py FOLDER [--epochs 10,30,100,300,500] [--regions 286] [--widths 8,16] [--shrink 2]

The paper trains on 286 annotated frames and finds that networks of few epochs draw accurate contours on a noisy
background, and that those of thousands of epochs overfit but lose the noise. Here 286 regions of simulated frames are
trained on, again and again, and as many of other frames are held out; the running average of the network is judged at
each number of epochs on both, every low one fused with every high one, and a network of twice the width beside them.
Regions are shrunk to 48x48 samples, so that it ends on a CPU; rate, loss and batch are those of `xreg train refine`.

Leaves FOLDER/epochs.csv, and FOLDER/epochs.png: held-out regions, true contours, and what each network says. A run that
was stopped goes on; other arguments are another training.
"""

import argparse
import csv
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from xreg.models.dual_unet import DualUNet, UNet, UNetConfig, probability
from xreg.models.infer import choose_device
from xreg.models.weights import shipped
from xreg.plainly import folder_type, number, plain_errors, several
from xreg.training.refiner import RefinerConfig, fit_network, simulate_regions, validate
from xreg.training.run import TrainingRun

REGIONS_PER_FRAME = 5  # at least, on average


def regions(folder: Path, number: int, shrink: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Regions to train on and those held out, `number` of each, of different frames."""
    place = folder / f"regions-{number}.pt"
    if not place.exists():
        config = RefinerConfig(frames=2 * number // REGIONS_PER_FRAME)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(simulate_regions(config, shipped("detector"), "cpu"), place)
    pictures, contours, spacing = torch.load(place, weights_only=True)
    if len(pictures) < 2 * number:
        msg = f"{len(pictures)} regions were found, {2 * number} are needed; give a smaller --regions."
        raise ValueError(msg)
    pool = torch.nn.functional.avg_pool2d
    small = pool(pictures.float(), shrink), pool(contours.float()[:, None], shrink)[:, 0], spacing * shrink
    return [part[:number] for part in small], [part[-number:] for part in small]


def train(folder: Path, width: int, epochs: list[int], shown: list[torch.Tensor], held: list[torch.Tensor]
          ) -> dict[int, UNet]:
    """Networks of one training by their number of epochs."""
    config = RefinerConfig(epochs=max(epochs), width=width, low_epoch=min(epochs))
    name = f"width-{width}-regions-{len(shown[0])}-side-{shown[0].shape[-1]}-epochs-{'-'.join(map(str, epochs))}"
    run = TrainingRun(folder / name, config, choose_device("auto"))
    shown, held = ([part.to(run.device) for part in parts] for parts in (shown, held))
    return fit_network(UNet(UNetConfig(width=width)), shown, held, config, run, tuple(epochs))


def fused(low: UNet, high: UNet) -> DualUNet:
    """Both networks as one."""
    both = DualUNet(low.config)
    both.low.load_state_dict(low.state_dict())
    both.high.load_state_dict(high.state_dict())
    return both.eval()


def says(network: UNet | DualUNet, pictures: torch.Tensor) -> torch.Tensor:
    """Share inside the contour, (N, n, n)."""
    with torch.inference_mode():
        return torch.cat([probability(network, part) for part in pictures.split(256)])[:, 0]


def judge(network: UNet | DualUNet, shown: list[torch.Tensor], held: list[torch.Tensor]) -> dict[str, float]:
    """Overlap where it was trained and where not; centre, and area painted beside the particle, where not."""
    inside, target = says(network, held[0]), held[1]
    beside = (inside * (target < 0.01)).sum((1, 2)) / target.sum((1, 2)).clamp(min=1)
    own, other = validate(network, *shown), validate(network, *held)
    return {"iou_trained": own["iou"], "iou": other["iou"], "centre_median_px": other["median_px"],
            "centre_rms_px": other["rms_px"], "beside_particle": float(beside.mean())}


def picture(place: Path, networks: dict[str, UNet | DualUNet], held: list[torch.Tensor], columns: int = 10) -> None:
    """Held-out regions, their true contours, and what the networks say."""
    chosen = np.linspace(0, len(held[0]) - 1, columns).astype(int)
    rows = {"optical density": held[0][chosen, 0], "truth": held[1][chosen]}
    rows |= {name: says(network, held[0][chosen]) for name, network in networks.items()}
    figure, axes = plt.subplots(len(rows), columns, figsize=(columns, len(rows)), layout="constrained")
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axis, shown in zip(line, pictures, strict=True):
            limits = {} if name == "optical density" else {"vmin": 0, "vmax": 1}
            axis.imshow(shown.numpy(), cmap="gray", **limits)
            axis.set(xticks=[], yticks=[])
    figure.savefig(place, dpi=110)
    plt.close(figure)


def main(folder: Path, epochs: list[int], number: int, widths: list[int], shrink: int) -> dict[str, dict[str, float]]:
    """Print the table, leave it and the picture; returns the rows by name."""
    shown, held = regions(folder, number, shrink)
    networks = {}
    for width in widths:
        alone = train(folder, width, epochs, shown, held)
        alone = {epoch: network.cpu().eval() for epoch, network in alone.items()}
        networks |= {f"width {width}, {epoch} epochs": network for epoch, network in alone.items()}
        networks |= {f"width {width}, {low} and {high} fused": fused(alone[low], alone[high])
                     for low in epochs for high in epochs if low < high}
    table = {name: judge(network, shown, held) for name, network in networks.items()}
    keys = list(next(iter(table.values())))
    print(f"{'':28s}" + "".join(f"{key:>18s}" for key in keys))
    for name, row in table.items():
        print(f"{name:28s}" + "".join(f"{row[key]:18.3f}" for key in keys))
    with (folder / "epochs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["network", *keys])
        writer.writerows([name, *row.values()] for name, row in table.items())
    low, high = min(epochs), max(epochs)
    picture(folder / "epochs.png", {name: network for name, network in networks.items() if name in {
        *(f"width {widths[0]}, {e} epochs" for e in epochs), f"width {widths[0]}, {low} and {high} fused",
        *(f"width {width}, {high} epochs" for width in widths)}}, held)
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=folder_type)
    parser.add_argument("--epochs", type=several(number(int, 1)), default="10,30,100,300,500",
                        help="separated by commas")
    parser.add_argument("--regions", type=number(int, 1), default=286,
                        help="to be trained on, and as many to be held out")
    parser.add_argument("--widths", type=several(number(int, 1)), default="8,16",
                        help="channels of the first level, separated by commas")
    parser.add_argument("--shrink", type=int, choices=(1, 2, 3), default=2, help="96x96 samples are shrunk by this")
    options = parser.parse_args()
    with plain_errors(go_on="go on with the same command"):
        main(options.folder, options.epochs, options.regions, options.widths, options.shrink)
