"""A server that is killed while it works: nothing on disk is damaged, nothing of it stays, and it serves again."""

import contextlib
import hashlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import httpx
import psutil
import pytest

PATIENCE = 120.0
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
GREEDY = {"model": "model", "prompt": "def parse_args(", "max_tokens": 24, "temperature": 0}


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def started(model):
    """A server as a process, its URL, and a thread that reads what it says."""
    command = [sys.executable, "-m", "hybrid.cli", "serve", str(model), "--port", "0", "--slots", "3", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if found := re.match(r"(http://\S+)/v1 serves", line):
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, found[1]
    raise AssertionError(f"it ended with {process.wait()}")


@contextlib.contextmanager
def loaded(url):
    """Clients that ask for long answers, streams and chats among them, for as long as there is a server."""
    done = threading.Event()

    def ask(number):
        body = {"model": "model", "max_tokens": 300, "stream": number % 2 == 0}
        with httpx.Client(base_url=f"{url}/v1", timeout=PATIENCE) as client, contextlib.suppress(httpx.HTTPError):
            while not done.is_set():
                if number % 3:
                    client.post("/completions", json={**body, "prompt": f"def f{number}("})
                else:
                    client.post("/chat/completions", json={**body, "messages": [{"role": "user", "content": "x = "}]})

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


@pytest.mark.slow
def test_kill_under_load_and_restart(demo, tmp_path):
    model = shutil.copytree(demo, tmp_path / "model")
    (model / "chat_template.jinja").write_text(TEMPLATE)
    before = digests(model)
    texts = []
    for round_number in range(3):
        process, url = started(model)
        answer = httpx.post(f"{url}/v1/completions", json=GREEDY, timeout=PATIENCE).raise_for_status()
        texts.append(answer.json()["choices"][0]["text"])
        children = psutil.Process(process.pid).children(recursive=True)
        assert children, "templates have a process of their own"
        with loaded(url):
            time.sleep(0.3 * (1 + round_number))
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert process.returncode == -signal.SIGKILL
        _, alive = psutil.wait_procs(children, PATIENCE)
        assert not alive, "what it started is still there"
        assert digests(model) == before
    assert len(set(texts)) == 1
    verified = subprocess.run(
        [sys.executable, "-m", "hybrid.cli", "inspect", str(model), "--verify"], capture_output=True, text=True
    )
    assert verified.returncode == 0, verified.stderr
