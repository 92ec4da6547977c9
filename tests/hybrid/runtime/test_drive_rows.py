"""Rows that a plan leaves on the drive: memory holds no more than the budget says, and results are the same."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.runtime.drive_rows import LOOK_EVERY, DriveRows, resident_of_files
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


class Memory:
    """What a process holds: some of the model, some of which is no row on the drive, and other files."""

    def __init__(self, *parts, model=0, others=500):
        self.parts, self.model, self.others, self.looks = parts, model, others, 0

    def held(self):
        self.looks += 1
        return self.model + sum(part.held for part in self.parts)

    def resident(self):
        return self.others + self.model + sum(part.held for part in self.parts)

    def rows(self, allowed):
        return DriveRows(self.parts, allowed, self.held, self.resident)


def test_layers_are_given_back_in_turn_until_the_rest_fits():
    parts = [Part(10) for _ in range(4)]
    rows = Memory(*parts, model=75).rows(100)
    rows.settle()
    assert [part.held for part in parts] == [0, 0, 10, 10]
    rows.settle()
    assert [part.times for part in parts] == [1, 1, 0, 0], "what fits stays"
    parts[0].held = parts[1].held = 10
    rows.settle()
    assert [part.times for part in parts] == [1, 1, 1, 1], "the next ones, not the first ones again"


def test_what_is_not_the_rows_is_given_up_on_after_one_round():
    memory = Memory(*(Part(10) for _ in range(3)), model=1000)
    memory.rows(5).settle()
    assert [part.times for part in memory.parts] == [1, 1, 1]


def test_mappings_are_looked_at_where_too_much_seems_to_be_held():
    memory = Memory(Part(0), Part(0), model=20)
    rows = memory.rows(100)
    rows.settle()
    for held in range(0, 80, 10):
        memory.parts[0].held = held
        rows.settle()
    assert (memory.looks, memory.parts[0].times) == (1, 0)
    memory.others, memory.parts[0].held = 100, 70  # other files leave memory, which does not hide what comes
    rows.settle()
    memory.parts[0].held = 101
    rows.settle()
    assert memory.parts[0].held == 0
    for _ in range(LOOK_EVERY):
        memory.others += 1000  # which is not the model's, as a look finds
        rows.settle()
    assert memory.looks == 2


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(0, 500)), max_size=40), st.integers(50, 99)
)
def test_no_more_is_held_than_is_allowed_whatever_comes_and_goes(steps, allowed):
    memory = Memory(*(Part(0) for _ in range(4)), model=40)
    rows = memory.rows(allowed)
    rows.settle()
    for part, more, others in steps:
        memory.parts[part].held += more
        memory.others = max(memory.others, others)
        rows.settle()
        assert memory.held() <= allowed
        memory.others = others
        rows.settle()


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
@pytest.mark.parametrize("mode", ["exact", "predicted"])
def test_a_budget_of_host_memory_is_kept_and_the_text_is_the_same(demo_copy, mode):
    def completed(**options):
        most = 0
        with open_engine(demo_copy, mode=mode, context=256, threads=1, **options) as engine:
            ids = engine.tokenizer.encode(TEXT * 4)
            sequence = Sequence(ids, SamplingParams(max_tokens=8), engine.tokenizer, 0)
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
