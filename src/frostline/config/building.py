"""From config nodes to objects: open nodes are instantiated, closed ones become their dataclass."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from frostline.config.checking import with_words
from frostline.errors import ConfigError, FrostlineError
from frostline.specs import FreezeSpec, PhaseSpec

Spec = TypeVar("Spec")


def build(node: DictConfig, path: str, **extra: Any) -> Any:
    """The object that an open node names; no part of it ever receives a ``DictConfig``.

    Args:
        node: a node with ``_target_``.
        path: its key in the config, for the message.
        extra: arguments that only the program knows.

    Raises:
        ConfigError: the constructor refused; its own message is shown.
    """
    try:
        if not extra or node.get("_partial_"):
            return instantiate(node, _convert_="all", **extra)
        # Hydra would turn what is given here into config nodes, and a dataclass into a dictionary
        return instantiate(node, _convert_="all", _partial_=True)(**extra)
    except FrostlineError:
        raise
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, FrostlineError):
            raise cause from None
        raise ConfigError(_refused(node, path, cause), mend=f"Look at the keys of {path}.") from cause
    except Exception as error:  # a constructor may refuse in any way
        if not extra:
            raise
        raise ConfigError(_refused(node, path, error), mend=f"Look at the keys of {path}.") from error


def _refused(node: DictConfig, path: str, cause: BaseException) -> str:
    return f"{path} ({node.get('_target_')}): {cause}"


def spec_of(node: DictConfig, kind: type[Spec]) -> Spec:
    """The plain dataclass of a closed node, with the phases of a freeze schedule as ``PhaseSpec``."""
    try:
        spec = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), node))
        if isinstance(spec, FreezeSpec):
            spec.phases = {
                name: OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PhaseSpec), _node(phase)))
                for name, phase in spec.phases.items()
            }
    except (OmegaConfBaseException, TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"The config holds no {kind.__name__}: {str(error).splitlines()[0]}") from error
    return cast(Spec, spec)


def _node(phase: Any) -> DictConfig:
    return with_words(OmegaConf.create(phase))
