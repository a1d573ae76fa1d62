"""Mounts: recorded tables, and which of their file systems a path lies on."""

from pathlib import Path

import pytest

from golf.doctor.mounts import Mount, existing, mount_of, obstacle, parse_mounts, read_mounts

POD = r"""overlay / overlay rw,relatime,lowerdir=/var/lib/docker/overlay2/l/AB:/var/lib/docker/overlay2/l/CD 0 0
proc /proc proc rw,nosuid,nodev,noexec,relatime 0 0
tmpfs /dev tmpfs rw,nosuid,size=65536k,mode=755 0 0
shm /dev/shm tmpfs rw,nosuid,nodev,noexec,relatime,size=65536k 0 0
mfs#eu-cz-1.example.net:9421 /workspace fuse rw,nosuid,nodev,relatime,user_id=0,group_id=0,allow_other 0 0
/dev/nvme0n1p2 /workspace/scratch ext4 rw,relatime 0 0
/dev/sda1 /mnt/my\040disk\134a xfs rw 0 0
server:/export /home nfs4 rw,vers=4.2,addr=10.0.0.5 0 0
/dev/sdb1 /home ext4 rw 0 0

cut short
"""
MOUNTS = parse_mounts(POD)


@pytest.mark.parametrize(
    ("path", "form", "kind"),
    [
        ("/", "overlay", "disk"),
        ("/runs/checkpoints", "overlay", "disk"),
        ("/workspace", "fuse", "network"),
        ("/workspace/run/a", "fuse", "network"),
        ("/workspaces/run", "overlay", "disk"),  # a name that only begins alike
        ("/workspace/scratch/run", "ext4", "disk"),
        ("/dev/shm/run", "tmpfs", "memory"),
        (r"/mnt/my disk\a/run", "xfs", "disk"),
        ("/home/me", "ext4", "disk"),  # the later mount hides the earlier one
    ],
)
def test_a_path_lies_on_the_deepest_and_latest_mount_above_it(path: str, form: str, kind: str) -> None:
    mount = mount_of(Path(path), MOUNTS)
    assert mount is not None
    assert (mount.form, mount.kind) == (form, kind)


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("nfs", "network"),
        ("cifs", "network"),
        ("lustre", "network"),
        ("9p", "network"),
        ("fuse.juicefs", "network"),
        ("fuse.sshfs", "network"),
        ("fuse.fuse-overlayfs", "disk"),
        ("fuseblk", "disk"),
        ("ext4", "disk"),
        ("btrfs", "disk"),
        ("zfs", "disk"),
        ("tmpfs", "memory"),
        ("ramfs", "memory"),
    ],
)
def test_the_form_tells_where_the_bytes_are(form: str, kind: str) -> None:
    assert Mount(Path("/"), form, "x").kind == kind


def test_a_root_that_was_mounted_last_hides_nothing_below_it() -> None:
    """As after an initial RAM disk, which mounts these first and moves them under the root that it finds."""
    mounts = parse_mounts("tmpfs /run tmpfs rw 0 0\n/dev/sda1 / ext4 rw 0 0\n")
    assert [getattr(mount_of(Path(path), mounts), "form", "") for path in ("/run/a", "/a")] == ["tmpfs", "ext4"]


def test_lines_that_are_cut_short_are_left_out() -> None:
    assert len(MOUNTS) == 9


def test_without_a_table_nothing_is_known() -> None:
    assert mount_of(Path("/home"), []) is None


def test_this_machine_s_root_is_mounted() -> None:
    mounts = read_mounts()
    assert not mounts or mount_of(Path("/"), mounts) is not None


def test_the_deepest_existing_folder_is_found_through_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "file").write_text("")
    assert existing(tmp_path / "link" / "a" / "b") == (tmp_path / "real").resolve()
    assert existing(tmp_path / "real" / "file") == (tmp_path / "real").resolve()


def test_a_relative_path_is_taken_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert existing(Path("checkpoints")) == tmp_path.resolve()


def test_a_folder_and_what_can_become_one_have_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    places = [tmp_path, tmp_path / "a" / "b", tmp_path / "link", tmp_path / "link" / "a", Path("a"), Path(".")]
    assert [obstacle(place) for place in places] == [None] * 6


def test_a_file_and_a_link_to_nothing_are_obstacles_to_themselves_and_what_is_below(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for name in ("file", "link"):
        assert obstacle(tmp_path / name) == obstacle(tmp_path / name / "a" / "b") == tmp_path / name
