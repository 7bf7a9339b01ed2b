"""A CNN on handwritten digits, with augmentation and validation."""

import argparse
import random

import numpy as np
import torch
from digits import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Digits(Dataset):
    def __init__(self, images, labels, augment):
        self.images, self.labels, self.augment = images, labels, augment

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        if self.augment:
            image = torch.roll(image, (random.randint(-1, 1), random.randint(-1, 1)), (1, 2))
            image = image + torch.randn_like(image) * 0.05
            image = image * float(np.random.uniform(0.8, 1.2))
        return image, self.labels[index]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    train_loader = DataLoader(
        Digits(images[:800], labels[:800], True), batch_size=32, shuffle=True, num_workers=1
    )
    val_loader = DataLoader(Digits(images[1500:], labels[1500:], False), batch_size=64)

    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
        nn.Dropout(0.3), nn.Linear(512, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)

    for epoch in range(args.epochs):
        model.train()
        for i, (batch, target) in enumerate(train_loader):
            optimizer.zero_grad()
            loss = criterion(model(batch), target)
            loss.backward()
            optimizer.step()
            if i % 10 == 0:
                print(f"epoch {epoch} step {i} loss {loss.item():.4f}")
        model.eval()
        correct = 0
        with torch.no_grad():
            for batch, target in val_loader:
                correct += (model(batch).argmax(1) == target).sum().item()
        print(f"epoch {epoch}: accuracy {correct / len(val_loader.dataset):.3f}")
        scheduler.step()


if __name__ == "__main__":
    main()
