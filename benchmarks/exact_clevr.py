"""Render the generator's CLEVR scenes with Blender, as CLEVR itself was: once, by hand.

    pip install bpy==4.2.23                               # Python 3.11, beside emorl; bpy is GPL
    git clone https://github.com/facebookresearch/clevr-dataset-gen
    python benchmarks/exact_clevr.py clevr-dataset-gen/image_generation/data OUT --images 100

OUT gets a picture of 320x240 pixels and a label map for each scene, as `emorl train --data.train
OUT` reads them (with `--data.crop clevr`). What is there already is not rendered again. Each label
map is compared with the ray-caster's; docs/data.md has what came out.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import bpy
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from emorl.data import Clevr
from emorl.data.generators.clevr import FRAME, _rays
from emorl.data.generators.clevr_scenes import COLORS, CUBE, CYLINDER, METAL, SPHERE, Scenes
from emorl.data.generators.ray_caster import Objects
from emorl.data.readers.pictures import read_labels

SHAPES = {SPHERE: "Sphere", CYLINDER: "SmoothCylinder", CUBE: "SmoothCube_v2"}
LAMPS = ("Lamp_Key", "Lamp_Back", "Lamp_Fill")
BOUNCES = 8  # clevr-dataset-gen's
MOST_LABELS = 255


def build(assets: Path, scenes: Scenes, samples: int, threads: int) -> list[bpy.types.Object]:
    """Open the base scene and put the only scene's objects, camera and lamps into it."""
    bpy.ops.wm.open_mainfile(filepath=str(assets / "base_scene.blend"))
    scene = bpy.context.scene
    scene.render.resolution_y, scene.render.resolution_x = FRAME
    scene.render.resolution_percentage = 100
    scene.render.threads_mode, scene.render.threads = "FIXED", threads
    scene.cycles.samples, scene.cycles.use_denoising = samples, False
    scene.cycles.use_adaptive_sampling = False
    scene.cycles.max_bounces = scene.cycles.min_light_bounces = BOUNCES
    scene.cycles.blur_glossy = 2.0
    for name, place in zip(("Camera", *LAMPS), (scenes.camera, *scenes.lights[0]), strict=True):
        bpy.data.objects[name].location = place.flatten().tolist()
    groups = {name: appended(assets, "materials", name) for name in ("Rubber", "MyMetal")}
    return [placed(assets, scenes, k, groups) for k in range(int(scenes.present.sum()))]


def appended(assets: Path, folder: str, name: str) -> bpy.types.ID:
    """What a file of that name holds: an object, or a group of a material's nodes."""
    kind = "objects" if folder == "shapes" else "node_groups"
    with bpy.data.libraries.load(str(assets / folder / f"{name}.blend")) as (_, wanted):
        setattr(wanted, kind, [name])
    return getattr(wanted, kind)[0]


def placed(
    assets: Path, scenes: Scenes, k: int, groups: dict[str, bpy.types.ID]
) -> bpy.types.Object:
    """An object of the scene."""
    item = appended(assets, "shapes", SHAPES[int(scenes.shape[0, k])])
    bpy.context.scene.collection.objects.link(item)
    radius = float(scenes.radius[0, k])
    item.scale = [side * radius for side in item.scale]
    item.location = (*scenes.place[0, k].tolist(), radius)
    item.rotation_euler[2] = float(scenes.angle[0, k])
    rgb = [*COLORS.values()][int(scenes.color[0, k]) - 1]
    group = groups["MyMetal" if int(scenes.material[0, k]) == METAL else "Rubber"]

    def shader(nodes: bpy.types.Nodes) -> bpy.types.Node:
        node = nodes.new("ShaderNodeGroup")
        node.node_tree = group
        node.inputs["Color"].default_value = (*(part / 255 for part in rgb), 1.0)
        return node

    cover(item, shader)
    return item


