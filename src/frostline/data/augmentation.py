"""Random changes to training pictures: one class, of which the presets are value sets."""

from __future__ import annotations

import math
from collections.abc import Sequence

from timm.data.transforms_factory import create_transform
from torchvision.transforms import Compose

from frostline.data.mixing import Mixer
from frostline.data.transforms import ImageTransform, Step, evaluation_geometry, to_input
from frostline.errors import ConfigError
from frostline.types import Preprocessing


class Augmentation:
    """What happens to training pictures. The default changes nothing: training sees what evaluation sees.

    The order is crop, flips, ``auto_augment`` or ``color_jitter``, ``transforms``, normalization, erasing; mixup and
    cutmix act on the batch.

    Args:
        scale: smallest and largest share of the picture's area in a random crop; None crops as in evaluation.
        ratio: smallest and largest aspect ratio of a random crop.
        hflip, vflip: probability of a mirror image. Wrong for digits and text.
        color_jitter: largest relative change of brightness, contrast and saturation.
        auto_augment: a policy in timm's notation, such as ``rand-m9-mstd0.5-inc1``; it takes the place of
            ``color_jitter``.
        erase: probability of filling a random rectangle with noise (https://arxiv.org/abs/1708.04896).
        mixup, cutmix: alpha of each; 0 is off. See `Mixer`.
        mix_probability: the share of batches that are mixed.
        transforms: more transforms (torchvision v2 or any callable) of the cropped RGB picture; they draw from the
            global generators, which are seeded for each picture.

    Raises:
        ConfigError: a value is out of its range.
    """

    def __init__(
        self,
        *,
        scale: Sequence[float] | None = None,
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        hflip: float = 0.0,
        vflip: float = 0.0,
        color_jitter: float = 0.0,
        auto_augment: str | None = None,
        erase: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_probability: float = 1.0,
        transforms: Sequence[Step] = (),
    ) -> None:
        chances = {"hflip": hflip, "vflip": vflip, "erase": erase, "mix_probability": mix_probability}
        for name, value in chances.items():
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"augment.{name} is {value}.", mend="Give a probability from 0 to 1.")
        for name, value in {"color_jitter": color_jitter, "mixup": mixup, "cutmix": cutmix}.items():
            if not value >= 0.0:
                raise ConfigError(f"augment.{name} is {value}.", mend="Give 0 (off) or more.")
        self.scale = None if scale is None else _checked_range("scale", scale, top=1.0)
        self.ratio = _checked_range("ratio", ratio)
        self.hflip, self.vflip, self.color_jitter = hflip, vflip, color_jitter
        self.auto_augment, self.erase = auto_augment, erase
        self.mixup, self.cutmix, self.mix_probability = mixup, cutmix, mix_probability
        self.transforms = tuple(transforms)
        if auto_augment is not None:
            self._check_policy(auto_augment)

    @property
    def deterministic(self) -> bool:
        """Whether a picture gives the same input in each epoch (mixup and cutmix, which act on batches, aside)."""
        changes = (self.scale, self.hflip, self.vflip, self.color_jitter, self.auto_augment, self.erase)
        return not any(changes) and not self.transforms

    def train_transform(self, preprocessing: Preprocessing) -> ImageTransform:
        """The transform of a training picture; random choices come from the global generators.

        Args:
            preprocessing: what the backbone was pre-trained with, at the size of this run.

        Returns:
            A function of an ``RGB`` picture that gives ``[C, H, W]`` float32, normalized.
        """
        crop, color, final = create_transform(
            preprocessing.size,
            is_training=True,
            scale=self.scale,
            ratio=self.ratio,
            hflip=self.hflip,
            vflip=self.vflip,
            color_jitter=self.color_jitter,
            auto_augment=self.auto_augment,
            interpolation=preprocessing.interpolation,
            mean=preprocessing.mean,
            std=preprocessing.std,
            re_prob=self.erase,
            re_mode="pixel",
            separate=True,
        )
        geometry = crop.transforms
        if self.scale is None:
            geometry = [*evaluation_geometry(preprocessing), *geometry[1:]]
        erasing = final.transforms[2:]  # after to-tensor and normalize, which are those of evaluation
        # timm's jitter by 0 changes nothing, but takes time
        colors = color.transforms if self.auto_augment or self.color_jitter else []
        steps = [*geometry, *colors, *self.transforms, *to_input(preprocessing), *erasing]
        transform: ImageTransform = Compose(steps)
        return transform

    def mixer(self, num_classes: int) -> Mixer | None:
        """What mixes the pictures of a batch; None where mixup and cutmix are off."""
        if self.mixup == 0 and self.cutmix == 0:
            return None
        return Mixer(num_classes, mixup=self.mixup, cutmix=self.cutmix, probability=self.mix_probability)

    def _check_policy(self, policy: str) -> None:
        try:
            self.train_transform(Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3))
        except Exception as error:  # timm asserts, indexes and converts without a word of its own
            raise ConfigError(
                f"augment.auto_augment='{policy}' is no policy that timm knows.",
                mend="Such as rand-m9-mstd0.5-inc1, augmix-m3-w3, original or v0 (see timm.data.auto_augment).",
            ) from error


def _checked_range(name: str, bounds: Sequence[float], *, top: float = math.inf) -> tuple[float, float]:
    if len(bounds) != 2 or not 0.0 < bounds[0] <= bounds[1] <= top:
        limit = "" if top == math.inf else f" <= {top:g}"
        raise ConfigError(
            f"augment.{name} is {list(bounds)}.", mend=f"Give two numbers, 0 < smallest <= largest{limit}."
        )
    return bounds[0], bounds[1]
