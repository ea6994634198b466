import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from horovod_job import PROJECT_ROOT, launch

SCRIPT = Path(__file__).with_name("detection_trials.py")


def test_two_workers_are_one_also_if_one_of_them_has_no_object(tmp_path):
    pytest.importorskip("horovod")
    alone = tmp_path / "alone"
    alone.mkdir()
    subprocess.run([sys.executable, str(SCRIPT), str(alone)], check=True, timeout=180,
                   env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT_ROOT)})
    expected = json.loads((alone / "0.json").read_text())
    code, output, (found, same) = launch(2, SCRIPT, tmp_path)
    assert code == 0, output
    assert found == same and set(found) == set(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-4, err_msg=name)
    assert np.abs(expected["gradient"]).max() > 1e-2
