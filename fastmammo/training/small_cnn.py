"""Takes grey images and gives a feature map: a small CNN that learns from scratch in minutes."""

from __future__ import annotations

from torch import Tensor, nn


def _block(before: int, width: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, width, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


class SmallCNN(nn.Module):
    """Seven blocks of convolution, BatchNorm and ReLU: the project's own baseline.

    The map has an eighth of the image's side, so that a lesion of some pixels keeps its place in
    it; with maximum pooling one place decides, and from scratch that is found in a few epochs.

    Attributes:
        num_features: channels of the map.
        feature_info: the end of each stage, as timm's models tell it.
        mean, std: of the images in [0, 1], which normalise them.
    """

    mean, std = 0.3, 0.25

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            nn.Sequential(_block(1, width, 2, 5), _block(width, width)),
            nn.Sequential(_block(width, 2 * width, 2), _block(2 * width, 2 * width)),
            nn.Sequential(
                _block(2 * width, 4 * width, 2),
                _block(4 * width, 4 * width),
                _block(4 * width, 4 * width),
            ),
        )
        self.num_features = 4 * width
        self.feature_info = [
            {"module": f"stages.{i}", "num_chs": width * 2**i, "reduction": 2 ** (i + 1)}
            for i in range(3)
        ]

    def forward_features(self, images: Tensor) -> Tensor:
        """Give the map (n, C, H/8, W/8) of normalised images (n, 1, H, W)."""
        maps: Tensor = self.stages(images)
        return maps
