"""The update rules of torch.optim for many heads in one tensor, each with a learning rate and a decay of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8  # torch's defaults


class StackedOptimizer(ABC):
    """Updates ``[D + 1, C]`` parameters in place, in which a head has some of the columns and the last row is biases.

    Each head goes as with an optimizer of torch.optim of its own, in which its bias has no weight decay.

    Args:
        parameters: of all heads.
        lr: ``[C]`` float64 learning rates of the columns.
        weight_decay: ``[C]`` float64 of the columns.
    """

    def __init__(self, parameters: Tensor, lr: Tensor, weight_decay: Tensor) -> None:
        self.parameters = parameters
        self._lr, self._weight_decay = lr, weight_decay
        self._decays = bool(weight_decay.any())
        self._steps = 0

    def step(self, gradient: Tensor, factor: float) -> None:
        """Takes a step.

        Args:
            gradient: ``[D + 1, C]``; may be changed.
            factor: of the learning rates.
        """
        self._steps += 1
        self._update(gradient, self._lr * factor)

    def keep(self, columns: Tensor) -> None:
        """Goes on with some of the columns alone: ``[c]`` int64."""
        self.parameters = self.parameters[:, columns].contiguous()
        self._lr, self._weight_decay = self._lr[columns], self._weight_decay[columns]
        self._decays = bool(self._weight_decay.any())
        self._keep(columns)

    @abstractmethod
    def _update(self, gradient: Tensor, lr: Tensor) -> None: ...

    @abstractmethod
    def _keep(self, columns: Tensor) -> None: ...

    def _row(self, values: Tensor) -> Tensor:
        return values.to(self.parameters)


class StackedAdamW(StackedOptimizer):
    """Loshchilov and Hutter 2019, arXiv:1711.05101, as `torch.optim.AdamW` with its defaults."""

    def __init__(self, parameters: Tensor, lr: Tensor, weight_decay: Tensor) -> None:
        super().__init__(parameters, lr, weight_decay)
        self._mean, self._square = torch.zeros_like(parameters), torch.zeros_like(parameters)

    def _update(self, gradient: Tensor, lr: Tensor) -> None:
        first, second = BETAS
        if self._decays:
            self.parameters[:-1].mul_(self._row(1 - lr * self._weight_decay))
        self._mean.lerp_(gradient, 1 - first)
        self._square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = torch.sqrt(self._square, out=gradient)
        root.div_((1 - second**self._steps) ** 0.5).add_(EPSILON)
        change = torch.div(self._mean, root, out=root)
        self.parameters.addcmul_(change, self._row(lr / (1 - first**self._steps)), value=-1)

    def _keep(self, columns: Tensor) -> None:
        self._mean, self._square = self._mean[:, columns].contiguous(), self._square[:, columns].contiguous()


class StackedSGD(StackedOptimizer):
    """Stochastic gradient descent with momentum, as `torch.optim.SGD`; the decay is a part of the gradient.

    Args:
        parameters, lr, weight_decay: see `StackedOptimizer`.
        momentum: from 0 to below 1.
    """

    def __init__(self, parameters: Tensor, lr: Tensor, weight_decay: Tensor, momentum: float) -> None:
        super().__init__(parameters, lr, weight_decay)
        self._momentum = momentum
        self._velocity = torch.zeros_like(parameters)

    def _update(self, gradient: Tensor, lr: Tensor) -> None:
        if self._decays:
            gradient[:-1].addcmul_(self.parameters[:-1], self._row(self._weight_decay))
        self._velocity.mul_(self._momentum).add_(gradient)
        self.parameters.addcmul_(self._velocity, self._row(lr), value=-1)

    def _keep(self, columns: Tensor) -> None:
        self._velocity = self._velocity[:, columns].contiguous()
