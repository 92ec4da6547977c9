"""Folders of published predictors: by number, every layer once; each file checked before anything of it is used."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybrid.checkpoint.published import find_published, open_predictor, read_counts
from profiler.artifacts import UserError

HIDDEN, NEURONS, RANK = 6, 10, 4


class Attack:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


def touch(folder, *names):
    for name in names:
        (folder / name).touch()


def save(path, **changes):
    """A predictor's file, some of its parts changed, or left out where they are None."""
    parts = {"fc1": torch.randn(RANK, HIDDEN), "fc2": torch.randn(NEURONS, RANK), **changes}
    torch.save({f"{name}.weight": part for name, part in parts.items() if part is not None}, path)
    return path


@given(st.permutations(range(12)), st.booleans())
def test_files_are_sorted_by_number(tmp_path_factory, order, with_counts):
    folder = tmp_path_factory.mktemp("published")
    for layer in order:
        touch(folder, f"model_{layer}.pt", *([f"activation_{layer}.pt"] if with_counts else []))
    touch(folder, "README.md", "model.pt", "model_1.pt.bak", "xmodel_5.pt", "model_x.pt", "solver.pt")
    found = find_published(folder, 12)
    assert [path.name for path in found.predictors] == [f"model_{layer}.pt" for layer in range(12)]
    expected = [f"activation_{layer}.pt" for layer in range(12)] if with_counts else []
    assert [path.name for path in found.counts] == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no published predictors"),
        (["activation_0.pt"], "holds no published predictors"),
        (["model_0.pt", "model_2.pt"], "3 layers: model_1.pt missing"),
        (["model_2.pt"], r"model_0.pt, model_1.pt missing"),
        ([f"model_{i}.pt" for i in range(12)], r"3 layers: model_3.pt, model_4.pt, model_5.pt and 6 more too many"),
        (["model_1.pt", "model_2.pt", "model_3.pt"], r"model_0.pt missing; model_3.pt too many"),
        ([f"model_{i}.pt" for i in range(3)] + ["model_01.pt"], "both of layer 1: remove one"),
        ([f"model_{i}.pt" for i in range(3)] + ["activation_0.pt"], "activation_1.pt, activation_2.pt missing"),
        ([f"model_{i}.pt" for i in range(3)] + [f"model_{'9' * 200}.pt"], "too many"),
    ],
)
def test_a_folder_that_does_not_hold_each_layer_once_is_refused(tmp_path, names, message):
    touch(tmp_path, *names)
    with pytest.raises(UserError, match=message):
        find_published(tmp_path, 3)


def test_a_folder_that_is_none_is_refused(tmp_path):
    touch(tmp_path, "file")
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(UserError, match="cannot read the folder"):
            find_published(path, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_predictor_is_read_as_it_was_saved(tmp_path, dtype):
    fc1, fc2 = torch.randn(RANK, HIDDEN).to(dtype), torch.randn(RANK, NEURONS).to(dtype).T
    found = open_predictor(save(tmp_path / "model_0.pt", fc1=fc1, fc2=fc2), HIDDEN, NEURONS)
    for tensor, expected in zip(found, (fc1, fc2), strict=True):
        assert tensor.dtype == dtype
        assert torch.equal(torch.cat(list(tensor.blocks(3))), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"fc1": torch.ones(RANK, 7)},
            r"model_0.pt is not a predictor .*\[4, 7\].*\[10, 4\].*\[rank, 6\].*\[10, rank\]",
        ),
        ({"fc2": torch.ones(11, RANK)}, r"\[4, 6\] and fc2.weight \[11, 4\]"),
        ({"fc2": torch.ones(NEURONS, 5)}, "not a predictor of this model"),
        ({"fc1": torch.ones(0, HIDDEN), "fc2": torch.ones(NEURONS, 0)}, "not a predictor of this model"),
        ({"fc1": torch.tensor(1.0)}, "not a predictor of this model"),
        ({"fc2": None}, "holds fc1.weight; a published predictor is"),
        ({"fc3": torch.ones(2)}, "holds fc1.weight, fc2.weight, fc3.weight;"),
        ({"fc1": torch.ones(RANK, HIDDEN, dtype=torch.int8)}, "fc1.weight is stored as int8, and floats"),
        ({"fc1": torch.ones(1, HIDDEN).expand(10**12, HIDDEN)}, "damaged: its 'fc1.weight' would have"),
        ({"fc1": torch.ones(RANK, HIDDEN, device="meta")}, "not an ordinary tensor"),
        ({"fc1": torch.eye(RANK, HIDDEN).to_sparse()}, "not an ordinary tensor"),
    ],
)
def test_anything_but_a_predictor_of_the_model_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        open_predictor(save(tmp_path / "model_0.pt", **changes), HIDDEN, NEURONS)


@pytest.mark.parametrize(
    "reader", [lambda path: open_predictor(path, HIDDEN, NEURONS), lambda p: read_counts(p, NEURONS)]
)
def test_code_is_not_run_and_text_is_no_tensor(tmp_path, reader):
    torch.save({"fc1.weight": torch.ones(2), "fc2.weight": Attack(tmp_path / "ran")}, tmp_path / "code.pt")
    (tmp_path / "text.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9000\n")
    (tmp_path / "folder.pt").mkdir()
    cases = {"code": "more than tensors", "text": "download it again", "folder": "not a file", "none": "cannot read"}
    for name, message in cases.items():
        with pytest.raises(UserError, match=message):
            reader(tmp_path / f"{name}.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_counts_are_read_as_they_were_saved(tmp_path, dtype):
    counts = torch.randint(100, (2 * NEURONS,)).to(dtype)[::2]
    torch.save(counts, tmp_path / "activation_0.pt")
    found = read_counts(tmp_path / "activation_0.pt", NEURONS)
    assert found.dtype == np.int64
    assert found.tolist() == counts.tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(NEURONS), r"activation_0.pt is not of this model: it holds float32 \[10\], .* \[10\] are expected"),
        (torch.ones(11, dtype=torch.int64), r"holds int64 \[11\]"),
        (torch.ones(1, NEURONS, dtype=torch.int64), r"holds int64 \[1, 10\]"),
        (torch.ones(NEURONS, dtype=torch.bool), "holds bool"),
        (torch.ones(1, dtype=torch.int64).expand(10**12), "would have 8000000000000 bytes"),
        (torch.arange(-1, NEURONS - 1), "damaged: it holds counts from -1 to 8"),
        (torch.full((NEURONS,), 1 << 62), "damaged"),
        ({"counts": torch.ones(NEURONS, dtype=torch.int64)}, "not an ordinary tensor"),
        ([1] * NEURONS, "not an ordinary tensor"),
    ],
)
def test_anything_but_counts_of_the_model_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "activation_0.pt")
    with pytest.raises(UserError, match=message):
        read_counts(tmp_path / "activation_0.pt", NEURONS)
