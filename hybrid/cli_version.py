"""`hybrid --version`: the versions that matter, of what is installed, without loading it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from hybrid import __version__

DISTRIBUTIONS = ("torch", "triton", "numpy", "safetensors", "tokenizers", "sentencepiece")  # in the order of weight


def version_lines() -> list[str]:
    """hybrid's own version on the first line, then those of what its results depend on."""
    lines = [f"hybrid {__version__}"]
    lines.append(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    return lines + [f"{name} {_installed(name)}" for name in DISTRIBUTIONS]


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
