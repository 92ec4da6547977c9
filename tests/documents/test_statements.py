"""What the documents state about the code is so: families, formats, files, fields, and the size of a family."""

from __future__ import annotations

import re
from dataclasses import replace

from documents.checking import documents
from documents.reading import source_of
from documents.session import CHECKOUT

from hybrid.checkpoint.families import FAMILIES
from hybrid.checkpoint.family import ACTIVATIONS
from hybrid.checkpoint.names import dense_shapes
from hybrid.names import ADDED
from hybrid.spec import ModelSpec
from hybrid.store.manifest import TOKENIZER_FILES
from profiler.formats import WEIGHT_FORMATS

DIRECTORY = (CHECKOUT / "docs" / "model-directory.md").read_text()


def test_the_family_that_is_shown_is_forty_lines_of_data():
    data = source_of(CHECKOUT / "hybrid" / "checkpoint" / "gpt_neox.py", "GPT_NEOX")
    assert len(data.splitlines()) <= 40
    shown = (CHECKOUT / "docs" / "adding-a-family.md").read_text()
    assert data in shown
    for line in ('"GPTNeoXForCausalLM": (GPT_NEOX,),', '"gpt_neox": (transformers.GPTNeoXConfig'):
        files = ("hybrid/checkpoint/families.py", "tests/hybrid/conftest.py")
        assert line in shown and any(line in (CHECKOUT / file).read_text() for file in files)


def test_every_class_that_can_be_packed_has_its_line():
    named = re.findall(r"^\| `(\w+ForCausalLM)` \|", DIRECTORY, re.MULTILINE)
    assert sorted(named) == sorted(FAMILIES)


def test_activations_formats_and_files_are_named():
    for word in (*ACTIVATIONS, *WEIGHT_FORMATS, *TOKENIZER_FILES):
        assert f"`{word}`" in DIRECTORY, word
    assert all(f"`{folder}/" in DIRECTORY for folder in ADDED)


def names_in(table):
    """Names that rows of a table list: whole ones, a `.bias` of each of its row, and modules beside the first."""
    found = set()
    for row in (line for line in table.splitlines() if line.startswith("| `")):
        words = re.findall(r"`([^`]+)`", row.split("|")[1])
        if words[0].endswith(".bias"):
            found.add(words[0])
        else:
            first = words[0].removesuffix(".weight")
            others = [f"{first.rpartition('.')[0]}.{word}" for word in words[1:] if not word.startswith(".")]
            for module in (first, *others):
                found |= {f"{module}.weight"} | {f"{module}.bias" for word in words if word == ".bias"}
    return found


def test_dense_tensors_are_those_of_the_table():
    llama = ModelSpec("llama", 64, 32, 1, 48, 4, 2, 8, 128, "relu", True, "rms", 1e-5, "rope")
    opt = replace(llama, norm="layer", positions="learned", attention_bias=True, ffn_bias=True, gated=False)
    specs = (llama, opt, replace(llama, qk_norm=True, tied_embeddings=True), replace(llama, qkv_bias=True))
    names = {re.sub(r"layers\.\d+", "layers.{i}", name) for spec in specs for name in dense_shapes(spec)}
    table = DIRECTORY.partition("## Weight files")[2].partition("`neurons/LL.safetensors`")[0]
    assert names_in(table) == names


def test_files_that_documents_name_are_there():
    pattern = re.compile(
        r"`((?:hybrid|placement|profiler|scripts|tests|docs|benchmarks)/[\w/.-]+\.(?:py|sh|md|json|cpp|h))`"
    )
    for document in documents():
        for name in pattern.findall(document.read_text()):
            assert (CHECKOUT / name).exists(), f"{document.name} names {name}"


def test_fields_of_the_spec_that_documents_name_exist():
    page = (CHECKOUT / "docs" / "adding-a-family.md").read_text()
    column = [row.split("|")[2] for row in page.splitlines() if row.startswith("| ") and "|" in row[2:]]
    named = {name for cell in column for name in re.findall(r"`([a-z_]+)`", cell)} - {"rms", "layer"}
    assert named and named <= set(ModelSpec.__dataclass_fields__)
