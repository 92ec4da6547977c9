"""Where files are kept that can be made anew: the demo's model directory, the figures of this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_directory() -> Path:
    """HYBRID_CACHE, else the platform's cache folder."""
    if chosen := os.environ.get("HYBRID_CACHE"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "hybrid"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hybrid"
