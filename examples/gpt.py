"""Train a small character GPT on the text of Python's own documentation; what `outlast drill` interrupts.

Four things make it survive any interruption: `outlast.Run(...)`, `run.epochs`, `run.enumerate`, and nothing else.
The rest is how people write a training script: a data set with random crops and noise, workers, dropout, gradient
accumulation, validation and a learning rate that falls from epoch to epoch. Start it by

    outlast run -- python examples/gpt.py --epochs 4

`--record` and `--final` write down what was trained, for the drill: which samples each optimizer step used, and
a digest of every tensor at the end.
"""

import argparse
import hashlib
import json
import math
import os
import random
import time
from pydoc_data.topics import topics

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

import outlast

TEXT = "\n".join(topics[name] for name in sorted(topics))
ALPHABET = sorted(set(TEXT))
CODE_OF = {letter: code for code, letter in enumerate(ALPHABET)}
CODES = torch.frombuffer(bytearray(CODE_OF[letter] for letter in TEXT), dtype=torch.uint8)
SPLIT = len(CODES) * 4 // 5  # the last fifth is for validation


class Crops(Dataset):
    """Sample `index` is a random crop of the index-th part of the text, with two letters in a hundred replaced."""

    def __init__(self, samples: int, context: int):
        self.samples, self.context = samples, context
        self.part = (SPLIT - 2 * context) // samples

    def __len__(self):
        return self.samples

    def __getitem__(self, index):
        start = index * self.part + random.randrange(self.part + self.context)
        crop = CODES[start : start + self.context + 1].long()
        inputs, targets = crop[:-1].clone(), crop[1:]
        noisy = torch.from_numpy(np.random.random(self.context) < 0.02)
        inputs[noisy] = torch.randint(len(ALPHABET), (int(noisy.sum()),))
        return index, inputs, targets


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x):
        batch, length, width = x.shape
        split = (batch, length, self.heads, width // self.heads)
        q, k, v = (part.view(split).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        drop = self.dropout if self.training else 0.0
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=drop)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    def __init__(self, context: int, width: int, layers: int, heads: int, dropout: float):
        super().__init__()
        self.letters, self.places = nn.Embedding(len(ALPHABET), width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(ALPHABET), bias=False)
        self.head.weight = self.letters.weight  # tied
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # counted by the model itself,
        self.register_buffer("tails", torch.zeros((), dtype=torch.int64))  # so that a drill can believe it

    def forward(self, inputs, targets):
        x = self.letters(inputs) + self.places.weight[: inputs.shape[1]]
        logits = self.head(self.norm(self.blocks(x)))
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Lines:
    """An experiment tracker of one's own: a file with a line for each step. `outlast.integrations` has the usual ones."""

    def __init__(self, path: str):
        self.path = path

    def open(self, run):
        self.id = run.id
        if not os.path.exists(self.path):
            return None
        with open(self.path) as file:
            return max((json.loads(line)["step"] for line in file), default=None)

    def write(self, rows):
        with open(self.path, "a") as file:
            file.writelines(
                json.dumps({"run": self.id, "step": row.step, **row.values}) + "\n" for row in rows
            )

    def close(self, outcome):
        pass


def main():
    args = arguments()
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    model = GPT(args.context, args.width, args.layers, heads=4, dropout=0.1).to(device)
    model.register_buffer("ballast", torch.linspace(0, 1, args.state // 4, device=device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    loader = DataLoader(
        Crops(args.samples, args.context), args.batch_size, shuffle=True, num_workers=args.workers
    )

    run = outlast.Run(model=model, optimizer=optimizer, scheduler=scheduler, seed=args.seed)
    run.vars.best = math.inf
    if args.track:
        run.track(Lines(args.track))
    for epoch in run.epochs(args.epochs):
        model.train()
        used = []
        for i, (ids, inputs, targets) in run.enumerate(loader):
            used += ids.tolist()
            loss = model(inputs.to(device), targets.to(device)) / args.accumulate
            loss.backward()
            if (i + 1) % args.accumulate:
                continue
            optimizer.step()
            optimizer.zero_grad()
            model.steps += 1
            torch.sub(loss.detach(), model.ballast, out=model.ballast)
            time.sleep(args.pause)
            run.log(loss=loss.item() * args.accumulate)
            record(args.record, epoch=epoch, step=int(model.steps), lr=lr_of(optimizer), samples=used)
            used = []

        record(args.record, epoch=epoch, step=int(model.steps), tail="begin")
        valid = validate(model, args, device)
        run.vars.best = min(run.vars.best, valid)
        scheduler.step()
        model.tails += 1
        tail = {"tail": "end", "tails": int(model.tails), "lr": lr_of(optimizer), "valid": valid.hex()}
        record(args.record, epoch=epoch, step=int(model.steps), best=run.vars.best.hex(), **tail)
        print(f"epoch {epoch}: validation loss {valid:.4f}", flush=True)
    if args.final:
        write_digests(args.final, model=model, optimizer=optimizer, scheduler=scheduler)


@torch.no_grad()
def validate(model, args, device):
    model.eval()
    losses = []
    for part in CODES[SPLIT:].split(args.batch_size * args.context + 1)[: args.validation]:
        inputs, targets = (side.long().view(-1, args.context).to(device) for side in (part[:-1], part[1:]))
        losses.append(model(inputs, targets))
    return torch.stack(losses).mean().item()


def lr_of(optimizer):
    return optimizer.param_groups[0]["lr"].hex()


def record(path, **line):
    """Append one line, durable before it returns: a line that a later process can neither lose nor change. And print it."""
    if path:
        text = json.dumps({"pid": os.getpid(), "time": time.time(), **line})
        print(f"recorded step {line['step']}", line.get("tail", "trained"), flush=True)
        with open(path, "ab", buffering=0) as file:
            file.write(f"{text}\n".encode())
            os.fsync(file.fileno())


def write_digests(path, **states):
    """Write a digest of the bytes of every tensor in `states` and of every random generator."""
    found = {}

    def visit(name, value):
        if isinstance(value, torch.Tensor):
            data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            found[name] = f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(data).hexdigest()}"
        elif isinstance(value, dict):
            for key, item in value.items():
                visit(f"{name}.{key}", item)
        elif isinstance(value, list | tuple):
            for key, item in enumerate(value):
                visit(f"{name}.{key}", item)
        else:
            found[name] = repr(value)

    for name, state in states.items():
        visit(name, state.state_dict())
    for name, state in (
        ("torch", torch.get_rng_state().tolist()),
        ("numpy", np.random.get_state()),
        ("python", random.getstate()),
    ):
        found[f"generator.{name}"] = hashlib.sha256(repr(state).encode()).hexdigest()
    with open(path, "w") as file:
        json.dump(found, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--samples", type=int, default=1440, help="samples in an epoch")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--accumulate", type=int, default=2, help="batches in an optimizer step")
    parser.add_argument("--context", type=int, default=64, help="letters that the model sees")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--validation", type=int, default=80, help="batches in a validation")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--state", type=int, default=0, help="bytes of more state, all of which every step changes"
    )
    parser.add_argument(
        "--pause", type=float, default=0.0, help="seconds that every optimizer step takes longer"
    )
    parser.add_argument("--record", help="append a line for each optimizer step to this file")
    parser.add_argument("--track", help="append what is logged to this file, each step once")
    parser.add_argument("--final", help="write digests of the final state to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
