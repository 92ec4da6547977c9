"""Published predictors imported: the engine names what a plain reading of them names, and says what it measured."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from typer.testing import CliRunner

from hybrid import cli
from hybrid.runtime.engine import Engine
from hybrid.runtime.options import EngineOptions
from hybrid.stages.calibrate import BYTES_PER_TOKEN, FEWEST_WINDOWS
from hybrid.stages.import_predictors import ImportSettings, import_predictors
from hybrid.stages.opening import open_engine
from hybrid.stages.pack import pack
from hybrid.stages.plan import PlanSettings, plan
from hybrid.stages.texts import Corpus
from hybrid.store.directory import ModelDirectory
from profiler.artifacts import UserError
from profiler.predictor_file import read_predictors
from profiler.predictor_outline import PredictorQuality
from profiler.profile import read_profile

LAYERS, HIDDEN, NEURONS, RANK = 12, 60, 123, 32
CLOSE = 1e-4  # of the logits' scale: summation order


def published(seed=0):
    """fc1 and fc2 of each layer, values that f16 holds."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((RANK, HIDDEN), (NEURONS, RANK))
    return [tuple(torch.randn(*s, generator=generator).half().float() for s in shapes) for _ in range(LAYERS)]


def counts_of(seed=0):
    return np.random.default_rng(seed).integers(0, 1000, (LAYERS, NEURONS))


def write(folder, weights, counts=None):
    """A folder of files, written in another order than that of the layers."""
    folder.mkdir(exist_ok=True)
    for layer in np.random.default_rng(1).permutation(LAYERS):
        fc1, fc2 = weights[layer]
        torch.save({"fc1.weight": fc1, "fc2.weight": fc2}, folder / f"model_{layer}.pt")
        if counts is not None:
            torch.save(torch.from_numpy(counts[layer]), folder / f"activation_{layer}.pt")
    return folder


