"""Autoencoders on MNIST: genkit's loop against pythae's trainers, in images/s or in PSNR after the same time.

python tests/bench/bench_autoencoders.py speed --family vqvae
python tests/bench/bench_autoencoders.py psnr --family ae --seconds 120

Both sides train the networks of genkit's family defaults from the same first weights, with codes of the same
size: a 1x7x7 map, or 7x7 tokens of 512 codes. Where they differ:

- pythae runs the networks by torch's operations, as it would anybody's; the C++ kernels are genkit's.
- pythae's posteriors and critics know vectors only: the map lies flat, as 49 units, between its encoder and
  its decoder, whose networks see it as a map.
- Its pixels lie in [0, 1], so that its decoders end with a sigmoid. Its VAE and Adversarial_AE get genkit's
  Bernoulli loss; its AE and VQVAE have the squared error only.
- Adversarial_AE has genkit's critic for a discriminator, and a point for a code, as genkit's is. Both weigh
  its opinion by pythae's half a nat; genkit bounds it, too.
- pythae has no VQGAN. VAEGAN stands in: coders of the same width and depth around a normal code of 49 units,
  and genkit's critic of patches, the scores of an image averaged. It compares images by the features before
  these.
"""

import argparse
import os
from dataclasses import replace
from typing import Any, NamedTuple

import bench_duel
from bench_data import add_data, vision_or_random
from bench_duel import Budget, Side, answer, answers, compete, heading, table
from bench_networks import count

MAP, CODES = "1x7x7", 512
POINTS = ("ae", "vae", "aae")  # whose codes are that map
SPEED = ("ae", "vae", "vqvae", "aae")
PULL = 0.5  # of aae's critic: Adversarial_AE's default
FAMILIES = (*SPEED, "vqgan")
FOREVER = 10**7  # steps
WARM, SKIP = 64, 16  # steps that measure genkit's speed before it trains by the clock, and the first of them


class Job(NamedTuple):
    """What genkit's loop is given."""

    module: Any
    objective: Any
    source: Any
    optim: Any


def job(family: str, args: argparse.Namespace, steps: int | None = None, start: int | None = None) -> Job:
    """genkit's model of a family and its training, with the family's own learning rate, decay and average.

    aae's critic has pythae's weight.

    steps: the length, to which the default warm-up and the first step of vqgan's critic are scaled; None:
    endless. start: first step of that critic, if another.
    """
    import torch

    from genkit.registry import find
    from genkit.train.config import OptimConfig

    entry, source = find(family), vision_or_random(args)
    share = steps / entry.defaults["steps"] if steps else 1.0
    points, tokens = {"latent": MAP, "arch": args.arch}, {"codes": CODES, "codebook": args.codebook}
    config = entry.config(**points if family in POINTS else tokens)
    if family == "aae":
        config = replace(config, critic_weight=PULL)
    if family == "vqgan":
        config = replace(config, disc_start=round(config.disc_start * share) if start is None else start)
    optim = OptimConfig(
        **{**entry.defaults, "batch_size": args.batch, "seed": args.seed, "precision": "fp32"}
    )
    optim = replace(optim, steps=steps or FOREVER, warmup=round(optim.warmup * share))
    torch.manual_seed(args.seed)
    module = entry.build(config, source.info)
    return Job(module, entry.objective(module, config, source.info), source, optim)


def peer_model(family: str, args: argparse.Namespace) -> Any:
    """pythae's model of a family around genkit's networks."""
    import bench_pythae

    os.environ["GENKIT_NATIVE"] = "0"  # before a layer asks
    critic, mine = None, job(family, args)
    if family in ("aae", "vqgan"):
        critic = mine.objective.critic
    module = mine.module if family != "vqgan" else coders_of_vaegan(args)
    code, image = module.latent_shape, mine.source.info.shape
    coders = module.encoder, module.decoder
    return bench_pythae.model_of(family, *coders, code, image, critic, CODES, args.codebook == "ema")


def coders_of_vaegan(args: argparse.Namespace) -> Any:
    """genkit's VAE with the width and depth of its VQGAN."""
    import torch

    from genkit.models.vae import VaeConfig, build
    from genkit.models.vqgan import VqGanConfig

    other = VqGanConfig()
    torch.manual_seed(args.seed)
    config = VaeConfig(latent=MAP, width=other.width, blocks=other.blocks)
    return build(config, vision_or_random(args).info)


def genkit_speed(family: str, args: argparse.Namespace) -> None:
    """genkit.train.loop.fit, as `genkit train` calls it, without pictures and checkpoints."""
    from bench_fit import train_in_turns

    from genkit import machine

    machine.tune()
    mine = job(family, args)
    train_in_turns(mine.objective, mine.source, mine.optim, args)


def pythae_speed(family: str, args: argparse.Namespace) -> None:
    """pythae's trainer for the family; a turn is a pass over --images images."""
    import bench_pythae
    import torch

    pixels = vision_or_random(args).uint8(torch.arange(args.images))
    bench_pythae.train_in_turns(peer_model(family, args), pixels, args.batch, args.peer_lr, args.clock)


