"""Two streams of a CUDA device, with the host's programs among their work, and steps as one CUDA graph each.

A step is issued piece by piece when it first runs, which compiles kernels and loads them. When it comes again it is
captured as a graph, and from then on replayed: one launch. All of its memory was made before, so that nothing is
allocated during a capture.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
from collections.abc import Hashable

import torch

from hybrid.ops import cpu
from hybrid.runtime.streams import Work

log = logging.getLogger(__name__)


class Driver:
    """The one function of the CUDA driver that torch does not show.

    Raises:
        OSError: there is no such library.
        AttributeError: it is no driver, or one from before CUDA 10.
    """

    def __init__(self, library: str = "libcuda.so.1") -> None:
        driver = ctypes.CDLL(library)  # calls release the interpreter lock
        self._launch = driver.cuLaunchHostFunc  # (CUstream, CUhostFn, void* userData) -> CUresult
        self._launch.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
        self._launch.restype = ctypes.c_int
        self._text = driver.cuGetErrorString  # (CUresult, const char**) -> CUresult
        self._text.argtypes = (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p))
        self._text.restype = ctypes.c_int

    def launch(self, stream: int, function: cpu.HostFunction) -> None:
        """Have a program run when its turn in a stream comes; in a capture it becomes a node of the graph.

        Raises:
            RuntimeError: the driver refuses.
        """
        result = self._launch(stream, function.function, function.context)
        if result != 0:
            text = ctypes.c_char_p()
            said = text.value if self._text(result, ctypes.byref(text)) == 0 else None
            raise RuntimeError(f"CUDA error: cuLaunchHostFunc: {(said or b'unknown').decode()} ({result})")


class CudaStreams:
    """See `Streams`. Without overlap all work goes to the main stream.

    A run starts after what the caller's current stream was given, and is over when it returns. The caller sleeps
    meanwhile instead of watching: the host's programs need its core.
    """

    def __init__(self, device: torch.device, driver: Driver, overlap: bool = True) -> None:
        self._device, self._driver = device, driver
        self._main, second = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]
        self._second = second if overlap else self._main
        self._before, self._forked, self._joined = (torch.cuda.Event() for _ in range(3))  # type: ignore[no-untyped-call]
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._warm: set[Hashable] = set()  # what was issued once
        self._captures = True

    def call(self, work: Work, aside: bool) -> None:
        """See `Streams`."""
        with torch.cuda.stream(self._stream(aside)):
            work()

    def host(self, function: cpu.HostFunction, aside: bool) -> None:
        """See `Streams`."""
        self._driver.launch(self._stream(aside).cuda_stream, function)

    def fork(self) -> None:
        """See `Streams`."""
        self._forked.record(self._main)
        self._second.wait_event(self._forked)

    def join(self) -> None:
        """See `Streams`."""
        self._joined.record(self._second)
        self._main.wait_event(self._joined)

    def run(self, name: Hashable, issue: Work) -> None:
        """See `Streams`."""
        self._before.record(torch.cuda.current_stream(self._device))
        self._main.wait_event(self._before)
        graph = self._graphs.get(name)
        if graph is None and name in self._warm:
            graph = self._captured(name, issue)
        try:
            if graph is None:
                issue()
                if name is not None:
                    self._warm.add(name)
            else:
                with torch.cuda.stream(self._main):
                    graph.replay()
        finally:  # whatever happened, nothing is under way any more
            if graph is None:
                self.join()  # pieces may have stopped between a fork and its join
            self._done.record(self._main)
            self._done.synchronize()

    def close(self) -> bool:
        """See `Streams`."""
        try:
            torch.cuda.synchronize(self._device)
        except RuntimeError as error:  # the device failed; the driver may or may not call what it was given
            log.warning("the GPU could not be waited for: %s", error)
            return False
        self._graphs.clear()
        return True

    def _stream(self, aside: bool) -> torch.cuda.Stream:
        return self._second if aside else self._main

    def _captured(self, name: Hashable, issue: Work) -> torch.cuda.CUDAGraph | None:
        """The graph of these pieces, which are not run; None where the driver makes none, as is said once."""
        if not self._captures:
            return None
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(self._main):
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    issue()
                except BaseException:
                    with contextlib.suppress(RuntimeError):
                        graph.capture_end()
                    raise
                graph.capture_end()
        except RuntimeError as error:
            self._captures = False
            log.warning("steps are issued piece by piece, which is slower: the driver captures no graph (%s)", error)
            return None
        self._graphs[name] = graph
        return graph
