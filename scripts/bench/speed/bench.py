"""Frostline against Lightning, fastai, timm's training loop and PyTorch by hand, in one command.

On the same pictures, split, weights, input, batches, optimizer, rates and epochs, in processes that take turns, it
measures (a) a linear probe, (b) LP-FT, and (c) the pictures a second at which everything learns, with the test accuracy
of each, and then runs the other benchmarks of this folder: (d, h) many heads, (e) a phase that is frozen in part, (f)
decoding, (g) the start, (i) the head alone, (j) the forward engine, (k) the training loop.

It writes speed.md, speed.svg and speed.json. What a peer does for speed is said in its file in peers/.

    scripts/bench/speed/run
    scripts/bench/speed/run --folder PICTURES --weights TIMM_FOLDER --size 128
    scripts/bench/speed/run --device cuda --size 224 --batch-size 128
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

QUICK = {
    "backbone": "test_resnet",
    "pictures": 40,
    "side": 48,
    "size": 32,
    "batch_size": 8,
    "epochs": 2,
    "head_epochs": 1,
    "full_epochs": 1,
    "rate_epochs": 2,
    "repeats": 1,
    "workers": 0,
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; what ``--quick`` sets can be set otherwise beside it."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench/speed/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="of pictures: train, val and test, or class folders to divide")
    parser.add_argument("--weights", type=Path, help="a timm folder (config.json, model.safetensors); else random")
    parser.add_argument("--backbone", default="resnet18", help="where the weights are random (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=600, help="that are made where there is no --folder")
    parser.add_argument("--side", type=int, default=256, help="of these, in pixels")
    parser.add_argument("--size", type=int, default=128, help="of the model's input (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=20, help="of the probe (default: %(default)s)")
    parser.add_argument("--head-epochs", type=int, default=5, help="of LP-FT's first phase (default: %(default)s)")
    parser.add_argument("--full-epochs", type=int, default=5, help="of its second (default: %(default)s)")
    parser.add_argument("--rate-epochs", type=int, default=3, help="of (c), the first of which is not counted")
    parser.add_argument("--lr", type=float, default=3e-3, help="of the head (default: %(default)s)")
    parser.add_argument("--full-lr", type=float, default=3e-4, help="of everything (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=min(8, os.cpu_count() or 1), help="that decode: one a core, up to 8"
    )
    parser.add_argument("--threads", type=int, help="of torch on the CPU (default: its own choice)")
    parser.add_argument("--repeats", type=int, default=3, help="each with another seed (default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", default="abcdefghijk", metavar="LETTERS", help="of the list above, such as ab")
    parser.add_argument("--entrants", default="", metavar="REGEX", help="those whose name matches (default: all)")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/speed"))
    parser.add_argument("--limit", type=float, default=3600, help="seconds that one training or script may take")
    parser.add_argument(
        "--peers-python",
        type=os.path.abspath,
        help="of an environment that has the peers, in place of a throw-away one",
    )
    parser.add_argument("--quick", action="store_true", help="tiny, without fastai and (d) to (k): whether it all runs")
    if "--quick" in (sys.argv[1:] if arguments is None else arguments):
        parser.set_defaults(**QUICK, only="abc", peers_python=sys.executable)
    found = parser.parse_args(arguments)
    if found.rate_epochs < 2:
        parser.error("--rate-epochs: at least 2, since the first is not counted")
    if min(found.epochs, found.head_epochs, found.full_epochs, found.repeats) < 1:
        parser.error("--epochs, --head-epochs, --full-epochs and --repeats: at least 1")
    if unknown := set(found.only) - set("abcdefghijk"):
        parser.error(f"--only: no {', '.join(sorted(unknown))}; there are a to k")
    return found


def main() -> None:
    """Measure and write."""
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is temporary is removed
    if arguments.device == "cuda" and not has_gpu():
        sys.exit("error: --device cuda: no CUDA device here")
    with tempfile.TemporaryDirectory(prefix="frostline-speed-") as scratch:
        from comparison import Comparison  # after the command line has been found right, which answers at once
        from environment import InstallError
        from pictures import FolderError

        try:
            Comparison(arguments, Path(scratch)).run()
        except (FolderError, InstallError) as error:
            sys.exit(f"error: {error}")


def has_gpu() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
