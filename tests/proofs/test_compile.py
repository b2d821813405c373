"""A compiled run: one compilation for each set of trainable parameters, and the weights of one that is not compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import SmallRun, Tensors, changed, of_groups, small_backbone, small_run, tensors
from torch import Tensor, fx, nn

from frostline.freezing import apply_phase, assert_modes
from frostline.runs.parts import checkpoint_gradients
from frostline.specs import BatchNormSpec, EachSpec, PhaseSpec, UntilSpec, WalkSpec

NAME = "test_vit"
EPOCHS = 4
# four depth groups, of which one more learns in each epoch
WALK = {"walk": PhaseSpec("all", walk=WalkSpec(each=EachSpec(epochs=1)))}


class Counting:
    """A backend that compiles nothing and counts what it is asked to.

    Attributes:
        trained: how many compilations were of a model in train mode.
        validated: how many were not.
    """

    def __init__(self) -> None:
        self.trained = 0
        self.validated = 0

    def __call__(self, graph: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        if torch.is_grad_enabled():
            self.trained += 1
        else:
            self.validated += 1
        return graph.forward


def walked(record: Path, *, compiled: bool, **options: Any) -> tuple[SmallRun, Counting]:
    torch.compiler.reset()
    run, backend = small_run(NAME, record, epochs=EPOCHS, bins=3, **options), Counting()
    if compiled:
        run.model.compile(backend=backend)
    run.fit()
    torch.compiler.reset()
    return run, backend


@pytest.mark.slow
def test_a_walk_compiles_once_for_each_stage_and_gives_the_same_weights(tmp_path: Path) -> None:
    run, backend = walked(tmp_path, compiled=True, **WALK)
    assert len({stage.trainable for phase in run.schedule.phases for stage in phase.stages}) == EPOCHS
    # what stands behind a reset of the compiler has to be compiled for validation again
    assert (backend.trained, backend.validated) == (EPOCHS, EPOCHS)
    plain, unused = walked(tmp_path, compiled=False, **WALK)
    assert (unused.trained, unused.validated) == (0, 0)
    assert not changed(tensors(run.model), tensors(plain.model))


@pytest.mark.slow
def test_without_a_transition_nothing_is_compiled_again(tmp_path: Path) -> None:
    until = UntilSpec(epochs=2)
    # the same parameters in two phases: no reason to compile
    _, backend = walked(tmp_path, compiled=True, one=PhaseSpec("head", until=until), two=PhaseSpec("head"))
    assert (backend.trained, backend.validated) == (1, 1)


# --- gradient checkpointing -------------------------------------------------------------------------------------------


def gradients(name: str, frozen: int, *, checkpointed: bool) -> Tensors:
    """The gradients of one batch with the first groups frozen, and how often each block has run."""
    backbone = small_backbone(name)
    if checkpointed:
        checkpoint_gradients(backbone.model)
    trainable = frozenset(of_groups(backbone.groups[frozen:]))
    apply_phase(backbone.model, trainable)
    backbone.model.train()
    assert_modes(backbone.model, backbone.groups, trainable, BatchNormSpec())
    images: Tensor = torch.randn(4, *backbone.preprocessing.size, generator=torch.Generator().manual_seed(0))
    # the masks of dropout are drawn again as they were
    torch.manual_seed(0)
    nn.functional.cross_entropy(backbone.model(images), torch.tensor([0, 1, 2, 0])).backward()
    return {n: p.grad for n, p in backbone.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("frozen", [0, 1, 3])
@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "swin_tiny_patch4_window7_224"])
def test_checkpointing_changes_no_gradient_behind_a_frozen_front(name: str, frozen: int) -> None:
    """The reentrant kind would give none at all: the output of a frozen front asks for no gradient."""
    kept, again = (gradients(name, frozen, checkpointed=checkpointed) for checkpointed in (False, True))
    names = of_groups(small_backbone(name).groups[frozen:])
    assert kept.keys() == again.keys() == names
    assert not changed(kept, again)


def test_checkpointing_computes_what_learns_again_and_what_is_frozen_once() -> None:
    backbone = small_backbone("test_vit")
    checkpoint_gradients(backbone.model)
    apply_phase(backbone.model, frozenset(of_groups(backbone.groups[3:])))
    backbone.model.train()
    runs = dict.fromkeys(range(6), 0)

    def count(index: int) -> Callable[..., None]:
        def counted(*_: Any) -> None:
            runs[index] += 1

        return counted

    for index, block in enumerate(backbone.model.blocks):
        block.register_forward_pre_hook(count(index))
    backbone.model(torch.randn(2, 3, 32, 32)).sum().backward()
    # the stem and blocks 0 and 1 are frozen
    assert runs == {0: 1, 1: 1, 2: 2, 3: 2, 4: 2, 5: 2}
