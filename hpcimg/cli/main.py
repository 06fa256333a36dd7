"""Parse the command line, run the subcommand, turn errors into exit codes."""

from __future__ import annotations

import argparse
import gc as garbage
import os
import sys

from hpcimg import __version__
from hpcimg.cli import (
    check,
    completion,
    config,
    doctor,
    explain,
    features,
    gc,
    history,
    hooks,
    link,
    ls,
    metrics,
    nagios,
    output,
    path,
    pin,
    prefetch,
    rm,
    stage,
    status,
    unpin,
    verify,
)
from hpcimg.errors import Bug, HpcimgError

_COMMANDS = {
    "check": check, "stage": stage, "prefetch": prefetch, "path": path, "status": status,
    "explain": explain, "history": history, "ls": ls, "link": link, "pin": pin, "unpin": unpin,
    "rm": rm, "gc": gc,
    "verify": verify, "doctor": doctor, "metrics": metrics, "config": config,
    "completion": completion, "hooks": hooks, "features": features,
}  # fmt: skip
# New objects before Python looks for cycles: by default it does so all the while that the records
# of a large cache are read, for a quarter of the time that this takes.
_OBJECTS = 100_000
_EPILOG = """\
exit codes: 0 done, 1 a problem was found (status, verify, doctor), 2 wrong
usage, 10-19 the request cannot be met, 20-29 it failed now and may succeed
later, 30-39 this node needs an administrator, 70 a bug. The configuration is
read from /etc/hpcimg/hpcimg.conf and conf.d/*.conf beside it; HPCIMG_CONF names
another.
"""


def main(argv: list[str] | None = None) -> int:
    """Run `hpcimg` with these arguments and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    plugin = "--nagios" in words
    try:
        args = _parser().parse_args(words)
    except SystemExit as ended:
        # To Nagios the 2 of a usage error would be a node in trouble.
        return nagios.UNKNOWN if plugin and ended.code else int(ended.code or 0)
    code = _run(args)
    if plugin and code > nagios.UNKNOWN:  # an error; it has been told on standard error
        print(nagios.line(nagios.UNKNOWN, "the checks could not be made"))
        return nagios.UNKNOWN
    return code


def _run(args: argparse.Namespace) -> int:
    garbage.set_threshold(_OBJECTS)
    try:
        code = int(_COMMANDS[args.command].run(args))
        sys.stdout.flush()  # here, where a reader that went away can be answered
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output went away; Python must not complain of it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except HpcimgError as error:
        return _fail(args, error)
    except Exception as error:
        import traceback

        traceback.print_exc()
        return _fail(args, Bug("hpcimg failed", why=f"{type(error).__name__}: {error}"))


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="hpcimg",
        description="Container images on this node, staged before Slurm jobs start.",
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    parser.add_argument("--version", action="version", version=f"hpcimg {__version__}")
    parser.set_defaults(parser=parser)  # for `completion`
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in _COMMANDS.items():
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
