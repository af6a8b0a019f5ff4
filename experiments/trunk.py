r"""Phase 1: train embedding and trunk on the mixture of the four domains.

Examples:
  python experiments/trunk.py                     s7-nano on the built-in corpus
  python experiments/trunk.py --mesh 4x2          4 data groups × 2 model-parallel devices
  python experiments/trunk.py --preset s7-mini --run mini \
      --data code=src/ math=math.jsonl.zst reason=reason.jsonl general=books/
  python experiments/trunk.py --tokens 5M --save-every 500k --run longer

Without an accelerator a mesh is made of virtual CPU devices. A run that was stopped resumes
from its newest checkpoint. Next: experiments/experts.py.
"""

from s7jax.runs.opening import (
    add_process_flags,
    add_run_flags,
    add_start_flags,
    add_watch_flags,
    begin,
)
from s7jax.runs.pipeline import train_trunk
from s7jax.terminal import cli


def main() -> None:
    """Parse, open the run, train."""
    parser = cli.parser(__doc__)
    add_run_flags(parser)
    add_process_flags(parser)
    add_watch_flags(parser)
    add_start_flags(parser)
    args = parser.parse_args()
    train_trunk(begin(args), args.resume_from)


if __name__ == "__main__":
    cli.main(main)
