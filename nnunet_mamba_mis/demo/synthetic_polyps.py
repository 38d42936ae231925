"""Draw images that resemble colonoscopy, with polyps whose outlines are known.

An image is a height field, lit from the camera as in an endoscope. Polyps are domes in the colour of their
surroundings. Folds, the dark lumen, yellow residue and reflections prevent any colour threshold from finding polyps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

Field = NDArray[np.float64]

# images are drawn larger by this factor and then averaged, for smooth edges
_OVERSAMPLING = 2

# colours that the mucosa is mixed from
_PALE_PINK = np.array([0.93, 0.66, 0.60])
_ORANGE = np.array([0.90, 0.56, 0.36])
_DARK_RED = np.array([0.78, 0.40, 0.36])

_VESSEL = np.array([0.62, 0.20, 0.20])
_RESIDUE = np.array([0.86, 0.66, 0.22])


def write_synthetic_set(folder: Path, number: int, seed: int = 0) -> None:
    """Write a polyp dataset in Kvasir-SEG's layout: images/*.jpg and masks/*.jpg with the same names.

    Args:
        folder: Folder to write to; created if it does not exist.
        number: Number of images; image i does not depend on it.
        seed: Seed; each seed gives a different dataset.
    """
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(number):
        image, mask = draw_case(np.random.default_rng([seed, i]))
        name = f"polyp_{i:03d}.jpg"
        Image.fromarray(image).save(folder / "images" / name, quality=92)
        # masks are RGB JPEGs, as in the real dataset: compression adds noise to the two values
        rgb = np.repeat(np.uint8(255) * mask[..., None].astype(np.uint8), 3, axis=2)
        Image.fromarray(rgb).save(folder / "masks" / name, quality=90, subsampling=0)


def draw_case(rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return an image (H, W, 3) of about 84 × 96 pixels and its mask (H, W)."""
    width = int(rng.integers(90, 101))
    height = round(width * rng.uniform(0.84, 0.92))
    canvas = _Canvas(rng, height, width)
    visible = _frame(canvas)
    polyps = _place_polyps(canvas, visible)
    colour = _mucosa(canvas, polyps)
    colour = _camera(canvas, colour * visible[..., None])
    mask = _average(np.any([polyp.inside for polyp in polyps], axis=0) & (visible > 0.5)) > 0.5
    return (255 * colour.clip(0, 1)).round().astype(np.uint8), mask


class _Canvas:
    """The oversampled pixel grid; x and y are −1 to 1 along the shorter side."""

    def __init__(self, rng: np.random.Generator, height: int, width: int):
        self.rng = rng
        self.shape = (height * _OVERSAMPLING, width * _OVERSAMPLING)
        rows, columns = self.shape
        self.pixel = 2 / min(self.shape)
        self.y, self.x = np.meshgrid(
            (np.arange(rows) - (rows - 1) / 2) * self.pixel,
            (np.arange(columns) - (columns - 1) / 2) * self.pixel,
            indexing="ij",
        )

    def blur(self, field: Field, scale: float) -> Field:
        """Smooth a field; the scale is in units of x and y."""
        return gaussian_filter(field, scale / self.pixel, mode="reflect", truncate=3)

    def noise(self, scale: float) -> Field:
        """Return smooth noise with mean 0 and standard deviation 1."""
        field = self.blur(self.rng.standard_normal(self.shape), scale)
        return (field - field.mean()) / field.std()


@dataclass(frozen=True)
class _Polyp:
    """Position of a polyp, and its differences from its surroundings.

    Args:
        inside: The mask.
        dome: Height above the mucosa; 0 outside.
        tint: Factor for each colour channel.
        pits: Strength of the surface pattern.
    """

    inside: NDArray[np.bool_]
    dome: Field
    tint: Field
    pits: float


def _frame(canvas: _Canvas) -> Field:
    """Return 1 in the visible area, a rectangle with cut or rounded corners, and 0 outside."""
    half_height, half_width = np.abs(canvas.y).max(), np.abs(canvas.x).max()
    if canvas.rng.random() < 0.6:
        cut = canvas.rng.uniform(0.3, 0.65)
        distance = half_height + half_width - cut - np.abs(canvas.x) - np.abs(canvas.y)
    else:
        radius = canvas.rng.uniform(1.0, 1.2)
        distance = (radius - np.hypot(canvas.x * half_height / half_width, canvas.y)) * 1.4
    return (distance / 0.02).clip(0, 1)


