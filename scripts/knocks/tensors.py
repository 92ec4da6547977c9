"""Files of `torch.save` that are not what they should be: other values, other kinds of tensors, other bytes."""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from random import Random
from typing import Any

import torch

from knocks.mutations import damaged_bytes


class Runs:
    """A pickle that would run something."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit(77)",)


def damaged_torch(data: bytes, rng: Random) -> bytes:
    """Bytes of the archive or of a member, or another content saved by torch itself."""
    kind = rng.random()
    if kind < 0.3:
        return damaged_bytes(data, rng)
    if kind < 0.55:
        return _rewritten(data, rng)
    if kind < 0.6:
        return pickle.dumps(rng.choice((Runs(), {"a": Runs()}, [1, 2], b"x" * 100)), protocol=2)
    content = torch.load(io.BytesIO(data), weights_only=True)
    return _saved(_changed(content, rng))


def _saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def _rewritten(data: bytes, rng: Random) -> bytes:
    """The same archive with one member damaged, compressed, missing or there twice."""
    stream, what = io.BytesIO(), rng.randrange(6)
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        names = old.namelist()
        chosen = rng.choice([name for name in names if name.endswith(".pkl")] if what < 3 else names)
        for name in names:
            content = old.read(name)
            if name == chosen and what == 5:
                continue
            if name == chosen and what != 4:
                content = damaged_bytes(content, rng)
            new.writestr(name, content, zipfile.ZIP_DEFLATED if name == chosen and what == 4 else zipfile.ZIP_STORED)
    return stream.getvalue()


def _changed(content: Any, rng: Random) -> Any:
    if isinstance(content, torch.Tensor):
        return _strange(content, rng)
    content = collections.OrderedDict(content)
    name = rng.choice(list(content))
    what = rng.randrange(5)
    if what == 0:
        del content[name]
    elif what == 1:
        content[rng.choice(("", "x", 7, None, "model.layers.99.mlp.up_proj.weight"))] = content[name]
    else:
        content[name] = _strange(content[name], rng)
    return content


def _strange(value: torch.Tensor, rng: Random) -> Any:
    flat = value.reshape(-1)
    floating = value if value.is_floating_point() else value.float()
    made: tuple[Any, ...] = (
        lambda: floating.fill_(float("nan")) if rng.random() < 0.5 else floating.fill_(float("inf")),
        lambda: value.to(rng.choice((torch.float64, torch.int8, torch.bool, torch.complex64, torch.float32))),
        lambda: flat[:1].expand(1 << rng.choice((10, 40, 60))),
        lambda: value.T,
        lambda: flat,
        lambda: value[..., :0],
        lambda: torch.tensor(1.0),
        lambda: floating.to_sparse(),
        lambda: torch.quantize_per_tensor(floating.float(), 0.1, 0, torch.qint8),
        lambda: torch.empty(3, device="meta"),
        lambda: torch.nn.Parameter(floating),
        lambda: [value],
        lambda: None,
        lambda: -value if value.is_floating_point() else -value - 1,
        lambda: value.as_strided((2, 2), (0, 1)) if flat.numel() > 3 else value,
        lambda: flat.to(torch.int64).mul(10**15) if not value.is_floating_point() else value * 1e30,
    )
    return rng.choice(made)()
