"""What the fork server of a sweep imports once, so that its jobs need not."""

import frostline.runs.pretrain
import frostline.runs.train

__all__ = ["frostline"]
