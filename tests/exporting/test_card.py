"""The card says what the run folder knows, and a class name cannot write into it."""

from __future__ import annotations

import yaml

from frostline.exporting import Card, Facts
from frostline.types import Preprocessing

FACTS = Facts(("cat", "dog"), Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3), "resnet18", 1.5)


def card(**changed: object) -> Card:
    told = {
        "title": "resnet18, fine-tuned",
        "facts": FACTS,
        "counts": {"train": 1200, "test": 40},
        "training": {"seed": "3"},
        "scores": {"val/accuracy": 0.9, "test/accuracy": 0.875, "test/count": 40.0, "seconds": 3.0},
        "intervals": {"test/accuracy": (0.75, 0.95)},
        "fingerprint": "abc",
    }
    return Card(**{**told, **changed})  # type: ignore[arg-type]  # a test's own mixture


def test_a_card_has_data_scores_with_intervals_and_limits() -> None:
    text = card().text()
    assert "1,200 train, 40 test" in text
    assert "| test | accuracy | 0.8750 | 0.7500 to 0.9500 |" in text
    assert "| val | accuracy | 0.9000 |  |" in text
    assert "count" not in text.split("## Scores")[1].split("## Limits")[0]
    assert "divide the logits by 1.5" in text
    assert "The test split has 40 pictures" in text
    assert "scored 3 times" in card(test_looks=3).text()
    assert "No separate test split was scored" in card(scores={"val/accuracy": 0.9}).text()


def test_its_head_is_yaml_that_a_hub_reads() -> None:
    head = yaml.safe_load(card().text().split("---")[1])
    assert head["library_name"] == "timm"
    assert head["pipeline_tag"] == "image-classification"


def test_a_class_name_is_text_and_not_markup() -> None:
    labels = ("a|b", "<script>x</script>\n# head", "[y](http://z)")
    text = card(facts=Facts(labels, FACTS.preprocessing, "resnet18")).text()
    assert "<script>" not in text
    assert "\n# head" not in text
    assert "a\\|b" in text
    assert "\\[y\\](http" in text


def test_a_module_that_timm_does_not_have_is_not_said_to_be_timms() -> None:
    text = card(of_timm=False).text()
    assert "timm.create_model" not in text
    assert yaml.safe_load(text.split("---")[1])["library_name"] == "pytorch"
    assert "[batch, 3, 32, 32]" in text
    assert 'load_file("FOLDER/model.safetensors")' in text
