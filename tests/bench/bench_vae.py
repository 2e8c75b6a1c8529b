"""Training an MLP VAE (784-400-20) on MNIST: genkit's loop against pythae's trainer and a plain loop.

python tests/bench/bench_vae.py
"""

import argparse

from bench_data import COUNT, add_data, torchvision_mnist, vision_or_random
from bench_duel import Turns, add_clock, duel
from bench_fit import train_in_turns

WIDTH, CODE = 400, 20


def genkit(args: argparse.Namespace, precision: str = "auto", compiled: bool = False) -> None:
    """genkit.train.loop.fit, as `genkit train vae --arch mlp` calls it, without pictures and checkpoints."""
    from genkit import machine
    from genkit.models.vae import VaeConfig, build, objective
    from genkit.train.config import OptimConfig

    machine.tune()
    source = vision_or_random(args)
    config = VaeConfig(latent=str(CODE), arch="mlp", width=WIDTH)
    optim = OptimConfig(steps=10**7, batch_size=args.batch, precision=precision)
    module = build(config, source.info)
    train_in_turns(objective(module, config, source.info), source, optim, args, compiled)


def networks():
    """(encoder to mean and log variance, decoder to logits) of the plain sides."""
    from torch import nn

    encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2 * CODE))
    decoder = nn.Sequential(nn.Linear(CODE, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 784))
    return encoder, decoder


def pythae(args: argparse.Namespace) -> None:
    """pythae's BaseTrainer on its VAE; a turn is a pass over --images images."""
    import bench_pythae as peer
    import torch

    encoder, decoder = networks()
    model = peer.model_of("vae", encoder, decoder, (CODE,), (1, 28, 28))
    pixels = vision_or_random(args).uint8(torch.arange(args.images))
    peer.train_in_turns(model, pixels, args.batch, 1e-3, args.clock)


def plain(args: argparse.Namespace) -> None:
    """The PyTorch VAE example: torchvision's MNIST, a DataLoader, Adam."""
    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader
    from torchvision import transforms

    data = torchvision_mnist(args, transforms.ToTensor())
    encoder, decoder = networks()
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    steps = args.images // args.batch
    turns = Turns(steps, steps, args.batch, args.clock)
    turns.about = {"parameters": f"{sum(p.numel() for p in parameters):,}", "precision": "fp32"}
    while True:
        for x, _ in DataLoader(data, batch_size=args.batch, shuffle=True, num_workers=args.workers):
            optimizer.zero_grad()
            mean, log_var = encoder(x).chunk(2, dim=1)
            z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_var)
            recon = F.binary_cross_entropy(decoder(z).sigmoid(), x.view(-1, 784), reduction="sum")
            loss = recon - 0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp())
            loss.backward()
            loss.item()  # the example sums the loss of every batch
            optimizer.step()
            if not turns.tick():
                return


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data(parser)
    add_clock(parser)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=COUNT, help="images a turn")
    parser.add_argument("--workers", type=int, default=0, help="processes of the plain loop's DataLoader")
    sides = {
        "genkit": genkit,
        "genkit --precision fp32": lambda args: genkit(args, precision="fp32"),
        "genkit --compile": lambda args: genkit(args, compiled=True),
        "pythae": pythae,
        "plain loop": plain,
    }
    duel("Training an MLP VAE", sides, parser)
