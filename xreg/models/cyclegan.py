"""The CycleGAN that finds particles: frames (domain A) to clean particle pictures (domain B) and back.

Zhu et al. 2017, doi:10.1109/ICCV.2017.244, as used by Su et al. 2024. The generator reads as its figure: a 7x7
convolution, two halvings, residual blocks, two doublings, a 7x7 convolution.

Where it differs from Zhu et al., and why:

* Batch instead of instance normalisation. Instance normalisation divides by the frame's own deviation, which blows the
  noise of an empty frame up into particles and makes the answer at one place depend on the whole frame. Batch
  normalisation is a fixed scaling once trained.
* The residual blocks are dilated, so that the network sees a whole particle of 160 px radius.
* Doubling interpolates and convolves, since transposed convolution leaves a checkerboard (Odena et al. 2016,
  doi:10.23915/distill.00003).
* Pictures of domain B lie in 0...1 and end in a sigmoid; a frame (domain A) has no such bounds.
"""

from dataclasses import dataclass

import torch
from torch import nn

from xreg.models.blocks import ResidualBlock, convolution


@dataclass(frozen=True)
class GeneratorConfig:
    """Shape of a generator: channels of the first layer, the dilation of each residual block, bounded output or not."""

    width: int = 16
    dilations: tuple[int, ...] = (1, 2, 4, 8, 2, 1)
    bounded: bool = True


class Generator(nn.Module):
    """Translate a picture of one domain to the other; (B, 1, H, W) to (B, 1, H, W), H and W multiples of 4."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        w = config.width
        self.config = config
        self.down = nn.Sequential(
            convolution(1, w, size=7),
            convolution(w, 2 * w, stride=2),
            convolution(2 * w, 4 * w, stride=2),
        )
        self.blocks = nn.Sequential(*(ResidualBlock(4 * w, d) for d in config.dilations))
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"),
            convolution(4 * w, 2 * w),
            nn.Upsample(scale_factor=2, mode="nearest"),
            convolution(2 * w, w),
        )
        self.last = nn.Conv2d(w, 1, 7, padding=3, padding_mode="reflect")

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        x = self.down(picture)          # (B, 4w, H/4, W/4)
        x = self.blocks(x)              # (B, 4w, H/4, W/4)
        x = self.last(self.up(x))       # (B, 1, H, W)
        return torch.sigmoid(x) if self.config.bounded else x


class Discriminator(nn.Module):
    """Tell real pictures from translated ones, patch by patch of 70 px (PatchGAN); training only."""

    def __init__(self, width: int = 16):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        for factor, stride in ((2, 2), (4, 2), (8, 1)):
            layers += [
                nn.Conv2d(width * factor // 2, width * factor, 4, stride, 1),
                nn.InstanceNorm2d(width * factor),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        self.body = nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, 1, 1))

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return self.body(picture)       # (B, 1, about H/8, about W/8)
