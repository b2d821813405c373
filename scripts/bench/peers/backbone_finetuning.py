"""Proofs 1 to 3 on Lightning's ``BackboneFinetuning``, and on its base class ``BaseFinetuning``.

``BackboneFinetuning`` knows two phases: the head, then all. It freezes with batch norms left in training mode, whatever
``train_bn`` says; which of their parameters learn then depends on what the optimizer was given, and the documentation
shows two ways. Three phases, the last of which freezes a part again, are a subclass of ``BaseFinetuning`` as its
documentation shows one, here with ``train_bn=False`` where it freezes, so that batch norms can be frozen at all.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning

from proofs import Setting, main

TWO_PHASES = {0: ("head",), 2: ("head", "backbone")}
THREE_PHASES = {
    0: ("head",),
    2: ("head", "backbone.layer3", "backbone.layer4"),
    4: ("head", "backbone.layer4"),
}


class ProbeThawFreeze(BaseFinetuning):
    """The head; with it the last two stages from epoch 2; of these only the last from epoch 4."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.backbone, train_bn=False)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 2:
            stages = [pl_module.backbone.layer3, pl_module.backbone.layer4]
            self.unfreeze_and_add_param_group(stages, optimizer, lr=0.05)
        if epoch == 4:
            self.freeze(pl_module.backbone.layer3, train_bn=False)


def two_phases(train_bn: bool, optimize: str) -> Setting:
    def callbacks(folder: Any) -> list[Any]:
        return [BackboneFinetuning(unfreeze_backbone_at_epoch=2, train_bn=train_bn, backbone_initial_lr=0.01)]

    return Setting(callbacks, TWO_PHASES, optimize=optimize)


SETTINGS = {
    "BackboneFinetuning(train_bn=True), optimizer over the head": two_phases(True, "head"),
    "BackboneFinetuning(train_bn=False), optimizer over what requires a gradient": two_phases(False, "learning"),
    "a subclass of BaseFinetuning, freezing with train_bn=False, three phases": Setting(
        lambda folder: [ProbeThawFreeze()], THREE_PHASES
    ),
}

if __name__ == "__main__":
    main("Lightning's callbacks", SETTINGS)
