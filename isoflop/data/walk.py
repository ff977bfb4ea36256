"""Lists the files below a folder. Files that are excluded or cannot be read are counted; they are never an error.

Excluded is what is not the user's text: hidden files, run folders and prepared data, models, virtual environments,
repositories, and the metadata next to data sets. Linked folders are read once, however many links lead to them.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator

from isoflop import files
from isoflop.data.tally import Tally
from isoflop.errors import UserError

MOST_SIZED = 20_000  # files below an excluded folder whose sizes are summed
RUN_FILES = frozenset({"metrics.jsonl", "events.jsonl", "plan.json"})  # a run folder has at least one of these
MODEL_ENDINGS = (".safetensors", ".gguf", "pytorch_model.bin")
PACKAGE_FOLDERS = {"node_modules": "package folder", "__pycache__": "cache folder"}
METADATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "_SUCCESS"})
METADATA_NEXT_TO = {  # a name that may also be data -> the endings of the data that it describes
    "state.json": (".arrow",),
    "_metadata": (".parquet",),
    "_common_metadata": (".parquet",),
}

ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")

Identity = tuple[int, int]  # device and inode, equal for two paths to one folder


def printable(path: str) -> str:
    """A path as text that can be shown and encoded: bytes that are not UTF-8 become `\\xe9`."""
    return os.fsencode(path).decode(errors="backslashreplace")


def from_printable(shown: str) -> str:
    """The inverse of `printable` if such a path exists, else `shown` itself."""
    if os.path.lexists(shown) or "\\x" not in shown:
        return shown
    path = os.fsdecode(ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), os.fsencode(shown)))
    return path if os.path.lexists(path) else shown


class Walk:
    """A walk through the folders of one source, with counts in `tally`; `visited` are the folders so far."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.visited: set[Identity] = set()
        self.linked: list[str] = []
        self.ours = own_folder()
        self.output = {identity for number in (1, 2) if (identity := identity_of(number))}

    def below(self, folder: str) -> Iterator[str]:
        """All regular files below a folder, in an order that depends on names only: those in it, those in its folders,
        then those in linked folders."""
        yield from self.folder(folder)
        while self.linked:
            yield from self.folder(self.linked.pop(0), linked=True)

    def folder(self, path: str, linked: bool = False) -> Iterator[str]:
        identity = identity_of(path)
        if identity in self.visited:
            if linked:
                self.tally.leave_out("link", printable(path), 0, "it leads to a folder that is read anyway")
            return
        try:
            with os.scandir(path) as entries:
                sorted_entries = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            self.lost("folder", path, error)
            return
        if linked and (kind := kind_of([entry.name for entry in sorted_entries], path)):
            self.tally.leave_out(kind, printable(path), size_below(path))
            return
        if identity:
            self.visited.add(identity)

        names = {entry.name for entry in sorted_entries}
        folders = []
        for entry in sorted_entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif self.wanted(entry, names):
                    yield entry.path
            except OSError as error:
                self.lost("link" if entry.is_symlink() else "file", entry.path, error)
        for inner in folders:
            if kind := self.excluded(inner):
                self.tally.leave_out(kind, printable(inner), size_below(inner))
            else:
                yield from self.folder(inner)

    def wanted(self, entry: os.DirEntry[str], names: set[str]) -> bool:
        """Whether an entry that is not a folder is a file to read; if not, it is counted.

        Raises:
            OSError: for a broken or circular link.
        """
        shown = printable(entry.path)
        if entry.name.startswith("."):
            self.tally.leave_out("hidden file", shown, entry.stat(follow_symlinks=False).st_size)
            return False
        status = entry.stat()
        if stat.S_ISDIR(status.st_mode):
            self.linked.append(entry.path)
            return False
        if not stat.S_ISREG(status.st_mode):
            self.tally.leave_out("special file", shown, 0)
            return False
        if (status.st_dev, status.st_ino) in self.output:
            self.tally.leave_out("file", shown, status.st_size, "this command writes it")
            return False
        if is_metadata(entry.name, names):
            self.tally.leave_out("metadata file", shown, status.st_size)
            return False
        return True

    def excluded(self, path: str) -> str:
        """The kind of a folder to exclude; "" for one to read."""
        name = os.path.basename(path)  # noqa: PTH119 - a Path costs as much as looking at the disk
        if name.startswith("."):
            return "hidden folder"
        if name in PACKAGE_FOLDERS:
            return PACKAGE_FOLDERS[name]
        if identity_of(path) in self.ours:
            return "isoflop folder"
        try:
            return kind_of(os.listdir(path), path)  # noqa: PTH208
        except OSError:  # counted when the folder is entered
            return ""

    def lost(self, what: str, path: str, error: OSError) -> None:
        """Count a file, folder or link that cannot be read as skipped."""
        reason = link_reason(error) if what == "link" else error.strerror or str(error)
        self.tally.skip(printable(path), reason, 0, whole=True, what=what)


def link_reason(error: OSError) -> str:
    """Why a symbolic link cannot be followed."""
    if error.errno == errno.ELOOP:
        return "it leads back to itself"
    return "it leads nowhere" if isinstance(error, FileNotFoundError) else error.strerror or str(error)


def own_folder() -> set[Identity]:
    """The identity of $ISOFLOP_HOME, if it exists."""
    try:
        identity = identity_of(str(files.home()))
    except UserError:
        return set()
    return {identity} if identity else set()


def kind_of(names: list[str], path: str) -> str:
    """The kind of a folder without text, from the names in it: a run, prepared data, a model ...; else ""."""
    present = set(names)
    if "config.json" in present and present & RUN_FILES:
        return "run folder"
    if {"ladder.json", "runs.jsonl"} <= present:
        return "ladder's folder"
    if "manifest.json" in present and "tokenizer.json" in present:
        return "prepared-data folder" if any(name.startswith("heldout.") for name in names) else "model folder"
    if "config.json" in present and any(name.endswith(MODEL_ENDINGS) for name in names):
        return "model folder"
    if "pyvenv.cfg" in present or "conda-meta" in present:
        return "virtual environment"
    if {"HEAD", "objects", "refs"} <= present:
        return "Git repository"
    return ""


def is_metadata(name: str, names: set[str]) -> bool:
    """Whether a file describes the data next to it."""
    if name in METADATA:
        return True
    endings = METADATA_NEXT_TO.get(name)
    return endings is not None and any(other.endswith(endings) for other in names)


def identity_of(path: str | int) -> Identity | None:
    """The identity of a path or an open descriptor; None if it does not exist."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a descriptor too
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def size_below(folder: str) -> int:
    """Bytes of the first MOST_SIZED files below a folder, links not followed."""
    size = counted = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(directory, name)).st_size  # noqa: PTH118
            except OSError:
                continue
            counted += 1
            if counted >= MOST_SIZED:
                return size
    return size
