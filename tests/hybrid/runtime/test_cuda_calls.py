"""What is asked of CUDA and in which order, with something in its place that keeps count: no GPU is needed."""

import contextlib
import logging
import shutil
import subprocess

import pytest
import torch

from hybrid.ops import cpu
from hybrid.runtime import cuda_streams
from hybrid.runtime.cuda_streams import CudaStreams, Driver

DRIVER = """
int cuLaunchHostFunc(void* stream, void (*function)(void*), void* context) {
  if (!stream) return 400;
  function(context);
  return 0;
}
int cuGetErrorString(int result, const char** text) {
  *text = result == 400 ? "invalid resource handle" : 0;
  return result != 400;
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A library with the driver's functions, which calls at once; and beside it `other.so`, without them."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER)
    (folder / "other.c").write_text("int nothing;\n")
    for name in ("driver", "other"):
        subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / f"{name}.so", folder / f"{name}.c"], check=True)
    return str(folder / "driver.so")


class Counted:
    """A program of the host whose runs are counted: it looks an embedding up."""

    def __init__(self):
        self.place, self.y = torch.zeros(cpu.MAX_TOKENS, dtype=torch.int64), torch.zeros(cpu.MAX_TOKENS, 32)
        self.table, self.tokens = torch.ones(1, 32).half(), torch.ones(1, dtype=torch.int64)
        program = cpu.Program()
        program.embed(self.table.data_ptr(), 64, cpu.WEIGHT_FORMATS["f16"], 32, self.y.data_ptr())
        self.step = cpu.HostStep(self.tokens.data_ptr(), *(self.place.data_ptr(),) * 3)
        self.function = cpu.HostFunction(self.step, program)


def test_a_program_is_called_through_the_driver(library):
    driver, host = Driver(library), Counted()
    driver.launch(1 << 40, host.function)
    assert (host.y[0] == 1).all()
    with pytest.raises(RuntimeError, match=r"CUDA error: cuLaunchHostFunc: invalid resource handle \(400\)"):
        driver.launch(0, host.function)


def test_what_is_no_driver_is_refused(library):
    with pytest.raises(OSError, match=r"nothing\.so"):
        Driver(library.replace("driver.so", "nothing.so"))
    with pytest.raises(AttributeError, match="cuLaunchHostFunc"):
        Driver(library.replace("driver.so", "other.so"))


class Cuda:
    """Keeps what is asked of it, under the names of `torch.cuda`."""

    def __init__(self):
        self.log, self.fails, self.now = [], set(), "callers"
        cuda = self

        class Stream:
            made = 0

            def __init__(self, device=None):
                self.name = ("main", "second")[Stream.made]
                Stream.made += 1
                self.cuda_stream = Stream.made

            def wait_event(self, event):
                cuda.log.append(f"{self.name} waits for {event.of}")

        class Event:
            def __init__(self, blocking=False):
                self.blocking, self.of = blocking, None

            def record(self, stream):
                self.of = getattr(stream, "name", stream)

            def synchronize(self):
                assert self.blocking, "the caller's core is the host's"
                cuda.ask(f"wait for {self.of}")

        class CUDAGraph:
            def capture_begin(self, capture_error_mode):
                cuda.ask(f"capture {cuda.now} {capture_error_mode}")

            def capture_end(self):
                cuda.ask("captured")

            def replay(self):
                cuda.ask(f"replay on {cuda.now}")

        self.Stream, self.Event, self.CUDAGraph = Stream, Event, CUDAGraph

    def ask(self, what):
        self.log.append(what)
        if what.split()[0] in self.fails:
            raise RuntimeError(f"CUDA error: {what}")

    def current_stream(self, device):
        return "callers"

    def synchronize(self, device):
        self.ask("synchronize")

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.now = self.now, stream.name
        try:
            yield
        finally:
            self.now = before


class Kept:
    """A driver that keeps count."""

    def __init__(self, cuda):
        self.cuda = cuda

    def launch(self, stream, function):
        self.cuda.log.append(f"{function} on {('main', 'second')[stream - 1]}")


@pytest.fixture
def cuda(monkeypatch):
    cuda = Cuda()
    monkeypatch.setattr(cuda_streams.torch, "cuda", cuda)
    return cuda


@pytest.fixture
def streams(cuda):
    return CudaStreams(torch.device("cuda"), Kept(cuda))


def pieces(cuda, streams, failing=None):
    def device(name):
        def work():
            cuda.log.append(f"{name} on {cuda.now}")
            if name == failing:
                raise ValueError("the rows could not be computed")

        return work

    def issue():
        streams.fork()
        streams.call(device("copy"), True)
        streams.host("far", True)
        streams.call(device("near"), False)
        streams.join()
        streams.host("program", False)

    return issue


PIECES = [
    "second waits for main",
    "copy on second",
    "far on second",
    "near on main",
    "main waits for second",
    "program on main",
]
BEGIN, END = ["main waits for callers"], ["wait for main"]


def asked(cuda):
    log, cuda.log = cuda.log, []
    return log


def test_pieces_once_then_a_graph_then_its_replay(cuda, streams):
    issue = pieces(cuda, streams)
    for name in ("one", "two"):
        streams.run(name, issue)
        assert asked(cuda) == [*BEGIN, *PIECES, "main waits for second", *END]
    for name in ("two", "one"):
        streams.run(name, issue)
        assert asked(cuda) == [*BEGIN, "capture main thread_local", *PIECES, "captured", "replay on main", *END]
    for name in ("one", "two", "one"):
        streams.run(name, issue)
        assert asked(cuda) == [*BEGIN, "replay on main", *END]
    for _ in range(3):
        streams.run(None, issue)
        assert asked(cuda) == [*BEGIN, *PIECES, "main waits for second", *END]
    assert streams.close()
    assert asked(cuda) == ["synchronize"]
    assert not streams._graphs


def test_without_overlap_everything_is_in_one_stream(cuda):
    streams = CudaStreams(torch.device("cuda"), Kept(cuda), overlap=False)
    streams.run("one", pieces(cuda, streams))
    assert [what for what in asked(cuda) if " on " in what] == [
        "copy on main",
        "far on main",
        "near on main",
        "program on main",
    ]


@pytest.mark.parametrize("failing", ["capture", "captured"])
def test_where_no_graph_is_captured_pieces_are_issued_and_that_is_said_once(cuda, streams, caplog, failing):
    issue = pieces(cuda, streams)
    cuda.fails = {failing}
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            asked(cuda)
            streams.run("one", issue)
            assert asked(cuda)[-len(PIECES) - 2 :] == [*PIECES, "main waits for second", *END]
    assert len(caplog.records) == 1
    assert "captures no graph" in caplog.text


def test_a_failure_between_pieces_leaves_nothing_under_way(cuda, streams):
    for _ in range(2):
        with pytest.raises(ValueError, match="could not be computed"):
            streams.run("one", pieces(cuda, streams, failing="near"))
        assert asked(cuda)[-3:] == ["near on main", "main waits for second", "wait for main"]
    streams.run("one", pieces(cuda, streams))
    asked(cuda)
    with pytest.raises(ValueError, match="could not be computed"):  # in a capture, which ends
        streams.run("one", pieces(cuda, streams, failing="near"))
    assert asked(cuda)[-2:] == ["near on main", "captured"]
    streams.run("one", pieces(cuda, streams))
    assert asked(cuda)[-2:] == ["replay on main", *END]


def test_a_device_that_failed_says_so_and_closing_does_not_hang(cuda, streams, caplog):
    cuda.fails = {"wait", "synchronize"}
    with pytest.raises(RuntimeError, match="CUDA error: wait for main"):
        streams.run("one", pieces(cuda, streams))
    assert not streams.close()
    assert "could not be waited for" in caplog.text
