"""Copies README's pictures from a run folder of `experiment=train_mnist_gan.yaml` to images/, with the run's record.

python benchmarks/pictures.py logs/runs/<date>/<time>
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import provenance


def main(run_dir: Path) -> None:
    images = ROOT / "images"
    images.mkdir(exist_ok=True)
    for epoch in (1, 3, 10):
        shutil.copy(run_dir / "samples" / f"epoch_{epoch - 1:04d}.png", images / f"mnist_gan_epoch_{epoch:02d}.png")
    out = run_dir / "fives"
    checkpoint = run_dir / "ckpts" / "last.ckpt"
    sample = ["task=sample", f"ckpt_path={checkpoint}", "labels=[5]", "n_per_label=16", f"out={out}"]
    subprocess.run([sys.executable, str(ROOT / "run.py"), *sample, f"hydra.run.dir={out}"], check=True)
    shutil.copy(out / "grid.png", images / "mnist_gan_fives.png")

    typed = yaml.safe_load((run_dir / ".hydra" / "overrides.yaml").read_text())
    (wandb_dir,) = run_dir.glob("wandb/*run-*-*")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(wandb_dir)]
    summary = json.loads(subprocess.run(inspect, check=True, capture_output=True, text=True).stdout)["summary"]
    record = provenance(" ".join(["python run.py", *typed])) | {
        "seconds": summary["_runtime"],
        "metrics": {key: value for key, value in sorted(summary.items()) if key.startswith("test/")},
        "pictures": sorted(path.name for path in images.glob("mnist_gan_*.png")),
    }
    (images / "mnist_gan.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"made {', '.join(record['pictures'])} in {images}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]).resolve())