def cover(item: bpy.types.Object, shader: Callable[[bpy.types.Nodes], bpy.types.Node]) -> None:
    """Give an object one material, of the node that `shader` makes."""
    material = bpy.data.materials.new("material")
    material.use_nodes = True
    nodes = material.node_tree.nodes
    nodes.clear()
    end = nodes.new("ShaderNodeOutputMaterial")
    material.node_tree.links.new(shader(nodes).outputs[0], end.inputs["Surface"])
    item.data.materials.clear()
    item.data.materials.append(material)


def shine(item: bpy.types.Object, label: int) -> None:
    """Let an object be seen as its label, whatever the light."""

    def shader(nodes: bpy.types.Nodes) -> bpy.types.Node:
        node = nodes.new("ShaderNodeEmission")
        node.inputs["Color"].default_value = (*[label / MOST_LABELS] * 3, 1.0)
        return node

    cover(item, shader)


def render(path: Path) -> None:
    """Write a picture; it gets its name when it is whole."""
    unfinished = path.with_name(f".{path.name}")
    bpy.context.scene.render.image_settings.file_format = "PNG"
    bpy.context.scene.render.filepath = str(unfinished)
    bpy.ops.render.render(write_still=True)
    os.replace(unfinished, path)


def render_labels(items: list[bpy.types.Object], path: Path) -> None:
    """Write the label map: one ray through the middle of each pixel, and no light but labels."""
    scene = bpy.context.scene
    for label, item in enumerate(items, start=1):
        shine(item, label)
    shine(bpy.data.objects["Ground"], 0)
    for light in [item for item in bpy.data.objects if item.type == "LIGHT"]:
        light.hide_render = True
    scene.cycles.samples, scene.cycles.max_bounces = 1, 0
    scene.cycles.pixel_filter_type, scene.cycles.filter_width = "BLACKMAN_HARRIS", 0.01
    scene.view_settings.view_transform = "Raw"
    scene.render.dither_intensity = 0.0
    scene.render.image_settings.color_mode = "BW"
    render(path)


def traced(scenes: Scenes) -> Tensor:
    """The ray-caster's label map of the whole frame, [H, W]."""
    rows, columns = (torch.arange(side) + 0.5 for side in FRAME)
    row, column = (x.ravel() for x in torch.meshgrid(rows, columns, indexing="ij"))
    rays = _rays(scenes.camera, torch.zeros(len(row), dtype=torch.int64), row, column)
    number, _ = Objects.of(scenes).nearest(rays)
    return (number.clamp_min(-1) + 1).view(FRAME)


def compared(ours: Tensor, theirs: Tensor) -> tuple[int, int]:
    """Pixels of other labels, and how many of these have no such label of ours beside them."""
    around = F.unfold(F.pad(ours[None, None].float(), (1, 1, 1, 1), mode="replicate"), 3)
    beside = (around == theirs.flatten()).any(1).view_as(ours)
    return int((ours != theirs).sum()), int((~beside).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("assets", type=Path, help="image_generation/data of clevr-dataset-gen")
    parser.add_argument("out", type=Path, help="the folder of pictures")
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--most", type=int, default=10, help="objects of a scene; 6 for CLEVR6")
    parser.add_argument("--seed", type=int, default=0, help="of the generator")
    parser.add_argument("--split", default="train", help="of the generator")
    parser.add_argument("--samples", type=int, default=512, help="of a pixel; CLEVR's 512")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    generator = Clevr(options.most, seed=options.seed, split=options.split)
    for index in range(options.images):
        picture = options.out / f"{index:06}.png"
        label_map = options.out / f"{index:06}_mask.png"
        scenes = generator.scenes(torch.tensor([index]))
        begin = time.perf_counter()
        if not (picture.exists() and label_map.exists()):
            items = build(options.assets, scenes, options.samples, options.threads)
            render(picture)
            render_labels(items, label_map)
        seconds = time.perf_counter() - begin
        theirs = torch.from_numpy(read_labels(label_map, FRAME, MOST_LABELS).astype(np.int64))
        other, far = compared(traced(scenes), theirs)
        told = f"{other} pixels differ, {far} beyond a pixel"
        print(f"{picture}: {seconds:.1f} s; {told}", flush=True)


if __name__ == "__main__":
    main()
