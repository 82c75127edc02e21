"""`emorl report`: the report of a run as one HTML file."""

from __future__ import annotations

from emorl.cli.arguments import Parser, local_path
from emorl.runs import RunFolder
from emorl.runs.files import require_place


def run(arguments: list[str]) -> int:
    """Write the report and print its path."""
    parser = Parser("report", "Write a run's report.html anew.")
    parser.add_argument("run", type=local_path, metavar="RUN", help="the run's folder")
    folder = parser.parse(arguments).run

    if folder.is_dir():
        require_place(RunFolder(folder).report, "RUN")

    from emorl.report import write_report

    print(write_report(folder))
    return 0
