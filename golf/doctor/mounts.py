"""What kind of file system a path lies on, from the mount table of the kernel."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

TABLE = Path("/proc/mounts")

_NETWORK = {
    "9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "orangefs", "pvfs2",
    "smb3", "smbfs",
}  # fmt: skip
_MEMORY = {"devtmpfs", "ramfs", "tmpfs"}
_LOCAL_FUSE = {"fuseblk", "fuse.fuse-overlayfs", "fuse.lxcfs", "fuse.ntfs-3g", "fuse.exfat"}
_ESCAPE = re.compile(r"\\([0-7]{3})")

Kind = Literal["disk", "network", "memory"]


class Mount(NamedTuple):
    """A file system in the tree."""

    point: Path
    form: str  # ext4, overlay, nfs4, fuse.juicefs, …
    source: str

    @property
    def kind(self) -> Kind:
        """Where its bytes are. Of file systems in user space nearly all are a network's: object stores, sshfs, mfs."""
        is_foreign = self.form == "fuse" or self.form.startswith("fuse.")
        if self.form in _NETWORK or (is_foreign and self.form not in _LOCAL_FUSE):
            return "network"
        return "memory" if self.form in _MEMORY else "disk"


def read_mounts() -> list[Mount]:
    """Return the mounts of this process; none on systems that do not tell."""
    return parse_mounts(TABLE.read_text(encoding="utf-8", errors="surrogateescape")) if TABLE.exists() else []


def parse_mounts(text: str) -> list[Mount]:
    """Read /proc/mounts: source, point, form and options a line, blanks in names as \\040."""
    lines = [[_unescaped(word) for word in line.split()[:3]] for line in text.splitlines()]
    return [Mount(Path(words[1]), words[2], words[0]) for words in lines if len(words) == 3]


def mount_of(path: Path, mounts: Sequence[Mount]) -> Mount | None:
    """Return the mount that `path` (absolute, without links) lies on: the deepest, and of these the last."""
    above = [mount for mount in mounts if path.is_relative_to(mount.point)]
    return max(reversed(above), key=lambda mount: len(mount.point.parts), default=None)


def existing(path: Path) -> Path:
    """Return the deepest folder at or above `path` that exists, absolute and without links."""
    absolute = path.resolve()
    return next(folder for folder in [absolute, *absolute.parents] if folder.is_dir())


def obstacle(path: Path) -> Path | None:
    """Return what stands at or above `path` and is no folder, so that none can be made there; None if all is well.

    A link that leads nowhere stands in the way too.
    """
    absolute = path.absolute()
    there = next(place for place in [absolute, *absolute.parents] if os.path.lexists(place))
    return None if there.is_dir() else there


def _unescaped(word: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), word)
