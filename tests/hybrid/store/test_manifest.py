"""model.json: what is not exactly what pack writes is refused, whatever it holds."""

import contextlib
import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybrid.names import MANIFEST
from hybrid.store.files import ModelFiles
from hybrid.store.manifest import Manifest
from profiler.artifacts import UserError, digest_json


@pytest.fixture
def copy(llama_directory, tmp_path):
    """A model directory to change."""
    return shutil.copytree(llama_directory, tmp_path / "copy")


def change(path, edit, sign=True):
    """Edit model.json, and give it the digest that its new content has: an attacker can do that too."""
    body = json.loads((path / MANIFEST).read_text())
    edit(body)
    if sign:
        signed = {k: v for k, v in body.items() if k not in ("kind", "format_version", "pack_digest")}
        body["pack_digest"] = digest_json(signed)
    (path / MANIFEST).write_text(json.dumps(body))


def test_reading_gives_what_was_written(llama_directory, tmp_path):
    manifest = Manifest.read(llama_directory)
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert (tmp_path / MANIFEST).read_bytes() == (llama_directory / MANIFEST).read_bytes()


def test_a_spec_written_before_an_option_existed_is_still_read(copy):
    change(copy, lambda b: b["spec"].pop("sliding_window"))
    assert ModelFiles.open_files(copy).spec.sliding_window is None


EDITS = {
    "kind": (lambda b: b.update(kind="plan"), "not a model file"),
    "newer": (lambda b: b.update(format_version=99), "update hybrid"),
    "older": (lambda b: b.update(format_version=0), "no longer read"),
    "version true": (lambda b: b.update(format_version=True), "no format version"),
    "no spec": (lambda b: b.pop("spec"), "damaged"),
    "spec list": (lambda b: b.update(spec=[1]), "damaged"),
    "spec key": (lambda b: b["spec"].update(extra=1), "damaged"),
    "spec text": (lambda b: b["spec"].update(n_layers="3"), "n_layers"),
    "spec huge": (lambda b: b["spec"].update(n_layers=10**9), "n_layers"),
    "more layers": (lambda b: b["spec"].update(n_layers=4), "should be listed with"),
    "fewer layers": (lambda b: b["spec"].update(n_layers=2), "should be listed with"),
    "other width": (lambda b: b["spec"].update(n_neurons=124), "should be listed with"),
    "format": (lambda b: b.update(weight_format="q5_1"), "q5_1"),
    "format of blocks": (lambda b: b.update(weight_format="q4_0"), "vector of 60 is not a whole number"),
    "format list": (lambda b: b.update(weight_format=["bf16"]), "weight format"),
    "stride text": (lambda b: b["row"].update(stride_bytes="384"), "stride"),
    "stride small": (lambda b: b["row"].update(stride_bytes=64), "stride"),
    "stride odd": (lambda b: b["row"].update(stride_bytes=390), "stride"),
    "stride huge": (lambda b: b["row"].update(stride_bytes=1 << 40), "stride"),
    "parts": (lambda b: b["row"].update(parts=["up", "gate", "down"]), "parts"),
    "row null": (lambda b: b.update(row=None), "damaged"),
    "files list": (lambda b: b.update(files=[]), "damaged"),
    "file out of the folder": (lambda b: b["files"].update({"../x": b["files"]["tokenizer.model"]}), r"'\.\./x' is no"),
    "absolute file": (lambda b: b["files"].update({"/etc/passwd": b["files"]["tokenizer.model"]}), "is no file"),
    "file missing": (lambda b: b["files"].pop("dense.safetensors"), "dense.safetensors should be"),
    "size text": (lambda b: b["files"]["tokenizer.model"].update(size="5"), "bytes"),
    "size negative": (lambda b: b["files"]["tokenizer.model"].update(size=-5), "bytes"),
    "size huge": (lambda b: b["files"]["tokenizer.model"].update(size=1 << 50), "cannot have"),
    "digest short": (lambda b: b["files"]["tokenizer.model"].update(sha256="abc"), "not a sha256"),
    "digest number": (lambda b: b["files"]["tokenizer.model"].update(sha256=5), "not a sha256"),
    "no digest": (lambda b: b["files"]["tokenizer.model"].pop("sha256"), "damaged"),
    "source digest": (lambda b: b.update(source_digest=None), "not a sha256"),
}


@pytest.mark.parametrize("case", EDITS)
def test_hostile_manifests_are_refused(copy, case):
    edit, message = EDITS[case]
    change(copy, edit)
    with pytest.raises(UserError, match=message):
        ModelFiles.open_files(copy)


def test_any_change_without_a_new_digest_is_refused(copy):
    change(copy, lambda b: b["spec"].update(norm_eps=2e-5), sign=False)
    with pytest.raises(UserError, match="digest is not its own; pack again"):
        ModelFiles.open_files(copy)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, "\xff"])
def test_what_is_not_an_object_is_refused(copy, content):
    (copy / MANIFEST).write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"model\.json"):
        ModelFiles.open_files(copy)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_replaced_value_gives_a_user_error_or_a_manifest(llama_directory, tmp_path, data):
    body = json.loads((llama_directory / MANIFEST).read_text())
    at = body
    while True:
        key = data.draw(st.sampled_from(sorted(at)))
        if not isinstance(at[key], dict) or data.draw(st.booleans()):
            break
        at = at[key]
    at[key] = data.draw(JSON)
    (tmp_path / MANIFEST).write_text(json.dumps(body))
    change(tmp_path, lambda _: None)
    with contextlib.suppress(UserError):
        Manifest.read(tmp_path)
