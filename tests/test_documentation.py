"""Every shell and Python block of the documentation, run as it is printed.

The blocks of a page share a folder and, for Python, what earlier blocks made. `SUBSTITUTIONS` make
some of them short, `EXEMPT` blocks are not run. What is in neither must work as a reader finds it.
"""

from __future__ import annotations

import json
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from emorl.data import GENERATORS
from emorl.training.config_file import config_names, find_config, load_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md"]
PAGES += sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))
FOLDERS = ("benchmarks", "csrc", "docs", "emorl", "tests")  # of the repository's files
FILE = re.compile(r"[\w./*-]+\.(cpp|cuh?|h|html|json|md|py|sh|toml|txt|ya?ml)")
MARKDOWN = MarkdownIt("commonmark").enable("table")
NOT_RUN = ("bibtex", "text")
SECONDS = 300  # for a shell block, on a busy machine

# What is printed, and what is run instead of it: fewer steps, images and processes.
SUBSTITUTIONS = {
    "--out runs/mine  ": "--out runs/mine --trainer.steps 2 --trainer.eval_images 4 ",
    "--trainer.steps 1000": "--trainer.steps 1 --trainer.batch_size 2",
    "--images 320": "--images 4",
    "--images 60000": "--images 20",
    "--nproc_per_node 4": "--nproc_per_node 2",
    "--config clevr6 --data.train clevr6.h5": "--config smoke --trainer.steps 2",
    "torch.rand(8, 3, 64, 64)": "torch.rand(1, 3, 64, 64)",
    "--model slot_attention\n": "--model slot_attention --trainer.steps 1\n",
    "--budget 30min": "--dry-run --budget 30min",  # tests/bench has real runs of the suites
    "--budget 20min": "--dry-run --budget 20min",
    "--data tetrominoes  ": "--data tetrominoes --images 4 ",
}
# The beginning of a block, and why it is not run.
EXEMPT = {
    "make demo": "trains for a quarter of an hour, and runs all tests, this one included",
    "pip install torch": "would change the environment that the tests run in",
    "#!/bin/bash\n#SBATCH": "needs Slurm",
    "emorl bench --suite step --official": "needs a checkout of the released code",
    "emorl bench --suite quality": "trains five models; see tests/bench/test_quality_suite.py",
    "emorl bench --suite data": "minutes of timings; see tests/bench/test_data_suite.py",
    "git clone https://github.com/applied-ai-lab": "needs a network, and a peer's packages",
    "def objective(": "an excerpt of the file in EXCERPTS; the block below it calls it",
}
# The beginning of a block, and the file in which the whole of it stands.
EXCERPTS = {"def objective(": "emorl/models/efficient_morl/plain.py"}
# Files that a reader has: our fixtures, under the names that the blocks give them.
READERS_FILES = {
    "tetrominoes_train.tfrecords": "data/tetrominoes_mini.tfrecords",
    "emorl-tetrominoes.pth": "golden/tetrominoes_geco_i3.pth",
    "EMORL.json": "golden/tetrominoes_geco_i3.json",
}


@dataclass(frozen=True)
class Block:
    """A block of a page.

    Attributes:
        page: the file's path in the repository.
        line: of the page, where the block's text begins, from 1.
        language: of the block; "" where it names none.
        text: as it is printed.
    """

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def exempt(self) -> bool:
        return any(self.text.startswith(begin) for begin in EXEMPT)

    @property
    def shortened(self) -> str:
        """The text to run."""
        text = self.text
        for printed, instead in SUBSTITUTIONS.items():
            text = text.replace(printed, instead)
        return text


def blocks_of(page: str) -> list[Block]:
    """The blocks of a page, in its order."""
    return [
        Block(page, token.map[0] + 2, token.info.strip(), token.content)
        for token in MARKDOWN.parse((ROOT / page).read_text())
        if token.type in ("fence", "code_block")
    ]


def inline_of(page: str) -> list[Token]:
    """What the text of a page is made of: words, code, links, images."""
    texts = MARKDOWN.parse((ROOT / page).read_text())
    return [token for text in texts for token in text.children or ()]


def links_of(page: str) -> list[str]:
    """The files that a page links to, and its images."""
    inline = inline_of(page)
    targets = [str(t.attrs[name]) for t in inline for name in ("href", "src") if name in t.attrs]
    return [target for target in targets if not target.startswith(("http", "#"))]


def paths_of(page: str) -> list[str]:
    """The repository's files and folders that a page names as code; `<op>` becomes a `*`."""
    codes = [t.content for t in inline_of(page) if t.type == "code_inline"]
    words = [re.sub("<[a-z]+>", "*", code).split()[0] for code in codes]
    return [
        word
        for word in words
        if word.startswith(tuple(f"{name}/" for name in FOLDERS)) or FILE.fullmatch(word)
    ]