def _place_polyps(canvas: _Canvas, visible: Field) -> list[_Polyp]:
    polyps: list[_Polyp] = []
    wanted = 2 if canvas.rng.random() < 0.15 else 1
    while len(polyps) < wanted:
        polyp = _polyp(canvas, smaller=wanted == 2)
        hidden = (polyp.inside & (visible < 0.5)).sum() / polyp.inside.sum()
        overlaps = any((polyp.inside & other.inside).any() for other in polyps)
        if hidden < 0.04 and not overlaps:
            polyps.append(polyp)
    return polyps


def _polyp(canvas: _Canvas, smaller: bool) -> _Polyp:
    rng = canvas.rng
    size = rng.uniform(0.26, 0.36) if smaller else rng.uniform(0.28, 0.56)
    stretch = rng.uniform(1.0, 1.35)
    angle = rng.uniform(0, np.pi)
    dx, dy = canvas.x - rng.uniform(-0.7, 0.7), canvas.y - rng.uniform(-0.6, 0.6)
    u = (np.cos(angle) * dx + np.sin(angle) * dy) * np.sqrt(stretch)
    v = (np.cos(angle) * dy - np.sin(angle) * dx) / np.sqrt(stretch)
    direction = np.arctan2(v, u)
    outline = np.ones(canvas.shape)
    # lobed if the third and higher waves are strong
    lobes = rng.uniform(0.02, 0.10)
    for wave in range(2, 6):
        outline += lobes / np.sqrt(wave - 1) * np.cos(wave * direction + rng.uniform(0, 2 * np.pi))
    rho = np.hypot(u, v) / (size * outline)
    # steep at the rim, flat on top; flat lesions are hard to find
    dome = rng.uniform(0.6, 1.1) * size * (1 - rho**2.5).clip(0, None) ** 0.7
    if lobes > 0.06:
        dome *= 1 + 0.12 * canvas.noise(0.10)
    paler = rng.uniform(-0.02, 0.14)
    redder = rng.uniform(0.10, 0.22)
    tint = 1 + paler + np.array([redder / 2, -redder, -redder])
    return _Polyp(rho < 1, dome, tint, rng.uniform(0.02, 0.09))


def _mucosa(canvas: _Canvas, polyps: list[_Polyp]) -> Field:
    rng = canvas.rng
    lumen_x, lumen_y = rng.uniform(-1.1, 1.1), rng.uniform(-0.9, 0.9)
    from_lumen = np.hypot(canvas.x - lumen_x, canvas.y - lumen_y) + 0.06 * canvas.noise(0.25)
    height = 0.10 * canvas.noise(0.30) + 0.012 * canvas.noise(0.06) + _folds(canvas, from_lumen)
    domes = np.sum([polyp.dome for polyp in polyps], axis=0)
    # a polyp is nearer to the camera than the folds behind it, and hides them
    height = height * (1 - 0.8 * (domes > 0)) + domes

    light = _lit(canvas, canvas.blur(height, 0.018))
    # the lumen is far away and dark; a polyp in front of it is not
    depth = rng.uniform(0.2, 0.7) * np.exp(-((from_lumen / rng.uniform(0.25, 0.5)) ** 2))
    light *= 1 - depth * (1 - 0.75 * canvas.blur((domes > 0).astype(float), 0.04))
    light *= _contact_shadow(canvas, domes)

    colour = _surface_colour(canvas) * light[..., None]
    for polyp in polyps:
        pits = 1 + polyp.pits * canvas.noise(0.025)
        edge = canvas.blur(polyp.inside.astype(float), 0.02)[..., None]
        colour = colour * (1 - edge) + colour * polyp.tint * pits[..., None] * edge
    return colour + _reflections(canvas, height)[..., None]


def _folds(canvas: _Canvas, from_lumen: Field) -> Field:
    """Return ridges around the lumen, as seen along a tube."""
    rng = canvas.rng
    spacing = rng.uniform(0.45, 0.9)
    phase = from_lumen / spacing + rng.uniform(0, 1)
    ridge = np.abs((phase % 1) - 0.5) * 2
    return rng.uniform(0.0, 0.10) * np.exp(-(((1 - ridge) / 0.35) ** 2)) * (0.6 + 0.4 * np.tanh(canvas.noise(0.4)))


