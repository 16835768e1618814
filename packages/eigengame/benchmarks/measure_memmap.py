"""Peak memory of fit on a memory-mapped file, at two lengths; writes results/memmap.json.

    python benchmarks/measure_memmap.py FOLDER [GIGABYTES]

Writes synthetic files to FOLDER and deletes them. Each fit runs in a process of its own; what counts
is memory that belongs to the process, not file pages that the system may drop at any time.
"""

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

DIM, K, BATCH = 1024, 16, 256


def write(path, gigabytes):
    rows = int(gigabytes * 2**30) // (4 * DIM)
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, DIM))
    block = np.random.default_rng(0).standard_normal((4096, DIM)).astype(np.float32)
    block *= np.geomspace(10, 0.1, DIM, dtype=np.float32)
    for start in range(0, rows, 4096):
        file[start : start + 4096] = block[: rows - start]
    file.flush()
    return rows


def anonymous_bytes():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not report RssAnon")


def child(path):
    from eigengame import EigenGame

    X = np.load(path, mmap_mode="r")
    model = EigenGame(K, batch_size=BATCH, random_state=0)
    model.partial_fit(np.asarray(X[:BATCH])).partial_fit(np.asarray(X[:BATCH]))  # compile first
    before, peak, done = anonymous_bytes(), [0], threading.Event()

    def watch():
        while not done.wait(0.01):
            peak[0] = max(peak[0], anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    model.fit(X)
    done.set()
    watcher.join()
    print(
        json.dumps(
            {
                "extra_bytes": peak[0] - before,
                "rows": len(X),
                "ratio": float(model.explained_variance_ratio_.sum()),
            }
        )
    )


def main(folder, gigabytes):
    report = {"d": DIM, "k": K, "batch_size": BATCH, "one_batch_bytes": 4 * DIM * BATCH, "files": []}
    for size in (gigabytes / 16, gigabytes):
        path = Path(folder) / "synthetic.npy"
        try:
            write(path, size)
            done = subprocess.run(
                [sys.executable, __file__, "child", path], capture_output=True, text=True, check=True
            )
            report["files"].append({"file_bytes": path.stat().st_size} | json.loads(done.stdout))
        finally:
            path.unlink(missing_ok=True)
    target = Path(__file__).resolve().parents[1] / "results" / "memmap.json"
    target.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    if sys.argv[1] == "child":
        child(sys.argv[2])
    else:
        main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 4.1)
