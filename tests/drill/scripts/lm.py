"""A language model's loop without a DataLoader: a memory map of tokens and random offsets into it."""

import os
import tempfile
from pydoc_data.topics import topics

import numpy as np
import torch
from torch import nn

import outlast

STEPS = 80
BLOCK = 32
BATCH = 16


class Model(nn.Module):
    def __init__(self, width=48):
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width, 256)

    def forward(self, tokens):
        hidden, _ = self.rnn(self.embedding(tokens))
        return self.head(self.dropout(hidden))


def get_batch(data):
    offsets = torch.randint(len(data) - BLOCK - 1, (BATCH,))
    x = torch.stack([torch.from_numpy(data[i : i + BLOCK].astype(np.int64)) for i in offsets])
    y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + BLOCK].astype(np.int64)) for i in offsets])
    return x, y


def prepare():
    path = os.path.join(tempfile.gettempdir(), "tokens.bin")
    np.frombuffer(topics["typesseq"].encode(), dtype=np.uint8).tofile(path)
    return np.memmap(path, dtype=np.uint8, mode="r")


def main():
    torch.manual_seed(0)
    data = prepare()
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=STEPS)
    run = outlast.Run(model=model, optimizer=optimizer, scheduler=scheduler)
    for step in run.steps(STEPS):
        x, y = get_batch(data)
        loss = nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
