"""Random changes to training pictures: one class, of which the presets are value sets."""

from __future__ import annotations

import math
from collections.abc import Sequence

from timm.data.transforms_factory import create_transform

from frostline.data.foreign import as_step, check_steps, title
from frostline.data.frames import evaluation_frame, random_frame
from frostline.data.geometry import RandomPart, Step, evaluation_geometry, rgb_mean
from frostline.data.mixing import Mixer
from frostline.data.transforms import PictureTransform, evaluation_transform
from frostline.errors import ConfigError
from frostline.types import Preprocessing


class Augmentation:
    """What happens to training pictures. The default changes nothing: training sees what evaluation sees.

    The order is crop, flips, ``auto_augment`` or ``color_jitter``, ``transforms``, normalization, erasing; mixup and
    cutmix act on the batch. Where pictures are squashed or padded (``data.resize``), a random crop is one of the
    squashed or padded picture, see `RandomPart`.

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
        transforms: more transforms of the cropped RGB picture: torchvision's, albumentations' or any callable. They
            draw from the global generators, which are seeded for each picture; those of albumentations from generators
            that are made of them.
        val_transforms, test_transforms: likewise for the pictures of that split, such as a blur, to measure what a
            model bears. What is random in them is the same each time a picture is evaluated. They belong to the scores
            of a run, also to those that select its checkpoint: ``predict`` and exported models know nothing of them.

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
        val_transforms: Sequence[Step] = (),
        test_transforms: Sequence[Step] = (),
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
        named = {"transforms": transforms, "val_transforms": val_transforms, "test_transforms": test_transforms}
        self._steps = {key: [as_step(one) for one in given] for key, given in named.items()}
        if auto_augment is not None:
            self._check_policy(auto_augment)

    @property
    def deterministic(self) -> bool:
        """Whether a picture gives the same input in each epoch (mixup and cutmix, which act on batches, aside)."""
        changes = (self.scale, self.hflip, self.vflip, self.color_jitter, self.auto_augment, self.erase)
        return not any(changes) and not self._steps["transforms"]

    def recipe(self, split: str, *, train: bool) -> str | None:
        """All that decides what becomes of a picture of ``split`` beside the preprocessing, in words for a hash.

        None where transforms of a person's own take part: what those do cannot be told.

        Args:
            split: ``train``, ``val`` or ``test``.
            train: as in training, or as it is evaluated.
        """
        if self._steps.get("transforms" if train else f"{split}_transforms"):
            return None
        if not train or self.deterministic:
            return "plain"
        names = ("scale", "ratio", "hflip", "vflip", "color_jitter", "auto_augment", "erase")
        return "; ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def notes(self, splits: Sequence[str] = ("val", "test")) -> list[str]:
        """A sentence on each of ``splits`` whose pictures are changed before a model is scored on them."""
        return [
            f"augment.{split}_transforms changes each picture of the {split} split before it is scored: "
            f"{', '.join(map(title, steps))}"
            for split in splits
            if (steps := self._steps.get(f"{split}_transforms"))
        ]

    def train_transform(self, preprocessing: Preprocessing, *, exact: bool = False) -> PictureTransform:
        """The transform of a training picture; random choices come from the global generators.

        Args:
            preprocessing: what the backbone was pre-trained with, at the size of this run.
            exact: see `evaluation_transform`.

        Returns:
            A function of an ``RGB`` picture that gives ``[C, H, W]`` float32, normalized.

        Raises:
            ConfigError: one of ``transforms`` refuses a picture, or gives something that is no input.
        """
        return self._train_transform(preprocessing, self._own_steps("transforms", preprocessing), exact=exact)

    def evaluation_transform(
        self, preprocessing: Preprocessing, split: str, *, exact: bool = False
    ) -> tuple[PictureTransform, bool]:
        """The transform of a picture that is evaluated, and whether random choices come from the global generators.

        Args:
            preprocessing: what the backbone was pre-trained with, at the size of this run.
            split: ``train``, ``val`` or ``test``.
            exact: see `evaluation_transform`.

        Raises:
            ConfigError: one of the split's transforms refuses a picture, or gives something that is no input.
        """
        key = f"{split}_transforms"
        steps = self._own_steps(key, preprocessing) if key in self._steps else []
        return evaluation_transform(preprocessing, steps, exact=exact), bool(steps)

    def mixer(self, num_classes: int) -> Mixer | None:
        """What mixes the pictures of a batch; None where mixup and cutmix are off."""
        if self.mixup == 0 and self.cutmix == 0:
            return None
        return Mixer(num_classes, mixup=self.mixup, cutmix=self.cutmix, probability=self.mix_probability)

    def mixing(self) -> str:
        """What mixes the pictures of a batch, in words; empty where nothing does."""
        kinds = {"mixup": self.mixup, "cutmix": self.cutmix}
        return " or ".join(f"{kind} ({alpha:g})" for kind, alpha in kinds.items() if alpha > 0)

    def _own_steps(self, key: str, preprocessing: Preprocessing) -> list[Step]:
        steps = self._steps[key]
        if steps:
            check_steps(steps, f"augment.{key}", preprocessing)
        return steps

    def _train_transform(
        self, preprocessing: Preprocessing, own: Sequence[Step], *, exact: bool = False
    ) -> PictureTransform:
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
            mean=rgb_mean(preprocessing),  # what a turned picture leaves empty
            re_prob=self.erase,
            re_mode="pixel",
            separate=True,
        )
        cropping, *flips = crop.transforms
        if self.scale is None:
            frame_of, geometry = evaluation_frame(preprocessing), evaluation_geometry(preprocessing)
        else:
            part = (
                RandomPart(preprocessing, self.scale, self.ratio) if preprocessing.crop_mode != "center" else cropping
            )
            frame_of, geometry = random_frame(preprocessing, self.scale, self.ratio), [part]
        erasing = final.transforms[2:]  # after to-tensor and normalize, which are those of evaluation
        # timm's jitter by 0 changes nothing, but takes time
        colors = color.transforms if self.auto_augment or self.color_jitter else []
        steps = [*flips, *colors, *own]
        if exact:
            return PictureTransform(preprocessing, None, steps, erasing, geometry=geometry, own=bool(own))
        return PictureTransform(preprocessing, frame_of, steps, erasing, own=bool(own))

    def _check_policy(self, policy: str) -> None:
        try:
            self._train_transform(Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3), ())
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
