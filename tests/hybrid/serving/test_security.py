"""Keys, origins and names: who is let in, who is not, and that keys are told to nobody."""

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.serving.security import KeyGuard, PageGuard, exposed, read_keys
from hybrid.serving.settings import ServeSettings, is_loopback
from profiler.artifacts import UserError

KEYS = ("sk-first-0123456789", "sk-second-abcdefghij")
PROTECTED = [
    "/v1/models",
    "/v1/models/demo",
    "/metrics",
    "/openapi.json",
    "/no/such/path",
    "/v1/",
    "/static",
    "/health/",
]
ASK = {"model": "demo", "prompt": "a", "max_tokens": 1}
STRANGER = "https://evil.example"


@pytest.fixture(scope="module")
def guarded(demo, serving):
    """A server with two keys, one origin and one name of its own."""
    from hybrid.stages.opening import open_engine

    with (
        open_engine(demo, max_sequences=2, threads=1) as engine,
        serving(
            engine,
            api_keys=KEYS,
            cors_origins=("https://app.example:8443",),
            allowed_hosts=("llm.lan",),
        ) as running,
        httpx.Client(base_url=running.url, timeout=120) as client,
    ):
        yield client


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("path", PROTECTED)
def test_without_a_key_nothing_is_told(guarded, path):
    answer = guarded.get(path)
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens(guarded, key):
    assert guarded.get("/v1/models", headers=bearer(key)).status_code == 200
    answer = guarded.post("/v1/completions", json=ASK, headers={"authorization": f"bearer   {key}"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer"},
        bearer(KEYS[0][:-1]),
        bearer(KEYS[0] + "x"),
        bearer(KEYS[0].upper()),
        bearer(",".join(KEYS)),
        {"Authorization": KEYS[0]},
        {"Authorization": f"Basic {KEYS[0]}"},
        {"X-Api-Key": KEYS[0]},
        [("Authorization", f"Bearer {KEYS[0]}"), ("Authorization", "Bearer other")],
        {"Authorization": b"Bearer \xff\xfe"},
    ],
)
def test_what_is_not_exactly_a_key_is_refused_before_anything_is_read(guarded, headers):
    answer = guarded.post("/v1/completions", content=b"not read", headers=headers)
    assert answer.status_code == 401
    assert not any(key in answer.text for key in KEYS)


def test_a_key_in_the_address_is_none(guarded):
    assert guarded.get(f"/v1/models?api_key={KEYS[0]}").status_code == 401


def test_health_and_preflights_need_no_key(guarded):
    assert guarded.get("/health").status_code == 200
    answer = guarded.options(
        "/v1/chat/completions",
        headers={
            "Origin": "http://localhost:3000",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type, x-stainless-lang",
            "Access-Control-Request-Private-Network": "true",
        },
    )
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "authorization" in answer.headers["access-control-allow-headers"]
    assert answer.headers["access-control-allow-private-network"] == "true"
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin",
    ["http://localhost", "https://localhost:1", "http://127.0.0.1:5173", "http://[::1]:80", "https://app.example:8443"],
)
def test_pages_that_may_call_can_read_answers_and_refusals(guarded, origin):
    for headers in (bearer(KEYS[0]), {}):
        answer = guarded.get("/v1/models", headers={"Origin": origin, **headers})
        assert answer.headers["access-control-allow-origin"] == origin
        assert "origin" in answer.headers["vary"].lower()


@pytest.mark.parametrize(
    "origin",
    [
        STRANGER,
        "null",
        "https://app.example",
        "https://app.example:84430",
        "http://app.example:8443",
        "http://localhost.evil.example",
        "http://evil.example/localhost",
        "http://localhost:3000@evil.example",
        "http://127.0.0.1.evil.example",
        "http://127.0.0.2",
        "file://",
        "http://localhost:123456",
        "",
    ],
)
@pytest.mark.parametrize("method", ["OPTIONS", "GET", "POST"])
def test_pages_of_others_are_refused_with_a_key_too(guarded, origin, method):
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST", **bearer(KEYS[0])}
    answer = guarded.request(method, "/v1/models", headers=headers)
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in answer.headers


def test_the_servers_own_page_may_call_it_by_each_of_its_names(guarded):
    port = guarded.base_url.port
    for name in (f"127.0.0.1:{port}", f"localhost:{port}", f"llm.lan:{port}", f"LLM.lan:{port}", f"[::1]:{port}"):
        headers = {"Host": name, "Origin": f"http://{name}", **bearer(KEYS[1])}
        assert guarded.get("/v1/models", headers=headers).status_code == 200, name


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "a b",
        "127.0.0.1@evil",
        "192.168.1.5",
        "[fe80::1]",
        "localhost:x",
        ".",
    ],
)
def test_a_name_that_somebody_pointed_here_is_refused(guarded, host):
    answer = guarded.get("/health", headers={"Host": host, "Origin": f"http://{host}"})
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "host_not_allowed"


