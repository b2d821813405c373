"""Archives as the root of a data set, honest and malicious ones."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import struct
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from frostline.data import FolderData, PicturesData, archives, extracted
from frostline.errors import DataError, StorageError

MakeTree = Callable[..., Path]
Entry = tuple[tarfile.TarInfo, bytes]
TREE = {"train/a": 4, "train/b": 4, "val/a": 2, "val/b": 2}
KINDS = {".tar": "tar", ".tar.gz": "gztar", ".tgz": "gztar", ".tar.bz2": "bztar", ".tar.xz": "xztar", ".zip": "zip"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "frostline" / "archives"


def packed(root: Path, suffix: str, *, top: bool) -> Path:
    """An archive of ``root`` beside it; ``top``: with the folder itself, not only what is in it."""
    base, inside = (root.parent, root.name) if top else (root, None)
    made = Path(shutil.make_archive(str(root.parent / f"made-{root.name}"), KINDS[suffix], base, inside))
    return made.rename(root.parent / f"{root.name}{suffix}")


def entry(name: str, content: bytes = b"", **fields: Any) -> Entry:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def tar(path: Path, *entries: Entry, mode: Any = "w", **options: Any) -> Path:
    with tarfile.open(path, mode, **options) as opened:
        for info, content in entries:
            opened.addfile(info, io.BytesIO(content) if content else None)
    return path


def zipped(
    path: Path, *names: str | zipfile.ZipInfo, content: bytes = b"x", method: int = zipfile.ZIP_DEFLATED
) -> Path:
    with zipfile.ZipFile(path, "w", method) as opened:
        for name in names:
            opened.writestr(name, content, method)
    return path


def special(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (kind | 0o777) << 16
    return info


def refused(path: Path, match: str, **options: Any) -> DataError:
    """The one error of an archive that nothing is left of."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(DataError, match=match) as caught:
        extracted(path, **options)
    assert str(path) in caught.value.problem
    assert caught.value.mend
    cache = Path(os.environ["XDG_CACHE_HOME"]) / "frostline" / "archives"
    assert [left.suffix for left in cache.iterdir()] == [".lock"]
    assert sorted(found for found in path.parent.iterdir() if found.name != "cache") == [
        found for found in before if found.name != "cache"
    ]
    return caught.value


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("top", [True, False], ids=["one top folder", "the splits on top"])
def test_an_archive_is_the_same_data_as_its_folder(make_tree: MakeTree, suffix: str, top: bool) -> None:
    root = make_tree(TREE)
    data, plain = FolderData(str(packed(root, suffix, top=top))), FolderData(str(root))
    assert data.fingerprint() == plain.fingerprint()
    assert data.root == f"{root}{suffix}"
    assert data.splits["val"].image(1).tobytes() == plain.splits["val"].image(1).tobytes()


def test_pictures_without_labels(make_tree: MakeTree) -> None:
    root = make_tree({"x": 2, "y/z": 1})
    data = PicturesData(str(packed(root, ".zip", top=True)))
    assert data.fingerprint() == PicturesData(str(root)).fingerprint()


def test_the_folder_of_a_split_is_no_top_folder(make_tree: MakeTree) -> None:
    root = make_tree({"train/a": 2, "train/b": 2})
    data = FolderData(str(packed(root, ".tar", top=False)))
    assert data.fingerprint() == FolderData(str(root)).fingerprint()
    assert data.splits["train"].name(0).startswith("train/")


def test_what_other_systems_add_does_not_hide_the_top_folder(make_tree: MakeTree) -> None:
    root = make_tree(TREE)
    path = packed(root, ".zip", top=True)
    with zipfile.ZipFile(path, "a") as opened:
        opened.writestr("__MACOSX/set/._x.jpg", b"")
        opened.writestr(".DS_Store", b"")
    assert FolderData(str(path)).fingerprint() == FolderData(str(root)).fingerprint()


