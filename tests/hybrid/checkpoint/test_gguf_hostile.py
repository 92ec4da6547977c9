"""GGUF files that are damaged or meant to harm: each is refused by name, and nothing large is allocated for it."""

import struct
import subprocess
import sys

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybrid.checkpoint.reader import Checkpoint
from profiler.artifacts import UserError


def text(value):
    return struct.pack("<Q", len(value)) + value


def header(tensors=0, keys=(), version=3, magic=b"GGUF", count=None):
    return magic + struct.pack("<IQQ", version, tensors, len(keys) if count is None else count) + b"".join(keys)


def key(name, kind, value):
    return text(name) + struct.pack("<I", kind) + value


def tensor(name=b"t", shape=(32,), kind=0, offset=0, dimensions=None):
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    count = len(shape) if dimensions is None else dimensions
    return text(name) + struct.pack("<I", count) + sizes + struct.pack("<IQ", kind, offset)


HUGE = 1 << 62
BROKEN = {
    "nothing": (b"", "not a GGUF file"),
    "zip": (b"PK\3\4" * 10, "not a GGUF file"),
    "powerinfer": (header(magic=b"PWRI"), "PowerInfer's own kind of GGUF"),
    "version 1": (header(version=1), "GGUF of version 1;"),
    "big-endian": (header(version=3 << 24), "GGUF of version 3 in big-endian order"),
    "short": (b"GGUF\3\0", "its header ends before its time"),
    "many keys": (header(count=HUGE), "tells of 4611686018427387904 as keys"),
    "many tensors": (header(tensors=HUGE), "as tensors, more than"),
    "no keys": (header(count=5), "its header ends before its time"),
    "long name": (header(keys=[struct.pack("<Q", HUGE)]), "the name of a key, more than the 1024"),
    "name of bytes": (header(keys=[key(b"\xff", 4, b"\0\0\0\0")]), "is not UTF-8"),
    "long text": (header(keys=[key(b"a", 8, struct.pack("<Q", HUGE))]), "the bytes of a text"),
    "odd kind": (header(keys=[key(b"a", 77, b"")]), "a is of type 77, which there is not"),
    "truth of 2": (header(keys=[key(b"a", 7, b"\2")]), "a is 2, and should be true or false"),
    "long list": (header(keys=[key(b"a", 9, struct.pack("<IQ", 4, HUGE))]), "as a, more than the 4194304"),
    "list beyond the end": (header(keys=[key(b"a", 9, struct.pack("<IQ", 10, 1 << 22))]), "ends before its time"),
    "list of lists": (header(keys=[key(b"a", 9, struct.pack("<IQ", 9, 1))]), "a list of lists"),
    "twice": (header(keys=[key(b"a", 4, b"\0\0\0\0")] * 2), "it says a twice"),
    "alignment 0": (header(keys=[key(b"general.alignment", 4, b"\0\0\0\0")]), "an alignment of 0"),
    "alignment 48": (header(keys=[key(b"general.alignment", 4, b"\x30\0\0\0")]), "an alignment of 48"),
    "alignment text": (header(keys=[key(b"general.alignment", 8, text(b"32"))]), "an alignment of b'32'"),
    "no dimensions": (header(1) + tensor(shape=()), "t has 0 dimensions"),
    "dimensions": (header(1) + tensor(dimensions=1 << 31), "t has 2147483648 dimensions"),
    "empty": (header(1) + tensor(shape=(32, 0)), "t has impossible sizes"),
    "product": (header(1) + tensor(shape=(1 << 30, 1 << 30, 1 << 30)), "t has impossible sizes"),
    "offset": (header(1) + tensor(offset=(1 << 64) - 32), "t has impossible sizes"),
    "type": (header(1) + tensor(kind=99), "t is stored as type 99"),
    "blocks": (header(1) + tensor(shape=(33, 2), kind=8), "rows of 33 in t are not whole blocks of Q8_0"),
    "truncated": (header(1) + tensor(shape=(1 << 20,)), "is truncated: its header tells of"),
    "unaligned": (header(1) + tensor(offset=3) + bytes(4096), "is not aligned to 32 bytes"),
    "overlap": (header(2) + tensor(b"a", (64,)) + tensor(b"b", offset=32) + bytes(4096), "b overlaps another tensor"),
    "same name": (header(2) + tensor(b"a") + tensor(b"a", offset=128) + bytes(4096), "the same name"),
}


@pytest.mark.parametrize("case", list(BROKEN))
def test_what_cannot_be_is_refused_by_name(case, tmp_path):
    content, message = BROKEN[case]
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(UserError, match=message):
        Checkpoint.open(tmp_path / "x.gguf")


