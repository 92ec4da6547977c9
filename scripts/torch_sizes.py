"""What installing torch downloads, per platform: the table of docs/installing.md.

    python scripts/torch_sizes.py [--uv UV] [--cpu-wheel FILE]

Resolved by uv for each platform, with the sizes that PyPI's index states; nothing is downloaded. The build for the CPU
on Linux comes from torch's own index; where that cannot be reached, --cpu-wheel names its file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from hybrid.runtime.nvidia_driver import TORCH_RANGE

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PYPI = "https://pypi.org/simple"
TAG = "cp312"
# What is said of it, uv's name of the platform, tags of wheels that fit.
PLATFORMS = (
    ("Linux x86-64, `TORCH=cuda`", "x86_64-manylinux_2_28", ("manylinux", "x86_64")),
    ("Linux arm64, `TORCH=cuda`", "aarch64-manylinux_2_28", ("manylinux", "aarch64")),
    ("macOS 14 or later, Apple silicon", "aarch64-apple-darwin", ("macosx", "arm64")),
)


def resolved(uv: str, platform: str, requirement: str = TORCH_RANGE) -> dict[str, str]:
    """name: version of all that is installed on a platform."""
    environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}
    done = subprocess.run(
        [uv, "pip", "compile", "-", "--no-header", "--no-annotate", "--quiet", "--python-version", "3.12",
         "--python-platform", platform, "--no-config", "--index-url", PYPI],
        input=requirement, capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    lines = [line.split(";")[0].strip() for line in done.stdout.splitlines()]
    return dict(re.fullmatch(r"([\w.-]+)(?:\[.*\])?==(\S+)", line).groups() for line in lines if line)  # type: ignore[union-attr]


def size(name: str, version: str, tags: tuple[str, str]) -> int:
    """Bytes of the wheel that fits a platform, by PyPI's index."""
    request = urllib.request.Request(f"{PYPI}/{name}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        files = json.load(answer)["files"]
    start = f"{name}-{version}-".replace("-", "_").lower()
    wheels = [f for f in files if f["filename"].replace("-", "_").lower().startswith(start)]
    fits = [f for f in wheels if re.search(r"-none-any\.whl$", f["filename"]) or all(t in f["filename"] for t in tags)]
    own = [f for f in fits if f"-{TAG}-{TAG}-" in f["filename"]]
    return int(max(own or fits, key=lambda f: str(f["upload-time"]))["size"])


def from_cpu_index(version: str) -> int | None:
    """Bytes of torch's build for the CPU by its own index; None where it cannot be reached."""
    url = f"{CPU_INDEX}/torch-{version}%2Bcpu-{TAG}-{TAG}-manylinux_2_28_x86_64.whl"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=30) as answer:
            return int(answer.headers["Content-Length"])
    except (urllib.error.URLError, TimeoutError):
        return None


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uv", default="uv")
    parser.add_argument("--cpu-wheel", type=Path)
    options = parser.parse_args()
    print("| platform | torch | packages | download |\n|---|---|---:|---:|")
    for title, platform, tags in PLATFORMS:
        found = resolved(options.uv, platform)
        sizes = {name: size(name, version, tags) for name, version in found.items()}
        if platform == PLATFORMS[0][1]:
            needed = {n: s for n, s in sizes.items() if not n.startswith(("nvidia", "cuda", "triton", "torch"))}
            wheel = from_cpu_index(found["torch"]) or (options.cpu_wheel and options.cpu_wheel.stat().st_size)
            total = f"{(sum(needed.values()) + wheel) / 1e6:,.0f} MB" if wheel else "not read"
            print(f"| Linux x86-64, `TORCH=cpu` | {found['torch']}+cpu | {len(needed) + 1} | {total} |")
        print(f"| {title} | {found['torch']} | {len(sizes)} | {sum(sizes.values()) / 1e6:,.0f} MB |")


if __name__ == "__main__":
    main()
