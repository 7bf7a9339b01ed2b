"""A Wasserstein GAN on handwritten digits: the critic is trained five times as often as the generator."""

import torch
from digits import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import outlast

EPOCHS = 2
N_CRITIC = 5
LATENT = 16


def main():
    torch.manual_seed(0)
    images = torch.tensor(load_digits().images, dtype=torch.float32).flatten(1) / 8 - 1
    dataloader = DataLoader(TensorDataset(images[:1280]), batch_size=32, shuffle=True, drop_last=True)

    generator = nn.Sequential(nn.Linear(LATENT, 128), nn.ReLU(), nn.Linear(128, 64), nn.Tanh())
    critic = nn.Sequential(nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Dropout(0.1), nn.Linear(128, 1))
    optimizer_g = torch.optim.RMSprop(generator.parameters(), lr=5e-4)
    optimizer_c = torch.optim.RMSprop(critic.parameters(), lr=5e-4)

    run = outlast.Run(generator=generator, critic=critic, optimizer_g=optimizer_g, optimizer_c=optimizer_c)
    for epoch in run.epochs(EPOCHS):
        for i, (real,) in run.enumerate(dataloader):
            optimizer_c.zero_grad()
            fake = generator(torch.randn(len(real), LATENT)).detach()
            loss_c = critic(fake).mean() - critic(real).mean()
            loss_c.backward()
            optimizer_c.step()
            for parameter in critic.parameters():
                parameter.data.clamp_(-0.05, 0.05)

            if i % N_CRITIC == 0:
                optimizer_g.zero_grad()
                loss_g = -critic(generator(torch.randn(len(real), LATENT))).mean()
                loss_g.backward()
                optimizer_g.step()
            if i % 20 == 0:
                print(f"epoch {epoch} step {i}: critic {loss_c.item():.4f}, generator {loss_g.item():.4f}")


if __name__ == "__main__":
    main()
