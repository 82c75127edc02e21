"""`emorl info`: versions, devices, and the backends of the fused ops."""

from __future__ import annotations

from emorl.cli.arguments import Parser


def run(arguments: list[str]) -> int:
    """Print versions, devices and backends."""
    Parser("info", "What is installed and what the fused ops can use here.").parse(arguments)

    from emorl.info import describe

    print(describe())
    return 0
