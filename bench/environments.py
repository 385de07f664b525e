"""Peers in environments of their own, outside the checkout: `python -m bench peers`."""

import subprocess
import sys
from pathlib import Path

from bench.peers import PEERS, Peer

DEFAULT = Path.home() / ".cache" / "bie-stream" / "peers"
_CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
_EVERYWHERE = ("torch", "numpy", "psutil", "blosc2")  # what bench.turn and bench.peers.payload need
_READY = "ready"


class NotInstalled(RuntimeError):
    """A peer that is not there; the message says why."""


def python_of(peer: Peer, name: str, folder: Path) -> Path:
    """The interpreter that has a peer's packages; raises NotInstalled."""
    if not peer.packages:
        return Path(sys.executable)
    if not (folder / name / _READY).exists():
        raise NotInstalled(f"not installed: python -m bench peers {name}")
    return folder / name / "bin" / "python"


def install(names: list[str], folder: Path) -> dict[str, str]:
    """Sets up those that need it and are not there; what went wrong, by name."""
    wanted = [name for name in names if PEERS[name].packages and not (folder / name / _READY).exists()]
    failed = ((name, _install(PEERS[name], folder / name)) for name in wanted)
    return {name: why for name, why in failed if why}


def versions_in(python: Path, packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of packages as an interpreter sees them; those that it lacks are left out."""
    code = (
        "import sys\nfrom importlib.metadata import PackageNotFoundError, version\n"
        "for name in sys.argv[1:]:\n    try: print(name, version(name))\n    except PackageNotFoundError: pass"
    )
    said = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=True).stdout
    return dict(line.split() for line in said.splitlines())


def _install(peer: Peer, folder: Path) -> str:
    """Nothing, or the last line that uv said."""
    torch = f"torch=={versions_in(Path(sys.executable), ('torch',))['torch']}"
    packages = [torch, *_EVERYWHERE[1:], *peer.packages]
    constraints = ["--constraint", str(_CONSTRAINTS)] if peer.pinned else []
    python = folder / "bin" / "python"
    steps: tuple[list[str | Path], ...] = (
        ["venv", "--clear", "--python", sys.executable, folder],
        ["pip", "install", "--python", python, *constraints, *packages],
    )
    for words in steps:
        done = subprocess.run([sys.executable, "-m", "uv", *words], capture_output=True, text=True)
        if done.returncode:
            return done.stderr.strip().splitlines()[-1]
    (folder / _READY).touch()
    return ""
