"""Archives of pictures: extracted once, into a cache. Nothing that an archive says of itself is trusted."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import re
import shutil
import stat
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from frostline.data.cache import cache_folder
from frostline.data.decoding import FILE_LIMIT
from frostline.data.listing import SPLIT_FOLDERS, is_hidden
from frostline.errors import DataError, FrostlineError, StorageError

MEMBER_LIMIT = 1_000_000
TOTAL_LIMIT = 200 * 2**30  # bytes
SPARE_ROOM = 2**30  # bytes of the disk that stay free

_HEADER_LIMIT = 2**20  # bytes of a tar header, which is read whole; a file name takes hundreds
_HEADER_TYPES = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_BAD_NAMES = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
_CHUNK = 2**20
_QUIET_SECONDS = 5.0
_ABANDONED_SECONDS = 86_400.0


def extracted(archive: Path, *, cache: Path | None = None, file_limit: int = FILE_LIMIT) -> Path:
    """The folder with an archive's files, which are extracted the first time.

    An archive is known by its path, size and time of change. Refused are links, devices, sparse and encrypted files,
    paths that lead out of the archive, files that occur twice, and more than a million members or 200 GiB.

    Args:
        archive: a ``.tar``, plain or compressed by gzip, bzip2 or xz, or a ``.zip``.
        cache: where the folders are; the default is ``frostline/archives`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.
        file_limit: the largest allowed size of a file in bytes.

    Returns:
        The folder; where the archive holds a single top folder and nothing else, and this is not that of a split,
        the folder inside.

    Raises:
        DataError: the archive is damaged, truncated or encrypted, or a member is refused; the message names both.
        StorageError: the archive cannot be read, or the cache cannot be written or has no room.
    """
    cache = cache or cache_folder() / "archives"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        folder = cache / _key(archive)
        if not folder.is_dir():
            with _alone(folder.with_suffix(".lock")):
                if not folder.is_dir():
                    _extract(archive, folder, file_limit)
    except OSError as error:
        raise StorageError(
            f"The archive {archive} cannot be extracted into {cache}: {error.strerror or error}.",
            mend="Mend that, or set XDG_CACHE_HOME to another folder.",
        ) from error
    return _content(folder)


def _key(archive: Path) -> str:
    found = archive.stat()
    known_by = repr((str(archive.resolve()), found.st_size, found.st_mtime_ns))
    return hashlib.sha256(known_by.encode("utf-8", "surrogateescape")).hexdigest()


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Lets one process at a time extract; where the file system has no locks, each does, and one is kept."""
    with lock.open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _content(folder: Path) -> Path:
    visible = [entry for entry in folder.iterdir() if not is_hidden(entry.name)]
    single = len(visible) == 1 and visible[0].is_dir() and visible[0].name.lower() not in SPLIT_FOLDERS
    return visible[0] if single else folder


def _extract(archive: Path, folder: Path, file_limit: int) -> None:
    _remove_abandoned(folder)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        extraction = _Extraction(archive, part, file_limit)
        with extraction.faults_named():
            (_read_zip if archive.name.lower().endswith(".zip") else _read_tar)(archive, extraction)
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Removes what killed processes have left."""
    for part in folder.parent.glob(f"{folder.name}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(part, ignore_errors=True)


class _Extraction:
    """Writes members below a folder that is its own, and counts what it writes.

    No member can be a link, so that a path without ``..`` stays inside; owners, modes and times are not taken over.
    This is stricter than tarfile's ``data`` filter, and serves both kinds of archives.

    Args:
        archive: for messages.
        folder: an empty folder.
        file_limit: the largest allowed size of a file in bytes.
    """

    def __init__(self, archive: Path, folder: Path, file_limit: int) -> None:
        self._archive = archive
        self._folder = folder
        self._file_limit = file_limit
        self._member = ""
        self._members = 0
        self._bytes = 0
        self._room = shutil.disk_usage(folder).free - SPARE_ROOM
        self._report_at = time.monotonic() + _QUIET_SECONDS

    def begin(self, name: str) -> None:
        """Counts a member, of which faults are from here on."""
        self._member = name
        self._members += 1
        if self._members > MEMBER_LIMIT:
            raise self.refused(f"is one of more than {MEMBER_LIMIT:,} members")
        self._report()

    def folder(self) -> None:
        """Makes the member, a folder."""
        self._target().mkdir(parents=True, exist_ok=True)

    def file(self, source: IO[bytes], size: int) -> None:
        """Writes the member, a file.

        Args:
            source: what to write; its true length counts.
            size: what the archive says it is, in bytes; a file that is too large is refused before it is read.
        """
        self._check(size)
        target = self._target()
        target.parent.mkdir(parents=True, exist_ok=True)
        written = 0
        with target.open("xb") as file:
            while chunk := source.read(_CHUNK):
                written += len(chunk)
                self._check(written)
                file.write(chunk)
        if written != size:
            raise self.refused(f"has {written} bytes, and not {size}, as the archive says")
        self._bytes += written

    def refused(self, why: str) -> DataError:
        """The error that names the archive and the member."""
        return DataError(
            f"The archive {self._archive} cannot be used: {self._member!r} {why}.",
            mend="Extract it yourself and set data.root to the folder, if you trust it.",
        )

    @contextlib.contextmanager
    def faults_named(self) -> Iterator[None]:
        """Turns what a damaged archive makes the readers raise into one message."""
        try:
            yield
        except FrostlineError:
            raise
        except OSError as error:
            if error.errno in _BAD_NAMES:
                raise self.refused("occurs twice, or its name is none for a file") from error
            if error.errno is not None:  # the disk; the readers of compressed files raise without a number
                raise
            raise self._damaged(error) from error
        except Exception as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> DataError:
        after = f" after {self._member!r}" if self._member else ""
        reason = str(error).partition("\n")[0].rstrip(".:") or type(error).__name__
        return DataError(
            f"The archive {self._archive} is damaged or truncated{after}: {reason}.", mend="Copy or download it again."
        )

    def _target(self) -> Path:
        name = self._member
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or re.match("[A-Za-z]:", name):
            raise self.refused("is an absolute path, or one that leads out of the archive")
        return self._folder.joinpath(*path.parts)

    def _check(self, size: int) -> None:
        if size > self._file_limit:
            raise self.refused(f"has more bytes than data.file_limit={self._file_limit}")
        if self._bytes + size > TOTAL_LIMIT:
            raise self.refused(f"brings the files to more than {TOTAL_LIMIT:,} bytes")
        if self._bytes + size > self._room:
            raise StorageError(
                f"There is no room for the files of {self._archive} in {self._folder.parent}.",
                mend="Make room there, or set XDG_CACHE_HOME to another folder.",
            )

    def _report(self) -> None:
        if time.monotonic() >= self._report_at:
            print(f"extracting {self._archive.name}: {self._members:,} files", file=sys.stderr, flush=True)
            self._report_at = time.monotonic() + 2 * _QUIET_SECONDS


class TarHeader(tarfile.TarInfo):
    """A tar header that does not end the archive when it is damaged, and cannot fill the memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> TarHeader:
        """See `tarfile.TarInfo.frombuf`."""
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if bytes(buf) == bytes(tarfile.BLOCKSIZE):
                raise  # the mark of the end
            # tarfile itself takes what is missing or no header for the end
            raise tarfile.ReadError(str(error)) from None
        if member.size < 0 or (member.type in _HEADER_TYPES and member.size > _HEADER_LIMIT):
            raise tarfile.TarError(f"a header has {member.size} bytes")
        if member.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.TarError("a file is sparse")
        return member

    def _proc_gnusparse_10(self, *_: object) -> None:  # would read a map of any length
        raise tarfile.TarError("a file is sparse")


def _read_tar(archive: Path, extraction: _Extraction) -> None:
    with tarfile.open(archive, "r:*", tarinfo=TarHeader) as tar:
        while (member := tar.next()) is not None:
            # tarfile would keep all of them
            tar.members.clear()  # type: ignore[attr-defined]
            extraction.begin(member.name)
            if member.islnk() or member.issym():
                raise extraction.refused("is a link")
            if member.issparse() or not (member.isfile() or member.isdir()):
                raise extraction.refused("is a device or another special file")
            if member.isdir():
                extraction.folder()
                continue
            if member.size < 0:
                raise extraction.refused("has a negative size")
            source = tar.extractfile(member)
            assert source is not None
            extraction.file(source, member.size)


def _read_zip(archive: Path, extraction: _Extraction) -> None:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            extraction.begin(member.filename)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if stat.S_ISLNK(kind):
                raise extraction.refused("is a link")
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise extraction.refused("is a device or another special file")
            if member.flag_bits & 1:
                raise extraction.refused("is encrypted")
            if member.is_dir():
                extraction.folder()
                continue
            if member.compress_type not in _ZIP_METHODS:  # zipfile expands those in pieces of any length
                raise extraction.refused("is compressed by another method than deflate")
            with opened.open(member) as source:
                extraction.file(source, member.file_size)