def test_images_and_links_of_other_sites_reach_the_page_alone(guarded):
    strange = {"Sec-Fetch-Site": "cross-site", **bearer(KEYS[0])}
    assert guarded.get("/v1/models", headers=strange).status_code == 403
    assert guarded.get("/metrics", headers=strange).status_code == 403
    assert guarded.get("/health", headers=strange).status_code == 200
    for kind in ("same-origin", "same-site", "none"):
        assert guarded.get("/v1/models", headers={**strange, "Sec-Fetch-Site": kind}).status_code == 200


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", None]
)
def test_bodies_that_a_browser_sends_without_asking_are_not_read(guarded, content_type):
    headers = bearer(KEYS[0]) if content_type is None else {"Content-Type": content_type, **bearer(KEYS[0])}
    answer = guarded.post("/v1/completions", content=b'{"model": "demo", "prompt": "a"}', headers=headers)
    assert answer.status_code == 415 and answer.json()["error"]["code"] == "not_json"


def test_keys_come_from_all_three_places_once_each(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\nsk-a\n\n  sk-b  \n", encoding="utf-8")
    assert read_keys(["sk-c", "sk-a"], file, {"HYBRID_API_KEYS": "sk-d, sk-a,,"}) == ("sk-c", "sk-a", "sk-b", "sk-d")
    assert read_keys([], None, {}) == ()


@pytest.mark.parametrize("content", [b"", b"# none\n", b"\xff\xfe", b"k\n" * (1 << 20)])
def test_a_file_without_keys_is_refused(tmp_path, content):
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(UserError):
        read_keys([], file, {})
    with pytest.raises(UserError, match="cannot be read"):
        read_keys([], tmp_path / "missing", {})


@pytest.mark.parametrize("key", ["", "a b", "ä", "x" * 513, "a\n"])
def test_keys_that_no_header_can_hold_are_refused(key):
    with pytest.raises(UserError):
        ServeSettings(model_names=("m",), api_keys=(key,))


@pytest.mark.parametrize(
    "origin", ["example.com", "https://example.com/", "https://a b", "http://*.example.com", "HTTP://X"]
)
def test_what_is_no_origin_is_refused(origin):
    with pytest.raises(UserError):
        ServeSettings(model_names=("m",), cors_origins=(origin,))


def test_settings_do_not_show_keys():
    assert KEYS[0] not in repr(ServeSettings(model_names=("m",), api_keys=KEYS))


def test_who_is_warned():
    def warned(**options):
        return exposed(ServeSettings(model_names=("m",), **options))

    assert warned() is None and warned(host="::1") is None and warned(host="127.0.0.9") is None
    assert "--api-key-file" in warned(host="0.0.0.0") and "--api-key-file" in warned(host="::")
    assert warned(host="0.0.0.0", api_keys=KEYS) is None
    assert "--api-key" in warned(cors_origins=("*",))
    assert warned(cors_origins=("*",), api_keys=KEYS) is None


def test_only_loopback_is_loopback():
    assert all(map(is_loopback, ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "localhost.evil", "", "::ffff:10.0.0.1"]))


def test_bound_elsewhere_names_are_looked_at_only_where_some_are_given():
    assert PageGuard(None, (), None).knows_host("anything.example")
    named = PageGuard(None, (), ("llm.lan",))
    assert named.knows_host("llm.lan:80") and named.knows_host("localhost") and not named.knows_host("evil.example")


@given(st.lists(st.binary(max_size=60), max_size=3))
def test_no_other_header_is_a_key(values):
    guard = KeyGuard(None, KEYS)
    right = (
        len(values) == 1
        and values[0].lower().startswith(b"bearer ")
        and values[0][7:].strip().decode("latin-1") in KEYS
    )
    assert guard.accepts(values) is right


@given(st.sampled_from(KEYS), st.integers(0, 18), st.integers(0, 255))
def test_a_changed_byte_makes_another_key(key, at, byte):
    changed = bytearray(key.encode())
    changed[at] = byte
    assert KeyGuard(None, KEYS).accepts([b"Bearer " + bytes(changed)]) is (
        bytes(changed).strip().decode("latin-1") in KEYS
    )
