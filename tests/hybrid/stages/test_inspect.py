"""`hybrid inspect`: what a directory holds, what binds, and that verification finds every flipped bit."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from hybrid.reports import inspect_lines
from hybrid.stages.inspect import inspect
from hybrid.stages.pack import pack
from hybrid.store.files import ModelFiles
from hybrid.store.manifest import layer_file
from profiler.artifacts import UserError
from profiler.matrix import Matrix
from profiler.predictor import Predictor, PredictorSet
from profiler.predictor_file import write_predictors
from profiler.predictor_outline import PredictorQuality
from profiler.profile import Profile, write_profile


@pytest.fixture
def copy(llama_directory, tmp_path):
    """A model directory to change."""
    return shutil.copytree(llama_directory, tmp_path / "copy")


def profile_of(files, layers=None):
    shape = (layers or files.spec.n_layers, files.spec.n_neurons)
    counts = np.ones(shape, np.int64)
    return Profile(
        source_digest=files.source_digest,
        corpus_digest="0" * 64,
        tokens=100,
        active=counts,
        named=counts,
        union4=counts,
        union16=counts,
    )


def test_what_was_packed(llama_directory):
    report = inspect(llama_directory)
    files = [p for p in llama_directory.rglob("*") if p.is_file() and p.name not in ("model.json", "origin.json")]
    assert sum(report.bytes.values()) == sum(p.stat().st_size for p in files)
    spec = report.spec
    assert report.bytes["neurons"] == spec.n_layers * spec.n_neurons * report.stride_bytes
    assert report.bytes["embeddings"] == report.bytes["head"] == 2 * spec.vocab_size * spec.hidden_size
    assert report.bytes["norms"] == 4 * spec.hidden_size * (2 * spec.n_layers + 1)
    assert report.parameters == 142320
    weights = sum(report.bytes[part] for part in ("embeddings", "attention", "norms", "head", "neurons"))
    assert 16 < report.bits_per_weight == 8 * weights / 142320 < 17
    assert report.in_checkpoint_order and not report.verified
    assert report.profiles == report.predictors == report.plans == ()
    assert "tokenizer.model" in report.tokenizer_files
    assert json.loads(json.dumps(report.to_json()))["spec"]["n_neurons"] == 123


def test_opt_counts_positions_and_vectors(opt_directory):
    report = inspect(opt_directory)
    assert report.parameters == 107383
    assert report.bytes["embeddings"] == 2 * 52 * (331 + 130)
    assert "head" not in report.bytes


def test_profiles_predictors_and_plans_by_name(copy):
    files = ModelFiles.open_files(copy)
    write_profile(files.profile_path("default"), profile_of(files))
    write_profile(files.profile_path("foreign"), replace(profile_of(files), source_digest="f" * 64))
    write_profile(files.profile_path("small"), profile_of(files, layers=2))
    files.profile_path("broken").write_bytes(b"nothing")
    files.predictors_path("default").write_bytes(b"x")
    files.plan_path("8GiB").write_text("{}")
    report = inspect(copy)
    states = {state.name: state for state in report.profiles}
    assert states["default"].binds and states["default"].tokens == 100 and states["default"].problem is None
    assert not states["foreign"].binds and "another checkpoint" in states["foreign"].problem
    assert not states["small"].binds and "other layers" in states["small"].problem
    assert not states["broken"].binds and "damaged" in states["broken"].problem
    assert (report.predictors, report.plans) == (("default",), ("8GiB",))


def test_a_reordered_directory_is_whole_and_said_to_be_reordered(copy):
    files = ModelFiles.open_files(copy)
    files.reorder_layer(1, np.arange(123, dtype=np.int32)[::-1].copy())
    report = inspect(copy, verify=True)
    assert report.verified and not report.in_checkpoint_order
    assert report.pack_digest == files.pack_digest
    assert report.row_order_digest == files.row_order_digest()


def test_a_flipped_bit_is_found_only_by_reading(copy):
    path = copy / layer_file(2)
    content = bytearray(path.read_bytes())
    content[9000] ^= 1
    path.write_bytes(content)
    assert not inspect(copy).verified
    with pytest.raises(UserError, match=r"neurons/02\.safetensors is damaged.*pack again"):
        inspect(copy, verify=True)


@pytest.mark.parametrize(("weight_format", "bits"), [("q8_0", 8.5), ("q4_0", 4.5)])
def test_quantised_models_say_their_bits(make_llama, tmp_path, weight_format, bits):
    path = make_llama(tmp_path, hidden_size=128, num_attention_heads=4, num_key_value_heads=2)
    pack(path, tmp_path / "model", weight_format)
    report = inspect(tmp_path / "model", verify=True)
    assert report.weight_format == weight_format
    assert bits < report.bits_per_weight < bits * 1.15  # records are padded
    assert any(f"{weight_format}, {report.bits_per_weight:.2f} bits each" in line for line in inspect_lines(report))


def test_predictors_that_are_not_finite_are_found_only_by_reading(copy):
    files = ModelFiles.open_files(copy)
    quality = PredictorQuality(tokens=1, active=0.5, named=0.5, recall=1.0, precision=1.0, mass_recall=1.0)
    sizes = ((7, 60), (123, 7))
    layers = [Predictor.low_rank(*(Matrix.of(torch.ones(size).half()) for size in sizes), 0.0) for _ in range(3)]
    path = files.predictors_path("default")
    write_predictors(path, PredictorSet(files.source_digest, tuple(layers), (quality,) * 3))
    assert inspect(copy, verify=True).predictors == ("default",)
    content = bytearray(path.read_bytes())
    content[-2:] = b"\x00\x7e"  # a NaN in place of the last weight
    path.write_bytes(content)
    assert inspect(copy).predictors == ("default",)
    with pytest.raises(UserError, match=r"default\.safetensors is damaged.*not numbers, in layer.*hybrid profile"):
        inspect(copy, verify=True)


def test_progress_of_verification(llama_directory):
    told = []
    assert inspect(llama_directory, verify=True, progress=lambda done, total: told.append((done, total))).verified
    assert told[-1][0] == told[-1][1] > 0


def test_a_checkpoint_is_told_to_be_packed_first(llama_checkpoint):
    with pytest.raises(UserError, match="pack it: hybrid pack"):
        inspect(llama_checkpoint)


def test_inspecting_loads_no_torch():
    code = "import sys, hybrid.stages.inspect; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
