"""Which phases compute features once: what forbids it, in words, before the first step."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from frostline.config import compose, spec_of
from frostline.errors import ConfigError
from frostline.features import CachedPhases, FeatureStore, FrozenBody, find_boundary
from frostline.freezing import Position
from frostline.runs.caching import CachePlan, plan_cache
from frostline.runs.parts import build_parts
from frostline.specs import CacheMode, FreezeSpec
from frostline.storage import size_text

PROBE = ["backbone.name=test_resnet", "backbone.weights=none", "data.labels_per_class=8", "data.size=32", "trainer=cpu"]
PROBE += ["freeze=linear_probe", "augment=none", "data.batch_size=8"]
TOP = "freeze.phases.probe.train='head + top:1'"
TWO = ["freeze=lp_ft", "trainer.max_epochs=8"]


def planned(*more: str, limit: int = 1 << 40) -> CachePlan:
    config = compose("train", [*PROBE, *more])
    return plan_cache(config, build_parts(config), FeatureStore(Path("nowhere"), limit))


REFUSED = {
    "changes each picture anew": ["augment=light"],
    "mixes the pictures": ["augment.mixup=0.2"],
    "its frost line is at the stem: conv1": ["freeze.phases.probe.train='head + depth:0..0.1'"],
    "forward pass of HighResolutionNet cannot be cut": ["backbone.name=hrnet_w18_small", TOP],
    "speed.compile": ["speed.compile=true", TOP],
    "trainer.sync_batchnorm": ["trainer.devices=2", "trainer.strategy=ddp", "trainer.sync_batchnorm=true"],
    "cannot be told": ["augment.transforms=[{_target_: torchvision.transforms.RandomInvert}]"],
    "ends inside an epoch": [*TWO, "freeze.phases.probe.until.fraction=null", "+freeze.phases.probe.until.steps=13"],
}


@pytest.mark.slow
@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_hold_is_refused_with_the_reason_where_it_is_required(reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        planned(*REFUSED[reason], "freeze.phases.probe.cache.mode=require")
    assert "freeze.phases.probe.cache.mode=require" in str(refused.value)
    plan = planned(*REFUSED[reason])
    assert reason in plan.sentences(80)["probe"]
    # nobody expects it of a phase that freezes nothing at the front
    assert any(reason in note for note in plan.notes()) == ("at the stem" not in reason)


@pytest.mark.slow
def test_an_adapter_that_does_not_learn_is_a_part_of_the_body() -> None:
    pytest.importorskip("peft")
    plan = planned("adapter=lora", "backbone.name=test_vit", *TWO)
    places = [verdict.place.cut.title for verdict in plan.verdicts if verdict.place is not None and verdict.is_cached]
    # what comes before the first block has no matrices
    assert places == ["before head", "after norm_pre"]


@pytest.mark.slow
def test_what_forbids_it_in_a_later_phase() -> None:
    after = [
        "freeze.phases.full={train: all, until: {epochs: 2}}",
        "+freeze.phases.again={train: head, until: {epochs: 3}}",
    ]
    plan = planned("freeze=linear_probe", "freeze.phases.probe.until={epochs: 2}", *after, "trainer.max_epochs=7")
    assert [verdict.is_cached for verdict in plan.verdicts] == [True, False, True]
    best = planned(
        "freeze.phases.probe.until={epochs: 2}", *after, "freeze.phases.again.start=best", "trainer.max_epochs=7"
    )
    assert "starts from the best" in best.verdicts[2].why_not
    averaged = planned("freeze.phases.probe.until={epochs: 2}", *after, "trainer.max_epochs=7", "callbacks=ema")
    assert "averages of weights" in averaged.verdicts[2].why_not
    assert averaged.verdicts[0].is_cached


@pytest.mark.slow
def test_it_is_cached_where_epochs_exceed_views() -> None:
    assert planned("trainer.max_epochs=2").sentences(80)["probe"] == (
        "yes, before fc: 80 pictures x 96 x 4 bytes = 30.7 kB; 2 epochs > 1 view; 100.0% of a forward pass is frozen, "
        "so that an epoch costs at least 0.1% of one without"
    )
    assert planned("trainer.max_epochs=1").sentences(80)["probe"] == "no: it does not pay: 1 epoch <= 1 view"
    views = ["augment=light", "freeze.phases.probe.cache.views=4"]
    assert planned(*views, "trainer.max_epochs=4").sentences(80)["probe"] == "no: it does not pay: 4 epochs <= 4 views"
    assert planned(*views, "trainer.max_epochs=5").verdicts[0].is_cached
    # all four would be the same
    verdict = planned(views[1], "augment=none", "trainer.max_epochs=2").verdicts[0]
    assert (verdict.is_cached, verdict.views) == (True, 1)
    required = planned(*views, "trainer.max_epochs=2", "freeze.phases.probe.cache.mode=require")
    assert required.verdicts[0].is_cached


@pytest.mark.slow
def test_of_several_processes_one_computes_while_the_others_wait() -> None:
    two = ["trainer.devices=2", "trainer.strategy=ddp"]
    assert planned(*two, "trainer.max_epochs=2").sentences(80)["probe"] == (
        "no: it does not pay: 2 epochs <= 1 view x 2 processes, of which one computes"
    )
    plan = planned(*two, "trainer.max_epochs=3")
    assert plan.verdicts[0].is_cached
    assert "3 epochs > 1 view x 2 processes" in plan.sentences(80)["probe"]
    assert plan.notes() == []


@pytest.mark.parametrize("override", ["freeze.phases.probe.cache.mode=off", "freeze.phases.probe.cache={mode: off}"])
def test_off_is_off(override: str) -> None:
    plan = planned(override)
    assert plan.sentences(80) == {"probe": "no: cache.mode=off"}
    assert plan.notes() == []
    assert not plan.verdicts[0].why_not


def test_what_cannot_be_cached_cannot_where_it_may_not() -> None:
    """So that a run measures the same about itself: see `RunCache.can_stand_in`."""
    plan = planned("freeze=full", "freeze.phases.full.cache.mode=off")
    assert "at the stem" in plan.verdicts[0].why_not
    assert plan.sentences(80) == {"full": "no: cache.mode=off"}
    assert plan.notes() == []


@pytest.mark.parametrize(
    ("override", "said"), [("views=0", "views is 0"), ("mode=always", "always"), ("vews=2", "vews")]
)
def test_what_is_misspelt_is_a_fault(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        planned(f"freeze.phases.probe.cache.{override}")


def test_off_is_off_in_a_file_of_yaml() -> None:
    # YAML 1.1 reads a bare off as false
    freeze = spec_of(OmegaConf.create("phases: {probe: {train: head, cache: {mode: off}}}"), FreezeSpec)
    assert freeze.phases["probe"].cache.mode is CacheMode.off


# --- while a run is trained -------------------------------------------------------------------------------------------


class At:
    """The clock of a run that stands in its first phase."""

    def __init__(self, *, stopping: bool = False) -> None:
        self.stopping = stopping

    def current(self) -> Position:
        return Position()

    def upcoming(self) -> Position:
        return Position()

    def is_stopping(self) -> bool:
        return self.stopping


@pytest.fixture
def fed(tmp_path: Path):
    def made(*more: str) -> tuple[CachedPhases, list[str]]:
        config = compose("train", [*PROBE, "trainer.max_epochs=3", *more])
        parts = build_parts(config)
        said: list[str] = []
        model = parts.task.model
        body = FrozenBody(model, find_boundary(model), model.forward)
        store = FeatureStore(tmp_path, 1 << 24)
        return CachedPhases(plan_cache(config, parts, store).verdicts, [body], parts.data, store, said.append), said

    return made


def test_a_signal_ends_the_pass_and_the_epoch_begins_with_pictures(fed) -> None:
    phases, said = fed()
    with phases.following(At(stopping=True)):
        assert phases("train", train=True, epoch=0).features is None
    assert said == []
    with phases.following(At()):
        assert phases("train", train=True, epoch=0).features is not None
        assert phases("train", train=True, epoch=1).features is not None
    assert len(said) == 1
    assert said[0].startswith("features of 80 train pictures: computed in")


def test_what_turns_out_not_to_hold_is_said_once_or_refused(fed) -> None:
    for mode in ("auto", "require"):
        phases, said = fed(f"freeze.phases.probe.cache.mode={mode}")
        model = phases.bodies[0].model
        phases.bodies[0].forward = lambda images, model=model: (model(images), model(images))
        with phases.following(At()):
            if mode == "require":
                with pytest.raises(ConfigError, match="runs 2 times"):
                    phases("train", train=True, epoch=0)
                continue
            assert phases("train", train=True, epoch=0).features is None
            assert phases("train", train=True, epoch=1).features is None
        assert len(said) == 1
        assert "phase probe is not cached: its classifier, fc, runs 2 times" in said[0]


def test_a_cached_phase_with_fixed_views_computes_each_as_its_turn_comes(fed) -> None:
    phases, said = fed("augment=light", "freeze.phases.probe.cache.views=2")
    with phases.following(At()):
        assert phases("train", train=True, epoch=0).views == 2
        assert len(said) == 1
        assert phases("train", train=True, epoch=2).features is not None
        assert len(said) == 1
        assert phases("train", train=True, epoch=3).features is not None
        assert phases("val", train=False, epoch=0).views == 0
    assert [line.partition(":")[0] for line in said] == [
        "features of 80 train pictures",
        "features of 80 train pictures, view 1",
        "features of 269 val pictures",
    ]


def test_a_model_that_cannot_be_cut_has_a_plan() -> None:
    more = ["backbone.name=hrnet_w18_small", TOP, "augment=light", "freeze.phases.probe.cache.views=2"]
    plan = planned(*more)
    assert plan.verdicts[0].place is None
    assert not plan.verdicts[0].holds


# --- where the network is cut -----------------------------------------------------------------------------------------


def titles(plan: CachePlan) -> list[str]:
    return [verdict.place.cut.title if verdict.place else "" for verdict in plan.verdicts]


@pytest.mark.slow
def test_each_phase_has_its_own_cut() -> None:
    phases = {"probe": "head", "two": "head + top:2", "one": "head + top:1", "again": "head + top:2", "all": "all"}
    written = ", ".join(f"{name}: {{train: '{train}', until: {{epochs: 2}}}}" for name, train in phases.items())
    plan = planned(f"+freeze.phases={{{written}}}".replace("+", "", 1), "trainer.max_epochs=10")
    assert titles(plan) == ["before fc", "after layer2", "after layer3", "after layer2", ""]
    assert "at the stem" in plan.verdicts[4].why_not
    first, again = plan.verdicts[1], plan.verdicts[3]
    assert first.place.cut.key == again.place.cut.key
    assert [verdict.is_cached for verdict in plan.verdicts] == [True] * 4 + [False]
    # the second has trained what the fourth takes from its own cut on, and what is below the cut of the third
    best = planned(f"freeze.phases={{{written}}}", "trainer.max_epochs=10", "+freeze.phases.one.start=best")
    assert "phase 'two' changes the body" in best.verdicts[2].why_not
    assert best.verdicts[3].is_cached


@pytest.mark.slow
def test_a_walk_is_cut_below_all_that_it_reaches() -> None:
    walk = "walk: {order: top_down, by: 1, each: {epochs: 2}, mode: add}"
    plan = planned(f"freeze.phases.probe={{train: 'head + top:2', {walk}}}", "trainer.max_epochs=6")
    assert titles(plan) == ["after layer2"]
    assert titles(planned("freeze=gradual", "trainer.max_epochs=20")) == [""]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "title"),
    [
        (["+backbone.kwargs.drop_rate=0.1"], "after global_pool"),
        (["backbone.name=test_efficientnet", TOP, "+backbone.kwargs.drop_path_rate=0.2"], "after blocks.3"),
        (["backbone.name=test_vit", "+backbone.kwargs.drop_path_rate=0.2", TOP], "after blocks.4"),
        (["backbone.name=deit_tiny_distilled_patch16_224", "+backbone.kwargs.depth=2"], "after norm"),
        (["freeze.frozen=train", "backbone.name=test_vit", "+backbone.kwargs.proj_drop_rate=0.1"], "after norm_pre"),
    ],
)
def test_what_is_random_above_the_cut_is_no_reason_against(more: list[str], title: str) -> None:
    assert titles(planned(*more)) == [title]


@pytest.mark.slow
def test_more_than_the_cache_may_hold_is_not_computed() -> None:
    wide = [TOP, "data.size=32", "trainer.max_epochs=3"]
    size = (80 + 269 + 269) * 192 * 2 * 2 * 4
    assert planned(*wide, limit=size).verdicts[0].is_cached
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("frostline.runs.caching.IN_MEMORY", 0)
        assert planned(*wide, limit=size).verdicts[0].is_cached
        plan = planned(*wide, limit=size - 1)
        assert plan.verdicts[0].why_not == (
            f"its features after layer3 take {size_text(size)}, more than the {size_text(size - 1)} that the cache may "
            "hold (FROSTLINE_CACHE_GIB)"
        )
        with pytest.raises(ConfigError, match="more than the"):
            planned(*wide, "freeze.phases.probe.cache.mode=require", limit=size - 1)


def test_a_little_that_is_frozen_does_not_pay() -> None:
    moving = ["freeze.bn.frozen=batch", "trainer.max_epochs=3"]
    plan = planned(*moving)
    assert titles(plan) == ["after conv1.0"]
    assert "no: it does not pay: 3 epochs > 1 view; " in plan.sentences(80)["probe"]
    assert planned(*moving, "freeze.phases.probe.cache.mode=require").verdicts[0].is_cached


def test_the_cost_has_the_share_that_is_frozen() -> None:
    plan = planned(TOP, "trainer.max_epochs=3")
    frozen = plan.verdicts[0].place.frozen
    assert 0.3 < frozen < 0.99
    ratio = 3 * (1 - frozen) / (frozen + 3 * (1 - frozen))
    sentence = plan.sentences(80)["probe"]
    assert sentence.startswith("yes, after layer3: 80 pictures x 768 x 4 bytes = 246 kB; 3 epochs > 1 view; ")
    assert f"costs at least {ratio:.1%} of one without" in sentence
    assert plan.lines() == [f"phase probe computes features once, after layer3: {plan.verdicts[0].formula()}"]
