"""The page's files as they are served: types, caching, what a browser may do with them, and nothing else."""

import re
from pathlib import Path

import pytest

from hybrid.serving import page

FILES = sorted(path.relative_to(page.FOLDER).as_posix() for path in page.FOLDER.rglob("*") if path.is_file())
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def address(name: str) -> str:
    return "/" if name == "index.html" else f"/static/{name}"


@pytest.mark.parametrize("name", FILES)
def test_every_file_has_its_type_and_lets_nothing_else_in(http, name):
    answer = http.get(address(name))
    assert answer.status_code == 200
    assert answer.content == (page.FOLDER / name).read_bytes()
    assert answer.headers["content-type"].startswith(KINDS[Path(name).suffix])
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert not re.search(r"unsafe|https?:|\*|data:", answer.headers["content-security-policy"])
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["object-src"] == "'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"


def test_a_browser_that_has_a_file_is_not_sent_it_again(http):
    first = http.get("/static/main.js")
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = http.get("/static/main.js", headers={"If-None-Match": known})
        assert again.status_code == 304
        assert again.content == b""
        assert again.headers["etag"] == tag
    assert http.get("/static/main.js", headers={"If-None-Match": '"other"'}).status_code == 200
    assert http.head("/").status_code == 200
    assert http.head("/").content == b""


@pytest.mark.parametrize(
    "path",
    [
        "/static/",
        "/static",
        "/static/index.html",
        "/static/../page.py",
        "/static/..%2fpage.py",
        "/static/%2e%2e/page.py",
        "/static//etc/passwd",
        "/static/main.js%00.css",
        "/index.html",
    ],
)
def test_what_is_not_listed_is_not_served(http, path):
    answer = http.send(http.build_request("GET", http.base_url.copy_with(raw_path=path.encode())))
    assert answer.status_code in (400, 404)
    assert b"FOLDER" not in answer.content


def test_files_name_no_other_host_and_hold_no_script_in_markup():
    for name in FILES:
        text = (page.FOLDER / name).read_text()
        addresses = set(re.findall(r"https?://[^\s\"')]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not addresses, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), name
    markup = (page.FOLDER / "index.html").read_text()
    assert not re.search(r"\son\w+=|style=|<style|<script(?![^>]*\ssrc=)", markup)
    for reference in re.findall(r'(?:src|href)="([^"#]+)"', markup):
        assert reference.removeprefix("/static/") in FILES


def test_modules_import_what_there_is():
    for name in (name for name in FILES if name.endswith(".js")):
        text = (page.FOLDER / name).read_text()
        assert len(text.splitlines()) <= 250
        for names, source in re.findall(r'^import \{([^}]+)\} from "\./([^"]+)";', text, re.MULTILINE):
            assert source in FILES
            exported = (page.FOLDER / source).read_text()
            for imported in names.split(","):
                found = rf"^export (const|class|async function\*|function) {imported.strip()}\b"
                assert re.search(found, exported, re.MULTILINE), f"{name}: {imported}"
                body = text.replace(f"import {{{names}}}", "")
                assert re.search(rf"\b{imported.strip()}\b", body), f"{name} does not use {imported}"
