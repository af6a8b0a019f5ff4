"""Verify a sealed model: every rule with its verdict and its evidence.

Exit code 0 if no rule fails, 1 if one does or the file is no seal, 2 for a wrong command.
Without a file the newest run's is verified.

Examples:
  python tools/verify.py
  python tools/verify.py model/moe.s7l
  python tools/verify.py model/moe.s7l --json
"""

import json
from pathlib import Path

from s7jax import cli, s7l
from s7jax.run import newest


def main() -> int:
    """Open, check, print."""
    p = cli.parser(__doc__)
    p.add_argument("file", type=Path, nargs="?", help="sealed model (default: the newest run's)")
    p.add_argument("--json", action="store_true", help="one JSON object on standard output")
    args = p.parse_args()
    path = args.file or newest().sealed
    try:
        seal = s7l.open(path)
    except s7l.SealError as e:
        if not args.json:
            raise
        print(json.dumps({"format": "s7-verify", "version": 1, "passed": False, "error": str(e)}))
        return 1
    report = s7l.check(seal)
    if args.json:
        print(json.dumps(as_json(seal, report), indent=2))
    else:
        print(f"{path}: {seal.head.length:,} bytes, root {seal.root.hex()}")
        for finding in report.findings:
            print(f"{finding.rule:<5}{finding.verdict}\n     {finding.evidence}")
        print(f"hashed at {report.bytes_per_second / 1e6:,.0f} MB/s")
    return 0 if report.passed else 1


def as_json(seal: s7l.Seal, report: s7l.Report) -> dict[str, object]:
    """What ``--json`` prints: the same file gives the same object."""
    rules = [vars(finding) for finding in report.findings]
    facts = {"passed": report.passed, "root": seal.root.hex(), "bytes": seal.head.length}
    return {"format": "s7-verify", "version": 1, **facts, "rules": rules}


if __name__ == "__main__":
    cli.main(main)
