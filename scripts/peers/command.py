"""How the long benchmarks speak and end: progress and errors on the error stream, in one line each."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


def tell(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def explained(name: str, *errors: type[Exception]) -> Iterator[None]:
    """End the program with one line that begins with its name on such errors, and with 130 on Ctrl-C."""
    try:
        yield
    except errors as error:
        raise SystemExit(f"{name}: {error}") from error
    except KeyboardInterrupt:
        tell(f"{name}: interrupted")
        raise SystemExit(130) from None
