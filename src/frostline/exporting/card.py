"""A model card: what a model is, what it was trained on, what it scored, and what it must not be used for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from frostline.exporting.graph import Facts, of_channels

_SHOWN = 20
_TIMM = """```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # this folder
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
logits = model(transform(picture).unsqueeze(0))  # picture: an RGB PIL image, turned upright
```"""


@dataclass(frozen=True)
class Card:
    """What a card is written from.

    Attributes:
        title: of the model.
        facts: labels, preprocessing, architecture, temperature.
        counts: pictures of each split.
        training: what was done, name to value, in the order to be shown.
        scores: the flat ``split/metric`` scores of the run.
        intervals: low and high end of the 95 % interval of a score, where it has one.
        fingerprint: of the data.
        test_looks: how often the test split has been scored, where that is known.
        files: of the same model in other formats, with what to say of each.
        of_timm: whether timm can make the model out of its folder.
    """

    title: str
    facts: Facts
    counts: Mapping[str, int]
    training: Mapping[str, str]
    scores: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    fingerprint: str = ""
    test_looks: int | None = None
    files: Sequence[tuple[str, str]] = ()
    of_timm: bool = True

    def text(self) -> str:
        """Markdown, with the YAML head that a model hub reads."""
        parts = [
            self._head(),
            f"# {_plain(self.title)}",
            self._summary(),
            "## Use",
            self._use(),
            "## Data",
            self._data(),
            "## Training",
            _table(("", ""), [(name, value) for name, value in self.training.items()]),
            "## Scores",
            self._scores(),
            "## Limits",
            self._limits(),
        ]
        return "\n\n".join(parts) + "\n"

    def _head(self) -> str:
        lines = [
            "---",
            f"library_name: {'timm' if self.of_timm else 'pytorch'}",
            "pipeline_tag: image-classification",
            "tags:",
            "- image-classification",
            *(["- timm"] if self.of_timm else []),
            "- frostline",
            "---",
        ]
        return "\n".join(lines)

    def _summary(self) -> str:
        return (
            f"{_plain(self.facts.architecture)}, fine-tuned by Frostline to tell {len(self.facts.labels)} classes "
            f"apart: {self._classes()}."
        )

    def _classes(self) -> str:
        shown = ", ".join(_plain(label) for label in self.facts.labels[:_SHOWN])
        more = len(self.facts.labels) - _SHOWN
        return f"{shown} and {more} more" if more > 0 else shown

    def _use(self) -> str:
        code = _TIMM if self.of_timm else self._own_module()
        if self.facts.temperature != 1.0:
            code += (
                f"\n\nFor calibrated probabilities divide the logits by {self.facts.temperature:.4g} (the temperature, "
                "fitted on validation) before the softmax."
            )
        if self.files:
            rows = [(name, what) for name, what in self.files]
            code += f"\n\nThe same model in other formats, with input `{self.facts.input_sentence()}`:\n\n"
            code += _table(("file", "what it is"), rows)
        return code

    def _own_module(self) -> str:
        made = self.facts.preprocessing
        return (
            f"The model is a {_plain(self.facts.architecture)} with {len(self.facts.labels)} outputs, which timm does "
            "not have: build it with its own code, then load the weights of this folder.\n\n"
            "```python\n"
            "from safetensors.torch import load_file\n\n"
            'model.load_state_dict(load_file("FOLDER/model.safetensors"))\n'
            "logits = model.eval()(images)\n"
            "```\n\n"
            f"`images` are float32 of shape [batch, {', '.join(map(str, made.size))}], divided by 255 and normalised "
            f"with mean {of_channels(made.mean, made.size[0])} and deviation {of_channels(made.std, made.size[0])}."
        )

    def _data(self) -> str:
        pictures = ", ".join(f"{count:,} {split}" for split, count in self.counts.items())
        lines = [f"Pictures: {pictures}." if pictures else "The number of pictures is not on record."]
        if self.fingerprint:
            lines.append(f"Fingerprint of the data: `{self.fingerprint}`.")
        return "\n".join(lines)

    def _scores(self) -> str:
        rows = []
        for name, value in self.scores.items():
            split, _, metric = name.partition("/")
            if split in ("val", "test") and metric != "count":
                low_high = self.intervals.get(name)
                shown = "" if low_high is None else f"{low_high[0]:.4f} to {low_high[1]:.4f}"
                rows.append((split, metric, f"{value:.4f}", shown))
        if not rows:
            return "There are none."
        text = _table(("split", "metric", "value", "95 % interval"), rows)
        return text + "\n\nThe checkpoint was selected on validation, so the validation scores flatter it."

    def _limits(self) -> str:
        lines = [
            f"- Every picture gets one of the {len(self.facts.labels)} classes, also one that shows none of them.",
            "- The scores hold for pictures like those of the data above; on others the model may do worse.",
        ]
        tested = self.counts.get("test", 0)
        if "test/accuracy" not in self.scores:
            lines.append("- No separate test split was scored.")
        elif tested and tested < 1000:
            lines.append(f"- The test split has {tested} pictures: a difference of one or two points may be chance.")
        if self.test_looks is not None and self.test_looks > 1:
            lines.append(
                f"- The test split has been scored {self.test_looks} times, so that it is no longer quite unseen."
            )
        lines.append("- What the backbone was pre-trained on, and its licence, is said where its weights come from.")
        return "\n".join(lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [_row(header), _row(["---"] * len(header)), *(_row([_plain(cell) for cell in row]) for row in rows)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(text: str) -> str:
    """On one line, and no Markdown or HTML of a stranger's class name."""
    shown = "".join(letter if letter.isprintable() else " " for letter in str(text))
    for letter in "\\`*_<>[]|":
        shown = shown.replace(letter, f"\\{letter}")
    return shown


def labels_text(labels: Sequence[str]) -> str:
    """A JSON list of the classes, for programs."""
    return json.dumps(list(labels), ensure_ascii=False, indent=2) + "\n"
