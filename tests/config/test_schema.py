from __future__ import annotations

from pathlib import Path

from frostline.config import compose, conf_folder, weights_folder


def test_conf_holds_the_commands() -> None:
    assert (conf_folder() / "train.yaml").is_file()


def test_the_shipped_weights_are_found() -> None:
    assert (Path(weights_folder("digits_efficientnet")) / "model.safetensors").is_file()


def test_the_keys_of_a_run_are_pinned() -> None:
    keys = (
        "name seed test report debug output folder class_weights class_weights_beta lr_find run resume rerun trust "
        "config_dirs on_nan paper monitor data backbone freeze adapter optimizer lr augment loss regularizer metrics "
        "trainer callbacks logger speed"
    )
    assert list(compose("train").keys()) == keys.split()


def test_the_keys_of_an_audit_are_pinned() -> None:
    config = compose("audit")
    keys = "name seed debug output folder device config_dirs data backbone audit"
    assert list(config.keys()) == keys.split()
    of_the_node = "labels folds exclude exclude_kinds shown thresholds"
    assert list(config.audit.keys()) == of_the_node.split()


def test_the_keys_of_a_soup_are_pinned() -> None:
    config = compose("soup", ["runs=x"])
    keys = "runs name metric mode test debug output root batch_size trust config_dirs soup trainer"
    assert list(config.keys()) == keys.split()
    assert list(config.soup.keys()) == ["kind", "alphas", "update_bn", "bn_pictures"]


def test_the_keys_of_a_comparison_are_pinned() -> None:
    keys = "runs by metric mode against output resamples seed config_dirs debug"
    assert list(compose("compare", ["runs=x"]).keys()) == keys.split()
