"""What the audit finds of planted faults, beside cleanvision and the hashes of imagehash.

    python scripts/bench/audit_peers.py [--seeds 300 301 302] [--folder DATASET]

On generated data sets: the share of planted faults that is found, the share of clean pictures that is accused, and the
time. Prints a Markdown table. A peer that is not installed is left out (`pip install cleanvision==0.3.7`; its
thresholds are its defaults). For the hashes, a pair is one of copies where at most ``distance`` of 64 bits differ.

With ``--folder`` it prints the kinds and numbers that Frostline and cleanvision find in a data set of class folders.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from planted import Planted, plant  # noqa: E402  # the tests' own generator

from frostline.auditing import Kind, find, scan  # noqa: E402
from frostline.data import FolderData  # noqa: E402
from frostline.errors import DataError  # noqa: E402

Groups = dict[str, list[frozenset[str]]]
DISTANCES = (6, 10, 12)

# all copies count as one kind: the peers know nothing of splits and labels
COPIES = (
    Kind.EXACT_DUPLICATE,
    Kind.EXACT_DUPLICATE_ACROSS_SPLITS,
    Kind.NEAR_DUPLICATE,
    Kind.NEAR_DUPLICATE_ACROSS_SPLITS,
    Kind.CONFLICTING_LABELS,
)


def common(kind: str) -> str:
    if kind in (Kind.EXACT_DUPLICATE, Kind.EXACT_DUPLICATE_ACROSS_SPLITS, Kind.CONFLICTING_LABELS):
        return "equal copies"
    return "near copies" if kind in (Kind.NEAR_DUPLICATE, Kind.NEAR_DUPLICATE_ACROSS_SPLITS) else kind


def frostline(root: Path) -> Groups:
    found = FolderData(root=str(root)).read()
    groups: Groups = defaultdict(list)
    for finding in find(scan(found.classes, found.splits)):
        groups["copies" if finding.kind in COPIES else finding.kind].append(
            frozenset(place.name for place in finding.places)
        )
    return groups


def cleanvision(root: Path) -> Groups:
    from cleanvision import Imagelab

    # one file that cannot be read ends its run, so that it gets the others only
    whole = [str(root / name) for name in readable(root)]
    lab = Imagelab(filepaths=whole)
    lab.find_issues(verbose=False)
    groups: Groups = defaultdict(list)
    names = {"light": Kind.BRIGHT, "blurry": Kind.BLURRED, "low_information": Kind.BLANK, "grayscale": Kind.ODD_MODE}
    names |= {"odd_aspect_ratio": Kind.ODD_ASPECT, "odd_size": Kind.ODD_SIZE, "dark": Kind.DARK}
    for issue, kind in names.items():
        column = f"is_{issue}_issue"
        if column in lab.issues:
            groups[kind] += [frozenset([relative(root, path)]) for path in lab.issues.index[lab.issues[column]]]
    for issue in ("exact_duplicates", "near_duplicates"):
        for paths in lab.info.get(issue, {}).get("sets", []):
            groups["copies"].append(frozenset(relative(root, path) for path in paths))
    return groups


def readable(root: Path) -> list[str]:
    found = FolderData(root=str(root)).read()
    parts = scan(found.classes, found.splits).splits.values()
    return [part.split.name(index) for part in parts for index in np.flatnonzero(part.readable).tolist()]


def hashes(name: str, distance: int) -> Callable[[Path], Groups]:
    def run(root: Path) -> Groups:
        import imagehash

        names, bits = [], []
        for split in FolderData(root=str(root)).read().splits.values():
            for index in range(len(split)):
                try:
                    bits.append(getattr(imagehash, name)(split.image(index)).hash.ravel())
                    names.append(split.name(index))
                except DataError:
                    continue
        packed = np.packbits(np.array(bits), axis=1).view(np.uint64)[:, 0]
        apart = np.bitwise_count(packed[:, None] ^ packed[None, :])
        pairs = zip(*np.nonzero(np.triu(apart <= distance, 1)), strict=True)
        return {"copies": [frozenset((names[left], names[right])) for left, right in pairs]}

    return run


def relative(root: Path, path: str) -> str:
    return Path(path).resolve().relative_to(root.resolve()).as_posix()


def installed() -> dict[str, Callable[[Path], Groups]]:
    tools: dict[str, Callable[[Path], Groups]] = {"frostline": frostline}
    if importlib.util.find_spec("cleanvision"):
        tools["cleanvision"] = cleanvision
    if importlib.util.find_spec("imagehash"):
        for name in ("phash", "dhash"):
            tools |= {f"{name}, {distance} bits": hashes(name, distance) for distance in DISTANCES}
    return tools


def score(planted: Planted, found: Groups, hits: Counter[str], totals: Counter[str]) -> tuple[int, int]:
    """Counts what is found; clean pictures that are accused, and how many of those as copies."""
    for kind, groups in planted.faults.items():
        own = found.get("copies" if kind in COPIES else kind, [])
        totals[common(kind)] += len(groups)
        hits[common(kind)] += sum(any(group <= one for one in own) for group in groups)
    accused = {name for groups in found.values() for group in groups for name in group}
    copies = {name for group in found.get("copies", []) for name in group}
    return len(accused & planted.clean), len(copies & planted.clean)


def compare(seeds: Iterable[int]) -> None:
    tools = installed()
    hits: dict[str, Counter[str]] = {tool: Counter() for tool in tools}
    totals: dict[str, Counter[str]] = {tool: Counter() for tool in tools}
    wrong: Counter[str] = Counter()
    as_copies: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    clean = 0
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            planted = plant(Path(folder), seed)
            clean += len(planted.clean)
            for tool, run in tools.items():
                started = time.perf_counter()
                found = run(planted.root)
                seconds[tool] += time.perf_counter() - started
                accused, copies = score(planted, found, hits[tool], totals[tool])
                wrong[tool] += accused
                as_copies[tool] += copies
    print("| | " + " | ".join(tools) + " |")
    print("|---" * (len(tools) + 1) + "|")
    for kind in totals["frostline"]:
        row = [f"{hits[tool][kind]}/{totals[tool][kind]}" for tool in tools]
        print(f"| {kind} | " + " | ".join(row) + " |")
    print("| clean accused | " + " | ".join(f"{wrong[tool] / clean:.2%}" for tool in tools) + " |")
    print("| of these as copies | " + " | ".join(f"{as_copies[tool] / clean:.2%}" for tool in tools) + " |")
    print("| seconds | " + " | ".join(f"{seconds[tool]:.1f}" for tool in tools) + " |")


def look(folder: Path) -> None:
    for tool, run in installed().items():
        if tool in ("frostline", "cleanvision"):
            started = time.perf_counter()
            found = {str(kind): len(groups) for kind, groups in run(folder).items() if groups}
            print(f"{tool}: {time.perf_counter() - started:.1f} s, {found}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[300, 301, 302])
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.folder:
        look(arguments.folder)
    else:
        compare(arguments.seeds)


if __name__ == "__main__":
    main()
