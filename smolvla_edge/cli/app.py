"""The application: verbs, help, exit codes, and how errors reach a person.

Exit codes: 0 done, 1 verify or doctor found a failure or tune no plan that fits, 2 wrong usage or
refused, 70 an error inside smolvla-edge (a bug), 130 Ctrl-C, 141 our output has no reader any more.
"""

from __future__ import annotations

import errno
import io
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from smolvla_edge.cli import (
    convert,
    demo,
    doctor,
    eval_,
    export,
    heal,
    influence,
    inspect_,
    output,
    profile_,
    quantize,
    run,
    sensitivity,
    tune,
    verify,
)
from smolvla_edge.errors import SmolVLAEdgeError
from smolvla_edge.version import __version__

HELP = """SmolVLA robot policies on a plain CPU: exact, fast, without torch or LeRobot.

\b
Start here (nothing to download):
  smolvla-edge doctor     will it run well on this machine?
  smolvla-edge demo

\b
With a policy of your own (a LeRobot checkpoint folder, or a Hub id):
  smolvla-edge inspect my_policy             its cameras, state, statistics
  smolvla-edge convert my_policy my_bundle   once
  smolvla-edge run my_bundle --image observation.images.top=top.png \\
      --state 0,0,0,0,0,0 --task "pick up the cup"

Every verb explains itself: smolvla-edge run --help. Exit codes: 0 done, 1 verify or doctor found
a failure or tune no plan that fits, 2 wrong usage or refused, 70 an error inside smolvla-edge.
Messages and progress go to stderr, results to stdout, as JSON with --json.
"""


class _Group(TyperGroup):
    """Turns exceptions into a message and an exit code; a person sees no traceback of a refusal."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SmolVLAEdgeError as refusal:
            output.error(str(refusal))
        except MemoryError:
            output.error("not enough memory for this model. Close other programs and try again")
        except OSError as cause:
            if cause.errno == errno.EPIPE:  # the reader of our output went away; no one to tell
                raise typer.Exit(output.CLOSED_PIPE) from None
            where = f"{cause.filename}: " if cause.filename else ""
            output.error(f"{where}{cause.strerror or cause}")
        except Exception as fault:
            # typer's own exceptions carry an exit code and are handled above us.
            if isinstance(fault, typer.Abort) or hasattr(fault, "exit_code"):
                raise
            traceback.print_exc()
            output.error("this is an error inside smolvla-edge; please report the lines above")
            raise typer.Exit(output.BUG) from None
        raise typer.Exit(output.REFUSED)


app = typer.Typer(
    name="smolvla-edge",
    help=HELP,
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # help is plain text: it is read in pipes and logs too
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"smolvla-edge {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


for _verb in (
    demo.demo,
    run.run,
    convert.convert,
    quantize.quantize,
    export.export,
    sensitivity.sensitivity,
    influence.influence,
    heal.heal,
    tune.tune,
    inspect_.inspect,
    verify.verify,
    doctor.doctor,
    profile_.profile,
):
    app.command()(_verb)
app.command("eval")(eval_.evaluate)


def main() -> None:
    """Entry point of the console script."""
    # File names that are no UTF-8 go out as the bytes they are, as with ls.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="surrogateescape")
    app()
