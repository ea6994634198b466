"""provenance: the commit of a checkout, checksums of files."""
import hashlib
import re
import subprocess
import sys
from pathlib import Path

from gluon_resnest import provenance
from gluon_resnest.provenance import commit, sha256, short


def test_commit_is_that_of_the_checkout():
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?|unknown", commit())


def test_commit_is_unknown_where_there_is_no_git(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "gluon_resnest/provenance.py"))
    monkeypatch.setenv("PATH", "")
    assert commit() == "unknown"


def test_commit_is_unknown_outside_of_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "gluon_resnest/provenance.py"))
    assert commit() == "unknown"


def test_a_short_commit_keeps_the_mark_of_changes():
    name = "0123456789abcdef" * 2 + "01234567"
    assert (short(name), short(name + "+changes"), short(name + "+changes", 12), short("unknown")) \
        == ("0123456", "0123456+changes", "0123456789ab+changes", "unknown")


def test_what_is_built_knows_its_commit(tmp_path, monkeypatch):
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)],
                   cwd=root, check=True, timeout=120)
    built = tmp_path / "gluon_resnest/provenance.py"
    assert built.read_bytes() == (root / "gluon_resnest/provenance.py").read_bytes()
    monkeypatch.setattr(provenance, "__file__", str(root / "gluon_resnest/provenance.py"))
    here = commit()
    monkeypatch.setattr(provenance, "__file__", str(built))
    assert commit() == here


def test_sha256_is_that_of_all_blocks(tmp_path):
    content = bytes(range(256)) * 5000          # more than one block of 2 ** 20
    (tmp_path / "f").write_bytes(content)
    assert sha256(tmp_path / "f") == hashlib.sha256(content).hexdigest()
