"""The engine's thread: what happens to requests when steps fail, or the service ends."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from hybrid.runtime.sampler import SamplingParams
from hybrid.runtime.sequence import Sequence
from hybrid.serving.service import EngineService, StoppedError, UnavailableError
from hybrid.stages.opening import open_engine
from profiler.artifacts import UserError


@pytest.fixture
def engine(demo):
    with open_engine(demo, max_sequences=2, threads=1) as engine:
        yield engine


def sequence(engine, tokens=8, prompt="def f("):
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    return Sequence(engine.tokenizer.encode(prompt), params, engine.tokenizer)


def run(work):
    return asyncio.run(asyncio.wait_for(work(), 120))


def test_tickets_tell_how_their_sequences_grow(engine):
    service = EngineService(engine)

    async def work():
        ticket = service.submit(sequence(engine, 30), sequence(engine, 5))
        lengths = []
        while not ticket.ended:
            assert await ticket.wait()
            lengths.append([state.tokens for state in ticket.states])
        return ticket, lengths

    ticket, lengths = run(work)
    assert lengths[-1] == [30, 5] and lengths == sorted(lengths)
    assert [state.text for state in ticket.states] == [s.text for s in ticket.sequences]
    assert service.outstanding == 0
    service.close()


def test_silence_is_told_after_its_time(engine):
    service = EngineService(engine)

    async def work():
        ticket = service.submit(sequence(engine, 1))
        await ticket.end()
        assert await ticket.wait(0.01) in (True, False)
        assert await ticket.wait(0.01) is False

    run(work)
    service.close()


def test_a_request_that_cannot_be_added_fails_alone(engine):
    service = EngineService(engine)

    async def work():
        wrong = service.submit(sequence(engine), Sequence([5000], SamplingParams(), engine.tokenizer))
        right = service.submit(sequence(engine))
        await wrong.end()
        await right.end()
        return wrong, right

    wrong, right = run(work)
    assert isinstance(wrong.failure, UserError) and "5000" in str(wrong.failure)
    assert right.failure is None and right.states[0].tokens == 8
    assert service.outstanding == 0 and engine.load().pages_used == 0
    service.close()


def test_a_step_that_fails_is_told_to_those_in_it_and_others_go_on(engine):
    service, step = EngineService(engine), engine.step

    def fail():
        engine.step = step
        raise UserError("no memory is left")

    async def work():
        engine.step = fail
        first = service.submit(sequence(engine))
        await first.end()
        second = service.submit(sequence(engine))
        await second.end()
        return first, second

    first, second = run(work)
    assert str(first.failure) == "no memory is left" and second.failure is None
    assert service.health == "ok" and service.outstanding == 0
    service.close()


@pytest.mark.parametrize("error", [RuntimeError("broken"), UserError("no memory, ever")])
def test_an_engine_that_is_broken_fails_everyone_and_says_so(engine, error):
    service = EngineService(engine)

    def fail():
        raise error

    async def work():
        engine.step = fail
        while service.health == "ok":
            try:
                ticket = service.submit(sequence(engine))
            except UnavailableError:
                break
            await ticket.end()
            assert ticket.failure is error
        with pytest.raises(UnavailableError, match=str(error)):
            service.submit(sequence(engine))

    run(work)
    assert service.health == "failed" and service.failure is error and service.outstanding == 0
    service.close()


def test_a_service_that_drains_finishes_what_it_took_and_refuses_over_http(engine, serving):
    step, gate = engine.step, threading.Event()
    engine.step = lambda: (gate.wait(120), step())[1]
    body = {"model": "demo", "prompt": "def f(", "max_tokens": 5, "ignore_eos": True}
    with serving(engine) as running, ThreadPoolExecutor(1) as pool:
        taken = pool.submit(httpx.post, f"{running.url}/v1/completions", json=body, timeout=120)
        while not running.service.outstanding:
            time.sleep(0.01)
        running.service.drain()
        health = httpx.get(f"{running.url}/health", timeout=120)
        assert health.status_code == 503 and health.json()["status"] == "draining"
        with running.client() as client, pytest.raises(openai.InternalServerError) as refused:
            client.completions.create(model="demo", prompt="x")
        assert refused.value.status_code == 503 and refused.value.code == "unavailable"
        gate.set()
        assert taken.result().json()["usage"]["completion_tokens"] == 5


def test_closing_gives_everything_back_and_tells_who_waits(engine):
    service = EngineService(engine)

    async def work():
        tickets = [service.submit(sequence(engine, 400)) for _ in range(4)]
        await tickets[0].wait()
        service.drain()
        with pytest.raises(UnavailableError, match="stopping"):
            service.submit(sequence(engine))
        assert service.health == "draining"
        service.close()
        for ticket in tickets:
            await ticket.end()
        return tickets

    tickets = run(work)
    assert all(isinstance(ticket.failure, StoppedError) for ticket in tickets)
    assert not engine.busy and engine.load().pages_used == 0 and service.outstanding == 0