def exists(path: str) -> bool:
    """Whether a pattern has a file; one without a folder is looked for in all of them."""
    if "/" in path:
        return any(ROOT.glob(path))
    return any(ROOT.glob(path)) or any(any((ROOT / name).rglob(path)) for name in FOLDERS)


def names_of(page: str) -> list[str]:
    """The modules, functions and classes of emorl that a page names."""
    codes = [token.content for token in inline_of(page) if token.type == "code_inline"]
    return [name for code in codes for name in re.findall(r"emorl(?:\.[A-Za-z_]\w*)+", code)]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUN = [block for block in BLOCKS if block.language not in NOT_RUN and not block.exempt]


@pytest.mark.parametrize("page", [name for name in PAGES if any(b.page == name for b in RUN)])
def test_the_blocks_of_a_page_run_as_printed(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    blocks = [block for block in RUN if block.page == page]
    if any(name in block.text for block in blocks for name in READERS_FILES):
        give_files(request.getfixturevalue("fixtures_dir"), tmp_path)
    for name in ("benchmarks", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    environment = reader_environment(tmp_path)
    made: dict[str, Any] = {}
    for block in blocks:
        if block.language == "sh":
            run_shell(block, environment)
        elif block.language == "python":
            code = compile("\n" * (block.line - 1) + block.shortened, page, "exec")
            exec(code, made)
        else:
            pytest.fail(f"{block}: expected sh, python or one of {NOT_RUN}, got {block.language!r}")


def give_files(fixtures: Path, folder: Path) -> None:
    """Put the files into a folder that a reader would have."""
    for name, source in READERS_FILES.items():
        shutil.copy(fixtures / source, folder / name)
    released = json.loads((folder / "EMORL.json").read_text())
    (folder / "EMORL.json").write_text(json.dumps({"Net": released["net"]}))


def reader_environment(folder: Path) -> dict[str, str]:
    """Environment in which `emorl`, `python` and `torchrun` are this package and this Python."""
    commands = {"python": "", "emorl": "-m emorl", "torchrun": "-m torch.distributed.run"}
    (folder / "bin").mkdir()
    for name, arguments in commands.items():
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
        script.chmod(0o755)
    inherited = {name: x for name, x in os.environ.items() if not name.startswith("PYTEST_")}
    return {
        **inherited,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PIP_NO_INDEX": "1",  # a block that installs something fails
    }


def run_shell(block: Block, environment: dict[str, str]) -> None:
    """Run a block to its end; the first command that fails ends it."""
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", block.shortened],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"{block}: still running after {SECONDS} seconds:\n{block.shortened}")
    if process.returncode:
        pytest.fail(f"{block}: exit code {process.returncode}\n{block.shortened}\n{output[-3000:]}")


@pytest.mark.parametrize("page", PAGES)
def test_a_configuration_of_a_file_is_given_one(page: str) -> None:
    """Of images that nobody has by the name in the configuration; blocks run with others."""
    for block in blocks_of(page):
        for command in block.text.replace("\\\n", " ").splitlines():
            for name in re.findall(r"\btrain\b.* --config (\S+)", command):
                config = load_config(find_config(name)) if name in config_names(None) else None
                if config is not None and config.data.train not in GENERATORS:
                    assert "--data.train " in command, command


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_exist(page: str) -> None:
    folder = (ROOT / page).parent
    assert not [target for target in links_of(page) if not (folder / target).exists()]
    assert not [path for path in paths_of(page) if not exists(path)]


@pytest.mark.parametrize("begin", EXCERPTS)
def test_an_excerpt_is_what_the_file_says(begin: str) -> None:
    (block,) = [block for block in BLOCKS if block.text.startswith(begin)]
    assert f"\n\n\n{block.text}\n\n" in (ROOT / EXCERPTS[begin]).read_text()


@pytest.mark.parametrize("page", PAGES)
def test_the_names_that_a_page_gives_exist(page: str) -> None:
    for name in names_of(page):
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("printed", SUBSTITUTIONS)
def test_every_substitution_is_needed(printed: str) -> None:
    assert any(printed in block.text for block in RUN)


def test_every_exemption_is_needed_and_they_are_few() -> None:
    assert len(EXEMPT) <= 8
    for begin in EXEMPT:
        assert sum(block.text.startswith(begin) for block in BLOCKS) == 1, begin


@pytest.mark.parametrize("name", READERS_FILES)
def test_every_file_of_a_reader_is_needed(name: str) -> None:
    assert any(name in block.text for block in RUN)
