"""What training for longer and what fusion buy: the Dual U-Net's low- and high-epoch networks, each alone and fused.

    python benchmarks/fusion.py [--refiner FILE] [--run FOLDER] [--frames 20] [--noise 1,10,20,30]

With --run, the folder of a training, its validation curve over epochs comes first: loss of the training, and
intersection over union and error of the centre on held-out regions. Then the frames of `benchmarks/detection.py`, the
same regions for all three networks, and what the weights' own card says about held-out regions.
"""

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import detection

from xreg.models.dual_unet import DualUNet
from xreg.models.weights import Weights, card, read, save, shipped
from xreg.plainly import number, plain_errors, several

_ROWS = ("contour IoU, median", "centre RMS (isolated), px", "centre median (isolated), px", "found, touching")


def curve(run: str) -> list[str]:
    """Lines of a training's validation curve; ValueError if the folder holds no training of the refiner."""
    log = Path(run) / "log.jsonl"
    try:
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        return [f"{r['step']:5d}{r['loss']:10.4f}{r['iou']:10.4f}{r['rms_px']:10.3f}{r['median_px']:11.3f}"
                for r in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{log} is no log of a training; give the folder that `xreg train refine` wrote."
        raise ValueError(msg) from error


def split(refiner: Weights, folder: str) -> dict[str, Weights]:
    """Weights of the low- and the high-epoch network alone, and of both."""
    both = read(refiner)
    if not isinstance(both, DualUNet):
        msg = f"weights {refiner.path} are of one network; need those of a Dual U-Net, as `xreg train refine` writes."
        raise ValueError(msg)
    alone = {name: save(network, Path(folder) / f"{name}.safetensors", {})
             for name, network in (("low", both.low), ("high", both.high))}
    return {**alone, "fused": refiner}


def main(
    refiner: str | None = None, run: str | None = None, frames: int = 20, noise: tuple[float, ...] = (1, 10, 20, 30)
) -> dict[float, dict[str, dict[str, float]]]:
    """Print curve and tables; returns the tables by noise level and network."""
    weights = Weights.of(refiner, "refiner") if refiner else shipped("refiner")
    lines = curve(run) if run else []
    if run:
        print("epoch      loss       IoU    RMS px  median px")
        print(*lines, sep="\n")
    table = {}
    with tempfile.TemporaryDirectory() as folder:
        methods = {name: partial(detection.learned, detector=None, refiner=part)
                   for name, part in split(weights, folder).items()}
        for level in noise:
            tallies = detection.measure(methods, level, frames, with_empty=False)
            table[level] = {name: detection.summary(tally) for name, tally in tallies.items()}
            detection.show(f"noise {level:g} %, {frames} frames",
                           {name: {row: values[row] for row in _ROWS} for name, values in table[level].items()})
    for name, values in card(weights).get("held-out regions", {}).items():
        print(f"held-out regions of the training, {name}: {values}")
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--refiner", help="weights that `xreg train refine` wrote; the shipped ones by default")
    parser.add_argument("--run", help="folder of the training, for its validation curve")
    parser.add_argument("--frames", type=number(int, 1), default=20, help="frames per noise level")
    parser.add_argument("--noise", type=several(number(float, 0.4, 100)), default="1,10,20,30",
                        help="per cent, separated by commas")
    options = parser.parse_args()
    with plain_errors():
        main(**vars(options))
