"""Phase 2: train the domain experts on the frozen trunk, each independently of the others.

Examples:
  python experiments/experts.py                   all four experts of the newest run
  python experiments/experts.py --domain math     one of them (they can be separate jobs)
  python experiments/experts.py --mesh 4x2x2      all four at once, on pools of 2 × 2 devices
  python experiments/experts.py --run demo --mesh 2x1

The order does not matter: an expert's weights depend on the trunk and its own domain alone.
Next: experiments/router.py.
"""

from s7jax.runs.opening import add_process_flags, add_run_flags, add_watch_flags, resume
from s7jax.runs.pipeline import train_experts
from s7jax.terminal import cli


def main() -> None:
    """Parse, open the run, train."""
    parser = cli.parser(__doc__)
    add_run_flags(parser)
    add_process_flags(parser)
    add_watch_flags(parser)
    parser.add_argument("--domain", nargs="+", metavar="NAME", help="which (default: all)")
    args = parser.parse_args()
    train_experts(resume(args), args.domain, args.resume_from)


if __name__ == "__main__":
    cli.main(main)
