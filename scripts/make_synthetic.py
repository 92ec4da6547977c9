"""Write an ordinary Hugging Face Llama checkpoint of any shape, with planted sparsity, from nothing.

    python scripts/make_synthetic.py OUT --hidden 2048 --layers 22 --ffn 5632 --heads 32 --kv-heads 4 --sparsity 0.9

Text from it is noise; its sizes, its sparsity and the rank of its gates are those of a real model, which is what speed
and memory depend on. Residual dimension 0 is held constant (the same in every embedding row, never written by a
layer), so the normalised state carries a constant, and each neuron's firing threshold stands in its gate's column 0.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

DEMO = Path(__file__).resolve().parent.parent / "hybrid" / "demo"
CONSTANT = 1.0  # share of the state's power that the constant dimension holds, over that of all others


def firing_probabilities(neurons: int, active_share: float, skew: float = 1.0) -> torch.Tensor:
    """fp32 `[neurons]`, in random order: a power law with the wanted mean, cut at 0.95."""
    ranks = torch.arange(1, neurons + 1, dtype=torch.float64) / neurons
    low, high = 1e-9, 1e3
    for _ in range(80):  # bisection on the scale: the mean grows with it
        scale = (low * high) ** 0.5
        mean = (scale * ranks**-skew).clamp(max=0.95).mean()
        low, high = (scale, high) if mean < active_share else (low, scale)
    probabilities = (scale * ranks**-skew).clamp(max=0.95).float()
    return probabilities[torch.randperm(neurons)]


def layer_tensors(index: int, args: argparse.Namespace, device: torch.device) -> dict[str, torch.Tensor]:
    """One layer's weights in bf16. Gate rows are unit vectors of a random subspace of rank `args.rank`."""
    hidden, ffn, head = args.hidden, args.ffn, args.hidden // args.heads
    scale = hidden**-0.5

    def random(rows: int, columns: int, std: float) -> torch.Tensor:
        return torch.randn(rows, columns, device=device) * std

    basis = random(args.rank, hidden, scale)
    basis[:, 0] = 0
    basis /= basis.norm(dim=1, keepdim=True)
    gate = random(ffn, args.rank, 1.0)
    gate = gate / gate.norm(dim=1, keepdim=True) @ basis
    thresholds = torch.special.ndtri(1 - firing_probabilities(ffn, 1 - args.sparsity)).to(device)
    # The normalised state is sqrt(hidden * C / (1 + C)) in dimension 0 and has variance 1 / (1 + C) elsewhere.
    gate[:, 0] = -thresholds / (hidden * CONSTANT) ** 0.5
    down, out = random(hidden, ffn, 0.1 * scale), random(hidden, hidden, 0.1 * scale)
    down[0], out[0] = 0, 0
    tensors = {
        "self_attn.q_proj.weight": random(hidden, hidden, scale),
        "self_attn.k_proj.weight": random(args.kv_heads * head, hidden, scale),
        "self_attn.v_proj.weight": random(args.kv_heads * head, hidden, scale),
        "self_attn.o_proj.weight": out,
        "mlp.gate_proj.weight": gate,
        "mlp.up_proj.weight": random(ffn, hidden, scale),
        "mlp.down_proj.weight": down,
        "input_layernorm.weight": torch.ones(hidden),
        "post_attention_layernorm.weight": torch.ones(hidden),
    }
    return {f"model.layers.{index}.{k}": v.bfloat16().cpu().contiguous() for k, v in tensors.items()}


def write_checkpoint(out: Path, args: argparse.Namespace) -> None:
    """A shard per layer, the index, config.json and a tokenizer (the demo's: its text is what profiles are made of)."""
    out.mkdir(parents=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    embeddings = torch.randn(args.vocab, args.hidden)
    embeddings[:, 0] = (args.hidden * CONSTANT) ** 0.5
    outer = {
        "model.embed_tokens.weight": embeddings.bfloat16(),
        "model.norm.weight": torch.ones(args.hidden).bfloat16(),
        "lm_head.weight": (torch.randn(args.vocab, args.hidden) * args.hidden**-0.5).bfloat16(),
    }
    weight_map, total = {}, 0
    for name in ["outer", *range(args.layers)]:
        tensors = outer if name == "outer" else layer_tensors(int(name), args, device)
        file = f"model-{name}.safetensors"
        save_file(tensors, out / file)
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(t.numel() * 2 for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "relu",
        "hidden_size": args.hidden,
        "intermediate_size": args.ffn,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads,
        "num_key_value_heads": args.kv_heads,
        "vocab_size": args.vocab,
        "max_position_embeddings": args.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    (out / "config.json").write_text(json.dumps(config, indent=1))
    for file in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(DEMO / file, out / file)
    print(f"{out}: {total / 2 / 1e6:,.0f} M parameters")


def main() -> None:
    """Parse the shape, write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--ffn", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=4096, help="at least the tokenizer's 4096 pieces (default)")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--sparsity", type=float, default=0.9, help="share of neurons silent for a token (default 0.9)")
    parser.add_argument("--rank", type=int, default=64, help="rank of the gates: a predictor of it can be exact")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    write_checkpoint(args.out, args)


if __name__ == "__main__":
    main()
