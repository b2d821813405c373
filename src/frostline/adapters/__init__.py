"""What is added to a backbone so that little of it has to learn: LoRA, or nothing."""

from frostline.adapters.adapter import Adapter, NoAdapter
from frostline.adapters.lora import Lora
from frostline.adapters.targets import Targets, find_targets

__all__ = ["Adapter", "Lora", "NoAdapter", "Targets", "find_targets"]
