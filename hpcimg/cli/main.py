"""Parse the command line, run the subcommand, turn errors into exit codes."""

from __future__ import annotations

import argparse
import gc as garbage
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from hpcimg import __version__
from hpcimg.cli import output
from hpcimg.errors import Bug, HpcimgError

# Each is a module of this package, with HELP, add_arguments(parser) and run(args).
_COMMANDS = (
    "check", "stage", "prefetch", "path", "status", "explain", "history", "ls", "link", "pin",
    "unpin", "rm", "gc", "verify", "doctor", "metrics", "config", "completion", "hooks", "features",
)  # fmt: skip
# New objects before Python looks for cycles: by default it does so all the while that the records
# of a large cache are read, for a quarter of the time that this takes.
_OBJECTS = 100_000
_EPILOG = """\
exit codes: 0 done, 1 a problem was found (status, verify, doctor), 2 wrong
usage, 10-19 the request cannot be met, 20-29 it failed now and may succeed
later, 30-39 this node needs an administrator, 70 a bug. The configuration is
read from /etc/hpcimg/hpcimg.conf and conf.d/*.conf next to it; HPCIMG_CONF names
another.
"""


def main(argv: list[str] | None = None) -> int:
    """Run `hpcimg` with these arguments and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    if plugin := "--nagios" in words:
        from hpcimg.cli import nagios
    # All commands together take longer to load than most of them to run.
    given = [name for name in words[:1] if name in _COMMANDS and name != "completion"]
    try:
        args = _parser(given or _COMMANDS).parse_args(words)
    except SystemExit as ended:
        # For Nagios, the 2 of a usage error would mean a critical node.
        return nagios.UNKNOWN if plugin and ended.code else int(ended.code or 0)
    code = _run(args)
    if plugin and code > nagios.UNKNOWN:  # an error, already printed on standard error
        print(nagios.line(nagios.UNKNOWN, "the checks could not run"))
        return nagios.UNKNOWN
    return code


def _run(args: argparse.Namespace) -> int:
    garbage.set_threshold(_OBJECTS)
    try:
        code = int(_module(args.command).run(args))
        sys.stdout.flush()  # here, where a closed reader can be handled
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader closed our output; Python must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except HpcimgError as error:
        return _fail(args, error)
    except Exception as error:
        import traceback

        traceback.print_exc()
        return _fail(args, Bug("hpcimg failed", why=f"{type(error).__name__}: {error}"))


def _module(command: str) -> Any:
    return importlib.import_module(f"hpcimg.cli.{command}")


def _parser(names: Sequence[str] = _COMMANDS) -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="hpcimg",
        description="Container images on this node, staged before Slurm jobs start.",
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    parser.add_argument("--version", action="version", version=f"hpcimg {__version__}")
    parser.set_defaults(parser=parser)  # for `completion` and for wrong usage
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in names:
        module = _module(name)
        text = module.HELP
        sub = commands.add_parser(
            name, help=text.partition("\n")[0], description=text, formatter_class=formatter
        )
        sub.add_argument("--json", action="store_true", help="print JSON for programs")
        module.add_arguments(sub)
    return parser


def _fail(args: argparse.Namespace, error: HpcimgError) -> int:
    if args.json:
        output.print_json(output.error_fields(error))
    print(f"hpcimg: {error}", file=sys.stderr)
    return error.exit_code
