"""The help of each command: what a reader who knows no Python makes of it."""

from __future__ import annotations

import pytest

from emorl.cli import COMMANDS, main

PARSED = [name for name in COMMANDS if name not in ("train", "data")]
OF_DATA = ["data generate", "data convert", "data check"]


def help_of(command: str, capsys) -> str:
    with pytest.raises(SystemExit) as leaving:
        main([*command.split(), "--help"])
    assert leaving.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", [*PARSED, *OF_DATA])
def test_no_default_is_told_in_pythons_words(command, capsys):
    text = help_of(command, capsys)
    assert text.startswith(f"usage: emorl {command}")
    for value in ("None", "False", "[])"):
        assert value not in text


@pytest.mark.parametrize("command", ["evaluate", "traverse", "data check"])
def test_a_folder_is_named_where_one_does(command, capsys):
    assert "a generator's name, a file or a folder" in help_of(command, capsys)


def test_a_folder_is_named_for_training(capsys):
    assert main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "a file of images or a folder of pictures" in text


def test_names_keep_their_capitals(capsys):
    assert "as HDF5 in EfficientMORL's layout." in help_of("data convert", capsys)
