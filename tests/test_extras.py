"""What a missing package says: which extra of emorl installs it."""

from __future__ import annotations

import sys

import pytest

from emorl.extras import require_package


@pytest.mark.parametrize(
    ("package", "extra"), [("sklearn", "evaluation"), ("torchvision", "lpips"), ("h5py", "train")]
)
def test_a_missing_package_names_what_installs_it(package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    message = f"{package} is not installed: pip install 'emorl\\[{extra}\\]'"
    with pytest.raises(ModuleNotFoundError, match=message) as missing:
        require_package(package)
    assert missing.value.name == package


def test_a_package_that_lacks_another_is_not_blamed(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import nowhere_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'nowhere_at_all'"):
        require_package("broken_package")


def test_what_is_there_is_no_matter():
    require_package("json")
