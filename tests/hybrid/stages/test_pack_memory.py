"""Memory of `hybrid pack`: bounded by a tensor and a few blocks, not by the model."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

SIZES = {
    "vocab_size": 1000,
    "hidden_size": 1024,
    "intermediate_size": 16384,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "max_position_embeddings": 64,
}
PACK = """
import sys
from pathlib import Path
from hybrid.runtime.memory import process_memory
from hybrid.stages.pack import pack
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of importing
before = process_memory().peak
report = pack(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
print(report.peak_memory - before, report.bytes)
"""


@pytest.fixture
def large_folder(tmp_path):
    """A folder that is removed at once: pytest would keep three runs of it."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def weights(dtype):
    hidden, neurons = SIZES["hidden_size"], SIZES["intermediate_size"]
    layer = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        **{f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"},
        "mlp.gate_proj": (neurons, hidden),
        "mlp.up_proj": (neurons, hidden),
        "mlp.down_proj": (hidden, neurons),
    }
    shapes = {f"model.layers.{i}.{n}.weight": s for i in range(SIZES["num_hidden_layers"]) for n, s in layer.items()}
    shapes |= {"model.embed_tokens.weight": (SIZES["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    return {name: torch.rand(shape).to(dtype) for name, shape in shapes.items()}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure")
@pytest.mark.parametrize(
    ("container", "weight_format"),
    [("safetensors", "auto"), ("bin", "auto"), ("safetensors fp32", "auto"), ("safetensors", "q4_0")],
)
def test_peak_memory_is_far_below_the_model(large_folder, container, weight_format):
    source = large_folder / "source"
    source.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True, "hidden_act": "relu", **SIZES}
    (source / "config.json").write_text(json.dumps(config))
    tensors = weights(torch.float32 if "fp32" in container else torch.bfloat16)
    if container == "bin":
        torch.save(tensors, source / "pytorch_model.bin")
    else:
        save_file(tensors, source / "model.safetensors")
    largest, total = (size(tensor.nbytes for tensor in tensors.values()) for size in (max, sum))
    del tensors
    done = subprocess.run(
        [sys.executable, "-c", PACK, source, large_folder / "model", weight_format],
        capture_output=True,
        text=True,
        check=True,
    )
    extra, packed = map(int, done.stdout.split())
    assert total > 500e6 and packed > (500e6 if weight_format == "auto" else 140e6)
    assert extra < total / 2
    assert extra < largest + (200 << 20)
