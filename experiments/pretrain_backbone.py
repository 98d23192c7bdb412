"""Pre-trains the shipped backbone: a small vision transformer that tells letters apart and never sees a digit.

Glyphs come from the fonts that matplotlib bundles. They are kept as signed distance fields, so that stroke width, blur
and outline are plain functions of the distance. Augmentation is generic (geometry, colour, texture, noise, outline); no
digit and no image of any data set is used, neither for training nor to choose a checkpoint: the last weights are kept.

The shipped file was made in two runs; experiments/README.md has the commands and what came of them.

    python experiments/pretrain_backbone.py --steps 5000
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.ndimage import distance_transform_edt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from fedbayes.models.zoo import SHIPPED
from fedbayes.seeding import key

ARCHITECTURE: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 96,
    "depth": 4,
    "num_heads": 3,
    "num_classes": 0,
    "class_token": True,
    "global_pool": "token",
}
# Latin, Greek, Cyrillic, Armenian. No digits, and none of the letters we saw to read as one (O Q D 0, I l i j 1, Z z 2,
# S s 5, G b 6, B 8, g q 9, and their like in the other scripts). Of two cases that differ only in size one is kept:
# size is normalised away.
LETTERS = "ACEFHJKLMNPRTUVWXYadefhkmnrty" + "ΓΔΛΞΠΣΦΨΩαγζλμπτω" + "ДЖИЛЦШЮЯ" + "ԱԲԴԵԸԺԽԾՀՄՆՔՖ"
FONTS = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10")
GLYPH = 48  # side of a distance field; the letter fills its middle two thirds
GLYPH_FILL = 2 / 3

Uniform = Callable[..., Tensor]


def distance_field(font: Path, letter: str) -> Tensor:
    """The letter's signed distance to its edge, positive inside, in pixels of the `GLYPH` square."""
    fine = 4 * GLYPH
    drawn = Image.new("L", (4 * fine, 4 * fine))
    ImageDraw.Draw(drawn).text((fine, fine), letter, fill=255, font=ImageFont.truetype(str(font), fine))
    crop = drawn.crop(drawn.getbbox())
    scale = fine * GLYPH_FILL / max(crop.size)
    crop = crop.resize((max(1, round(crop.width * scale)), max(1, round(crop.height * scale))), Image.Resampling.BOX)
    canvas = Image.new("L", (fine, fine))
    canvas.paste(crop, ((fine - crop.width) // 2, (fine - crop.height) // 2))
    inside = np.asarray(canvas) > 127
    signed = (distance_transform_edt(inside) - distance_transform_edt(~inside)) / 4
    return torch.from_numpy(signed.astype(np.float32)).view(1, 1, fine, fine)


def load_glyphs() -> tuple[Tensor, Tensor, Tensor]:
    """Distance fields `(N, 1, GLYPH, GLYPH)`, their half stroke widths `(N,)`, and a table of rows per letter.

    The table is `(letters, fonts)`; letters that fewer fonts have repeat theirs, so that a uniform draw is uniform.
    """
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    names = [p for p in sorted(folder.glob("*.ttf")) if p.stem.startswith(FONTS) and "Display" not in p.stem]
    letters = {path: {chr(code) for code in FT2Font(str(path)).get_charmap()} for path in names}
    fonts_of = {letter: [path for path in names if letter in letters[path]] for letter in LETTERS}
    width = math.lcm(*(len(having) for having in fonts_of.values()))
    fields: list[Tensor] = []
    rows: list[list[int]] = []
    for letter, having in fonts_of.items():
        rows.append([len(fields) + k % len(having) for k in range(width)])
        fields += [F.avg_pool2d(distance_field(path, letter), 4) for path in having]
    stacked = torch.cat(fields)
    return stacked, stacked.amax((1, 2, 3)), torch.tensor(rows)


def smooth_field(count: int, channels: int, cells: int, size: int, rng: torch.Generator) -> Tensor:
    """Random fields of unit variance that vary over `cells` cells per side."""
    coarse = torch.randn(count, channels, cells, cells, generator=rng, device=rng.device)
    return F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)


def textures(count: int, size: int, rng: torch.Generator, uniform: Uniform) -> Tensor:
    """Procedural textures in about [-1, 1], `(count, 1, size, size)`: blotches at three scales and two gratings."""
    layers = [smooth_field(count, 1, cells, size, rng) for cells in (3, 6, 12)]
    axis = torch.arange(size, device=rng.device, dtype=torch.float32)
    for _ in range(2):
        angle, period, phase = uniform(0, math.pi), uniform(3, 16), uniform(0, 2 * math.pi)
        along = axis.view(1, 1, 1, -1) * torch.cos(angle) + axis.view(1, 1, -1, 1) * torch.sin(angle)
        wave = torch.sin(2 * math.pi * along / period + phase)
        layers.append(torch.where(uniform(0, 1) < 0.4, (4 * wave).clamp(-1, 1), wave))
    weights = torch.cat([uniform(0, 1) ** 3 for _ in layers], dim=1)  # cubed: one or two layers dominate
    mixed = (torch.cat(layers, dim=1) * weights).sum(1, keepdim=True)
    return mixed / weights.square().sum(1, keepdim=True).sqrt().clamp_min(0.05) / 1.5


def render(fields: Tensor, strokes: Tensor, strength: float, noisy: float, rng: torch.Generator) -> Tensor:
    """Draws letters as images in [0, 1].

    Args:
        fields: signed distances, `(B, 1, GLYPH, GLYPH)`.
        strokes: half stroke width of each letter, in pixels of its field.
        strength: 0 draws dark ink on light paper, 1 the full augmentation.
        noisy: share of the images drawn with little contrast under heavy noise, at full strength.
        rng: where every draw comes from.

    Returns:
        Images, `(B, 3, 32, 32)`.
    """
    count, size, s = len(fields), ARCHITECTURE["img_size"], strength

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=rng, device=rng.device)

    def chance(p: float) -> Tensor:
        return uniform(0, 1) < p

    # Geometry: half the letters stand about upright, half are turned by any angle; all are bent a little.
    turn = torch.where(chance(0.5 * s), uniform(-math.pi, math.pi), uniform(-0.3, 0.3) * (0.3 + 0.7 * s))
    half = uniform(0.8 - 0.25 * s, 0.9)  # half extent of the letter, 1 touches the border
    zoom, shear, squeeze = GLYPH_FILL / half, uniform(-0.35, 0.35) * s, 1 + uniform(-0.25, 0.25) * s
    cos, sin = torch.cos(turn) * zoom, torch.sin(turn) * zoom
    matrix = torch.cat([cos * squeeze, -sin + shear * cos, sin * squeeze, cos + shear * sin], 1).view(count, 2, 2)
    shift = torch.cat([uniform(-0.2, 0.2), uniform(-0.2, 0.2)], 1).view(count, 2, 1) * s
    grid = F.affine_grid(torch.cat([matrix, shift], 2), [count, 1, size, size], align_corners=False)
    bend = smooth_field(count, 2, 4, size, rng) * uniform(0, 0.11) * s
    distance = F.grid_sample(fields, grid + bend.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)
    per_pixel = size / GLYPH / zoom  # field pixels -> image pixels
    distance, strokes = distance * per_pixel, strokes.view(-1, 1, 1, 1) * per_pixel

    # Strokes: thinner or bolder, sharp or blurred; some letters are outlined.
    grown = distance + torch.maximum(uniform(-0.8, 1.2) * (0.2 + 0.8 * s), 0.5 - strokes)
    soft = uniform(0.8, 1 + 2 * s)
    filled = (0.5 + grown / soft).clamp(0, 1)
    outlined = (0.5 + (uniform(0.45, 0.9) - (distance + uniform(0.3, 1)).abs()) / uniform(0.8, 1.3)).clamp(0, 1)
    mask = torch.where(chance(0.2 * s), outlined, filled)

    # Colour: a luminance gap between ink and ground, a tint on both, a texture on some grounds and inks.
    faint = chance(noisy * s)
    gap = torch.where(faint, uniform(0.12, 0.5), uniform(0.8 - 0.5 * s, 0.9))
    ground = gap / 2 + (1 - gap) * torch.where(chance(s), uniform(0, 1), uniform(0.8, 1))
    ground = ground.clamp(max=1) - gap / 2  # the darker of the two luminances
    light_ground = chance(1 - 0.5 * s)
    low, high = ground, ground + gap
    paper, ink = torch.where(light_ground, high, low), torch.where(light_ground, low, high)
    tint = torch.where(chance(0.6), 1.0, 0.0) * s * (1 - 0.6 * faint.float())
    paper_tint, ink_tint = (torch.cat([uniform(-0.3, 0.3) for _ in range(3)], 1) for _ in range(2))
    rough = torch.where(chance(0.5), uniform(0, 0.4), 0.0) * s * torch.where(faint, gap, 1.0)
    rough_ink = torch.where(chance(0.3), uniform(0, 0.3), 0.0) * s * torch.where(faint, gap, 1.0)
    hue = 1 + torch.cat([uniform(-0.7, 0.7) for _ in range(3)], 1)
    paper = paper + tint * (paper_tint - paper_tint.mean(1, keepdim=True))
    ink = ink + tint * (ink_tint - ink_tint.mean(1, keepdim=True))
    paper = paper + rough * hue * textures(count, size, rng, uniform)
    ink = ink + rough_ink * hue.flip(1) * textures(count, size, rng, uniform)
    image = paper + mask * (ink - paper)

    # Noise: fine or grainy, grey or coloured; heavy on the faint images.
    amount = torch.where(faint, gap * uniform(0.15, 0.95), uniform(0, 0.12)) * s
    fine = torch.randn(count, 3, size, size, generator=rng, device=rng.device)
    grey = torch.where(chance(0.5), fine[:, :1], fine)
    noise = torch.where(chance(0.3), 0.9 * smooth_field(count, 3, size // 2, size, rng), grey)
    return (image + amount * noise).clamp(0, 1)


def save(model: VisionTransformer, path: Path, steps: int, seed: int) -> None:
    """Writes the backbone without its head, replacing the file in one move."""
    weights = {n: t.detach().float().cpu().contiguous() for n, t in model.state_dict().items() if "head." not in n}
    about = {
        "architecture": json.dumps(ARCHITECTURE),
        "letters": LETTERS,
        "steps": str(steps),
        "seed": str(seed),
        "mean": "0.5",
        "std": "0.5",
        "format": "pt",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(weights, partial, metadata=about)
    partial.chmod(0o644)
    partial.replace(path)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000, help="optimiser steps; sets the schedule")
    parser.add_argument("--minutes", type=float, help="schedule by the clock instead (not repeatable to the last bit)")
    parser.add_argument("--stop", type=int, help="end after so many steps, before the schedule does")
    parser.add_argument("--init", type=Path, help="go on from these weights (the head starts afresh)")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--save-every", type=int, default=500, help="steps between intermediate files")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=200, help="steps over which the learning rate rises")
    parser.add_argument("--strength", type=float, default=0.0, help="strength of the augmentation at the start")
    parser.add_argument("--ramp", type=float, default=0.35, help="share of the schedule until it is at full strength")
    parser.add_argument("--noisy", type=float, default=0.4, help="share of faint images under heavy noise")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def create(args: argparse.Namespace) -> tuple[VisionTransformer, int]:
    """The model with a head for the letters, and the steps its weights have seen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(args.seed, "pretrain", "weights"))
        model = VisionTransformer(**{**ARCHITECTURE, "num_classes": len(LETTERS)}, weight_init="jax")
    if args.init is None:
        return model, 0
    missing, unexpected = model.load_state_dict(load_file(args.init), strict=False)
    if unexpected or any("head." not in name for name in missing):
        raise SystemExit(f"--init={args.init} holds another architecture: {missing + unexpected}.")
    with safe_open(args.init, framework="pt") as file:
        return model, int(file.metadata()["steps"])


def main() -> None:
    """Trains for a number of steps, or for a time, and writes the weights; also now and then on the way."""
    args = parse()
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rng = torch.Generator(device).manual_seed(key(args.seed, "pretrain", "images"))
    fields, strokes, rows = (t.to(device) for t in load_glyphs())
    model, earlier = create(args)
    model.to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.rate, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    start, step, correct = time.monotonic(), 0, 0.0
    while True:
        done = step / args.steps if args.minutes is None else (time.monotonic() - start) / (60 * args.minutes)
        if done >= 1 or step == args.stop:
            break
        ramp = min(1.0, done / args.ramp) if args.ramp > 0 else 1.0
        strength = args.strength + (1 - args.strength) * ramp
        rate = args.rate * min(1.0, (step + 1) / args.warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        letters = torch.randint(len(LETTERS), (args.batch,), generator=rng, device=device)
        fonts = torch.randint(rows.shape[1], (args.batch,), generator=rng, device=device)
        chosen = rows[letters, fonts]
        images = render(fields[chosen], strokes[chosen], strength, args.noisy, rng)
        logits = model(images * 2 - 1)
        loss = F.cross_entropy(logits, letters, label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        correct += (logits.argmax(1) == letters).float().mean().item()
        if step % 100 == 0:
            minutes = (time.monotonic() - start) / 60
            line = f"step {step}, {minutes:.1f} min, strength {strength:.2f}, loss {loss:.3f} nats"
            print(f"{line}, accuracy on the last 100 batches {correct / 100:.3f}", flush=True)
            correct = 0.0
        if step % args.save_every == 0:
            save(model, args.out, earlier + step, args.seed)
    save(model, args.out, earlier + step, args.seed)


if __name__ == "__main__":
    main()
