"""Run the commands that the documents show and put their real output in.

    python scripts/update_documents.py README.md BENCHMARKS.md

A comment `<!-- run: COMMAND -->` owns the fenced block after it: the block becomes `$ COMMAND` and what it printed
(stdout and stderr together). `<!-- run as table: COMMAND -->` puts the output in as Markdown, up to `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

BLOCK = re.compile(r"(<!-- run: (?P<command>[^\n]+?) -->\n)```\w*\n(?:.*?\n)??```", re.DOTALL)
TABLE = re.compile(r"(<!-- run as table: (?P<command>[^\n]+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def output_of(command: str) -> str:
    """What a command prints, run in the checkout with this interpreter's commands first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    print(f"$ {command}", flush=True)
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(
        command, shell=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    if done.returncode:
        raise SystemExit(f"{command!r} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout.replace(str(Path.cwd()) + "/", "").replace(str(Path.home()), "~").rstrip()


def main() -> None:
    """Rewrite the documents that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path, nargs="+")
    parser.add_argument("--only", default="", help="run only commands that contain this text")
    args = parser.parse_args()

    def block(match: re.Match[str]) -> str:
        command = match["command"]
        if args.only not in command:
            return match[0]
        return f"{match[1]}```console\n$ {command}\n{output_of(command)}\n```"

    def table(match: re.Match[str]) -> str:
        if args.only not in match["command"]:
            return match[0]
        return f"{match[1]}\n{output_of(match['command'])}\n\n{match[3]}"

    for document in args.documents:
        text = document.read_text(encoding="utf-8")
        document.write_text(TABLE.sub(table, BLOCK.sub(block, text)), encoding="utf-8")


if __name__ == "__main__":
    main()
