r"""The whole chain: tokenizer → trunk → four experts → router → INT8 → sealed .s7l → verified.

Examples:
  python experiments/pipeline.py                  s7-nano on the built-in corpus
  python experiments/pipeline.py --run mine --data code=src/ math=math.jsonl.zst \
      reason=reason.jsonl general=books/
  python experiments/pipeline.py --run mine       resume where it was stopped

Each phase skips what is already done and valid. At the end: tables, and runs/NAME/report.json.
"""

import json

from s7jax.runs.opening import add_run_flags, add_start_flags, add_watch_flags, begin
from s7jax.runs.pipeline import run_all
from s7jax.terminal import cli
from s7jax.terminal.tables import show


def main() -> None:
    """Parse, open the run, run the chain, print the tables."""
    parser = cli.parser(__doc__)
    add_run_flags(parser)
    add_start_flags(parser)
    add_watch_flags(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON alone")
    args = parser.parse_args()
    with cli.quiet(args.json):
        report = run_all(begin(args))
    print(json.dumps(report, indent=1)) if args.json else show(report)


if __name__ == "__main__":
    cli.main(main)
