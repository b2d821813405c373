"""Archives of pictures: what leads out of them is refused. See tests/data/test_archives.py for damage and limits."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frostline.data import FolderData
from frostline.errors import DataError

Member = tuple[str, dict[str, Any]]

HARD_LINK = "a hard link out"
ESCAPES: dict[str, list[Member]] = {
    "up": [("../canary", {})],
    "up from within": [("train/a/../../../canary", {})],
    "absolute": [("CANARY", {})],
    "a link out": [("train/a/x.png", {"type": tarfile.SYMTYPE, "linkname": "CANARY"})],
    "a folder that is a link": [("train", {"type": tarfile.SYMTYPE, "linkname": "FOLDER"}), ("train/canary", {})],
    HARD_LINK: [("train/a/x.png", {"type": tarfile.LNKTYPE, "linkname": "../../etc/passwd"})],
    "a device": [("train/a/x.png", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5})],
    "a pipe": [("train/a/x.png", {"type": tarfile.FIFOTYPE})],
}


def write_tar(path: Path, members: list[Member], place: Callable[[str], str]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, fields in members:
            member = tarfile.TarInfo(place(name))
            for key, value in fields.items():
                setattr(member, key, place(value) if isinstance(value, str) else value)
            member.size = 0 if fields else 4
            archive.addfile(member, None if fields else io.BytesIO(b"evil"))


def write_zip(path: Path, members: list[Member], place: Callable[[str], str]) -> None:
    kinds = {tarfile.SYMTYPE: stat.S_IFLNK, tarfile.CHRTYPE: stat.S_IFCHR, tarfile.FIFOTYPE: stat.S_IFIFO}
    with zipfile.ZipFile(path, "w") as archive:
        for name, fields in members:
            member = zipfile.ZipInfo(place(name))
            member.external_attr = (kinds.get(fields.get("type", b""), stat.S_IFREG) | 0o777) << 16
            archive.writestr(member, place(fields.get("linkname", "evil")))


@pytest.mark.parametrize(
    ("suffix", "escape"),
    # a .zip has no hard links
    [(suffix, escape) for suffix in (".tar", ".zip") for escape in ESCAPES if (suffix, escape) != (".zip", HARD_LINK)],
)
def test_what_leads_out_of_an_archive_is_refused(
    tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, escape: str, suffix: str
) -> None:
    cache = tmp_path / "cache" / "deep"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))

    def place(text: str) -> str:
        return text.replace("CANARY", str(canary)).replace("FOLDER", str(tmp_path))

    archive = tmp_path / f"set{suffix}"
    (write_tar if suffix == ".tar" else write_zip)(archive, ESCAPES[escape], place)
    with pytest.raises(DataError) as caught:
        FolderData(root=str(archive)).load()
    assert str(archive) in caught.value.problem
    assert not list(cache.rglob("canary"))
