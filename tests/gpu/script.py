"""A training script on a GPU, deterministic to the bit: AMP, a fused optimizer, BatchNorm, dropout, frozen weights."""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import outlast

EPOCHS = 3


def main():
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(
        torch.randn(320, 256, generator=generator), torch.randint(0, 10, (320,), generator=generator)
    )
    loader = DataLoader(data, batch_size=16, shuffle=True)
    base = nn.Linear(256, 512).cuda().requires_grad_(False)
    model = nn.Sequential(
        nn.Linear(512, 1024), nn.BatchNorm1d(1024), nn.ReLU(), nn.Dropout(0.1), nn.Linear(1024, 10)
    ).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    scaler = torch.amp.GradScaler("cuda")
    run = outlast.Run(
        "gpu", base=base, model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler,
        snapshot=os.environ.get("T_SNAPSHOT", "copy"),
    )  # fmt: skip
    for _ in run.epochs(EPOCHS):
        model.train()
        for x, y in run.batches(loader):
            with torch.autocast("cuda", torch.float16):
                loss = nn.functional.cross_entropy(model(base(x.cuda())), y.cuda())
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            run.log(loss=loss.item())
        model.eval()
        with torch.no_grad():
            run.log(
                held=nn.functional.cross_entropy(
                    model(base(data.tensors[0].cuda())), data.tensors[1].cuda()
                ).item()
            )
        scheduler.step()


if __name__ == "__main__":
    main()
