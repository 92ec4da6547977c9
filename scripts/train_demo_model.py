"""Train the demo model from the source text of Python's standard library and write it as a Hugging Face checkpoint.

    python scripts/train_demo_model.py --out build/demo --minutes 75

A Llama-shaped decoder with `hidden_act: relu`, 7 M parameters, and a SentencePiece tokenizer that has pieces for the
white space of code. Nothing is downloaded. `--minutes` is the length of the cosine schedule in wall-clock time, so
the result depends on the machine: the training log in the output says how many tokens were seen.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from demo_corpus import SourceFile, library_root, read_library, split_library, write_texts
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT = 512
BOS, EOS = 1, 2
# White space that code repeats; SentencePiece writes a space as U+2581, and never learns pieces with newlines itself.
WHITESPACE = ["\n" * n + "\u2581" * s for n in (1, 2, 3) for s in (0, 4, 8, 12, 16, 20, 24) if n < 3 or s == 0]
WHITESPACE += ["\u2581" * s for s in (2, 3, 4, 8, 16)]


def train_tokenizer(files: list[SourceFile], pieces: int) -> bytes:
    """A BPE SentencePiece model with byte fallback, trained on a sample of the lines of `files`."""
    lines = [line for file in files for line in file.text.split("\n") if 0 < len(line) < 1000]
    sample = np.random.default_rng(0).permutation(len(lines))[:200_000]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([lines[i] for i in sample]),
        model_writer=model,
        model_type="bpe",
        vocab_size=pieces,
        byte_fallback=True,
        character_coverage=0.9999,
        user_defined_symbols=WHITESPACE,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        split_digits=True,
        unk_id=0,
        bos_id=BOS,
        eos_id=EOS,
        minloglevel=1,
    )
    return model.getvalue()


class Windows:
    """Training windows: a beginning-of-sequence token, then text from the start of a random line without indentation.

    A newline's piece holds the indentation after it: a window that began inside a block would not show how deep it is.
    """

    def __init__(self, documents: list[list[int]], newline_ids: set[int]) -> None:
        self.stream = np.concatenate([np.array([*d, EOS], dtype=np.int64) for d in documents])
        after_newline = np.isin(self.stream[:-CONTEXT], [*newline_ids, EOS])
        self.starts = np.flatnonzero(after_newline) + 1

    def batch(self, size: int, rng: np.random.Generator) -> torch.Tensor:
        """`[size, CONTEXT + 1]` token ids."""
        picked = rng.choice(self.starts, size)
        rows = np.stack([np.concatenate([[BOS], self.stream[s : s + CONTEXT]]) for s in picked])
        return torch.from_numpy(rows)


def heldout_windows(documents: list[list[int]]) -> Iterator[torch.Tensor]:
    """Each document in consecutive windows of the full context, `[1, tokens]`, every one opened by BOS."""
    for ids in documents:
        for at in range(0, len(ids), CONTEXT - 1):
            yield torch.tensor([[BOS, *ids[at : at + CONTEXT - 1]]])


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, documents: list[list[int]]) -> dict[str, object]:
    """Perplexity per token over `documents`, and the share of neurons with a positive gate, per layer."""
    active = [0.0] * len(model.model.layers)

    def count(layer: int):
        def hook(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            active[layer] += (output > 0).double().mean(dim=-1).sum().item()

        return hook

    hooks = [m.mlp.gate_proj.register_forward_hook(count(i)) for i, m in enumerate(model.model.layers)]
    model.eval()
    loss, predicted, seen = 0.0, 0, 0
    for ids in heldout_windows(documents):
        logits = model(ids).logits.float()
        loss += torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum").item()
        predicted += ids.shape[1] - 1
        seen += ids.shape[1]
    for hook in hooks:
        hook.remove()
    model.train()
    return {
        "perplexity": round(math.exp(loss / predicted), 4),
        "tokens": predicted,
        "active_share_per_layer": [round(a / seen, 4) for a in active],
    }


def train(model: LlamaForCausalLM, windows: Windows, heldout: list[list[int]], args: argparse.Namespace) -> list[dict]:
    """AdamW with warm-up and a cosine over `args.minutes`; returns the log, a record every hundred steps."""
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=True)
    rng = np.random.default_rng(1)

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(ids[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())

    compiled = torch.compile(loss_of)  # fuses the element-wise parts: 1.4x the tokens per second on two cores
    log: list[dict] = []
    began, step, losses = time.monotonic(), 0, []
    while (progress := (time.monotonic() - began) / (60 * args.minutes)) < 1:
        rate = args.lr * min(1, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids = windows.batch(args.batch, rng)
        loss = compiled(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        step += 1
        if step % 100 == 0:
            minutes = (time.monotonic() - began) / 60
            record = {"step": step, "tokens": step * args.batch * CONTEXT, "minutes": round(minutes, 2)}
            record |= {"loss": round(float(np.mean(losses)), 4), "lr": round(rate, 6)}
            losses.clear()
            if step % 500 == 0:
                record["heldout"] = evaluate(model, heldout[:6])
                write_weights(model, args.out)  # a killed run leaves a model that works
            log.append(record)
            print(json.dumps(record), flush=True)
    return log


def write_weights(model: LlamaForCausalLM, out: Path) -> None:
    """config.json and model.safetensors, in bf16; the model itself stays in fp32."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out, safe_serialization=True)


