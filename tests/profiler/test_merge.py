from dataclasses import replace

import numpy as np
import pytest

from profiler.artifacts import UserError
from profiler.merge import merge_profiles
from profiler.recorder import Recorder


def counted(seed: int, kinds: tuple[str, ...], tokens: int = 160, **changes):
    generator = np.random.default_rng(seed)
    recorder = Recorder(2, 7, kinds)
    for layer in range(2):
        for part in range(2 * len(kinds)):
            bits = (generator.random((tokens, 7)) < 0.3).astype(np.uint8)
            recorder.active(layer, bits, ((part, tokens),))
            recorder.named(layer, bits[:, ::-1])
    return replace(recorder.to_profile("source", f"text {seed}", (0.1, 0.2), "predictors"), **changes)


def test_shards_add_up_to_the_whole():
    one, two = counted(1, ("code", "prose")), counted(2, ("chat", "code"))
    merged = merge_profiles({"one": one, "two": two})
    assert merged.tokens == one.tokens + two.tokens
    for name in ("active", "named", "union4", "union16"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(one, name) + getattr(two, name))
    assert merged.domains == ("code", "prose", "chat")
    np.testing.assert_array_equal(merged.parts[0], one.parts[0].astype(int) + two.parts[1])
    np.testing.assert_array_equal(merged.parts[1], one.parts[1])
    np.testing.assert_array_equal(merged.parts[2], two.parts[0])
    assert merged.part_tokens == ((320, 320), (160, 160), (160, 160))
    assert (merged.thresholds, merged.predictors_digest) == ((0.1, 0.2), "predictors")
    back = merge_profiles({"two": two, "one": one})
    assert back.corpus_digest == merged.corpus_digest
    np.testing.assert_array_equal(back.active, merged.active)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source_digest": "other"}, "different models"),
        ({"thresholds": (0.1, 0.3)}, "different thresholds"),
        ({"predictors_digest": "other"}, "different predictors"),
        ({"predictors_digest": None, "has_predictors": False}, "different predictors"),
        ({"corpus_digest": "text 1"}, "the same text"),
        ({"parts": None, "domains": (), "part_tokens": ()}, "version 1"),
    ],
)
def test_what_does_not_add_up_is_refused_by_name(changes, said):
    with pytest.raises(UserError, match=said) as caught:
        merge_profiles({"one": counted(1, ("a",)), "two": counted(2, ("a",), **changes)})
    assert "two" in str(caught.value)


def test_other_sizes_too_few_and_too_many_are_refused():
    one = counted(1, ("a",))
    with pytest.raises(UserError, match="at least two"):
        merge_profiles({"one": one})
    recorder = Recorder(1, 7)
    recorder.active(0, np.ones((4, 7), dtype=np.uint8))
    other = recorder.to_profile("source", "text", (0.1, 0.2), "predictors")
    with pytest.raises(UserError, match="different numbers"):
        merge_profiles({"one": one, "other": other})
    many = counted(2, tuple(map(str, range(9)))), counted(3, tuple(map(str, range(9, 18))))
    with pytest.raises(UserError, match="18 domains"):
        merge_profiles({"one": many[0], "two": many[1]})