def _slopes(canvas: _Canvas, height: Field) -> tuple[Field, Field]:
    return np.gradient(height, canvas.pixel, axis=0), np.gradient(height, canvas.pixel, axis=1)


def _lit(canvas: _Canvas, height: Field) -> Field:
    """Return the brightness of the surface, lit from near the camera and darker towards the rim of the image."""
    rng = canvas.rng
    dy, dx = _slopes(canvas, height)
    light_x, light_y = rng.uniform(-0.45, 0.45), rng.uniform(-0.55, 0.2)
    facing = (1 - light_x * dx - light_y * dy) / np.sqrt(1 + dx**2 + dy**2) / np.sqrt(1 + light_x**2 + light_y**2)
    falloff = 1 - 0.22 * np.hypot(canvas.x - light_x, canvas.y - light_y) ** 2
    return (0.25 + 0.8 * facing.clip(0, None)) * falloff.clip(0.3, None)


def _contact_shadow(canvas: _Canvas, domes: Field) -> Field:
    covered = (domes > 0).astype(float)
    shift = [round(canvas.rng.uniform(-0.03, 0.03) / canvas.pixel) for _ in range(2)]
    near = np.roll(canvas.blur(covered, 0.05), shift, axis=(0, 1))
    return 1 - canvas.rng.uniform(0.3, 0.6) * near * (1 - covered)


def _surface_colour(canvas: _Canvas) -> Field:
    rng = canvas.rng
    weights = rng.dirichlet([4, 3, 2])
    hue = weights @ np.stack([_PALE_PINK, _ORANGE, _DARK_RED])
    redness, warmth = canvas.noise(0.2)[..., None], canvas.noise(0.2)[..., None]
    mottled = 1 + redness * np.array([0.01, -0.06, -0.05]) + warmth * np.array([0.01, 0.02, -0.05])
    colour = hue * mottled * (1 + 0.025 * canvas.noise(0.02))[..., None]
    # vessels follow the zero crossings of smooth noise
    vessels = np.exp(-((canvas.noise(0.14) / 0.10) ** 2)) * (canvas.noise(0.3) > 0.2)
    colour = _blend(colour, _VESSEL, rng.uniform(0.1, 0.5) * canvas.blur(vessels, 0.008))
    if rng.random() < 0.35:
        residue = canvas.blur((canvas.noise(0.09) > 1.9).astype(float), 0.012)
        colour = _blend(colour, _RESIDUE, 0.8 * residue)
    return colour


def _blend(colour: Field, other: Field, weight: Field) -> Field:
    return colour + (other - colour) * weight[..., None]


def _reflections(canvas: _Canvas, height: Field) -> Field:
    """Return white spots where the wet surface reflects the lamp."""
    rng = canvas.rng
    wet = height + 0.010 * canvas.noise(0.03)
    dy, dx = _slopes(canvas, canvas.blur(wet, 0.02))
    aim_x, aim_y = rng.uniform(-0.35, 0.35), rng.uniform(-0.35, 0.35)
    mirror = np.exp(-((dx - aim_x) ** 2 + (dy - aim_y) ** 2) / 0.012)
    spots = mirror * (canvas.noise(0.08) > rng.uniform(0.5, 1.4))
    return 0.75 * canvas.blur(spots, 0.008)


def _camera(canvas: _Canvas, colour: Field) -> Field:
    """Apply the effects of optics and sensor: blur, exposure, gamma and noise."""
    rng = canvas.rng
    blur = rng.uniform(0.2, 0.9) * _OVERSAMPLING
    colour = np.stack([gaussian_filter(channel, blur) for channel in np.moveaxis(colour, -1, 0)], axis=-1)
    colour = _average(colour * rng.uniform(0.9, 1.25)).clip(0, None) ** rng.uniform(0.85, 1.25)
    return colour + rng.normal(0, rng.uniform(0.004, 0.015), colour.shape)


def _average(field: NDArray) -> Field:
    """Average the oversampled grid to pixels."""
    rows, columns = (size // _OVERSAMPLING for size in field.shape[:2])
    return field.reshape(rows, _OVERSAMPLING, columns, _OVERSAMPLING, *field.shape[2:]).mean(axis=(1, 3))
