"""Contenders in turn: kept open or opened anew, lowered until they keep to the budget, dropped where they fail."""

import os
from array import array

import pytest

from hybrid.runtime.memory import ProcessMemory
from hybrid.stages import compare_rounds
from hybrid.stages.compare_contenders import Absent, Contender
from hybrid.stages.compare_results import rows_of
from hybrid.stages.compare_rounds import Figures, Seat, measure
from hybrid.stages.quality import Passage

COUNTING = """
import sys
from pathlib import Path
from hybrid.stages.peers.protocol import serve
class Counting:
    def open(self, log, layers=0, vocabulary=9, fails=()):
        self.log, self.fails = log, fails
        with Path(log).open("a") as file: print("open", layers, file=file)
        return {"vocabulary": vocabulary}
    def decode(self, prompt, tokens):
        if "decode" in self.fails and tokens > 2: raise ValueError("out of memory")
        return {"first_token_seconds": len(prompt) / 10, "seconds": [0.5] * tokens}
    def score(self, ids):
        if "score" in self.fails: raise ValueError("no logits")
        return {"loss": float(sum(ids)), "likeliest": list(ids[1:])}
if __name__ == "__main__":
    it = Counting()
    serve({"open": it.open, "decode": it.decode, "score": it.score})
"""
PASSAGES = [array("i", [1, 2, 3]), array("i", [1, 5])]


@pytest.fixture
def contender(tmp_path, monkeypatch):
    """`contender(name, **of the contender)`: one whose processes write what they open into `tmp_path / name`."""
    (tmp_path / "counting_worker.py").write_text(COUNTING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))

    def make(name, layers=0, vocabulary=9, fails=(), **more):
        arguments = {"log": str(tmp_path / name), "layers": layers, "vocabulary": vocabulary, "fails": fails}
        return Contender(f"{name} {{layers}}", "layer-wise", "other", "counting_worker", arguments, **more)

    return make


def run(*contenders, rounds=2):
    told = []
    seats = measure(
        contenders, 9, 1000, [[1, 2, 3], [4, 5, 6]], PASSAGES, rounds, 4, lambda *progress: told.append(progress)
    )
    return seats, told


@pytest.mark.parametrize("together", [True, False])
def test_every_round_and_every_passage_of_everybody(contender, tmp_path, monkeypatch, together):
    monkeypatch.setattr(compare_rounds, "fit_together", lambda *_: together)
    seats, told = run(contender("a"), contender("b"))
    for seat in seats:
        assert seat.failure is None and seat._worker is None
        assert seat.figures.decode == [2.0, 2.0]
        assert seat.figures.first_token_seconds == [0.3] * 4
        assert seat.figures.losses == [6.0, 6.0]
        assert [list(ids) for ids in seat.figures.likeliest] == [[2, 3], [5]]
        assert seat.figures.memory.peak >= seat.figures.memory.resident > 1 << 20
        assert seat.figures.vram is None
    opened = (tmp_path / "a").read_text().split("\n")[:-1]
    assert opened == ["open 0"] * (1 if together else 3)
    assert told[3] == ("decoding", 4, 4) and told[-1] == ("perplexity", 2, 2)


def test_one_that_fails_is_dropped_and_says_why(contender):
    failing = [contender("a", fails=["decode"]), contender("b", vocabulary=10), contender("c", fails=["score"])]
    missing = Contender("d", "layer-wise", "other", "no_such_worker", {})
    (first, other, unscored, gone, fine), _ = run(*failing, missing, contender("e"), rounds=1)
    assert first.failure == "out of memory" and first.figures.decode == []
    assert "10 tokens, and the model's 9" in other.failure
    assert unscored.failure is None and unscored.unscored == "no logits" and unscored.figures.decode == [2.0]
    assert "ended with status 1" in gone.failure
    assert fine.failure is None and len(fine.figures.losses) == 2


def test_one_that_takes_too_much_is_given_less(contender, tmp_path, monkeypatch):
    """Its process takes 100 bytes and 30 a layer; the budget is 200."""
    layers = []

    def told(pid):
        layers.append(int((tmp_path / "a").read_text().split()[-1]))
        return 100 + 30 * layers[-1]

    monkeypatch.setattr(compare_rounds, "free_vram", lambda: 1 << 30)
    monkeypatch.setattr(compare_rounds, "_told_by_driver", told)
    (seat,), _ = run(contender("a", layers=6, vram=200, lowered_by=("layers", 30)), rounds=1)
    assert layers[:2] == [6, 3] and set(layers[2:]) <= {3}
    assert (seat.contender.name, seat.figures.vram, seat.failure) == ("a 3", 190, None)
    (seat,), _ = run(contender("a", layers=6, vram=90, lowered_by=("layers", 30)), rounds=1)
    assert "more than the budget of 90" in seat.failure