def write_tokenizer(tokenizer: bytes, out: Path) -> None:
    """tokenizer.model and its settings, as Llama checkpoints have them."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.model").write_bytes(tokenizer)
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
    settings |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": True}
    settings |= {"add_prefix_space": False, "model_max_length": CONTEXT}
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def write_provenance(
    model: LlamaForCausalLM, tokenizer: bytes, parts: dict, log: list[dict], args: argparse.Namespace
) -> None:
    """The unseen texts, and what the model was made of: files with their hashes, log, held-out figures."""
    out, heldout, processor = args.out, parts["heldout"], sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    final = evaluate(model.to(torch.bfloat16).float(), [processor.encode(f.text) for f in heldout])
    training = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "command": " ".join(["scripts/train_demo_model.py", *sys.argv[1:]]),
        "heldout": final,
        "characters_per_token": round(
            sum(len(f.text) for f in heldout) / sum(len(processor.encode(f.text)) for f in heldout), 3
        ),
        "texts": write_texts(parts, out),
        "log": log,
        "resumed_from": json.loads((args.resume / "training.json").read_text()) if args.resume else None,
        "files": {part: {f.path: f.sha256 for f in files} for part, files in parts.items()},
    }
    (out / "training.json").write_text(json.dumps(training, indent=1) + "\n")
    print(json.dumps(final))


def main() -> None:
    """Parse the options, train, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint; created")
    parser.add_argument("--minutes", type=float, default=75.0, help="wall-clock length of training (default 75)")
    parser.add_argument("--batch", type=int, default=8, help=f"windows of {CONTEXT} tokens per step (default 8)")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate (default 2e-3)")
    parser.add_argument("--pieces", type=int, default=4096, help="size of the vocabulary (default 4096)")
    parser.add_argument("--resume", type=Path, help="a checkpoint of this script to go on from, with a new schedule")
    parser.add_argument("--activation", default="relu", choices=["relu", "silu"], help="hidden_act (default relu)")
    args = parser.parse_args()
    torch.manual_seed(0)

    parts = split_library(read_library(library_root()))
    earlier = args.resume / "tokenizer.model" if args.resume else None
    tokenizer = earlier.read_bytes() if earlier else train_tokenizer(parts["train"], args.pieces)
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    newline_ids = {i for i in range(processor.get_piece_size()) if not processor.id_to_piece(i).strip("\n")}
    windows = Windows(processor.encode([f.text for f in parts["train"]]), newline_ids)
    heldout = processor.encode([f.text for f in parts["heldout"]])
    print(f"{len(parts['train'])} files, {len(windows.stream):,} tokens, {len(newline_ids)} newline pieces", flush=True)

    config = LlamaConfig(
        vocab_size=args.pieces,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        hidden_act=args.activation,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config)
    if args.resume:
        model = LlamaForCausalLM.from_pretrained(args.resume, dtype=torch.float32)
    write_tokenizer(tokenizer, args.out)
    log = train(model, windows, heldout, args)
    write_weights(model, args.out)
    write_provenance(model, tokenizer, parts, log, args)


if __name__ == "__main__":
    main()
