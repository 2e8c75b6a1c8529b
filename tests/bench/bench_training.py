"""Training steps of a diffusion U-Net: genkit's loop against diffusers' training example, on MNIST at 32x32.

denoising-diffusion-pytorch trains its own U-Net of about the same number of parameters.

python tests/bench/bench_training.py
"""

import argparse
from collections.abc import Iterator

from bench_data import add_data, torchvision_mnist, vision_or_random
from bench_duel import Turns, duel
from bench_fit import train
from bench_networks import add_network, count, diffusers_unet, genkit_config, network

WARM = 3


def genkit(args: argparse.Namespace, compiled: bool = False) -> None:
    """genkit.train.loop.fit, as `genkit train ddpm` calls it, without pictures and checkpoints."""
    import torch

    from genkit import machine
    from genkit.models.ddpm import build, objective
    from genkit.train.config import OptimConfig

    machine.tune()
    net = network(args)
    source = vision_or_random(args, net.size, net.channels)
    config = genkit_config(net)
    optim = OptimConfig(steps=10**6, batch_size=args.batch, lr=1e-4, grad_clip=1.0, precision=args.precision)
    module = build(config, source.info)
    turns = Turns(WARM, args.steps, args.batch)
    precision = machine.resolve_precision(optim.precision, machine.pick_device())
    turns.about = {"parameters": count(module), "precision": precision}

    def stop() -> bool:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return not turns.tick()

    train(objective(module, config, source.info), source, optim, stop, compiled)


def loader(args: argparse.Namespace) -> Iterator:
    """Endless batches of a DataLoader as diffusers' example sets it up."""
    from torch.utils.data import DataLoader
    from torchvision import transforms

    net = network(args)
    to_input = [transforms.Resize(net.size), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
    if net.channels == 3:
        to_input.insert(0, transforms.Grayscale(3))
    data = torchvision_mnist(args, transforms.Compose(to_input))
    while True:
        yield from DataLoader(data, batch_size=args.batch, shuffle=True, drop_last=True)


def diffusers(args: argparse.Namespace) -> None:
    """diffusers' examples/unconditional_image_generation/train_unconditional.py with its defaults."""
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = diffusers_unet(network(args)).to(device).train()
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    rate = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=10**6)
    turns = Turns(WARM, args.steps, args.batch)
    turns.about = {"parameters": count(model), "precision": "fp32"}
    for images, _ in loader(args):
        clean = images.to(device)
        noise = torch.randn(clean.shape, device=device)
        t = torch.randint(0, scheduler.config.num_train_timesteps, (len(clean),), device=device).long()
        output = model(scheduler.add_noise(clean, noise, t), t).sample
        loss = F.mse_loss(output.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        loss.detach().item()  # the example logs it at every step
        if not turns.tick():
            return


def denoising_diffusion_pytorch(args: argparse.Namespace) -> None:
    """The step of denoising-diffusion-pytorch's Trainer (Adam, EMA every 10 steps) with its own U-Net."""
    import torch
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    net = network(args)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    unet = Unet(dim=args.ddp_dim, dim_mults=tuple(net.multipliers), channels=net.channels)
    diffusion = GaussianDiffusion(unet, image_size=net.size).to(device).train()
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    ema = EMA(diffusion, beta=0.995, update_every=10)
    turns = Turns(WARM, args.steps, args.batch)
    turns.about = {"parameters": count(unet), "precision": "fp32"}
    for images, _ in loader(args):
        loss = diffusion(0.5 * images.to(device) + 0.5)  # it maps [0, 1] to [-1, 1] itself
        loss.backward()
        loss.item()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
        if not turns.tick():
            return


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_network(parser)
    add_data(parser)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4, help="training steps a turn")
    parser.add_argument("--ddp-dim", type=int, default=32, help="width of ddp's U-Net")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"), help="genkit's")
    sides = {
        "genkit": genkit,
        "genkit --compile": lambda args: genkit(args, compiled=True),
        "diffusers": diffusers,
        "denoising-diffusion-pytorch": denoising_diffusion_pytorch,
    }
    duel("Training a diffusion U-Net", sides, parser)
