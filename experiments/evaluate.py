"""Held-out quality: bits per byte of trunk, every expert, the routed model and the oracle.

Examples:
  python experiments/evaluate.py                  the newest run
  python experiments/evaluate.py --run demo --mesh 4x2
  python experiments/evaluate.py --json > quality.json

The report is kept in runs/NAME/evaluation.json and sealed with the weights.
"""

import json

from s7jax import cli
from s7jax.experiment import add_run_flags, resume
from s7jax.pipeline import quality
from s7jax.report import show


def main() -> None:
    """Parse, open the run, evaluate, print."""
    parser = cli.parser(__doc__)
    add_run_flags(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON alone")
    args = parser.parse_args()
    with cli.quiet(args.json):
        report = quality(resume(args))
    print(json.dumps(report, indent=1)) if args.json else show({"quality": report})


if __name__ == "__main__":
    cli.main(main)
