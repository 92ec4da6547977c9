"""The same seed gives the same weights as a checkpoint, as a model directory and as GGUF."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from synthetic.checkpoint import source_names, write_checkpoint
from synthetic.directory import write_directory
from synthetic.gguf_file import TYPES, gguf_name, permute, write_gguf
from synthetic.shape import PRESETS, Shape
from synthetic.weights import PlantedWeights

from hybrid.checkpoint.reader import Checkpoint
from hybrid.stages.opening import open_engine
from hybrid.stages.pack import pack
from hybrid.store.directory import ModelDirectory
from profiler.artifacts import UserError
from profiler.predictor_file import read_predictors
from profiler.profile import read_profile

TINY = PlantedWeights(Shape(**PRESETS["tiny"]))
FAMILIES = {
    "llama": {},
    "mistral": {"family": "mistral"},
    "opt": {"family": "opt", "kv_heads": 4},
    "arcee": {"family": "arcee", "activation": "relu2"},
}
SMALL = ["--hidden", "64", "--layers", "2", "--ffn", "256", "--heads", "4", "--kv-heads", "2", "--rank", "15"]


def of_family(family: str) -> PlantedWeights:
    return PlantedWeights(Shape(**{**PRESETS["tiny"], **FAMILIES[family]}))


def make(scripts: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(scripts / "make_synthetic.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_seed_names_the_weights() -> None:
    again = PlantedWeights(Shape(**PRESETS["tiny"]))
    other = PlantedWeights(Shape(**PRESETS["tiny"], seed=1))
    for name in TINY.names:
        assert torch.equal(TINY.tensor(name), again.tensor(name)), name
        if not name.endswith("norm.weight"):
            assert not torch.equal(TINY.tensor(name), other.tensor(name)), name


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_checkpoint_is_an_ordinary_one(family: str, tmp_path: Path) -> None:
    weights = of_family(family)
    write_checkpoint(tmp_path / "c", weights)
    checkpoint = Checkpoint.open(tmp_path / "c")
    assert checkpoint.spec == weights.spec
    for name in weights.names:
        assert torch.equal(torch.cat(list(checkpoint.blocks(name))), weights.tensor(name)), name


def test_a_directory_made_directly_is_the_packed_checkpoint(tiny_directories: dict[str, Path], tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", TINY)
    for weight_format, made in tiny_directories.items():
        pack(tmp_path / "c", tmp_path / weight_format, weight_format)
        direct, packed = (json.loads((path / "model.json").read_text()) for path in (made, tmp_path / weight_format))
        assert direct["pack_digest"] == packed["pack_digest"]


@pytest.mark.parametrize("weight_format", ["bf16", "f16", "q8_0", "q4_0"])
def test_directories_are_whole_and_hottest_first(tiny_directories: dict[str, Path], weight_format: str) -> None:
    with ModelDirectory.open(tiny_directories[weight_format]) as directory:
        directory.verify()
        profile = read_profile(directory.profile_path("default"))
        predictors = read_predictors(directory.predictors_path("default"))
        assert profile.source_digest == predictors.source_digest == directory.source_digest
        expected = "bf16" if weight_format in ("bf16", "f16") else "q8_0"
        assert {p.weight_formats for p in predictors.layers} == {(expected, expected)}
        for layer in range(directory.spec.n_layers):
            assert np.array_equal(directory.neuron_ids(layer), profile.hottest_first(layer))


@pytest.mark.parametrize(("family", "kind"), [*(("llama", kind) for kind in TYPES), ("arcee", "q4_0")])
def test_gguf_holds_the_same_weights_under_llama_cpps_names(family: str, kind: str, tmp_path: Path) -> None:
    path, weights = tmp_path / "m.gguf", of_family(family)
    write_gguf(path, weights, kind)
    assert list(tmp_path.iterdir()) == [path]
    reader = gguf.GGUFReader(path)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    architecture = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[family]
    known = {gguf.TENSOR_NAMES[tensor].split(".")[-1] for tensor in gguf.MODEL_TENSORS[architecture]}
    assert {name.split(".")[-2] for name in stored} <= known
    assert len(stored) == len(weights.names)
    for name, shape in weights.names.items():
        tensor, expected = stored[gguf_name(name)], weights.tensor(name)
        assert list(tensor.shape) == list(reversed(shape))
        if name.endswith((".q.weight", ".k.weight")):
            expected = permute(expected, weights.spec.n_heads if ".q." in name else weights.spec.n_kv_heads)
        wanted = TYPES[kind] if len(shape) > 1 else gguf.GGMLQuantizationType.F32
        assert tensor.tensor_type == wanted
        values = gguf.dequantize(gguf.quantize(expected.float().numpy(), wanted), wanted)
        assert np.array_equal(gguf.dequantize(tensor.data, wanted).reshape(shape), values), name
    assert reader.fields["general.architecture"].contents() == family
    assert reader.fields[f"{family}.attention.head_count_kv"].contents() == 2
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == weights.spec.vocab_size


def test_permuted_heads_alternate_the_halves_that_a_checkpoint_rotates() -> None:
    rows = torch.arange(8).view(8, 1)  # two heads of four: halves (0 1)(2 3) and (4 5)(6 7)
    assert permute(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_gguf_refuses_what_llama_cpp_cannot_load(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no opt"):
        write_gguf(tmp_path / "m.gguf", of_family("opt"), "f16")
    odd = PlantedWeights(Shape(hidden=72, layers=1, ffn=96, heads=4, kv_heads=4, rank=15))
    with pytest.raises(UserError, match="multiple of 32"):
        write_gguf(tmp_path / "m.gguf", odd, "q4_0")
    assert not list(tmp_path.iterdir())


def test_a_directory_of_arcee_computes_in_exact_mode_what_is_planted(tmp_path: Path) -> None:
    weights = of_family("arcee")
    write_directory(tmp_path / "m", weights, "bf16", lambda *_: None)
    ids = torch.randint(3, 4096, (300,), generator=torch.Generator().manual_seed(1)).tolist()
    logits = {}
    for mode in ("dense", "exact", "predicted"):
        with open_engine(tmp_path / "m", mode=mode, kv_format="f32") as engine:
            logits[mode], rows = engine.logits(ids), engine.ledger.evaluation.cpu
            every = len(ids) * weights.spec.n_layers * weights.spec.n_neurons
            if mode != "dense":
                assert rows.finished / every == pytest.approx(0.1, rel=0.06)
            if mode == "predicted":
                assert rows.gated / every == pytest.approx(0.1, rel=0.06)
    scale = float(logits["dense"].abs().max())
    assert float((logits["exact"] - logits["dense"]).abs().max()) < 1e-4 * scale
    # The predictor is exact up to rounding: what it misses are activations of almost zero.
    assert float((logits["predicted"] - logits["dense"]).abs().max()) < 0.01 * scale


def test_names_of_the_checkpoint_are_those_of_its_family() -> None:
    assert source_names(TINY)["layers.1.q.weight"] == "model.layers.1.self_attn.q_proj.weight"


def test_the_command_makes_all_three(scripts: Path, tmp_path: Path) -> None:
    made = make(
        scripts, str(tmp_path / "c"), "--directory", str(tmp_path / "d"), "--format", "q4_0",
        "--gguf", str(tmp_path / "m.gguf"), "--gguf-type", "q8_0", "--predictor-overshoot", "1.5", *SMALL,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    with ModelDirectory.open(tmp_path / "d") as directory, safe_open(tmp_path / "c/model-1.safetensors", "pt") as shard:
        assert directory.weight_format == "q4_0"
        gate = shard.get_tensor("model.layers.1.mlp.gate_proj.weight").float()
        stored = directory.layer(1).part("gate").widened(slice(None))
        error = (gate[torch.from_numpy(directory.neuron_ids(1)).long()] - stored).abs()
        # Half a step of a block, an eighth of its largest weight; a whole step at the end that q4_0 cuts off.
        assert float(error.max()) < float(gate.abs().max()) / 7
    assert gguf.GGUFReader(tmp_path / "m.gguf").tensors[0].tensor_type == gguf.GGMLQuantizationType.Q8_0


def test_the_command_says_what_is_wrong_in_one_line(scripts: Path, tmp_path: Path) -> None:
    nothing = make(scripts, "--hidden", "64")
    assert nothing.returncode == 2 and "nothing to make" in nothing.stderr
    odd = make(scripts, str(tmp_path / "c"), "--hidden", "65", "--heads", "4", "--rank", "15")
    assert odd.returncode == 1 and len(odd.stderr.splitlines()) == 1 and "heads" in odd.stderr


@pytest.mark.slow
def test_a_directory_is_made_in_the_memory_of_a_layer(tmp_path: Path, scripts: Path) -> None:
    """Twenty more layers, 220 MB of weights, may add their predictors (7 MB) and little else."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from hybrid.runtime.memory import process_memory\n"
        "from synthetic.directory import write_directory; from synthetic.shape import Shape\n"
        "from synthetic.weights import PlantedWeights\n"
        "shape = Shape(hidden=512, layers=int(sys.argv[3]), ffn=3072, heads=8, kv_heads=8, rank=31)\n"
        "write_directory(Path(sys.argv[2]), PlantedWeights(shape), 'q4_0', lambda *_: None)\n"
        "print(process_memory().peak)"
    )
    peaks = []
    for layers in (4, 24):
        command = [sys.executable, "-c", code, str(scripts), str(tmp_path / str(layers)), str(layers)]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] - peaks[0] < 60e6
