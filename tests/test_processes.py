"""The processes below this one."""
import os
import subprocess

from gluon_resnest.engine.processes import descendants


def test_a_process_whose_name_is_no_text_is_found(tmp_path):
    """The system cuts names after 15 bytes, perhaps in a letter."""
    script = os.path.join(os.fsencode(tmp_path), b"\xff")
    with open(script, "wb") as file:
        file.write(b"#!/bin/sh\necho ready; read line\n")
    os.chmod(script, 0o755)
    with subprocess.Popen([script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        assert process.pid in descendants()
        process.stdin.close()
