"""Whether what travels to a GPU machine is small enough: the checkout and a folder beside git.

python -m benchmarks.carried .gpu
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MOST = 64 << 20


def checkout_bytes(root: Path) -> int:
    """Size of the files that git tracks, or would."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    paths = [root / name for name in names.split("\0") if name]
    return sum(path.stat().st_size for path in paths if path.is_file())


def folder_bytes(folder: Path) -> int:
    """Size of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Say how much it is, part by part; fail if it is too much."""
    carried = Path(sys.argv[1])
    sizes = {"the checkout": checkout_bytes(Path())}
    sizes |= {str(part): folder_bytes(part) for part in sorted(carried.iterdir())}
    for name, size in sizes.items():
        print(f"{size / 2**20:6.1f} MiB  {name}")
    total = sum(sizes.values())
    print(f"{total / 2**20:6.1f} MiB  of {MOST >> 20}")
    if total >= MOST:
        sys.exit("too much to carry")


if __name__ == "__main__":
    main()
