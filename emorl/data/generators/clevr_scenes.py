"""Scenes by CLEVR's rules: which objects there are, where they stand, where camera and lights are.

The rules and numbers are those of clevr-dataset-gen (Johnson et al., "CLEVR", CVPR 2017). Lengths
are Blender's units, z points up. Legend: B scenes, K the most objects of a scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from emorl.data import random

SPHERE, CYLINDER, CUBE = 1, 2, 3
LARGE, SMALL = 1, 2
RUBBER, METAL = 1, 2
LEAST_OBJECTS = 3
RADII = (0.7, 0.35)  # of large and small objects: a sphere's, half of a cube's edge
COLORS = {  # in the order of DeepMind's codes 1 to 8; Blender takes them as linear
    "red": (173, 35, 35),
    "cyan": (41, 208, 208),
    "green": (29, 105, 20),
    "blue": (42, 75, 215),
    "brown": (129, 74, 25),
    "gray": (87, 87, 87),
    "purple": (129, 38, 192),
    "yellow": (255, 238, 51),
}
CAMERA = (7.48113, -6.50764, 5.34367)
LIGHTS = (  # key, back, fill
    (6.44671, -2.90517, 4.2584),
    (-1.1685, 2.64602, 5.81574),
    (-4.67112, -4.0136, 3.01122),
)
_CAMERA_JITTER, _LIGHT_JITTER = 0.5, 1.0
_REGION, _GAP, _MARGIN = 3.0, 0.25, 0.4
_TRIES = 50  # places for an object, before the scene is begun anew
_OF_OBJECT = 8 + 2 * _TRIES  # random numbers of an object


class Scenes(NamedTuple):
    """Scenes; the objects of a scene come first.

    Attributes:
        present: bool [B, K].
        shape: 1 sphere, 2 cylinder, 3 cube, int64 [B, K].
        size: 1 large, 2 small, or more kinds.
        radius: of that size, float64 [B, K].
        material: 1 rubber, 2 metal.
        color: 1 to 8, as in `COLORS`.
        rotation: in degrees, 0 to 360, float64 [B, K].
        place: x and y, float64 [B, K, 2].
        camera: float64 [B, 3]; it looks at the origin.
        lights: of key, back and fill, float64 [B, 3, 3]; all shine at the origin.
    """

    present: Tensor
    shape: Tensor
    size: Tensor
    radius: Tensor
    material: Tensor
    color: Tensor
    rotation: Tensor
    place: Tensor
    camera: Tensor
    lights: Tensor

    @property
    def angle(self) -> Tensor:
        """Of the objects, in radians: CLEVR gives Blender degrees where that takes radians."""
        return self.rotation

    def rows(self, rows: Tensor) -> Scenes:
        """Some of the scenes."""
        return Scenes(*(x[rows] for x in self))


def view(camera: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The camera's right, up and forward, unit vectors [B, 3] each."""
    forward = -camera / camera.norm(dim=1, keepdim=True)
    right = torch.stack([forward[:, 1], -forward[:, 0], torch.zeros_like(forward[:, 0])], dim=1)
    right = right / right.norm(dim=1, keepdim=True)
    return right, torch.linalg.cross(right, forward), forward


def propose(
    state: Tensor, attempt: Tensor, most: int, radii: Sequence[float] = RADII
) -> tuple[Scenes, Tensor]:
    """Scenes whose objects have places, as far as an attempt found some.

    Args:
        state: random states of the scenes, int64 [B].
        attempt: its number, int64 [B]; number of objects, camera and lights stay the same.
        most: K, the largest number of objects.
        radii: of the sizes that objects have.

    Returns:
        The scenes, and whether every object has a place, bool [B].
    """
    jitter = random.uniform(random.fold(state[:, None], torch.arange(13, device=state.device)))
    jitter = 2 * jitter[:, 1:] - 1
    camera = jitter.new_tensor(CAMERA) + _CAMERA_JITTER * jitter[:, :3]
    lights = jitter.new_tensor(LIGHTS) + _LIGHT_JITTER * jitter[:, 3:].unflatten(1, (3, 3))
    count = LEAST_OBJECTS + random.below(random.fold(state, 0), most + 1 - LEAST_OBJECTS)

    number = torch.arange(most, device=state.device)
    tried = random.fold(state, attempt + 16)
    bits = random.fold(
        tried[:, None, None],
        number[:, None] * _OF_OBJECT + torch.arange(_OF_OBJECT, device=state.device),
    )
    size, shape, material, color, rotation, *_ = bits[..., :8].unbind(-1)
    present = number < count[:, None]
    kind = random.below(size, len(radii))
    places = _REGION * (2 * random.uniform(bits[..., 8:]).unflatten(-1, (_TRIES, 2)) - 1)
    scenes = Scenes(
        present,
        random.below(shape, 3) + 1,
        kind + 1,
        places.new_tensor(radii).take(kind),
        random.below(material, 2) + 1,
        random.below(color, len(COLORS)) + 1,
        360 * random.uniform(rotation),
        places[:, :, 0],
        camera,
        lights,
    )
    place, placed = _placed(places, scenes)
    return scenes._replace(place=place), (placed | ~present).all(1)


def _placed(places: Tensor, scenes: Scenes) -> tuple[Tensor, Tensor]:
    """The first free place of each object, one after the other, and whether there was one.

    A place is free if no earlier object is nearer than a gap, nor beside or behind it, as the
    camera sees it, by less than a margin.
    """
    right, _, forward = view(scenes.camera)
    behind = forward[:, :2] / forward[:, :2].norm(dim=1, keepdim=True)
    axes = torch.stack([right[:, :2], behind], dim=2)  # [B, 2, 2]
    radius, chosen, found = scenes.radius, places[:, :, 0].clone(), []
    for k in range(places.shape[1]):
        apart = places[:, k, :, None] - chosen[:, None, :k]  # [B, tries, k, 2]
        gap = apart.norm(dim=-1) - radius[:, None, :k] - radius[:, k, None, None]
        beside = (apart @ axes[:, None]).abs().amin(-1)
        free = ((gap >= _GAP) & (beside >= _MARGIN)).all(-1)
        first = free.byte().argmax(1)
        chosen[:, k] = places[torch.arange(len(places), device=places.device), k, first]
        found.append(free.any(1))
    return chosen, torch.stack(found, dim=1)