def test_without_a_word_from_the_driver_the_difference_counts(contender, monkeypatch):
    free = iter([5000, 4200])
    monkeypatch.setattr(compare_rounds, "fit_together", lambda *_: True)
    monkeypatch.setattr(compare_rounds, "free_vram", lambda: next(free))
    monkeypatch.setattr(compare_rounds, "_told_by_driver", lambda pid: None)
    (seat,), _ = run(contender("a", vram=1000), rounds=1)
    assert seat.figures.vram == 800


def test_what_fits_together(monkeypatch):
    def one(vram=0, ram=0, device=None):
        return Contender("x", "hybrid", "hybrid", "m", {"device": device}, vram=vram, ram=ram)

    gib = 1 << 30
    monkeypatch.setattr(compare_rounds, "available_memory", lambda: 10 * gib)
    monkeypatch.setattr(compare_rounds, "free_vram", lambda: 4 * gib)
    monkeypatch.setattr(compare_rounds, "_driver", lambda: "a driver")
    fits = compare_rounds.fit_together
    assert fits([one(2 * gib, device="cuda")] * 2, 3 * gib) and not fits([one(2 * gib, device="cuda")] * 3, 3 * gib)
    assert fits([one()] * 7, 3 * gib) and not fits([one()] * 8, 3 * gib)
    assert fits([one(3 * gib, device="cpu")] * 2, 2 * gib) and not fits([one(3 * gib, device="cpu")] * 2, 3 * gib)
    monkeypatch.setattr(compare_rounds, "_driver", lambda: None)
    assert not fits([one(gib, device="cuda")], gib) and fits([one()], gib)


def seat(name, kind, mode, decode, losses=(), likeliest=(), program="hybrid"):
    figures = Figures(list(decode), [0.1], ProcessMemory(1, 2, None), None, None, list(losses), list(likeliest))
    return Seat(Contender(name, kind, program, "m", {}, mode), 9, figures)


def test_ratios_are_medians_over_rounds_against_the_fastest_layer_wise_form():
    likeliest = [array("i", [3, 3]), array("i", [4])]
    everybody = [
        seat("layers", "layer-wise", "dense", [10.0, 20.0, 10.0], [2.0, 1.0], likeliest),
        Absent("missing", "layer-wise", "llama.cpp", "not here"),
        seat("peer", "layer-wise", "dense", [12.0, 10.0, 12.0], program="llama.cpp"),
        seat("exact", "hybrid", "exact", [24.0, 30.0, 48.0], [2.0, 1.0], likeliest),
        seat("lossy", "hybrid", "threshold", [99.0] * 3, [3.0, 2.4], [array("i", [3, 9]), array("i", [4])]),
    ]
    everybody[2].contender = Contender("peer", "layer-wise", "llama.cpp", "m", {}, unscored="another activation")
    passages = [Passage(array("i", [1, 2, 3]), 0), Passage(array("i", [1, 2]), 1)]
    rows, headline = rows_of(everybody, passages)
    by_name = {row.name: row for row in rows}
    assert list(by_name) == ["layers", "missing", "peer", "exact", "lossy"]
    assert (headline.contender, headline.baseline, headline.ratio) == ("exact", "peer", 3.0)
    assert "exact decodes 3.00 times as fast as peer" in headline.sentence
    assert by_name["peer"].ratio == 1.0 and by_name["layers"].ratio == pytest.approx(10 / 12)
    assert by_name["missing"].reason == "not here" and by_name["missing"].tokens_per_second is None
    assert by_name["peer"].unscored == "another activation" and by_name["peer"].perplexity is None
    assert by_name["layers"].perplexity == pytest.approx(2.718281828)
    assert (by_name["exact"].over_dense, by_name["exact"].agreement) == (1.0, 1.0)
    assert by_name["lossy"].over_dense == pytest.approx(2.718281828 ** (2.4 / 3))
    assert by_name["lossy"].agreement == pytest.approx(2 / 3)


@pytest.mark.parametrize(("kind", "mode", "ratio"), [("layer-wise", "dense", 1.0), ("hybrid", "exact", None)])
def test_without_anything_to_compare_there_is_no_headline(kind, mode, ratio):
    alone = seat("alone", kind, mode, [1.0], [1.0], [array("i", [1])])
    (row,), headline = rows_of([alone], [Passage(array("i", [1, 2]), 0)])
    assert headline is None and row.ratio == ratio
