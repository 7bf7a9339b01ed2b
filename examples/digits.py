"""Classify scikit-learn's handwritten digits; start it by `outlast run -- python examples/digits.py`."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import outlast


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    train = DataLoader(TensorDataset(images[:1500], labels[:1500]), batch_size=32, shuffle=True)

    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(256, 10),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    run = outlast.Run(model=model, optimizer=optimizer)
    for epoch in run.epochs(args.epochs):
        model.train()
        for batch, target in run.batches(train):
            loss = nn.functional.cross_entropy(model(batch), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.log(loss=loss.item())
        model.eval()
        right = (model(images[1500:]).argmax(1) == labels[1500:]).float().mean().item()
        print(f"epoch {epoch}: {right:.1%} of the other 297 digits are right", flush=True)


if __name__ == "__main__":
    main()
