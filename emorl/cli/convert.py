"""`emorl convert`: a released EfficientMORL checkpoint as a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emorl.cli.arguments import Parser, local_path, whole_number
from emorl.runs.files import read_json, require_place
from emorl.runs.folder import CHECKSUMS, MODEL_FILES, STATE_FILE, WEIGHTS, run_of


def run(arguments: list[str]) -> int:
    """Convert a checkpoint and print where the model is."""
    parser = Parser("convert", "Turn a released EfficientMORL checkpoint into a model folder.")
    add = parser.add_argument
    add("checkpoint", type=local_path, metavar="CHECKPOINT.pth", help="the released weights")
    add("--config", type=local_path, required=True, metavar="NET.json", help="their configuration")
    add(
        "--out",
        type=local_path,
        required=True,
        metavar="FOLDER",
        help="config.json and weights go here",
    )
    add(
        "--refinement-steps",
        type=whole_number(0),
        help="of the model (default: the configuration's)",
    )
    options = parser.parse(arguments)
    network = _network(options.config)
    if not options.checkpoint.is_file():
        raise ValueError(f"{options.checkpoint}: no such file")
    _require_free(options.out)

    from emorl.compat.official import load_checkpoint

    model = load_checkpoint(options.checkpoint, network, refinement_steps=options.refinement_steps)
    model.save_pretrained(options.out)
    print(f"written: {options.out}; try: emorl evaluate {options.out} --data FILE")
    return 0


def _require_free(folder: Path) -> None:
    """Refuse to write into a run or over a model, which would be lost, and where nothing can be."""
    if run_of(folder) is not None or (folder / STATE_FILE).exists():
        raise ValueError(f"--out: {folder} belongs to a run; choose a folder of its own")
    for name in (*MODEL_FILES, CHECKSUMS):
        if (folder / name).exists():
            raise ValueError(f"--out: expected a new folder, got one with a {name}: {folder}")
    require_place(folder / WEIGHTS, "--out")


def _network(path: Path) -> dict[str, Any]:
    """A released configuration's description of the network."""
    if not path.is_file():
        raise ValueError(f"--config: no such file: {path}")
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(values).__name__}")
    network = next((values[n] for n in ("Net", "net") if isinstance(values.get(n), dict)), values)
    if "z_size" not in network:
        raise ValueError(f'{path}: expected a released configuration ("Net" with "z_size", ...)')
    return network
