"""A trainer with an averaged model, clipped gradients, a warm-up, and the best metric so far."""

import torch
from digits import load_digits
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset


class Trainer:
    def __init__(self, epochs=3, warmup=20):
        self.epochs = epochs
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16
        labels = torch.tensor(digits.target)
        self.train_loader = DataLoader(TensorDataset(images[:800], labels[:800]), batch_size=32, shuffle=True)
        self.val = images[1500:], labels[1500:]
        self.model = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Dropout(0.2), nn.Linear(96, 10))
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.98))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-3)
        self.scheduler = LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / warmup))
        self.best = 0.0

    def fit(self):
        for epoch in range(self.epochs):
            self.model.train()
            for batch, target in self.train_loader:
                loss = nn.functional.cross_entropy(self.model(batch), target)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.scheduler.step()
                self.ema.update_parameters(self.model)
            accuracy = self.evaluate()
            if accuracy > self.best:
                self.best = accuracy
            print(f"epoch {epoch}: accuracy {accuracy:.3f}, best {self.best:.3f}")

    @torch.no_grad()
    def evaluate(self):
        self.ema.eval()
        images, labels = self.val
        return (self.ema(images).argmax(1) == labels).float().mean().item()


if __name__ == "__main__":
    torch.manual_seed(0)
    Trainer().fit()