def test_giant_counts_allocate_nothing(tmp_path):
    """All of them under a limit of memory that the interpreter and its packages just fit into."""
    for case, (content, _) in BROKEN.items():
        (tmp_path / f"{case}.gguf").write_bytes(content)
    code = """
import resource, sys
from pathlib import Path
from hybrid.checkpoint.gguf_header import read_gguf_header
from profiler.artifacts import UserError
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (48 << 20),) * 2)
for path in Path(sys.argv[1]).glob("*.gguf"):
    try:
        read_gguf_header(path)
    except UserError:
        continue
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def whole(make_llama, make_gguf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return make_gguf(make_llama(folder, num_hidden_layers=1), folder / "model.gguf", "f16").read_bytes()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_are_read_or_refused(data, whole, tmp_path):
    """Bytes of the header changed, cut or repeated: a checkpoint or a UserError, never anything else."""
    content = bytearray(whole)
    limit = len(content) if data.draw(st.booleans()) else 700
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(limit, len(content)) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert"])):
            case "set":
                new = data.draw(st.binary(min_size=1, max_size=8))
                content[at : at + len(new)] = new
            case "cut":
                del content[at : at + data.draw(st.integers(1, 64))]
            case "insert":
                content[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        if not content:
            break
    path = tmp_path / "mutated.gguf"
    path.write_bytes(content)
    try:
        checkpoint = Checkpoint.open(path, "relu")
        for name in checkpoint.tensors:
            for _ in checkpoint.blocks(name):
                pass
    except UserError:
        pass


def rewrite(path, source, change):
    """A copy of a file with its fields and tensors changed: `change(fields, tensors)`, of values by name."""
    reader = gguf.GGUFReader(source)
    fields = {f.name: (f.contents(), f.types) for f in reader.fields.values() if not f.name.startswith("GGUF.")}
    tensors = {t.name: (t.data, t.tensor_type) for t in reader.tensors}
    change(fields, tensors)
    architecture, _ = fields.pop("general.architecture")
    writer = gguf.GGUFWriter(path, architecture)
    for name, (value, types) in fields.items():
        writer.add_key_value(name, value, types[0], types[-1] if len(types) > 1 else None)
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


U32, F32, STRING = gguf.GGUFValueType.UINT32, gguf.GGUFValueType.FLOAT32, gguf.GGUFValueType.STRING
ARRAY = gguf.GGUFValueType.ARRAY
IMPOSSIBLE = {
    "architecture": ("general.architecture", "falcon", STRING, "architecture 'falcon', which is not supported as GGUF"),
    "adapter": ("general.type", "adapter", STRING, "holds 'adapter', not a model"),
    "experts": ("llama.expert_count", 8, U32, "expert_count is 8; models with it are not supported"),
    "cap": ("llama.final_logit_softcapping", 30.0, F32, "final_logit_softcapping is 30"),
    "yarn": ("llama.rope.scaling.type", "yarn", STRING, "rope scaling of type 'yarn' is not supported"),
    "linear": ("llama.rope.scaling.factor", 4.0, F32, "rope scaling of type 'linear' is not supported"),
    "partial": ("llama.rope.dimension_count", 4, U32, "partial_rotary_factor 0.4 is not supported"),
    "heads": ("llama.attention.head_count", 0, U32, "head_count is 0"),
    "many heads": ("llama.attention.head_count", 1 << 31, U32, "partial_rotary_factor 10.0"),
    "text": ("llama.block_count", "3", STRING, "block_count is '3'; a whole number is expected"),
    "layers": ("llama.block_count", 1 << 31, U32, "n_layers is 2147483648; a whole number from 1"),
    "more layers": ("llama.block_count", 900, U32, "lacks blk.1.attn_norm.weight"),
    "no epsilon": ("llama.attention.layer_norm_rms_epsilon", None, F32, "has no llama.attention.layer_norm_rms"),
    "epsilon": ("llama.attention.layer_norm_rms_epsilon", float("nan"), F32, "norm"),
    "model": ("tokenizer.ggml.model", "t5", STRING, "a tokenizer of kind b't5'.*--tokenizer FOLDER"),
    "bos": ("tokenizer.ggml.bos_token_id", 1 << 30, U32, "bos_token_id is 1073741824, which no token is"),
    "kinds": ("tokenizer.ggml.token_type", [1, 2], ARRAY, "no kind for each of its 389 tokens"),
    "kind": ("tokenizer.ggml.token_type", [99] * 389, ARRAY, "of a kind that there is not"),
    "split": ("split.count", 3, U32, "file 1 of 3 of a split model, which are found by their names"),
}


@pytest.mark.parametrize("case", list(IMPOSSIBLE))
def test_metadata_that_is_not_supported_is_refused_by_name(case, whole, tmp_path):
    name, value, kind, message = IMPOSSIBLE[case]
    (tmp_path / "whole.gguf").write_bytes(whole)

    def change(fields, tensors):
        fields.pop(name, None)
        if value is not None:
            fields[name] = (value, [kind, gguf.GGUFValueType.INT32] if kind is ARRAY else [kind])

    path = rewrite(tmp_path / "changed.gguf", tmp_path / "whole.gguf", change)
    with pytest.raises(UserError, match=message):
        Checkpoint.open(path, "relu")


def test_a_tensor_too_many_or_too_few_or_not_finite(whole, tmp_path):
    (tmp_path / "whole.gguf").write_bytes(whole)

    def more(fields, tensors):
        tensors["blk.0.ffn_gate_inp.weight"] = tensors["blk.0.attn_norm.weight"]

    def fewer(fields, tensors):
        del tensors["blk.0.attn_v.weight"]

    def infinite(fields, tensors):
        values, kind = tensors["blk.0.attn_q.weight"]
        values = values.copy()
        values[3, 4] = float("inf")
        tensors["blk.0.attn_q.weight"] = (values, kind)

    source = tmp_path / "whole.gguf"
    with pytest.raises(UserError, match=r"does not have, for example blk\.0\.ffn_gate_inp\.weight"):
        Checkpoint.open(rewrite(tmp_path / "a.gguf", source, more), "relu")
    with pytest.raises(UserError, match=r"lacks blk\.0\.attn_v\.weight"):
        Checkpoint.open(rewrite(tmp_path / "b.gguf", source, fewer), "relu")
    checkpoint = Checkpoint.open(rewrite(tmp_path / "c.gguf", source, infinite), "relu")
    with pytest.raises(UserError, match=r"blk\.0\.attn_q\.weight in c\.gguf has NaN or infinite values"):
        list(checkpoint.blocks("layers.0.q.weight"))
