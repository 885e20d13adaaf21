"""Writes docs/evaluations.md, the numbers for int8 and truncation, from the files of `task=evaluate`.

python benchmarks/evaluations.py FOLDER/evaluation.json ...
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# Evaluations

Written by `python benchmarks/evaluations.py` from the files of `task=evaluate`. [results.md](results.md) explains the
rows. FD and KID use our own small classifier of the data set: compare them only where its checksum is the same. A star
marks what is better than the others by more than two standard errors of the difference.
"""


def section(found: dict) -> str:
    inputs, data = found["inputs"], found["data"]
    drawing = inputs[0]["about"].get("drawing", {})
    title = [*(each["name"] for each in inputs), *(f"{option} {value}" for option, value in drawing.items())]
    lines = [f"## {data['source']}: {', '.join(title)}", ""]
    lines += ["| metric | " + " | ".join([*(f"`{each['name']}`" for each in inputs), "real images"]) + " |"]
    lines += ["|---" * (len(inputs) + 2) + "|"]
    for name in inputs[0]["metrics"]:
        won = found["differences"].get(name, {"sure": False})
        cells = [
            f"{each['metrics'][name]:.4g}{' *' if won['sure'] and won['best'] == each['name'] else ''}"
            for each in inputs
        ]
        lines.append(f"| {name} | " + " | ".join([*cells, f"{inputs[0]['floors'][name]:.4g}"]) + " |")
    lines += ["", f"{found['n']:,} images each. `{found['command']}`, commit {found['commit']}, {found['machine']},"]
    lines[-1] += f" {found['versions']}, classifier {data['features']} ({data['features_sha256'][:8]})."
    for each in inputs:
        about = each["about"]
        drawn = f"{about['run']}, {about['checkpoint']} ({about['checkpoint_sha256'][:8]})" if about else "a file"
        lines.append(f"`{each['name']}`: {drawn}, sha256 {each['sha256'][:8]}.")
    return "\n".join(lines) + "\n"


def main(paths: list[Path]) -> None:
    if not paths:
        sys.exit("error: name the evaluation.json files that the page should show")
    out = ROOT / "docs" / "evaluations.md"
    out.write_text(
        "\n".join([HEAD, *(section(json.loads(path.read_text(encoding="utf-8"))) for path in paths)]), encoding="utf-8"
    )
    print(f"wrote {out} from {len(paths)} evaluations")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
