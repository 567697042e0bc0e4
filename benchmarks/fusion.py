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

_ROWS = ("contour IoU, median", "centre RMS (isolated), px", "centre median (isolated), px", "found, touching")


def split(refiner: Weights, folder: str) -> dict[str, Weights]:
    """Weights of the low- and the high-epoch network alone (as a fusion with themselves), and of both."""
    both = read(refiner)
    alone = {}
    for name in ("low", "high"):
        network = DualUNet(both.config)
        state = getattr(both, name).state_dict()
        network.low.load_state_dict(state)
        network.high.load_state_dict(state)
        alone[name] = save(network.eval(), Path(folder) / f"{name}.safetensors", {})
    return {**alone, "fused": refiner}


def main(
    refiner: str | None = None, run: str | None = None, frames: int = 20, noise: tuple[float, ...] = (1, 10, 20, 30)
) -> dict[float, dict[str, dict[str, float]]]:
    """Print curve and tables; returns the tables by noise level and network."""
    if run:
        print("epoch      loss       IoU    RMS px  median px")
        for line in (Path(run) / "log.jsonl").read_text().splitlines():
            row = json.loads(line)
            print(f"{row['step']:5d}{row['loss']:10.4f}{row['iou']:10.4f}{row['rms_px']:10.3f}{row['median_px']:11.3f}")
    weights = Weights.of(refiner) if refiner else shipped("refiner")
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
    parser.add_argument("--frames", type=int, default=20, help="frames per noise level")
    parser.add_argument("--noise", default="1,10,20,30", help="per cent, separated by commas")
    options = parser.parse_args()
    main(options.refiner, options.run, options.frames, tuple(float(v) for v in options.noise.split(",")))
