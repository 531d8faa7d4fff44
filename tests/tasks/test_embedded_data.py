"""Unpacking of the embedded sets: fresh, damaged, in a race, killed, and where nothing can be written."""

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

import mllm_lit
from mllm_lit.cache import CacheError, cache_folder
from mllm_lit.tasks import EMBEDDED, Conversations, DatasetError, embedded_root
from mllm_lit.tasks.embedded_data import ARCHIVES, CHECKSUMS, unpacked

FILES = {"a.json": b"[1]", "b/c.png": b"c" * 5000, "b/d.png": b"d" * 300, "e/f/g.png": b"g" * 700}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLLM_LIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """A folder with one small archive, ``toy``."""
    folder = tmp_path / "archives"
    folder.mkdir()
    with zipfile.ZipFile(folder / "toy.zip", "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    checksum = sha256((folder / "toy.zip").read_bytes()).hexdigest()
    (folder / CHECKSUMS).write_text(f"{'0' * 64}  other.zip\n{checksum}  toy.zip\n")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def states(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """Inode, size and time of every file."""
    found = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {path: (state.st_ino, state.st_size, state.st_mtime_ns) for path, state in found.items()}


def python(code: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(mllm_lit.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_fresh_cache_holds_what_the_archive_holds(name: str, cache: Path) -> None:
    root = embedded_root(name)
    checksum = sha256((ARCHIVES / CHECKSUMS).read_bytes()).hexdigest()[:16]
    assert root == cache / "embedded" / checksum / name
    with zipfile.ZipFile(ARCHIVES / f"{name}.zip") as archive:
        assert content(root) == {entry: archive.read(entry) for entry in archive.namelist()}
    assert [path.name for path in (cache / "embedded").iterdir()] == [checksum], "nothing else is left"


def test_pictures_of_another_set_come_too(cache: Path) -> None:
    rows = Conversations().rows(embedded_root("conversations"), "test")
    pictures = [image for row in rows for image in row.images if isinstance(image, Path)]
    assert pictures
    pictures[0].unlink()
    assert not pictures[0].exists()
    embedded_root("conversations")
    assert all(picture.is_file() for picture in pictures)


def test_times_stand_for_the_content(archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = []
    for folder in ("one", "two"):
        monkeypatch.setenv("MLLM_LIT_CACHE", str(tmp_path / folder))
        root = unpacked("toy", archives)
        times.append({name: (root / name).stat().st_mtime_ns for name in FILES})
    assert times[0] == times[1]
    assert len(set(times[0].values())) == len(FILES)


def test_only_the_cache_is_written_and_a_whole_one_never_again(cache: Path) -> None:
    code = """if True:
        import os, sys
        from mllm_lit.tasks import embedded_root
        written = []
        def note(event, arguments):
            if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                written.append(arguments[0])
            elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.utime", "os.chmod", "os.truncate"):
                written.append(arguments[0])
        sys.addaudithook(note)
        for _ in range(2):
            embedded_root("vqav2")
            print(len(written), all(str(path).startswith(sys.argv[1]) for path in written if isinstance(path, str)))
            written.clear()
    """
    before = states(ARCHIVES)
    done = python(code, cache)
    assert re.fullmatch(r"[1-9]\d+ True\n0 True\n", done.stdout), done.stdout + done.stderr
    assert states(ARCHIVES) == before


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:], lambda data: b""],
    ids=["cut off", "one bit", "empty"],
)
@pytest.mark.parametrize("known", [False, True], ids=["fresh", "cached"])
def test_a_damaged_archive_is_refused(
    damage: Callable[[bytes], bytes], known: bool, archives: Path, cache: Path
) -> None:
    file = archives / "toy.zip"
    if known:
        unpacked("toy", archives)
    expected = sha256(file.read_bytes()).hexdigest()
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DatasetError) as caught:
        unpacked("toy", archives)
    for part in (str(file), expected, sha256(file.read_bytes()).hexdigest(), "Install mllm_lit again"):
        assert part in str(caught.value)
    assert cache.exists() == known


@pytest.mark.parametrize("name", ["toy.zip", CHECKSUMS])
def test_a_missing_part_of_the_package_is_named(name: str, archives: Path, cache: Path) -> None:
    (archives / name).unlink()
    with pytest.raises(DatasetError, match=rf"{re.escape(str(archives / name))}: .*Install mllm_lit again"):
        unpacked("toy", archives)


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: os.truncate(file, 7), lambda file: os.truncate(file, 0)])
@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_cut_file_comes_back_alone(
    damage: Callable[[Path], None], name: str, archives: Path, cache: Path
) -> None:
    root = unpacked("toy", archives)
    (root / ".mllm_lit").mkdir()
    (root / ".mllm_lit" / "picture_sizes.msgpack").write_bytes(b"kept by a reader")
    before = states(root)
    damage(root / name)
    assert unpacked("toy", archives) == root
    after = states(root)
    assert {path for path in before if before[path] != after[path]} <= {root / name}
    assert content(root) == {**FILES, ".mllm_lit/picture_sizes.msgpack": b"kept by a reader"}
    assert before[root / name][1:] == after[root / name][1:], "size and time as before"


