"""The router: ridge regression from the frozen trunk's output to the domain, in closed form.

Examples:
  python experiments/router.py                    the newest run
  python experiments/router.py --run demo

Needs Phase 1 alone; the experts may still be training. Next: experiments/evaluate.py.
"""

from s7jax.runs.opening import add_run_flags, resume
from s7jax.runs.pipeline import fit_router
from s7jax.terminal import cli


def main() -> None:
    """Parse, open the run, fit."""
    parser = cli.parser(__doc__)
    add_run_flags(parser)
    fit_router(resume(parser.parse_args()))


if __name__ == "__main__":
    cli.main(main)
