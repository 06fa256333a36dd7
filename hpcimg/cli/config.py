"""hpcimg config: every key, its value, and where it was set."""

from __future__ import annotations

import argparse

from hpcimg.cli import output
from hpcimg.config import example, registriesconf
from hpcimg.config import load as config
from hpcimg.errors import ConfigError

HELP = """check the configuration and print each value and where it was set

If it is invalid, the exit code is 31 and the message names file, section and key."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--example", action="store_true", help="print a file with every key and its default"
    )
    parser.add_argument("--about", action="store_true", help="say what each key is for")


def run(args: argparse.Namespace) -> int:
    if args.example:
        print(example.text(), end="")
        return 0
    for rule in registriesconf.read(config.load().registries_conf):
        if rule.wrong:
            raise ConfigError(rule.wrong, do="See containers-registries.conf(5).")
    settings = config.settings()
    if args.json:
        output.print_json({"settings": [setting._asdict() for setting in settings]})
        return 0
    heads = ["SECTION", "KEY", "VALUE", "FROM"]
    rows = [[s.section, s.name, s.value or "-", s.origin] for s in settings]
    if args.about:
        heads.append("ABOUT")
        for row, setting in zip(rows, settings, strict=True):
            row.append(setting.about)
    output.print_table(heads, rows)
    return 0
