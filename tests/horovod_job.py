"""Starts this project's test files as Horovod workers on this machine."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[1]


def launch(workers, script, folder, *, timeout=180):
    """Runs `script folder` in `workers` processes; worker k writes `folder/k.json`.

    Returns:
      (exit code, output of all, [each worker's JSON, or None]).
    """
    command = [str(Path(sys.executable).with_name("horovodrun")), "-np", str(workers),
               "-H", f"localhost:{workers}", "--start-timeout", "120", sys.executable, str(script),
               str(folder)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT_ROOT)}
    with open(Path(folder) / "output", "w+") as output:
        job = subprocess.Popen(command, env=environ, stdout=output, stderr=subprocess.STDOUT,
                               start_new_session=True)
        try:
            code = job.wait(timeout)
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
                job.wait()
        output.seek(0)
        text = output.read()
    files = [Path(folder) / f"{rank}.json" for rank in range(workers)]
    return code, text, [json.loads(file.read_text()) if file.exists() else None for file in files]