def genkit_psnr(family: str, args: argparse.Namespace) -> None:
    """genkit, its learning rate falling to 0 at the end of the time."""
    from bench_fit import train

    from genkit import machine

    machine.tune()
    stream, steps = answers(), steps_within(family, args)
    mine, budget = job(family, args, steps), Budget(args.seconds, args.clock)
    model = train(mine.objective, mine.source, mine.optim, budget.spent).model
    about = {
        "parameters": count(mine.objective),
        "lr": mine.optim.lr,
        "steps": f"{len(budget.times)}/{steps}",
    }
    psnr = psnr_on_test(lambda x: 0.5 * model.decode(model.encode(2 * x - 1).z) + 0.5, args)
    answer(stream, budget.times[-1], len(budget.times) * args.batch, {**about, "psnr": psnr})


def steps_within(family: str, args: argparse.Namespace) -> int:
    """How many steps genkit makes in --seconds, from a short run.

    In its timed part, vqgan's critic plays for as large a share as in the whole.
    """
    from bench_fit import train

    mine, budget = job(family, args, WARM, SKIP + (WARM - SKIP) // 4), Budget(1e9, args.clock)
    train(mine.objective, mine.source, mine.optim, budget.spent)
    return max(4, round(args.seconds * (WARM - SKIP) / (budget.times[-1] - budget.times[SKIP - 1])))


def pythae_psnr(family: str, args: argparse.Namespace) -> None:
    """pythae's trainer, at a constant learning rate, as it is by default."""
    import bench_pythae
    import torch

    stream, source = answers(), vision_or_random(args)
    model, budget = peer_model(family, args), Budget(args.seconds, args.clock)
    pixels = source.uint8(torch.arange(len(source)))
    bench_pythae.train(model, pixels, args.batch, args.peer_lr, budget)
    model.eval()
    about = {"parameters": count(model), "lr": args.peer_lr, "steps": str(len(budget.times))}
    psnr = psnr_on_test(lambda x: bench_pythae.restored(model, x), args)
    answer(stream, budget.times[-1], len(budget.times) * args.batch, {**about, "psnr": psnr})


def psnr_on_test(restored: Any, args: argparse.Namespace) -> float:
    """The mean over test images of their PSNR in dB. restored: (B, C, H, W) in [0, 1] -> what came back."""
    import torch

    source, found = vision_or_random(args, split="test"), []
    with torch.inference_mode():
        for index in torch.arange(len(source)).split(500):
            x = source.uint8(index).float() / 255
            mse = (restored(x).clamp(0, 1) - x).square().flatten(1).mean(dim=1)
            found.append(-10 * torch.log10(mse.clamp(min=1e-10)))
    return torch.cat(found).mean().item()


WORK = {
    "speed": {"genkit": genkit_speed, "pythae": pythae_speed},
    "psnr": {"genkit": genkit_psnr, "pythae": pythae_psnr},
}


def psnr_row(side: Side) -> str:
    """A row of the table of PSNR."""
    about, rate = side.about, side.images / side.warm
    return (
        f"| {side.name} | {about['psnr']:.2f} | {side.warm:.1f} | {about['steps']} | {rate:,.0f} "
        f"| {about['lr']:g} | {about['parameters']} |"
    )


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=tuple(WORK))
    parser.add_argument("--family", choices=FAMILIES, help="default: all in turn, vqgan for psnr only")
    parser.add_argument("--sides", default="genkit,pythae", help="which sides, comma-separated")
    add_data(parser)
    bench_duel.add_clock(parser)
    bench_duel.add_turns(parser)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=6400, help="images a turn of speed")
    parser.add_argument("--seconds", type=float, default=120, help="training time of psnr, each side")
    parser.add_argument(
        "--peer-lr", type=float, default=1e-4, help="pythae's learning rate; default: its own"
    )
    parser.add_argument("--arch", default="conv", choices=("conv", "mlp"), help="coders of ae, vae and aae")
    parser.add_argument("--codebook", default="ema", choices=("ema", "loss"), help="of both sides")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.mode == "speed" and args.family == "vqgan":
        parser.error("vqgan and its peer are different models; only psnr compares them")
    return args


def main() -> None:
    """Be a side, or the referee."""
    args = arguments()
    if args.side:
        side, family = args.side.split()
        WORK[args.mode][side](family, args)
        return
    families = [args.family] if args.family else SPEED if args.mode == "speed" else FAMILIES
    print(f"{heading(f'Autoencoders, {args.mode}')}\nclock: {args.clock}", flush=True)
    if args.mode == "psnr":
        print(f"\n| side | test PSNR dB | s | steps | images/s | lr | parameters |\n{'| --- ' * 7}|")
    for family in families:
        names = [f"{side} {family}" for side in args.sides.split(",")]
        if args.mode == "speed":
            print(f"\n{table(compete(names, args.rounds))}", flush=True)
            continue
        for name in names:
            side = Side(name)
            side.end()
            print(psnr_row(side), flush=True)
    print(f"\nload average after: {bench_duel.load()}")


if __name__ == "__main__":
    main()
