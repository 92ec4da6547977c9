"""What brings the optional packages: the extras of the distribution, as a command that works whatever it came from.

`pip install 'hybrid-inference[serve]'` would ask an index for this distribution, which may have come from a checkout, a
wheel or an image instead. So the command names the packages themselves, in the versions that the metadata asks for.
"""

from __future__ import annotations

import re
import shlex
from importlib import metadata

DISTRIBUTION = "hybrid-inference"


def install_command(extra: str) -> str:
    """The pip command for the packages of an extra, such as `pip install 'fastapi>=0.115' 'h11>=0.14'`.

    Where the distribution is not installed (a source tree on PYTHONPATH) it is a command for the checkout.
    """
    packages = requirements(extra)
    return f"pip install {shlex.join(packages) if packages else f'.[{extra}]'}"


def requirements(extra: str) -> list[str]:
    """What an extra asks for beside the distribution itself, without markers."""
    try:
        stated = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for line in stated:
        requirement, _, marker = line.partition(";")
        if re.search(rf"extra == ['\"]{re.escape(extra)}['\"]", marker):
            found.append(requirement.strip())
    return found