def reference_logits(checkpoint, weights, ids, reads_residual=True):
    """transformers, each neuron multiplied by whether the published predictor names it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    for layer, (fc1, fc2) in zip(model.model.layers, weights, strict=True):
        seen, mlp = {}, layer.mlp
        layer.post_attention_layernorm.register_forward_pre_hook(lambda _, x, seen=seen: seen.update(x=x[0]))

        def masked(x, seen=seen, mlp=mlp, fc1=fc1, fc2=fc2):
            state = seen["x"] if reads_residual else x
            named = (state @ fc1.T).relu() @ fc2.T > 0
            return mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x) * named)

        mlp.forward = masked
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]


@pytest.fixture(scope="module")
def checkpoint(make_llama, tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("deep"), num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def packed(checkpoint, tmp_path_factory):
    return pack(checkpoint, tmp_path_factory.mktemp("packed") / "model").destination


@pytest.fixture
def model(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "documents.jsonl"
    pieces = ["the brown fox", "runs over the lazy dog", "and the file was read", "hot neurons live on", "def add"]
    lines = [" ".join(pieces[(i * j) % 5] for j in range(1, 10 + i % 4)) for i in range(24)]
    path.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    return path


@pytest.mark.parametrize("reorder", [False, True])
def test_predicted_mode_is_what_transformers_computes_of_the_named_neurons(checkpoint, model, tmp_path, reorder):
    weights = published()
    folder = write(tmp_path / "files", weights, counts_of())
    report = import_predictors(model, folder, [], ImportSettings(reorder=reorder))
    assert report.reordered == reorder
    ids = torch.randint(3, 300, (40,), generator=torch.Generator().manual_seed(5)).tolist()
    expected = reference_logits(checkpoint, weights, ids)
    scale = expected.abs().max()
    with open_engine(model, mode="predicted", profile="published", kv_format="f32") as engine:
        in_order = all((engine.directory.layer(i).neuron_ids == np.arange(NEURONS)).all() for i in range(LAYERS))
        assert in_order is not reorder
        for one_by_one in (False, True):
            assert (engine.logits(ids, one_by_one) - expected).abs().max() < CLOSE * scale
    assert (reference_logits(checkpoint, weights, ids, reads_residual=False) - expected).abs().max() > 0.05 * scale
    as_strings = [weights[layer] for layer in sorted(range(LAYERS), key=str)]
    assert (reference_logits(checkpoint, as_strings, ids) - expected).abs().max() > 0.05 * scale


@pytest.mark.parametrize(
    ("wanted", "dtype", "scale", "formats"),
    [
        ("keep", torch.float32, 1, ("f16", "f16")),
        ("keep", torch.bfloat16, 1, ("bf16", "bf16")),
        ("keep", torch.float64, 1e30, ("bf16", "f16")),
        ("f16", torch.bfloat16, 1, ("f16", "f16")),
        ("q8_0", torch.float32, 1, ("f16", "q8_0")),  # 60 columns are no whole blocks
    ],
)
def test_weights_are_stored_in_the_wanted_format_by_number(model, tmp_path, wanted, dtype, scale, formats):
    weights = [((fc1.to(dtype) * scale), fc2.to(dtype)) for fc1, fc2 in published()]
    report = import_predictors(model, write(tmp_path / "files", weights), [], ImportSettings("mine", wanted))
    stored = read_predictors(model / "predictors" / "mine.safetensors")
    assert {layer.weight_formats for layer in report.layers} == {formats}
    assert stored.quality == (PredictorQuality(0, 1, 1, 1, 1, 1),) * LAYERS
    for predictor, pair in zip(stored.layers, weights, strict=True):
        assert (predictor.family, predictor.reads, predictor.threshold) == ("perceptron", "residual", 0.0)
        assert predictor.weight_formats == formats
        for matrix, original in zip(predictor.matrices, pair, strict=True):
            precision = {"f16": 1e-3, "bf16": 8e-3, "q8_0": 1e-2}[matrix.weight_format] * original.abs().max()
            assert (matrix.widened(slice(None)) - original).abs().max() < precision
    assert not (model / "profiles" / "mine.safetensors").exists()


def test_counts_become_a_profile_that_plans_are_made_of(model, tmp_path):
    counts = counts_of()
    report = import_predictors(model, write(tmp_path / "files", published(), counts), [], ImportSettings())
    found = read_profile(report.profile)
    assert report.counted_tokens == found.tokens == counts.max()
    assert np.array_equal(found.active, counts)
    assert np.array_equal(found.named, counts)
    for name, width in (("union4", 4), ("union16", 16)):
        expected = 1 - (1 - counts / counts.max()) ** width
        assert np.abs(found.frequency(name) - expected).max() <= 0.51 / counts.max()
    assert plan(model, PlanSettings(vram=1 << 20, profile="published")).plan.mode == "predicted"


class Everything:
    """Keeps what published predictors are measured with."""

    def __init__(self):
        self.states, self.magnitudes = [[] for _ in range(LAYERS)], [[] for _ in range(LAYERS)]

    def document(self):
        pass

    def residual(self, layer, states):
        self.states[layer].append(states)

    def ffn(self, layer, hidden, activation, named):
        self.magnitudes[layer].append(activation.abs())


def test_a_text_measures_the_published_threshold(model, text, tmp_path):
    weights, counts = published(), counts_of()
    report = import_predictors(model, write(tmp_path / "files", weights, counts), [text], ImportSettings())
    tap = Everything()
    with Engine(ModelDirectory.open(model), EngineOptions("dense")) as engine:
        longest = max(16, text.stat().st_size // BYTES_PER_TOKEN // FEWEST_WINDOWS)
        for window in Corpus.open([text], engine.tokenizer).windows(longest):
            engine.hidden_states(window.ids, tap=tap)
    assert report.measured_tokens == sum(map(len, tap.states[0]))
    assert report.calibrated_tokens == 0
    profile = read_profile(report.profile)
    for index, (fc1, fc2) in enumerate(weights):
        states, magnitude = torch.cat(tap.states[index]), torch.cat(tap.magnitudes[index])
        named, active = (states @ fc1.T).relu() @ fc2.T > 0, magnitude > 0
        quality = report.layers[index].quality
        assert quality.named == pytest.approx(named.float().mean().item(), abs=1e-4)
        assert quality.active == pytest.approx(active.float().mean().item(), abs=1e-4)
        assert quality.recall == pytest.approx((active & named).sum().item() / active.sum().item(), abs=1e-3)
        kept = (magnitude * named).sum(1) / magnitude.sum(1)
        assert quality.mass_recall == pytest.approx(kept.mean().item(), abs=1e-3)
        shares = profile.frequency("named")[index]
        assert np.abs(shares - named.float().mean(0).numpy()).max() < 0.51 / profile.tokens + 1e-3


def test_thresholds_are_set_on_a_text_to_keep_a_share_of_mass(model, text, tmp_path):
    folder = write(tmp_path / "files", published())
    report = import_predictors(model, folder, [text], ImportSettings(keep=0.8))
    assert report.calibrated_tokens > 2 * report.measured_tokens > 0
    stored = read_predictors(report.path)
    assert stored.thresholds == tuple(layer.threshold for layer in report.layers)
    assert len(set(stored.thresholds)) > LAYERS // 2
    assert stored.quality == tuple(layer.quality for layer in report.layers)
    assert np.mean([q.mass_recall for q in stored.quality]) == pytest.approx(0.8, abs=0.05)


def test_what_cannot_be_imported_leaves_the_directory_as_it_was(model, text, tmp_path):
    def refused(message, folder, settings=None, texts=()):
        with pytest.raises(UserError, match=message):
            import_predictors(model, folder, texts, settings or ImportSettings())
        assert not (model / "predictors" / "published.safetensors").exists()
        assert not (model / "profiles" / "published.safetensors").exists()

    good = write(tmp_path / "good", published(), counts_of())
    refused("add --text FILE", good, ImportSettings(keep=0.9))
    (tmp_path / "empty.txt").touch()
    refused("is empty", good, texts=[tmp_path / "empty.txt"])
    damaged = published()
    damaged[7][1][3, 2] = float("nan")
    refused(r"model_7.pt: fc2.weight holds values that are not finite", write(tmp_path / "nan", damaged))
    large = [(fc1.double() * 1e200, fc2) for fc1, fc2 in published()]
    refused(r"model_0.pt: fc1.weight holds values beyond the range of bf16", write(tmp_path / "large", large))
    other = [(fc1[:, :-1].clone(), fc2) for fc1, fc2 in published()]
    refused(r"model_0.pt is not a predictor of this model.*\[32, 59\]", write(tmp_path / "other", other))
    refused("are all 0", write(tmp_path / "zeros", published(), np.zeros_like(counts_of())))
    refused("no counts", write(tmp_path / "plain", published()), ImportSettings(reorder=True))
    (good / "model_11.pt").unlink()
    refused("model_11.pt missing", good)


@pytest.mark.parametrize("settings", [{"weight_format": "q4_0"}, {"keep": 1.0}, {"keep": 0.0}, {"tokens": 0}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(UserError):
        ImportSettings(**settings)


def test_the_command_says_what_its_files_do_not(model, text, tmp_path):
    folder, runner = write(tmp_path / "files", published(), counts_of()), CliRunner()
    command = ["import-predictors", str(model), str(folder)]
    result = runner.invoke(cli.app, command)
    assert result.exit_code == 0
    for part in ("rank 32 in f16", "state before the FFN's norm", "0, as published", "not measured (0 tokens)",
                 f"hybrid eval {model} --profile published", "greatest count, 999", "--reorder"):  # fmt: skip
        assert part in result.output
    measured = runner.invoke(cli.app, [*command, "--text", str(text), "--keep", "0.9", "--tokens", "500"])
    assert measured.exit_code == 0
    assert "mass kept" in measured.output
    assert "not measured" not in measured.output
    answer = json.loads(runner.invoke(cli.app, [*command, "--name", "b", "--format", "q8_0", "--json"]).output)
    assert answer["reads"] == "residual"
    assert len(answer["layers"]) == LAYERS
