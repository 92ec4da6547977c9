"""Calibration: cutoffs that leave the wanted share, checked on other text, bound to the model, labelled as lossy."""

import json
import re
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hybrid import LLM, cli
from hybrid.runtime.engine import Engine
from hybrid.runtime.options import EngineOptions
from hybrid.stages.calibrate import HELD_OUT, CalibrateSettings, HoldOut, calibrate
from hybrid.stages.compare import Settings, compare
from hybrid.stages.evaluate import EvaluationSettings, evaluate
from hybrid.stages.finding import choose_mode
from hybrid.stages.inspect import inspect
from hybrid.stages.pack import pack
from hybrid.stages.plan import PlanSettings, plan
from hybrid.stages.profile import ProfileSettings
from hybrid.stages.texts import Corpus
from hybrid.store.directory import ModelDirectory
from profiler.artifacts import UserError
from profiler.profile import Profile, read_profile, write_profile
from profiler.thresholds import Loss, read_thresholds, write_thresholds

PIECES = ["the brown fox", "runs over the lazy dog", "and the file was read", "hot neurons live on the GPU", "def add"]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Thirty documents."""
    path = tmp_path_factory.mktemp("text") / "documents.jsonl"
    lines = [" ".join(PIECES[(i * j) % 5] for j in range(1, 12 + i % 4)) for i in range(30)]
    path.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    return path


@pytest.fixture(scope="module")
def silu(make_llama, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("silu")
    return pack(make_llama(folder, hidden_act="silu"), folder / "model").destination


@pytest.fixture(scope="module")
def calibrated(silu, text, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("calibrated") / "model"
    shutil.copytree(silu, path)
    calibrate(path, [text], CalibrateSettings(sparsity=0.6))
    return path


class Gates:
    """A tap that keeps magnitudes and masses of each layer."""

    def __init__(self):
        self.gates, self.masses = {}, {}

    def document(self):
        pass

    def gate(self, layer, values):
        self.gates.setdefault(layer, []).append(values.abs())

    def ffn(self, layer, hidden, activation, named):
        self.masses.setdefault(layer, []).append(activation.abs())


def test_it_says_of_text_apart_what_the_cutoffs_leave(silu, calibrated, text):
    found = read_thresholds(calibrated / "thresholds" / "default.json")
    assert (found.sparsity, found.budget, found.loss) == (0.6, None, None)
    assert found.source_digest == ModelDirectory.open(silu).source_digest
    lines = {json.loads(line)["text"] for line in text.read_text().splitlines()}
    assert set(found.documents) == {sha256(line.encode()).hexdigest()[:16] for line in lines}
    set_by, checked_on = Gates(), Gates()
    with Engine(ModelDirectory.open(silu), EngineOptions(mode="dense")) as engine:
        corpus = Corpus.open([text], engine.tokenizer)
        split = HoldOut(corpus.bytes // 4)
        for window in corpus.windows(max(16, corpus.bytes // 4 // 20)):
            taps = (set_by, checked_on)
            engine.hidden_states(window.ids, tap=taps[split.next(window.document, len(window.ids))])
    assert (found.tokens, found.heldout_tokens) == (split.setting, split.checking)
    for i, layer in enumerate(found.layers):
        setting, checking = torch.cat(set_by.gates[i]), torch.cat(checked_on.gates[i])
        masses = torch.cat(checked_on.masses[i])
        assert (len(setting), len(checking)) == (found.tokens, found.heldout_tokens)
        inactive = float((setting <= layer.cutoff).double().mean())
        assert 0.6 <= inactive < 0.61  # bins are 0.8 % wide
        above = checking > layer.cutoff
        assert layer.active == pytest.approx(float(above.double().mean()), abs=1e-4)
        assert layer.active == pytest.approx(0.4, abs=0.05)
        assert layer.mass_kept == pytest.approx(float(masses[above].sum() / masses.sum()), abs=1e-3)
        assert layer.mass_kept > layer.active


def test_threshold_mode_leaves_what_was_calibrated(calibrated):
    with LLM(calibrated, mode="threshold") as llm:
        assert llm.mode == "threshold"
        llm.generate("the brown fox runs over the lazy dog")
        summary = llm.summary()
    rows, gates = summary.rows_per_token["cpu"], summary.gates_per_token["cpu"]
    assert gates == 3 * 123
    assert rows / gates == pytest.approx(0.4, abs=0.1)
    assert summary.warning == (
        f"threshold mode, lossy: loss not measured; hybrid eval {calibrated} --mode threshold --text FILE"
    )


def test_nothing_lossy_is_chosen_unasked(calibrated):
    with LLM(calibrated) as llm:
        assert llm.mode == "dense"
    assert choose_mode(None, ModelDirectory.open(calibrated), None) == "dense"


def test_thresholds_of_another_model_are_refused(calibrated, make_llama, tmp_path):
    other = pack(make_llama(tmp_path, hidden_act="silu", seed=5), tmp_path / "other").destination
    with pytest.raises(UserError, match=r"no thresholds 'default'.*hybrid calibrate"):
        LLM(other, mode="threshold")
    shutil.copytree(calibrated / "thresholds", other / "thresholds", dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"made for another model.*hybrid calibrate"):
        LLM(other, mode="threshold")
    (state,) = inspect(other).thresholds
    assert "another model" in str(state.problem)
    found = read_thresholds(other / "thresholds" / "default.json")
    digest = ModelDirectory.open(other).source_digest
    write_thresholds(
        other / "thresholds" / "default.json", replace(found, layers=found.layers[:2], source_digest=digest)
    )
    with pytest.raises(UserError, match="damaged"):
        LLM(other, mode="threshold")


def test_the_commands_say_that_it_is_lossy(calibrated, text, tmp_path):
    path = Path(shutil.copytree(calibrated, tmp_path / "model"))
    runner = CliRunner()
    done = runner.invoke(cli.app, ["calibrate", str(path), "--text", str(text), "--sparsity", "0.3", "--name", "mild"])
    assert done.exit_code == 0, done.output
    assert re.search(r"(69|70|71)\.\d% of the neurons stay active", done.stdout)
    assert "lossy: loss not measured; hybrid eval" in done.stdout
    loss = Loss("held.txt", 100, 10.0, 10.5, 1.05, None)
    target = path / "thresholds" / "mild.json"
    write_thresholds(target, replace(read_thresholds(target), loss=loss))
    done = runner.invoke(cli.app, ["inspect", str(path)])
    assert re.search(r"thresholds mild: (69|70|71)\.\d% of the neurons stay active", done.stdout)
    assert "lossy: +5.00% perplexity measured on 100 tokens of held.txt" in done.stdout
    arguments = ["run", str(path), "the brown", "-n", "3", "--mode", "threshold", "--thresholds", "mild"]
    done = runner.invoke(cli.app, arguments)
    assert "threshold mode, lossy: +5.00% perplexity" in done.stderr
    summary = json.loads(runner.invoke(cli.app, [*arguments, "--json"]).stdout)["summary"]
    assert summary["loss"]["ratio"] == 1.05
    assert "lossy" in summary["warning"]


def test_eval_measures_what_thresholds_cost_and_they_say_so(calibrated, text, tmp_path):
    path = Path(shutil.copytree(calibrated, tmp_path / "model"))
    report = evaluate(path, [text], EvaluationSettings(modes=("threshold",), layer_tokens=200))
    dense, found = report.evaluation.modes
    loss = read_thresholds(path / "thresholds" / "default.json").loss
    assert loss == Loss(
        "documents.jsonl",
        found.quality.tokens,
        dense.quality.perplexity,
        found.quality.perplexity,
        found.quality.ratio,
        found.quality.interval,
    )
    assert loss.ratio != 1 and loss.interval is not None
    assert all(layer.named == pytest.approx(0.4, abs=0.1) and layer.active > 0.99 for layer in found.layers)
    assert all(0 < layer.dropped_mass < 0.5 for layer in found.layers)
    with LLM(path, mode="threshold") as llm:
        assert f"{loss.ratio - 1:+.2%} perplexity" in llm.summary().warning
    (state,) = inspect(path).evaluations
    assert state.problem is None
    calibrate(path, [text], CalibrateSettings(sparsity=0.2))
    assert read_thresholds(path / "thresholds" / "default.json").loss is None
    (state,) = inspect(path).evaluations
    assert "the thresholds are others now" in state.problem


def test_eval_tells_which_documents_had_set_the_cutoffs(calibrated, text, tmp_path):
    path, seen = Path(shutil.copytree(calibrated, tmp_path / "model")), text.read_text().splitlines()
    others = [json.dumps({"text": f"{i} other words on the brown fox and the dog " * 3}) for i in range(6)]
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("\n".join([*others, seen[3], seen[29]]))

    def warnings(*modes):
        settings = EvaluationSettings(modes=modes, layer_tokens=50)
        return [note for note in evaluate(path, [mixed], settings).evaluation.notes if "warning" in note]

    (warning,) = warnings("threshold")
    assert "2 of 8 documents were in the text that set the thresholds 'default'" in warning
    assert "mixed.jsonl, line 7 is one" in warning
    assert warnings("dense") == []
    mixed.write_text("\n".join(others))
    assert warnings("threshold") == []


def test_compare_has_a_row_for_it(calibrated, text):
    rows = compare(calibrated, [text], Settings(tokens=2, prompts=1, prompt_tokens=16, rounds=1, text_tokens=60)).rows
    dense, lossy = (
        next(row for row in rows if row.mode == mode and row.reason is None) for mode in ("dense", "threshold")
    )
    assert lossy.name == "threshold, lossy"
    assert lossy.rows_per_token["cpu"] < 0.6 * dense.rows_per_token["cpu"]
    assert lossy.over_dense != 1


def test_a_plan_needs_a_profile_that_was_counted_with_the_thresholds(calibrated, tmp_path):
    path = Path(shutil.copytree(calibrated, tmp_path / "model"))
    files, generator = ModelDirectory.open(path), torch.Generator().manual_seed(0)
    active = torch.randint(0, 41, (3, 123), generator=generator).numpy()
    counts = {"active": active, "named": 0 * active, "union4": active, "union16": active}
    (path / "profiles").mkdir(exist_ok=True)
    profile = Profile(files.source_digest, "text", 100, **counts, thresholds=(0.0,) * 3)
    write_profile(files.profile_path("default"), profile)
    settings = PlanSettings(vram=200_000, mode="threshold", context=16)
    with pytest.raises(UserError, match="--thresholds default"):
        plan(path, settings)
    cutoffs = read_thresholds(files.thresholds_path("default")).cutoffs
    write_profile(files.profile_path("default"), replace(profile, thresholds=cutoffs))
    made = plan(path, settings).plan
    assert made.mode == "threshold"
    with LLM(path, mode="threshold", plan="default", device="cpu") as split, LLM(path, mode="threshold") as whole:
        ids = split.tokenizer.encode("the brown fox runs")
        torch.testing.assert_close(split.logits(ids), whole.logits(ids), atol=1e-4, rtol=1e-4)


def test_a_profile_counts_what_lies_above_thresholds(calibrated, text, tmp_path):
    path = Path(shutil.copytree(calibrated, tmp_path / "model"))
    done = CliRunner().invoke(cli.app, ["profile", str(path), "--text", str(text), "--thresholds", "default"])
    assert done.exit_code == 0, done.output
    files = ModelDirectory.open(path)
    found, cutoffs = (
        read_profile(files.profile_path("default")),
        read_thresholds(files.thresholds_path("default")).cutoffs,
    )
    assert found.thresholds == cutoffs
    assert not files.has_predictors("default")
    above = torch.zeros(3, 123, dtype=torch.int64)
    orders = [
        torch.from_numpy(ids).long() for ids in (ModelDirectory.open(calibrated).layer(i).neuron_ids for i in range(3))
    ]

    class Above(Gates):
        def ffn(self, layer, hidden, activation, named):
            above[layer, orders[layer]] += named.sum(0)

    with Engine(ModelDirectory.open(calibrated), EngineOptions(mode="threshold", cutoffs=cutoffs)) as engine:
        for window in Corpus.open([text], engine.tokenizer).windows(256):
            engine.hidden_states(window.ids, tap=Above())
    assert abs(torch.from_numpy(found.active) - above).max() <= 2  # sums in another order
    assert plan(path, PlanSettings(vram=200_000, mode="threshold", context=16)).plan.mode == "threshold"
    with pytest.raises(UserError, match="not both"):
        ProfileSettings(thresholds="default", predictors="default")


def test_too_little_text_is_refused(silu, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("a")
    with pytest.raises(UserError, match="too short"):
        calibrate(silu, [short], CalibrateSettings())


@pytest.mark.parametrize("wrong", [{"sparsity": 1.0}, {"sparsity": -0.1}, {"name": "a/b"}, {"tokens": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UserError):
        CalibrateSettings(**wrong)


@pytest.mark.parametrize("documents", [[100] * 50, [5000], [3000, 10, 10, 2000], [1] * 20])
def test_about_a_fifth_is_held_out(documents):
    split, total, switches, before = HoldOut(sum(documents)), sum(documents), 0, False
    for document, tokens in enumerate(documents):
        for at in range(0, tokens, 40):
            held = split.next(document, min(40, tokens - at))
            switches += held != before
            before = held
    assert split.setting + split.checking == total
    assert split.checking == pytest.approx(HELD_OUT * total, abs=0.06 * total + 1)
    assert switches <= 2 * 20 + 1