@pytest.mark.parametrize("moment", range(len(FILES) + 1))
def test_another_process_at_any_moment(
    moment: int, archives: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, calls = os.replace, []

    def interrupted(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == moment + 1:
            assert content(unpacked("toy", archives)) == FILES
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    root = unpacked("toy", archives)
    assert content(root) == FILES
    assert len(calls) == (2 * len(FILES) - moment if moment < len(FILES) else len(FILES))


def test_many_processes_start_at_once(cache: Path) -> None:
    code = (
        "from mllm_lit.tasks import embedded_root; print('ready', flush=True); input(); print(embedded_root('vqav2'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(mllm_lit.__file__).parents[1])}
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    running = [subprocess.Popen(command, env=environment, text=True, stdin=pipe, stdout=pipe) for _ in range(4)]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    told = [process.communicate(timeout=60)[0] for process in running]
    root = embedded_root("vqav2")
    assert told == [f"{root}\n"] * 4
    with zipfile.ZipFile(ARCHIVES / "vqav2.zip") as archive:
        assert content(root) == {entry: archive.read(entry) for entry in archive.namelist()}


@pytest.mark.parametrize("moment", range(len(FILES)))
@pytest.mark.parametrize("where", ["half written", "before the move", "after the move"])
def test_killed_at_any_moment(where: str, moment: int, archives: Path, cache: Path) -> None:
    code = f"""if True:
        import os, pathlib, sys
        from mllm_lit.tasks.embedded_data import unpacked
        write, replace, calls = pathlib.Path.write_bytes, os.replace, []
        def cut(path, data):
            calls.append(path)
            if len(calls) == {moment + 1} and {where == "half written"}:
                write(path, data[: len(data) // 2])
                os._exit(9)
            return write(path, data)
        def move(source, target):
            last = len(calls) == {moment + 1}
            if last and {where == "before the move"}:
                os._exit(9)
            replace(source, target)
            if last:
                os._exit(9)
        pathlib.Path.write_bytes, os.replace = cut, move
        unpacked("toy", pathlib.Path(sys.argv[1]))
    """
    assert python(code, archives).returncode == 9
    (root,) = (cache / "embedded").glob("*/toy")
    assert len(content(root)) == moment + (where == "after the move")
    assert content(unpacked("toy", archives)) == FILES


def _file_in_the_way(cache: Path) -> Path:
    cache.write_bytes(b"")
    return cache


@pytest.mark.parametrize("make", [_file_in_the_way, lambda cache: Path("/proc/nowhere")], ids=["a file", "read-only"])
def test_where_nothing_can_be_written(
    make: Callable[[Path], Path], archives: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(cache)
    monkeypatch.setenv("MLLM_LIT_CACHE", str(folder))
    with pytest.raises(DatasetError, match=rf"toy: .*{folder}/embedded/\w+/toy: .*set MLLM_LIT_CACHE to another"):
        unpacked("toy", archives)


def test_a_full_disk_is_told_and_gone_on_from(archives: Path, cache: Path) -> None:
    code = """if True:
        import pathlib, resource, sys
        from mllm_lit.tasks import DatasetError
        from mllm_lit.tasks.embedded_data import unpacked
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # a larger file cannot be written
        try:
            unpacked("toy", pathlib.Path(sys.argv[1]))
        except DatasetError as error:
            print(error)
    """
    told = python(code, archives).stdout
    assert str(cache) in told
    assert "set MLLM_LIT_CACHE" in told
    (root,) = (cache / "embedded").glob("*/toy")
    assert content(root) == {"a.json": FILES["a.json"]}
    assert [path.name for path in root.parents[1].iterdir()] == [root.parent.name], "no half file is left"
    assert content(unpacked("toy", archives)) == FILES


def test_which_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MLLM_LIT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "mllm_lit"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "mllm_lit"
    monkeypatch.setenv("MLLM_LIT_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.setenv("MLLM_LIT_CACHE", "~nobody-of-that-name/mine")
    with pytest.raises(CacheError, match="Set MLLM_LIT_CACHE to a folder"):
        cache_folder()
