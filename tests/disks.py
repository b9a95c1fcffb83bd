"""File systems that are small, full, read-only, without figures, or without links, owners and distinct case."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("CI"), reason="mounting needs root")


@contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[Path]:
    """A small file system of its own."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def ramfs(folder: Path) -> Iterator[Path]:
    """A file system whose statvfs(3) says nothing: no blocks, none of them free."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "ramfs", "ramfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def mounted_image(
    kind: str, folder: Path, size: int = 320 * 1024 * 1024, options: Sequence[str] = ()
) -> Iterator[Path]:
    """A file system of that kind in a sparse file of ``size`` bytes, which stands beside the folder as ``.image``."""
    image = image_of(folder)
    with image.open("wb") as file:
        file.truncate(size)
    quiet = {"ext4": ["-q"], "xfs": ["-q"], "btrfs": ["-q"]}[kind]
    subprocess.run([f"mkfs.{kind}", *quiet, *options, image], check=True, capture_output=True)
    with mounted(image, folder):
        yield folder


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[Path]:
    """Mount an image, as it is; a journal that it has is replayed."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def image_of(folder: Path) -> Path:
    """The file that holds the file system mounted at ``folder``."""
    return folder.with_name(f"{folder.name}.image")


@contextmanager
def overlay(folder: Path) -> Iterator[Path]:
    """An overlay over two folders of a tmpfs, as containers have."""
    with tmpfs(folder.with_name(f"{folder.name}.layers"), "64m") as layers:
        for name in ("lower", "upper", "work"):
            (layers / name).mkdir()
        folder.mkdir(parents=True)
        options = f"lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, folder], check=True, capture_output=True)
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def exfat(folder: Path, size: int) -> Iterator[Path]:
    """An exFAT over FUSE: no hard links, no rename flags, no extended attributes, and names of any case are one."""
    if not (shutil.which("mkfs.exfat") and shutil.which("mount.exfat-fuse") and Path("/dev/fuse").exists()):
        pytest.skip("needs exfat-fuse, exfatprogs and /dev/fuse")
    folder.mkdir(parents=True)
    image = image_of(folder)
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.exfat", image], check=True, stdout=subprocess.DEVNULL)
    loop = subprocess.run(["losetup", "-f", "--show", image], check=True, capture_output=True, text=True).stdout.strip()
    try:
        subprocess.run(["mount.exfat-fuse", loop, folder], check=True, capture_output=True)
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
    finally:
        subprocess.run(["losetup", "-d", loop], check=True)


def remount(folder: Path, mode: str) -> None:
    """Make a mounted file system ``ro`` or ``rw``."""
    subprocess.run(["mount", "-o", f"remount,{mode}", folder], check=True)
