"""Fixtures that every test file shares."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

# What tests record for the summary, by the name it is recorded under.
SUMMARIES = {
    "compiled": "GPU kernels compiled without a GPU",
    "simulated": "CUDA kernels run on the CPU",
}
# What the extras "train", "triton" and "dev" bring, by the names they are imported by.
OPTIONAL = {
    *("accelerate", "google_crc32c", "h5py", "jinja2", "matplotlib", "PIL", "yaml"),
    *("scipy", "tensorboard", "tqdm", "triton", "hypothesis", "markdown_it", "sklearn"),
    *("playwright", "slot_attention"),
}

if not torch.cuda.is_available():  # before any kernel is defined; on a GPU the real ones run
    os.environ.setdefault("TRITON_INTERPRET", "1")


def is_installed(package: str) -> bool:
    """Whether `package` can be found; not where its import is blocked (None in sys.modules)."""
    if package in sys.modules:
        return sys.modules[package] is not None
    return importlib.util.find_spec(package) is not None


class TestFile(pytest.Module):
    """A file of tests, which is skipped where it imports an optional package that is missing.

    One such file would otherwise stop all others, on a GPU machine without a network, say.
    """

    __test__ = False

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        try:
            return super().collect()
        except self.CollectError as error:
            missing = str(getattr(error.__cause__, "name", None)).partition(".")[0]
            if missing not in OPTIONAL or is_installed(missing):
                raise
            reason = f"{self.path.name}: {missing} is not installed"
            pytest.skip(reason, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    module: pytest.Module = TestFile.from_parent(parent, path=module_path)
    return module


def pytest_report_header() -> list[str]:
    """The backends that exist here, and why others do not."""
    from emorl.info import describe

    return describe().splitlines()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for group in terminalreporter.stats.values() for report in group]
    recorded = [
        item
        for report in reports
        if getattr(report, "when", None) == "call"
        for item in report.user_properties
    ]
    for name, title in SUMMARIES.items():
        if lines := [str(line) for recorded_as, line in recorded if recorded_as == name]:
            terminalreporter.section(title)
            terminalreporter.write("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Folder with `data/` and `golden/`: $EMORL_FIXTURES, or `../shared` beside the checkout."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("EMORL_FIXTURES", default))
    if not (folder / "golden").is_dir():
        pytest.skip(
            f"no fixtures in {folder} (set EMORL_FIXTURES to a folder with data/ and golden/)"
        )
    return folder


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)
