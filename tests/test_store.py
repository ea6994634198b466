import dataclasses
import functools
import hashlib
import http.server
import io
import multiprocessing
import os
import threading
import zipfile

import mxnet as mx
import numpy as np
import pytest

import gluon_resnest
from gluon_resnest import zoo
from gluon_resnest.errors import UserError
from gluon_resnest.interop import store
from gluon_resnest.interop.weights import save_parameters

DATA = bytes(np.random.RandomState(0).randint(0, 256, 300000, dtype=np.uint8))
SHA1 = hashlib.sha1(DATA).hexdigest()
NAME = f"resnest0-{SHA1[:8]}"


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` {path: bytes}; a path in `cut` loses its connection after so many bytes."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.cut, self.ranges, self.requests = {}, {}, True, []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Says nothing: cutting a connection is what the tests ask for."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, data = self.server, self.server.files.get(self.path)
        asked = self.headers.get("Range")
        server.requests.append((self.path, asked))
        if data is None:
            return self.send_error(404)
        begin = int(asked[len("bytes="):-1]) if asked and server.ranges else 0
        if begin >= len(data):
            return self.send_error(416)
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        end = begin + server.cut[self.path] if self.path in server.cut else None
        self.wfile.write(data[begin:end])

    def log_message(self, *_):
        """Keeps the tests' output clean."""


@pytest.fixture
def server(monkeypatch):
    """A mirror on this machine, asked instead of the real ones."""
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(store, "MIRRORS", (running.url + "/{file}.zip",))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.delenv(store.MIRROR_VARIABLE, raising=False)
        yield running
        running.shutdown()


def archive(members=None, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as opened:
        for name, data in (members or {f"{NAME}.params": DATA}).items():
            opened.writestr(name, data)
    return buffer.getvalue()


def resolve(root, **options):
    return store.resolve("resnest0", (SHA1,), root=root, **options)


def leftovers(root):
    return sorted(name for name in os.listdir(root) if not name.endswith(".lock"))


def test_a_file_is_fetched_verified_and_fetched_once(server, tmp_path):
    server.files[f"/{NAME}.zip"] = archive()
    for _ in range(2):
        path = resolve(tmp_path / "new")
        assert path == tmp_path / "new" / f"{NAME}.params" and path.read_bytes() == DATA
    assert len(server.requests) == 1
    assert leftovers(tmp_path / "new") == [path.name]


def test_a_file_gluoncv_fetched_is_found_in_its_folder(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MXNET_HOME", raising=False)
    folder = tmp_path / ".mxnet" / "models"
    folder.mkdir(parents=True)
    (folder / f"{NAME}.params").write_bytes(DATA)
    assert resolve(None) == folder / f"{NAME}.params"
    assert resolve(os.path.join("~", ".mxnet", "models")) == folder / f"{NAME}.params"
    monkeypatch.setenv("MXNET_HOME", str(tmp_path / ".mxnet"))
    assert resolve(None) == folder / f"{NAME}.params"
    assert not server.requests


@pytest.mark.parametrize("cut", [1, 100000])
def test_a_lost_connection_is_resumed_where_it_broke(server, tmp_path, cut):
    address = f"/{NAME}.zip"
    server.files[address], server.cut[address] = archive(), cut
    if cut == 1:                                    # too slow for one call: the next continues
        with pytest.raises(UserError, match="the connection ended early"):
            resolve(tmp_path)
        assert [asked for _, asked in server.requests] == [None] + [
            f"bytes={begun}-" for begun in range(1, 6)]
        begun = len(server.requests)
        server.cut.clear()
        assert resolve(tmp_path).read_bytes() == DATA
        assert server.requests[begun:] == [(address, "bytes=6-")]
    else:
        assert resolve(tmp_path).read_bytes() == DATA
        assert [asked for _, asked in server.requests] == [
            None, "bytes=100000-", "bytes=200000-", "bytes=300000-"]
    assert leftovers(tmp_path) == [f"{NAME}.params"]


def test_a_server_without_ranges_starts_over(server, tmp_path):
    address = f"/{NAME}.zip"
    server.files[address], server.cut[address], server.ranges = archive(), 100000, False
    with pytest.raises(UserError, match="the connection ended early"):
        resolve(tmp_path)
    assert len(server.requests) == 2                # no progress, no further attempt
    server.cut.clear()
    assert resolve(tmp_path).read_bytes() == DATA


def test_a_wrong_hash_names_both_and_leaves_nothing(server, tmp_path):
    server.files[f"/{NAME}.zip"] = archive({f"{NAME}.params": DATA[:-1] + b"\0"})
    wrong = hashlib.sha1(DATA[:-1] + b"\0").hexdigest()
    with pytest.raises(UserError, match=f"its SHA-1 is {wrong}, expected {SHA1}; it was deleted"):
        resolve(tmp_path)
    assert leftovers(tmp_path) == []


def test_a_damaged_file_in_the_folder_is_replaced_or_reported(server, tmp_path):
    (tmp_path / f"{NAME}.params").write_bytes(DATA[:100])
    with pytest.raises(UserError, match=rf"{NAME}.params: its SHA-1 is .*; .*HTTP 404"):
        resolve(tmp_path)
    (tmp_path / f"{NAME}.params").write_bytes(DATA[:100])
    server.files[f"/{NAME}.zip"] = archive()
    assert resolve(tmp_path).read_bytes() == DATA


def test_mirrors_are_tried_in_order_until_one_delivers(server, tmp_path, monkeypatch):
    server.files[f"/bad/{NAME}.zip"] = b"<html>sold</html>"
    server.files[f"/good/{NAME}.zip"] = archive()
    monkeypatch.setattr(store, "MIRRORS", tuple(
        address + "/{file}.zip" for address in
        ("http://127.0.0.1:9", server.url + "/dead", server.url + "/bad", server.url + "/good")))
    assert resolve(tmp_path).read_bytes() == DATA
    assert [path.split("/")[1] for path, _ in server.requests] == ["dead", "bad", "good"]
    assert leftovers(tmp_path) == [f"{NAME}.params"]


def test_when_all_mirrors_fail_each_is_named_with_its_reason(server, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MIRRORS", ("http://127.0.0.1:9/{file}.zip",
                                           server.url + "/{file}.zip", "ftp://old/{file}.zip"))
    monkeypatch.setenv(store.MIRROR_VARIABLE, str(tmp_path / "absent"))
    with pytest.raises(UserError) as caught:
        resolve(tmp_path)
    message = str(caught.value)
    for part in (f"could not obtain {NAME}.params", f"127.0.0.1:9/{NAME}.zip: ", "refused",
                 f"{server.url}/{NAME}.zip: HTTP 404", "only http, https and file",
                 f"absent/{NAME}.params: ", "No such file", str(tmp_path / f"{NAME}.params"),
                 "tools/convert_weights.py FILE OUT", "--weights OUT", store.MIRROR_VARIABLE):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("as_url", [False, True])
@pytest.mark.parametrize("kind", ["params", "zip"])
def test_a_local_folder_is_a_mirror_and_is_asked_first(server, tmp_path, monkeypatch, kind, as_url):
    folder = tmp_path / "my mirror"
    folder.mkdir()
    (folder / f"{NAME}.{kind}").write_bytes(DATA if kind == "params" else archive())
    monkeypatch.setenv(store.MIRROR_VARIABLE, folder.as_uri() if as_url else str(folder))
    assert resolve(tmp_path / "root").read_bytes() == DATA
    assert not server.requests
    assert leftovers(folder) == [f"{NAME}.{kind}"]


@pytest.mark.parametrize("member", ["../evil.params", "/evil.params", "a/../../evil.params",
                                    "..\\evil.params", "C:\\evil.params"])
def test_an_archive_that_points_outside_is_refused(server, tmp_path, member):
    server.files[f"/{NAME}.zip"] = archive({member: DATA})
    with pytest.raises(UserError, match="points outside"):
        resolve(tmp_path / "in")
    assert os.listdir(tmp_path) == ["in"] and leftovers(tmp_path / "in") == []


def damaged(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1:]


@pytest.mark.parametrize("data, reason", [
    (archive({f"{i}.txt": b"" for i in range(40)}), "unpacks to 40 files"),
    (archive({"a.params": bytes(3000000)}, zipfile.ZIP_DEFLATED), "1 files of 3000000 bytes"),
    (archive({"a.params": b"", "b.params": b""}), "holds 2 .params files"),
    (archive({"a.params": DATA}, zipfile.ZIP_LZMA), "holds 0 .params files"),
    (damaged(archive()), "archive is damaged"),
    (damaged(archive(None, zipfile.ZIP_DEFLATED)), "archive is damaged"),
    (archive()[:-10], "archive is damaged"),
    (bytes(2000001), "larger than 2000000 bytes"),
])
def test_an_archive_of_ill_size_or_shape_is_refused(server, tmp_path, monkeypatch, data, reason):
    monkeypatch.setattr(store, "_MAX_BYTES", 2000000)
    server.files[f"/{NAME}.zip"] = data
    with pytest.raises(UserError, match=reason):
        resolve(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0


def _resolve_in_process(root, mirrors, sent):
    store.MIRRORS = mirrors
    sent.put(resolve(root).read_bytes() == DATA)


def test_two_processes_at_once_download_once(server, tmp_path):
    server.files[f"/{NAME}.zip"] = archive()
    context = multiprocessing.get_context("fork")
    sent = context.Queue()
    workers = [context.Process(target=_resolve_in_process, args=(tmp_path, store.MIRRORS, sent))
               for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [sent.get(timeout=60) for _ in workers] == [True, True]
    for worker in workers:
        worker.join()
    assert len(server.requests) == 1


def test_a_lock_that_is_never_released_is_reported(server, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_LOCK_SECONDS", 0.1)
    with store.filelock.FileLock(str(tmp_path / f"{NAME}.params.lock")):
        with pytest.raises(UserError, match="another process has held .*params.lock"):
            resolve(tmp_path)


def test_a_folder_that_cannot_be_written_is_reported(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot write .* choose another root"):
        resolve(tmp_path / "file")


def test_pretrained_may_name_a_version(server, tmp_path):
    versions = ("f" * 40, SHA1)
    server.files[f"/{NAME}.zip"] = archive()
    for tag in (SHA1[:8], SHA1.upper(), SHA1):
        assert store.resolve("resnest0", versions, tag, tmp_path).read_bytes() == DATA
    with pytest.raises(UserError, match=f"version '12345678'; known, newest first: f{{8}}, "
                                        f"{SHA1[:8]}"):
        store.resolve("resnest0", versions, "12345678", tmp_path)
    with pytest.raises(UserError, match="no weights of version 'f'"):
        store.resolve("resnest0", versions, "f", tmp_path)
    with pytest.raises(UserError, match="no weights were ever published for 'resnest0'"):
        store.resolve("resnest0", (), True, tmp_path)


def test_fetch_returns_local_files_as_they_are(tmp_path):
    (tmp_path / "my.params").write_bytes(DATA)
    assert store.fetch(tmp_path / "my.params") == tmp_path / "my.params"
    with pytest.raises(UserError, match="no weight file .*did you mean 'my.params'"):
        store.fetch(str(tmp_path / "mine.params"))


def test_fetch_downloads_urls_and_checks_the_hash_in_the_name(server, tmp_path):
    fetch = functools.partial(store.fetch, root=tmp_path)
    server.files.update({f"/a/{NAME}.params": DATA, f"/{NAME}.zip": archive(),
                         "/a/x.pth": b"PK\3\4", "/b/x.pth?token=1": b"other",
                         "/net-00000000.params": DATA})
    assert fetch(f"{server.url}/a/{NAME}.params").name == f"{NAME}.params"
    assert fetch(f"{server.url}/{NAME}.zip").read_bytes() == DATA
    assert fetch(f"{server.url}/a/x.pth").read_bytes() == b"PK\3\4"     # no archive to unpack
    assert fetch(f"{server.url}/b/x.pth?token=1").read_bytes() == b"other"
    assert len(server.requests) == 3
    with pytest.raises(UserError, match=f"SHA-1 is {SHA1}, expected 00000000"):
        fetch(f"{server.url}/net-00000000.params")
    with pytest.raises(UserError, match="HTTP 404") as caught:
        fetch(f"{server.url}/absent.pth?token=secret")
    assert "secret" not in str(caught.value)


@pytest.fixture
def publish(server, monkeypatch, tmp_path):
    """Puts a net's weights on the server and their hash into the table; returns the hash."""
    def put(name, net):
        save_parameters(net, tmp_path / "published.params")
        data = (tmp_path / "published.params").read_bytes()
        sha1 = hashlib.sha1(data).hexdigest()
        server.files[f"/{name}-{sha1[:8]}.zip"] = archive({"net.params": data})
        table = zoo.VARIANTS if name in zoo.VARIANTS else zoo.HIDDEN
        weights = dataclasses.replace(zoo.VARIANTS["resnest14"].weights, sha1=(sha1,))
        monkeypatch.setitem(table, name, dataclasses.replace(table[name], weights=weights))
        return sha1
    return put


def initialised(name):
    net = gluon_resnest.get_model(name)
    net.initialize(mx.init.Normal(0.1))
    net(mx.nd.zeros((1, 3, 32, 32)))
    return net


@pytest.mark.parametrize("pretrained", [True, "hash"])
def test_get_model_loads_the_published_weights(publish, tmp_path, pretrained):
    net = initialised("resnest14")
    sha1 = publish("resnest14", net)
    other = gluon_resnest.get_model("resnest14", root=str(tmp_path / "root"),
                                    pretrained=sha1[:8] if pretrained == "hash" else True)
    image = mx.nd.random.uniform(shape=(1, 3, 32, 48))
    np.testing.assert_array_equal(other(image).asnumpy(), net(image).asnumpy())
    assert leftovers(tmp_path / "root") == [f"resnest14-{sha1[:8]}.params"]


def test_get_model_with_other_classes_says_how(publish, tmp_path):
    publish("resnest_tiny", initialised("resnest_tiny"))
    with pytest.raises(UserError, match="reset_classifier"):
        gluon_resnest.get_model("resnest_tiny", pretrained=True, root=tmp_path, classes=10)


@pytest.mark.parametrize("name", ["resnest32", "simple_pose_resnest14",
                                  "faster_rcnn_fpn_resnest14_coco"])
def test_get_model_without_published_weights_says_so(server, tmp_path, name):
    with pytest.raises(UserError, match=f"no weights were ever published for '{name}'"):
        gluon_resnest.get_model(name, pretrained=True, root=tmp_path)
