"""The recorded step against the same decoder computed one operator after the other, for every family and format.

Tokens decoded one by one, or in steps of up to 16, go through the recorded step; longer texts do not. With 16-bit
weights the two differ by summation order alone. With weights in blocks every input of a matrix is rounded to 8 bits,
and a last bit may make it fall to the neighbouring code, a 127th of the greatest value of its block away; what follows
then differs as much as rounding changes it, hundredths of the logits' scale, but a token that no code fell over for
agrees as with 16-bit weights.
"""

import dataclasses

import pytest
import torch

from hybrid.runtime.engine import Engine
from hybrid.runtime.options import EngineOptions
from hybrid.runtime.sampler import SamplingParams
from hybrid.runtime.sequence import Sequence
from hybrid.stages.pack import pack
from hybrid.store.directory import ModelDirectory
from profiler.matrix import WEIGHT_FORMATS, Matrix
from profiler.predictor import Predictor, PredictorSet
from profiler.predictor_outline import PredictorQuality

TOKENS = 100
CLOSE = 1e-4  # of the logits' scale: summation order
ROUNDED = 0.06  # of the logits' scale: codes that fell to their neighbours; 0.03 was measured
# Sizes that are whole blocks and otherwise odd: groups of blocks that are not full, heads of 24 and of 16.
FAMILIES = {
    "llama": {"hidden_size": 96, "head_dim": 16},
    "mistral": {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "head_dim": 24,
        "num_key_value_heads": 1,
        "hidden_act": "silu",
    },
    "opt": {"hidden_size": 64},
    "arcee": {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 24},
    "qwen3": {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 24},
    "nemotron": {"hidden_size": 96, "num_attention_heads": 4, "head_dim": 24, "partial_rotary_factor": 0.5},
    "falcon": {"hidden_size": 64, "num_attention_heads": 4},
    "bamboo": {"hidden_size": 64, "num_attention_heads": 4},
    "prosparse": {"hidden_size": 64, "num_attention_heads": 4, "hidden_act_param": 0.01},
}
# Where all formats are tried; of the others those that differ most.
EVERY_FORMAT = ("llama", "mistral", "opt", "arcee")
CASES = [
    (family, name) for family in FAMILIES for name in (WEIGHT_FORMATS if family in EVERY_FORMAT else ("bf16", "q4_0"))
]


