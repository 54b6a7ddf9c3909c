"""Check a source distribution and the wheels made from it, by what is in them.

    python tools/wheel/check.py SDIST WHEEL...

Run in a git checkout, where `git ls-files` says what a source distribution must hold. Prints one
line a file; anything unexpected is an error. auditwheel chose the platform tag: the symbol versions
are read again here, without it.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from elftools.elf.sections import SymbolTableSection

MIB = 1 << 20
# The demo's policy is 10 MB of bfloat16, which no compression makes smaller.
MAX_SDIST, MAX_WHEEL = 11 * MIB, 12 * MIB
# What `pip install` of a source distribution needs: all of it, and nothing else that git tracks.
SDIST_FOLDERS = ("csrc/", "licenses/", "smolvla_edge/")
SDIST_FILES = ("CMakeLists.txt", "HACKING.md", "LICENSE", "NOTICE", "README.md", "pyproject.toml")
LICENSES = ("LICENSE", "NOTICE", "licenses/pybind11.txt", "smolvla_edge/assets/LICENSES.md")
MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}
# Libraries that every Linux of the tag has. Another one would have to be in the wheel.
SYSTEM_LIBRARIES = re.compile(r"(libstdc\+\+|libgcc_s|libm|libc|ld-linux-[\w-]+)\.so\.\d")


def main(sdist: Path, wheels: list[Path]) -> None:
    package = check_sdist(sdist)
    for wheel in wheels:
        check_wheel(wheel, package)


def expect(ok: bool, file: Path, what: str) -> None:
    if not ok:
        raise SystemExit(f"{file.name}: {what}")


def check_sdist(path: Path) -> set[str]:
    """Returns the files of the package in it."""
    listed = subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True)
    wanted = {
        name
        for name in listed.stdout.splitlines()
        if name.startswith(SDIST_FOLDERS)
        or name in SDIST_FILES
        or (name.startswith("docs/") and name.endswith((".md", ".svg")))
    }
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    expect(all(m.isfile() for m in members), path, "expected regular files only")
    files = {str(PurePosixPath(*PurePosixPath(m.name).parts[1:])) for m in members}
    files.discard("PKG-INFO")
    expect(files >= wanted, path, f"lacks {sorted(wanted - files)}")
    expect(files <= wanted, path, f"has what git does not track: {sorted(files - wanted)}")
    size = path.stat().st_size
    expect(size <= MAX_SDIST, path, f"expected at most {MAX_SDIST} bytes, got {size}")
    print(f"{path.name}: {len(files)} files, {size / MIB:.2f} MiB")
    return {name for name in files if name.startswith("smolvla_edge/")}


def check_wheel(path: Path, package: set[str]) -> None:
    match = re.fullmatch(
        r"smolvla_edge-([\w.]+)-(cp3\d+)-\2-manylinux_2_(\d+)_(\w+)\.whl", path.name
    )
    expect(match is not None, path, "expected smolvla_edge-VERSION-cpN-cpN-manylinux_2_N_ARCH.whl")
    assert match is not None
    version, python, glibc, machine = match.groups()
    with zipfile.ZipFile(path) as archive:
        content = {i.filename: archive.read(i) for i in archive.infolist() if not i.is_dir()}
    info = f"smolvla_edge-{version}.dist-info/"
    core = f"smolvla_edge/_core.cpython-{python[2:]}-{machine}-linux-gnu.so"
    has = {name for name in content if not name.startswith(info)}
    wrong = sorted(has ^ (package | {core}))
    expect(not wrong, path, f"differs from the sdist's files and {core}: {wrong}")

    wheel = content[info + "WHEEL"].decode()
    expect(f"Tag: {python}-{python}-manylinux_2_{glibc}_{machine}" in wheel, path, "WHEEL: tag")
    metadata = content[info + "METADATA"].decode()
    expect(f"\nVersion: {version}\n" in metadata, path, "METADATA: version")
    source = content["smolvla_edge/version.py"].decode()
    expect(f'__version__ = "{version}"' in source, path, "version.py names another version")
    for name in LICENSES:
        expect(f"\nLicense-File: {name}\n" in metadata, path, f"METADATA: no licence {name}")
        expect(bool(content.get(f"{info}licenses/{name}")), path, f"no licence file {name}")
    size = path.stat().st_size
    expect(size <= MAX_WHEEL, path, f"expected at most {MAX_WHEEL} bytes, got {size}")
    newest = check_core(path, content[core], machine, int(glibc))
    print(f"{path.name}: {len(content)} files, {size / MIB:.2f} MiB, core needs {newest}")


def check_core(path: Path, data: bytes, machine: str, glibc: int) -> str:
    """The extension module: stripped, for that machine, with no path of this one in it."""
    elf = ELFFile(io.BytesIO(data))
    expect(elf["e_machine"] == MACHINES[machine], path, f"core is for {elf['e_machine']}")
    extra = [s.name for s in elf.iter_sections() if s.name == ".symtab" or "debug" in s.name]
    expect(not extra, path, f"core is not stripped: {extra}")
    for place in {str(Path.cwd()), str(Path.home()), sys.prefix, "/tmp/"}:
        expect(os.fsencode(place) not in data, path, f"core holds the path {place}")

    needed, versions, exported = [], set(), set()
    for section in elf.iter_sections():
        if isinstance(section, DynamicSection):
            tags = list(section.iter_tags())
            needed = [tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"]
            paths = [tag for tag in tags if tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH")]
            expect(not paths, path, "core searches libraries in places of its own (RPATH)")
        elif isinstance(section, GNUVerNeedSection):
            versions |= {aux.name for _, auxes in section.iter_versions() for aux in auxes}
        elif isinstance(section, SymbolTableSection):
            exported |= {s.name for s in section.iter_symbols() if s["st_shndx"] != "SHN_UNDEF"}
    expect("PyInit__core" in exported, path, "core exports no PyInit__core")
    foreign = [name for name in needed if not SYSTEM_LIBRARIES.fullmatch(name)]
    expect(not foreign, path, f"core needs {foreign}")

    newest = {}
    for family in ("GLIBC", "GLIBCXX"):
        numbers = [n for v in versions if (n := re.fullmatch(family + r"_([\d.]+)", v))]
        newest[family] = max(tuple(map(int, n[1].split("."))) for n in numbers)
    expect(newest["GLIBC"] <= (2, glibc), path, f"core needs GLIBC {newest['GLIBC']}")
    return ", ".join(f"{k} {'.'.join(map(str, v))}" for k, v in newest.items())


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), [Path(arg) for arg in sys.argv[2:]])
