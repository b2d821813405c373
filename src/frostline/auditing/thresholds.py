"""From where on a picture, or a pair of pictures, is a finding."""

from __future__ import annotations

from dataclasses import dataclass, fields

from frostline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AuditThresholds:
    """Chosen on generated data sets (the calibration seeds of the tests) and on photographs; brightness is 0..255.

    What is usual differs between data sets: X-rays are dark, digits have white paper around them. So "dark", "bright",
    "blurred" and "odd" mean both: beyond an absolute limit, and far from the other pictures of the set. What more than
    ``rare`` of all pictures are is the way of the set, and no finding.

    Attributes:
        rare: the largest share of the pictures that may be dark, bright, blurred or odd and still be a finding.
        blank_range: a picture is blank where its thumbnail's brightest and darkest point are no further apart ...
        blank_contrast: ... and its brightness varies by no more than this standard deviation.
        dark: a dark picture's 95th percentile of brightness is at most this.
        bright: a bright picture's 5th percentile of brightness is at least this.
        distance: and that percentile is at least this far from the set's median.
        blurred: a blurred picture's `sharpness` is at most this; 0.1 to 0.3 is usual, 0.03 after a blur of 2 pixels.
        blur_factor: and the set's median is at least so many times larger.
        size_factor: an odd size has so many times more, or fewer, pixels than the set's median.
        aspect_factor: an odd shape is so many times longer, or less long, for its width than the set's median.
        deviations: sizes and shapes of a set that vary by nature must lie so many (robust) standard deviations off.
        imbalance: the largest class of ``train`` has so many times the pictures of the smallest.
        alike: the least similarity (cosine of gradients at 8 x 8) at which two pictures are compared closely.
        near: the most of its detail in which a near duplicate may differ from its original, see `residuals`; of copies
            that are resized, compressed (JPEG quality 30), cropped (5 %) or marked, 99 of 100 photographs are below
            it, while two pictures of one hand or thing, taken one after the other, are nearly all above.
        turned: the same for copies that are mirrored or turned.
    """

    rare: float = 0.05
    blank_range: float = 8.0
    blank_contrast: float = 4.0
    dark: float = 48.0
    bright: float = 215.0
    distance: float = 50.0
    blurred: float = 0.05
    blur_factor: float = 3.0
    size_factor: float = 4.0
    aspect_factor: float = 1.8
    deviations: float = 4.0
    imbalance: float = 10.0
    alike: float = 0.8
    near: float = 0.15
    turned: float = 0.12

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: one is negative or not finite, or a share is above 1.
        """
        for item in fields(self):
            value = float(getattr(self, item.name))
            highest = 1.0 if item.name in ("rare", "alike") else float("inf")
            if not 0.0 <= value <= highest or value == float("inf"):
                allowed = "0 to 1" if highest == 1.0 else "a number from 0 on"
                raise ConfigError(
                    f"audit.thresholds.{item.name} is {value:g}.",
                    mend=f"It is {allowed}; the default is {item.default}.",
                )
