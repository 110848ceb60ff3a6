"""The environment of a run: versions, hardware and the state of the code."""

import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from litchar.device import device_name
from litchar.overrides import without_passwords
from litchar.run_dir import ROOT

CODE = ("src", "conf", "scripts")  # where a new file may change what a run does


def describe(device: torch.device) -> dict[str, Any]:
    """Return versions, device and the state of the code as plain data.

    `revision` is the commit that is checked out, `code` a hash of the files in `src`.
    """
    names = ("litchar", "torch", "lightning", "hydra-core", "omegaconf", "numpy")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "platform": platform.platform(),
        "device": device_name(device),
        "cpu_threads": torch.get_num_threads(),
        "revision": _git("rev-parse", "HEAD").decode().strip() or None,  # None: no checkout
        "uncommitted": bool(_difference()),
        "code": _code(),
    }


@functools.cache  # all jobs of a sweep run what was imported, whatever is edited meanwhile
def _code() -> str:
    digest = hashlib.sha256()
    for path in sorted((ROOT / "src").rglob("*.py")):
        digest.update(f"{path.relative_to(ROOT)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def record(run_dir: Path, described: dict[str, Any]) -> None:
    """Write `environment.json`, and `code.diff` if the code differs from its revision.

    Args:
        described: from `describe`.
    """
    command = [without_passwords(word) for word in sys.argv]
    text = json.dumps({**described, "command": command, "cwd": os.getcwd()}, indent=2)
    (run_dir / "environment.json").write_text(text + "\n")
    (run_dir / "code.diff").unlink(missing_ok=True)  # left from before the run was resumed
    if described.get("uncommitted"):
        (run_dir / "code.diff").write_bytes(_difference())


def _difference() -> bytes:
    """Return the diff of the code from its revision, as raw bytes and including new files."""
    index = _git_path("index")
    if not index.is_file():
        return b""
    with tempfile.TemporaryDirectory() as directory:
        # New objects go there as well: the checkout may be read-only, or another user's.
        (Path(directory) / "info").mkdir()
        objects = os.fsencode(_git_path("objects"))
        (Path(directory) / "info" / "alternates").write_bytes(objects + b"\n")
        aside = {"GIT_INDEX_FILE": f"{directory}/index", "GIT_OBJECT_DIRECTORY": directory}
        # Use a copy of the index, to leave what is staged alone. Its mtime, which `copy2` keeps,
        # tells git which files to look into.
        try:
            shutil.copy2(index, Path(directory, "index"))
        except PermissionError:  # git writes it with the umask of whoever ran git last
            _git("read-tree", "HEAD", variables=aside)
        new = [name for name in CODE if (ROOT / name).is_dir()]
        _git("add", "--intent-to-add", "--", *new, variables=aside)
        # In the form that `git apply` reads, whatever the user's settings.
        plain = (
            "--no-ext-diff",
            "--no-textconv",
            "--no-color",
            "--src-prefix=a/",
            "--dst-prefix=b/",
        )
        return _git("diff", *plain, "HEAD", variables=aside)


def _git_path(name: str) -> Path:
    """Return where git keeps something of this checkout, which may be a worktree."""
    return ROOT / os.fsdecode(_git("rev-parse", "--git-path", name).removesuffix(b"\n"))


def git(*arguments: str) -> list[str]:
    """Return the command that runs git on this checkout alone, whatever repository encloses it,
    whatever hook we run in (GIT_DIR) and whoever owns the files."""
    return ["git", "-C", str(ROOT), f"--git-dir={ROOT / '.git'}", f"--work-tree={ROOT}", *arguments]


def _git(*arguments: str, variables: Mapping[str, str] | None = None) -> bytes:
    # In a hook, these two would be those of the commit that is being made.
    hooks = ("GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY")
    inherited = {name: value for name, value in os.environ.items() if name not in hooks}
    environment = {**inherited, **(variables or {})}
    try:
        return subprocess.run(
            git(*arguments), capture_output=True, check=True, env=environment
        ).stdout
    except (OSError, subprocess.CalledProcessError):  # no git, or no checkout
        return b""