@pytest.fixture(scope="module")
def checkpoints(make_family, make_opt, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    others = {family: options for family, options in FAMILIES.items() if family != "opt"}
    made = {family: make_family(family, folder, **options) for family, options in others.items()}
    return {**made, "opt": make_opt(folder, **FAMILIES["opt"])}


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def model(request, checkpoints, tmp_path_factory):
    """A model directory of each family in each format."""
    family, weight_format = request.param
    return pack(checkpoints[family], tmp_path_factory.mktemp("packed") / "model", weight_format).destination


PERCEPTRONS = (("perceptron", "ffn_input"),) * 3
NONE = (("none", "ffn_input"),) * 3
# Of the three layers of a model: family, and the state that it reads.
MIXED = (
    (("perceptron", "residual"), ("factors", "previous_ffn_input"), ("gates", "ffn_input")),
    (("none", "ffn_input"), ("gates", "residual"), ("perceptron", "previous_ffn_input")),
    (("factors", "residual"), ("none", "ffn_input"), ("gates", "previous_ffn_input")),
)


def random_predictors(directory, weight_format, kinds=PERCEPTRONS):
    """Predictors that name about half of the rows, but for those of the family none."""
    spec, generator = directory.spec, torch.Generator().manual_seed(1)

    def matrix(rows, columns):
        return Matrix.quantised(torch.randn(rows, columns, generator=generator), weight_format)

    def predictor(family, reads):
        if family == "none":
            return Predictor.none(spec.hidden_size, spec.n_neurons)
        if family == "gates":
            bias = torch.randn(spec.n_neurons, generator=generator)
            return Predictor.gates(matrix(spec.n_neurons, spec.hidden_size), 0.0, bias=bias, reads=reads)
        low_rank = matrix(32, spec.hidden_size), matrix(spec.n_neurons, 32)
        return Predictor.low_rank(*low_rank, 0.0, family=family, reads=reads)

    layers = [predictor(*kind) for kind in kinds]
    return PredictorSet(directory.source_digest, tuple(layers), (PredictorQuality(0, 1, 1, 1, 1, 1),) * spec.n_layers)


def open_model(path, mode="dense", predictors="f16", kinds=PERCEPTRONS, **options):
    directory = ModelDirectory.open(path)
    found = random_predictors(directory, predictors, kinds) if mode == "predicted" else None
    return Engine(directory, EngineOptions(mode=mode, predictors=found, kv_format="f32", **options))


def random_ids(engine, count=TOKENS, seed=0):
    vocab = engine.directory.spec.vocab_size
    return torch.randint(vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def in_blocks(engine):
    return engine.directory.weight_format in ("q8_0", "q4_0")


def eager(engine):
    """The same engine without its recorded step."""
    engine.machine.recorded.close()
    engine.machine.recorded = None


def gaps_of(batched, single):
    """Largest difference of each token's logits, in shares of the logits' scale."""
    scale = batched.abs().max()
    assert scale > 0.5, "logits near zero would agree whatever was computed"
    return (batched - single).abs().amax(1) / scale


@pytest.mark.parametrize("mode", ["dense", "exact"])
def test_a_text_one_by_one_gives_the_logits_of_the_whole_text(model, mode):
    with open_model(model, mode) as engine:
        ids = random_ids(engine)
        gaps = gaps_of(engine.logits(ids), engine.logits(ids, one_by_one=True))
        assert gaps.max() < (ROUNDED if in_blocks(engine) else CLOSE)


@pytest.mark.parametrize(
    ("mode", "predictors"), [("dense", ""), ("exact", ""), ("predicted", "f16"), ("predicted", "q8_0")]
)
def test_first_tokens_agree_but_for_those_that_a_code_fell_over_for(model, mode, predictors):
    """Texts of one token have no past that could have been rounded otherwise: each is a sample of its own."""
    with open_model(model, mode, predictors) as engine:
        ids = random_ids(engine, 60)
        recorded = torch.cat([engine.logits([i]) for i in ids])
        eager(engine)
        gaps = gaps_of(torch.cat([engine.logits([i]) for i in ids]), recorded)
        if not in_blocks(engine) and predictors != "q8_0":
            # A predictor's output at its threshold may fall to either side as well.
            assert (gaps < CLOSE).float().mean() >= (0.95 if mode == "predicted" else 1.0)
            return
        assert (gaps < CLOSE).float().mean() >= 0.5
        assert mode == "predicted" or gaps.max() < ROUNDED


@pytest.mark.parametrize(
    ("predictors", "kinds"), [*(("f16", kinds) for kinds in MIXED), ("q8_0", MIXED[0])], ids=[*"012", "blocks"]
)
def test_predictors_of_every_family_name_the_same_rows_recorded_and_eager(model, predictors, kinds):
    with open_model(model, "predicted", predictors, kinds) as engine:
        ids = random_ids(engine, 40)
        texts = [ids[at : at + 2] for at in range(0, len(ids), 2)]
        recorded = torch.cat([engine.logits(text, one_by_one=True) for text in texts])
        in_steps = torch.cat([engine.logits(text * 6) for text in texts])  # twelve tokens in one recorded step
        done = engine.ledger.evaluation.cpu
        named = done.gated / (engine.ledger.evaluation.tokens * engine.directory.spec.n_layers)
        eager(engine)
        gaps = gaps_of(torch.cat([engine.logits(text) for text in texts]), recorded)
        steps = gaps_of(torch.cat([engine.logits(text * 6) for text in texts]), in_steps)
    rows = sum(1.0 if family == "none" else 0.5 for family, _ in kinds) / 3 * engine.directory.spec.n_neurons
    assert named == pytest.approx(rows, rel=0.15)
    if in_blocks(engine) or predictors == "q8_0":
        assert (gaps < CLOSE).float().mean() >= 0.4
        assert gaps.median() < ROUNDED
    else:
        assert (gaps < CLOSE).float().mean() >= 0.95
        assert (steps < CLOSE).float().mean() >= 0.85  # a row named otherwise changes what follows in its text


@pytest.mark.parametrize("recorded", [True, False])
def test_layers_without_a_predictor_are_those_of_exact_mode(model, recorded):
    with open_model(model, "exact") as exact, open_model(model, "predicted", kinds=NONE) as none:
        if not recorded:
            eager(exact)
            eager(none)
        ids = random_ids(exact)
        for text in (ids, ids[:5]):
            for one_by_one in (False, True):
                assert torch.equal(exact.logits(text, one_by_one), none.logits(text, one_by_one))


class Residuals:
    """A tap that keeps the states that reach each layer's FFN."""

    def __init__(self):
        self.residuals = {}

    def document(self):
        pass

    def residual(self, layer, states):
        self.residuals[layer] = states.clone()

    def ffn(self, layer, hidden, activation, named):
        pass


def test_a_first_layer_without_a_predictor_hands_on_what_exact_mode_does(model):
    reached = {}
    for mode, kinds in (("exact", NONE), ("predicted", MIXED[1])):
        with open_model(model, mode, kinds=kinds) as engine:
            tap = Residuals()
            engine.hidden_states(random_ids(engine, 20), tap=tap)
        reached[mode] = tap.residuals
    assert torch.equal(reached["exact"][1], reached["predicted"][1])
    assert not torch.equal(reached["exact"][2], reached["predicted"][2])


@pytest.mark.parametrize("mode", ["dense", "exact", "predicted"])
def test_sixteen_sequences_generate_what_each_generates_alone(model, complete, mode):
    with open_model(model, mode, max_sequences=16, threads=2) as engine:
        prompts = [random_ids(engine, 1 + 3 * i, seed=i) for i in range(16)]  # up to 46 tokens: past a window of 24
        together = complete(engine, prompts, 12)
        assert together == [complete(engine, [ids], 12)[0] for ids in prompts]
        assert complete(engine, prompts[:5], 12) == together[:5]
        assert len({tuple(ids) for ids in together}) > 4, "the prompts were told apart"


def test_a_model_that_was_closed_says_so(model):
    engine = open_model(model, "exact")
    recorded, ids = engine.machine.recorded, random_ids(engine)
    hidden = engine.hidden_states(ids[:3])
    sequence = Sequence(ids[:5], SamplingParams(max_tokens=8), engine.tokenizer)
    engine.add(sequence)
    engine.step()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.step()
    with pytest.raises(RuntimeError, match="closed"):
        engine.logits(ids, one_by_one=True)
    with pytest.raises(RuntimeError, match="closed"):
        recorded.logits(hidden, engine.ledger.decode)
    with pytest.raises(RuntimeError, match="closed"):
        engine.logits(ids)
    engine.close()


def test_a_step_reports_what_it_computed(model):
    with open_model(model, "exact") as engine:
        spec, ids = engine.directory.spec, random_ids(engine, 20)
        list(engine.run([Sequence(ids, SamplingParams(max_tokens=6, ignore_eos=True), engine.tokenizer)]))
        done = engine.ledger.decode
        assert done.tokens == 5  # the first is of the prompt's step
        assert done.cpu.gated == done.tokens * spec.n_layers * spec.n_neurons
        expected = done.cpu.gated if not spec.has_exact_zeros else 0.8 * done.cpu.gated
        assert 0 < done.cpu.finished <= expected
        assert 0 < done.native_seconds <= done.seconds
        assert dataclasses.astuple(done.gpu) == (0, 0)
