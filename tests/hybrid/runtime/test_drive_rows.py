"""Rows that a plan leaves on the drive: memory holds no more than the budget says, and results are the same."""

import gc
import sys
from pathlib import Path

import pytest

from hybrid.runtime.drive_rows import DriveRows, resident_of_files
from hybrid.runtime.sampler import SamplingParams
from hybrid.runtime.sequence import Sequence
from hybrid.stages.opening import open_engine
from profiler.artifacts import UserError

MIB = 1 << 20
TEXT = "def main(arguments):\n    for argument in arguments:\n"


class Part:
    """Rows of a layer, whose bytes in memory the test says."""

    def __init__(self, held):
        self.length, self.held, self.times = held, held, 0

    def forget(self, stop):
        assert stop == self.length
        self.held, self.times = 0, self.times + 1


def test_layers_are_given_back_in_turn_until_the_rest_fits():
    parts = [Part(10) for _ in range(4)]
    rows = DriveRows(parts, 100, lambda: 75 + sum(part.held for part in parts))
    rows.settle()
    assert [part.held for part in parts] == [0, 0, 10, 10]
    rows.settle()
    assert [part.times for part in parts] == [1, 1, 0, 0], "what fits stays"
    parts[0].held = parts[1].held = 10
    rows.settle()
    assert [part.times for part in parts] == [1, 1, 1, 1], "the next ones, not the first ones again"


def test_what_is_not_the_rows_is_given_up_on_after_one_round():
    parts = [Part(10) for _ in range(3)]
    DriveRows(parts, 5, lambda: 1000).settle()
    assert [part.times for part in parts] == [1, 1, 1]


def mapped(directory):
    """Bytes of the model's files that this process has in memory, by what the kernel says of each mapping."""
    found, counts = 0, False
    with Path("/proc/self/smaps").open() as lines:
        for line in lines:
            name = line.split()
            if "-" in name[0] and not name[0].endswith(":"):
                counts = str(directory) in line
            elif counts and line.startswith("Rss:"):
                found += int(name[1]) << 10
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process has of files in memory")
@pytest.mark.parametrize("mode", ["exact", "predicted", "dense"])
def test_a_budget_of_host_memory_is_kept_and_the_text_is_the_same(demo_copy, mode):
    def completed(**options):
        most = 0
        gc.collect()  # what other tests opened is not to be counted as held before
        with open_engine(demo_copy, mode=mode, context=256, threads=1, **options) as engine:
            ids = engine.tokenizer.encode(TEXT * 4)
            sequence = Sequence(ids, SamplingParams(max_tokens=24), engine.tokenizer, 0)
            for _ in engine.run([sequence]):
                most = max(most, mapped(demo_copy))
            return sequence.output_ids, most, engine.machine.drive_rows

    whole, all_of_it, none = completed()
    assert none is None
    ids, most, rows = completed(ram=8 * MIB)
    assert ids == whole and rows is not None
    # The kernel may read ahead what nobody asked for; pages that two layers' files share with others stay.
    assert most <= 8 * MIB < all_of_it
    assert resident_of_files() > 0


def test_a_budget_and_reading_everything_into_memory_are_refused(demo):
    with pytest.raises(UserError, match="--no-mmap reads all of them"):
        open_engine(demo, ram=8 * MIB, mmap=False)