def test_it_is_extracted_once_and_again_when_it_changes(
    make_tree: MakeTree, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = packed(make_tree(TREE), ".tar", top=True)
    first = extracted(path)
    assert first.is_relative_to(cache)
    assert first.name == "set"
    with monkeypatch.context() as patch:
        patch.setattr(archives, "_extract", None)
        assert extracted(path) == first
    os.utime(path, ns=(1, 1))
    assert extracted(path) != first
    assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700


def test_a_cache_may_be_named(make_tree: MakeTree, tmp_path: Path) -> None:
    assert extracted(packed(make_tree(TREE), ".tar", top=True), cache=tmp_path / "own").is_relative_to(tmp_path / "own")


def test_a_relative_cache_home_is_ignored_as_its_standard_says(
    make_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert extracted(packed(make_tree(TREE), ".tar", top=True)).is_relative_to(tmp_path / "home" / ".cache")


def test_two_at_once_extract_once(make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(make_tree(TREE), ".tar.gz", top=True)
    extract, calls, found = archives._extract, [], []

    def slowly(*arguments: Any) -> None:
        calls.append(1)
        time.sleep(0.2)
        extract(*arguments)

    monkeypatch.setattr(archives, "_extract", slowly)
    threads = [threading.Thread(target=lambda: found.append(extracted(path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == len(calls) == 1


def test_without_locks_the_first_one_is_kept(make_tree: MakeTree, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(make_tree(TREE), ".tar", top=True)
    read = archives._read_tar

    def overtaken(archive: Path, extraction: Any) -> None:
        monkeypatch.setattr(archives, "_read_tar", read)
        monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(37, "No locks available")))
        extracted(path)
        read(archive, extraction)

    monkeypatch.setattr(archives, "_read_tar", overtaken)
    assert len(FolderData(str(path))._split("train")) == 8
    assert sorted(left.suffix for left in cache.iterdir()) == ["", ".lock"]


def test_a_half_extracted_folder_is_never_used_and_goes_away(make_tree: MakeTree, cache: Path) -> None:
    path = packed(make_tree(TREE), ".tar", top=True)
    key = extracted(path).parent
    shutil.rmtree(key)
    old, new = (cache / f"{key.name}.{name}.part" for name in ("old", "new"))
    for part in (old, new):
        (part / "set" / "train" / "c").mkdir(parents=True)
    os.utime(old, (1, 1))
    assert not (extracted(path) / "train" / "c").exists()
    assert not old.exists()
    assert new.exists()  # another process may be at it


def test_an_interrupted_extraction_leaves_nothing(
    make_tree: MakeTree, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(archives._Extraction, "file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extracted(packed(make_tree(TREE), ".tar", top=True))
    assert [left.suffix for left in cache.iterdir()] == [".lock"]


def test_a_long_extraction_says_how_far_it_is(
    make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = packed(make_tree(TREE), ".tar", top=True)
    extracted(path)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(archives, "_QUIET_SECONDS", 0.0)
    os.utime(path, ns=(1, 1))
    extracted(path)
    out, err = capsys.readouterr()
    assert out == ""
    assert "extracting set.tar: 12 files" in err.splitlines()


def malicious() -> Iterator[tuple[str, Entry, str]]:
    yield "absolute", entry("/tmp/frostline-absolute.jpg", b"x"), "absolute path"
    yield "up", entry("../escaped.jpg", b"x"), "leads out"
    yield "up inside", entry("a/../../escaped.jpg", b"x"), "leads out"
    yield "folder up", entry("../escaped", type=tarfile.DIRTYPE), "leads out"
    yield "drive", entry("C:/x.jpg", b"x"), "absolute path"
    yield "backslash", entry("..\\x.jpg", b"x"), "leads out"
    yield "link out", entry("a/link", type=tarfile.SYMTYPE, linkname="/etc"), "is a link"
    yield "link inside", entry("a/link", type=tarfile.SYMTYPE, linkname="b"), "is a link"
    yield "hard link", entry("a/link", type=tarfile.LNKTYPE, linkname="/etc/passwd"), "is a link"
    yield "device", entry("a/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3), "is a device"
    yield "disk", entry("a/disk", type=tarfile.BLKTYPE), "is a device"
    yield "pipe", entry("a/pipe", type=tarfile.FIFOTYPE), "is a device"
    yield "unknown", entry("a/odd", type=b"Z"), "is a device"
    yield "no name", entry(".", b"x"), "its name is none"
    yield "long name", entry("x" * 300, b"x"), "its name is none"


MALICIOUS = list(malicious())


@pytest.mark.parametrize(("member", "why"), [(m, w) for _, m, w in MALICIOUS], ids=[name for name, *_ in MALICIOUS])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_malicious_tar_is_refused(tmp_path: Path, member: Entry, why: str, mode: str) -> None:
    path = tar(tmp_path / "bad.tar", entry("a/good.jpg", b"x"), member, mode=mode)
    fault = refused(path, why)
    assert repr(member[0].name) in fault.problem
    assert not Path("/tmp/frostline-absolute.jpg").exists()


@pytest.mark.parametrize(
    ("member", "why"),
    [
        ("/tmp/frostline-absolute.jpg", "absolute path"),
        ("../escaped.jpg", "leads out"),
        ("a/../../escaped/", "leads out"),
        ("C:/x.jpg", "absolute path"),
        ("a\\..\\x.jpg", "leads out"),
        (special("a/link", stat.S_IFLNK), "is a link"),
        (special("a/pipe", stat.S_IFIFO), "is a device"),
        (special("a/null", stat.S_IFCHR), "is a device"),
    ],
    ids=str,
)
def test_a_malicious_zip_is_refused(tmp_path: Path, member: str | zipfile.ZipInfo, why: str) -> None:
    refused(zipped(tmp_path / "bad.zip", "a/good.jpg", member), why)
    assert not Path("/tmp/frostline-absolute.jpg").exists()


def test_a_link_cannot_be_written_through(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    link = entry("a", type=tarfile.SYMTYPE, linkname=str(tmp_path / "target"))
    refused(tar(tmp_path / "bad.tar", link, entry("a/x.jpg", b"x")), "is a link")
    assert list((tmp_path / "target").iterdir()) == []


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_that_occurs_twice_or_is_also_a_folder_is_refused(tmp_path: Path) -> None:
    refused(tar(tmp_path / "a.tar", entry("x.jpg", b"x"), entry("./x.jpg", b"y")), "occurs twice")
    shutil.rmtree(tmp_path / "cache")
    refused(tar(tmp_path / "b.tar", entry("x", b"x"), entry("x/y.jpg", b"y")), "occurs twice")
    shutil.rmtree(tmp_path / "cache")
    refused(zipped(tmp_path / "c.zip", "x.jpg", "x.jpg"), "occurs twice")


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_tar_bomb_stops_at_the_limit(tmp_path: Path, mode: str) -> None:
    path = tar(tmp_path / "bomb.tar", entry("a/zeros.jpg", bytes(2**22)), mode=mode)
    assert path.stat().st_size < 2**14
    refused(path, "'a/zeros.jpg' has more bytes than data.file_limit=1048576", file_limit=2**20)


def test_a_zip_bomb_stops_at_the_limit(tmp_path: Path) -> None:
    path = zipped(tmp_path / "bomb.zip", "a/zeros.jpg", content=bytes(2**22))
    refused(path, "more bytes than data.file_limit", file_limit=2**20)


def test_file_limit_of_the_data_is_that_of_the_archive(tmp_path: Path) -> None:
    path = zipped(tmp_path / "bomb.zip", "a/zeros.jpg", content=bytes(2**12))
    with pytest.raises(DataError, match=r"more bytes than data\.file_limit=1000"):
        FolderData(str(path), file_limit=1000).load()


def lying(path: Path, declared: int) -> Path:
    """A zip whose headers say that its file, 64 KiB of zeros, has another size."""
    zipped(path, "a/zeros.jpg", content=bytes(2**16))
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        struct.pack_into("<I", content, content.index(signature) + offset, declared)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("declared", "why"),
    [(1, "damaged or truncated after 'a/zeros.jpg'"), (2**17, "'a/zeros.jpg' has 65536 bytes, and not 131072")],
    ids=["less", "more"],
)
def test_a_zip_that_lies_about_sizes_is_refused(tmp_path: Path, declared: int, why: str) -> None:
    refused(lying(tmp_path / "lying.zip", declared), why)


def test_true_sizes_count_and_not_those_of_the_headers(tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.mkdir()
    extraction = archives._Extraction(tmp_path / "lying.zip", part, 2**20)
    extraction.begin("a.jpg")
    with pytest.raises(DataError, match="more bytes"):
        extraction.file(io.BytesIO(bytes(2**22)), 1)
    assert (part / "a.jpg").stat().st_size <= 2**20


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_the_limits_on_members_and_their_sum(
    make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, suffix: str
) -> None:
    path = packed(make_tree(TREE), suffix, top=True)
    with monkeypatch.context() as patch:
        patch.setattr(archives, "MEMBER_LIMIT", 10)
        refused(path, "more than 10 members")
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(archives, "TOTAL_LIMIT", 3000)
    refused(path, "more than 3,000 bytes")


def test_a_disk_without_room_is_a_fault_of_storage(
    make_tree: MakeTree, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "SPARE_ROOM", shutil.disk_usage("/").total * 1000)
    with pytest.raises(StorageError, match="no room for the files of"):
        extracted(packed(make_tree(TREE), ".tar", top=True))
    assert [left.suffix for left in cache.iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_is_a_fault_of_storage(make_tree: MakeTree, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StorageError, match=r"cannot be extracted into .*cache") as caught:
        extracted(packed(make_tree(TREE), ".tar", top=True))
    assert "XDG_CACHE_HOME" in str(caught.value.mend)


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "secret.zip", "a/x.jpg")
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(signature) + offset] |= 1
    path.write_bytes(content)
    refused(path, "'a/x.jpg' is encrypted")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_would_be_expanded_in_one_piece_is_refused(tmp_path: Path, method: int) -> None:
    refused(zipped(tmp_path / "bomb.zip", "a/zeros.jpg", content=bytes(2**22), method=method), "another method")


def test_a_tar_header_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    long = entry("a", bytes(2**21), type=tarfile.GNUTYPE_LONGNAME)
    refused(tar(tmp_path / "long.tar.gz", long, entry("a/x.jpg", b"x"), mode="w:gz"), "a header has 2097152 bytes")


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(2**40), "GNU.sparse.numblocks": "1"}
    sparse = entry("a/x.jpg", b"x", pax_headers=headers)
    refused(tar(tmp_path / "a.tar", sparse, format=tarfile.PAX_FORMAT), "another special file")
    shutil.rmtree(tmp_path / "cache")
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**40)}
    sparse = entry("a/x.jpg", b"1\n0\n1\n", pax_headers=headers)
    refused(tar(tmp_path / "b.tar", sparse, format=tarfile.PAX_FORMAT), "a file is sparse")
    shutil.rmtree(tmp_path / "cache")
    refused(tar(tmp_path / "c.tar", entry("a/x.jpg", type=tarfile.GNUTYPE_SPARSE)), "a file is sparse")


def test_a_negative_size_does_not_read_in_circles(tmp_path: Path) -> None:
    negative = entry("a/x.jpg", pax_headers={"size": "-1024"})
    refused(tar(tmp_path / "a.tar", negative, format=tarfile.PAX_FORMAT), "negative size")


@pytest.mark.parametrize("suffix", KINDS)
def test_an_archive_cut_anywhere_is_refused(make_tree: MakeTree, tmp_path: Path, suffix: str) -> None:
    path = packed(make_tree(TREE), suffix, top=True)
    content = path.read_bytes()
    for share in (0.0, 0.1, 0.5, 0.8):
        cut = int(len(content) * share)
        path.write_bytes(content[: cut - cut % 512])  # between two blocks too, where tarfile sees the end of the file
        refused(path, "damaged or truncated")
        shutil.rmtree(tmp_path / "cache")


@pytest.mark.parametrize("suffix", KINDS)
def test_a_damaged_archive_is_refused_or_whole(make_tree: MakeTree, suffix: str) -> None:
    path = packed(make_tree(TREE), suffix, top=True)
    content = path.read_bytes()
    for position in range(0, len(content), max(1, len(content) // 40)):
        changed = bytearray(content)
        changed[position] ^= 16
        path.write_bytes(changed)
        os.utime(path, ns=(position, position))
        with contextlib.suppress(DataError):
            assert extracted(path).is_dir()


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_another_kind_of_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no archive")
    refused(tmp_path / name, "damaged or truncated: ")


def test_a_folder_may_be_named_like_an_archive(make_tree: MakeTree, cache: Path) -> None:
    root = make_tree(TREE, "set.zip")
    assert FolderData(str(root)).class_counts("train") == [4, 4]
    assert not cache.exists()
