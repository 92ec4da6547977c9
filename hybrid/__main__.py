"""The `hybrid` command, and `python -m hybrid`: an interrupt ends it quietly while the rest is being loaded."""

import os
import signal

if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # else a shell started this to go on in the background
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))


def main() -> None:
    """Run the command line, and end the process."""
    from hybrid import cli

    cli.main()


if __name__ == "__main__":
    main()
