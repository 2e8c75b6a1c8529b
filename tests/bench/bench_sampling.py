"""DDIM sampling: genkit against diffusers' DDIMPipeline, the same network.

python tests/bench/bench_sampling.py
python tests/bench/bench_sampling.py --net cifar10 --images 16 --rounds 3
"""

import argparse

from bench_duel import Turns, duel, repeat
from bench_networks import add_network, count, diffusers_unet, genkit_config, network


def genkit(args: argparse.Namespace, compiled: bool = False, guidance: float = 1.0) -> None:
    """What `genkit sample ddim` does for a batch, up to the tensor of images, at this guidance."""
    from dataclasses import replace

    import torch

    from genkit import machine
    from genkit.data.source import Info
    from genkit.diffusion.denoiser import bind, clipped
    from genkit.diffusion.guidance import classifier_free
    from genkit.diffusion.samplers import ddim
    from genkit.diffusion.schedules import times
    from genkit.models.ddpm import build
    from genkit.models.sampling import initial_noise, prepare

    machine.tune()
    net = network(args)
    device = machine.pick_device()
    precision = machine.resolve_precision(args.precision, device)
    info = Info("random", "images", (net.channels, net.size, net.size), 1, tuple("0123456789"))
    model = build(replace(genkit_config(net), class_conditional=guidance != 1), info)
    fill(model)
    turns = Turns(warm=1, size=1, images=args.images)
    turns.about = {"parameters": count(model), "precision": precision}
    prepare(model, device, precision, compiled)
    label, path = torch.arange(args.images, device=device) % 10, times(args.steps)
    guided = bind(model)
    if guidance != 1:
        guided = classifier_free(model, label, model.null(args.images).to(device), guidance)
    denoise = clipped(guided, model.schedule)

    @torch.inference_mode()
    def draw() -> torch.Tensor:
        x = initial_noise(model.schedule, 0, torch.arange(args.images, device=device), info.shape, path)
        for step in ddim(denoise, model.schedule, x, path):
            x = step.x
        return x.cpu()

    repeat(draw, turns)


def diffusers(args: argparse.Namespace) -> None:
    """diffusers' pipeline as shipped."""
    import torch
    from diffusers import DDIMPipeline, DDIMScheduler

    unet = diffusers_unet(network(args)).eval()
    pipeline = DDIMPipeline(unet, DDIMScheduler())
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.set_progress_bar_config(disable=True)
    turns = Turns(warm=1, size=1, images=args.images)
    turns.about = {"parameters": count(unet), "precision": "fp32"}
    repeat(lambda: pipeline(batch_size=args.images, num_inference_steps=args.steps, output_type="np"), turns)


def fill(model) -> None:
    """Give the layers that start at zero some weights: arithmetic on zeros must not flatter genkit."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1 and not p.any():
                p.normal_(std=0.02)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_network(parser)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"), help="genkit's")
    sides = {
        "genkit": genkit,
        "genkit --compile": lambda args: genkit(args, compiled=True),
        "diffusers": diffusers,
        "genkit guided": lambda args: genkit(args, guidance=2.0),
    }
    duel("DDIM sampling", sides, parser)
