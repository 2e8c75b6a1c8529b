"""Coloured shapes with classes and captions, drawn: example i depends on its index alone."""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw

from .. import noise
from .names import Arrays

T = TypeVar("T")

CLASSES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (240, 210, 30),
    "green": (40, 160, 60),
    "cyan": (40, 190, 210),
    "blue": (40, 70, 210),
    "purple": (130, 50, 180),
    "black": (30, 30, 30),
}
SIZES = {"small": (4.0, 5.5), "large": (8.0, 9.5)}  # radius in pixels of a 32×32 image
ROWS, COLUMNS = ("top", "", "bottom"), ("left", "", "right")
COUNTS = {"train": (0, 10_000), "test": (10_000, 2_000)}
SEED = 32  # of the data set itself; another seed would be another data set
OVERSAMPLE = 4


def shapes(split: str, side: int = 32) -> Arrays:
    """The data set at `side`×`side` RGB on white: 10,000 training or 2,000 test images, drawn in a second."""
    start, count = COUNTS[split]
    index = torch.arange(start, start + count)
    draws = noise.uniform(SEED, noise.INITIAL, index, (9,)).double().numpy()
    masks, colours, labels, captions = [], [], [], []
    for u in draws:
        kind, colour = choose(CLASSES, u[0]), choose(tuple(COLOURS), u[1])
        size, row, column = choose(tuple(SIZES), u[2]), choose((0, 1, 2), u[3]), choose((0, 1, 2), u[4])
        low, high = SIZES[size]
        radius = low + (high - low) * u[5]
        # The outer positions keep the whole shape, jitter included, inside the frame.
        x, y = (place(p, radius) + jitter for p, jitter in ((column, 2 * u[6] - 1), (row, 2 * u[7] - 1)))
        masks.append(draw(kind, x, y, radius, math.radians(30 * u[8] - 15), side))
        colours.append(COLOURS[colour])
        labels.append(CLASSES.index(kind))
        captions.append(f"a {size} {colour} {kind} {position(row, column)}")
    pixels = blend(np.stack(masks), np.array(colours))
    return Arrays(pixels, np.array(labels, np.int64), CLASSES, captions)


def choose(options: Sequence[T], u: float) -> T:
    """The option that a uniform number in [0, 1) picks."""
    return options[int(u * len(options))]


def place(third: int, radius: float) -> float:
    """The coordinate, in a frame of 32, of the first, middle or last of three positions."""
    margin = radius + 1.5
    return margin + (32 - 2 * margin) * third / 2


def position(row: int, column: int) -> str:
    """Where in the frame, in words: "at the top left", "in the centre"."""
    words = [w for w in (ROWS[row], COLUMNS[column]) if w]
    return f"at the {' '.join(words)}" if words else "in the centre"


def draw(kind: str, x: float, y: float, radius: float, turn: float, side: int) -> np.ndarray:
    """(side, side) uint8 coverage of one shape; x, y, radius in a frame of 32, turn in radians."""
    unit = side * OVERSAMPLE / 32
    canvas = Image.new("L", (side * OVERSAMPLE, side * OVERSAMPLE))
    pen = ImageDraw.Draw(canvas)
    box = [(x - radius) * unit, (y - radius) * unit, (x + radius) * unit, (y + radius) * unit]
    if kind == "circle":
        pen.ellipse(box, fill=255)
    elif kind == "ring":
        pen.ellipse(box, outline=255, width=round(0.4 * radius * unit))
    else:
        corners = [(r * radius, a + turn) for r, a in OUTLINES[kind]]
        pen.polygon(
            [((x + r * math.sin(a)) * unit, (y - r * math.cos(a)) * unit) for r, a in corners], fill=255
        )
    return np.asarray(canvas.reduce(OVERSAMPLE))


def regular(corners: int, start: float = 0.0) -> list[tuple[float, float]]:
    """A regular polygon in the unit circle as (radius, angle clockwise from the top)."""
    return [(1.0, start + 2 * math.pi * k / corners) for k in range(corners)]


def cross(width: float) -> list[tuple[float, float]]:
    """A plus sign in the unit circle with arms of half-width `width`."""
    reach, inner = math.sqrt(1 - width**2), width * math.sqrt(2)
    lean = math.atan2(width, reach)
    arm = [(1.0, -lean), (1.0, lean), (inner, math.pi / 4)]
    return [(r, a + k * math.pi / 2) for k in range(4) for r, a in arm]


OUTLINES = {
    "square": regular(4, math.pi / 4),
    "triangle": regular(3),
    "star": [(1.0 if k % 2 == 0 else 0.42, math.pi * k / 5) for k in range(10)],
    "cross": cross(0.33),
}


def blend(masks: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8: (N, 3) colours laid over white by (N, H, W) uint8 coverage."""
    ink = masks[..., None].astype(np.float32) / 255
    return np.rint(255 - ink * (255 - colours[:, None, None, :].astype(np.float32))).astype(np.uint8)
