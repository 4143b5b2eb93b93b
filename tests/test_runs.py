import errno
import json
import os
import zlib

import pytest
import torch
from safetensors.torch import save_file

from psa.errors import RunError
from psa.files import write_atomically
from psa.runs import RunDirectory, load_tensors, save_tensors
from psa.seals import MARK


def tensors() -> dict[str, torch.Tensor]:
    return {
        "weight": torch.randn(3, 4),
        "transposed": torch.randn(3, 4, dtype=torch.float64).T,
        "step": torch.tensor(7),
        "random": torch.random.get_rng_state(),
        "empty": torch.zeros(0),
    }


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path)


def test_a_rename_is_brought_to_the_disk_after_the_content(tmp_path, monkeypatch):
    """In the order that no loss of power can spoil: the content, the rename, the folder."""
    path, done = tmp_path / "file", []
    fsync, replace = os.fsync, os.replace

    def seen_fsync(descriptor):
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def seen_replace(one, other):
        done.append(str(other))
        replace(one, other)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert done == [str(tmp_path / f".file.{os.getpid()}"), str(path), str(tmp_path)]


def test_an_atomic_write_that_finds_no_room_names_the_file(tmp_path):
    def full(temporary):
        temporary.write_text("ha")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*/file'"):
        write_atomically(tmp_path / "file", full)
    assert os.listdir(tmp_path) == []


def test_holding_a_run_removes_what_killed_writers_left_and_nothing_else(run, tmp_path):
    (tmp_path / "figures").mkdir()
    left = [".checkpoint.safetensors.123", ".state.safetensors.9", ".config.toml.1", "figures/.scenes.png.77"]
    others = [".bashrc.1", ".checkpoint.safetensors.mine", "checkpoint.safetensors", ".x.safetensors.2"]
    for name in left + others:
        (tmp_path / name).write_text("")
    with run.held():
        pass
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(others)


def test_an_atomic_write_puts_the_new_content_and_nothing_else_in_the_folder(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    write_atomically(path, lambda temporary: temporary.write_text("new") and None)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")

    def half(temporary):
        temporary.write_text("hal")
        raise error

    with pytest.raises(error):
        write_atomically(path, half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_stays_readable_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def look(temporary):
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent

    write_atomically(path, look)


def test_tensors_and_notes_come_back_as_they_were(tmp_path):
    saved, notes = tensors(), {"step": 3, "size": [8, 16], "sums": {"loss": 0.1}}
    save_tensors(tmp_path / "x.safetensors", saved, notes)
    loaded, found = load_tensors(tmp_path / "x.safetensors")
    assert found == notes
    assert loaded.keys() == saved.keys()
    for name, value in saved.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value)


def test_a_checkpoint_is_readable_by_whoever_the_umask_allows(tmp_path):
    save_tensors(tmp_path / "x", tensors(), {})
    plain = tmp_path / "plain"
    plain.write_text("")
    assert os.stat(tmp_path / "x").st_mode == os.stat(plain).st_mode


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_a_run_error_that_names_it(tmp_path, share):
    path = tmp_path / "x.safetensors"
    save_tensors(path, tensors(), {})
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(RunError, match=r"x\.safetensors: expected a safetensors file written by psa"):
        load_tensors(path)


def small_file(path):
    save_tensors(path, {"weight": torch.randn(3), "step": torch.tensor(7)}, {"size": [8, 16]})
    return path.read_bytes()


def refused(path) -> bool:
    """In one line that names the file."""
    try:
        load_tensors(path)
    except RunError as error:
        message = str(error)
    else:
        return False
    assert message.startswith(f"{path}: expected a safetensors file")
    assert "\n" not in message
    return True


def test_a_bit_that_flipped_anywhere_in_a_file_is_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    whole = small_file(path)
    mark = whole.index(MARK)
    for place in range(len(whole)):
        bit = 1 << (place % 8)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        # The mark itself says that there is a checksum; beside it nothing is changed then.
        assert refused(path) or mark <= place < mark + len(MARK)
    path.write_bytes(whole)
    assert not refused(path)


def test_the_checksum_is_that_of_the_file_with_its_own_place_blank(tmp_path):
    content = small_file(tmp_path / "x").decode("latin-1")
    start = content.index("crc32") + len('crc32\\": \\"')
    blank = content[:start] + "0" * 8 + content[start + 8 :]
    assert content[start : start + 8] == f"{zlib.crc32(blank.encode('latin-1')):08x}"


def test_the_same_content_makes_the_same_bytes(tmp_path):
    torch.manual_seed(0)
    one = small_file(tmp_path / "x")
    torch.manual_seed(0)
    assert small_file(tmp_path / "x") == one


def test_notes_of_any_kind_do_not_hide_the_checksum(tmp_path):
    notes = {"a": '"notes":"{\\"crc32\\": \\"', "crc": "x"}
    save_tensors(tmp_path / "x", {'"crc32": "': torch.zeros(1)}, notes)
    assert load_tensors(tmp_path / "x")[1] == notes


def test_a_file_without_a_checksum_is_read_as_before(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "x", {"notes": '{"step": 3}'})
    tensors, notes = load_tensors(tmp_path / "x")
    assert notes == {"step": 3}
    assert torch.equal(tensors["weight"], torch.ones(2))


class Trap:
    """Unpickling it would raise."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def test_a_pickle_is_refused_and_never_loaded(tmp_path):
    path = tmp_path / "x.safetensors"
    torch.save({"trap": Trap()}, path)
    with pytest.raises(RunError, match="cannot be read"):
        load_tensors(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"notes": "{"}, {"notes": "[1]"}])
def test_a_safetensors_file_of_someone_else_is_a_run_error(tmp_path, metadata):
    save_file({"weight": torch.zeros(2)}, tmp_path / "x", metadata)
    with pytest.raises(RunError, match="expected a safetensors file written by psa"):
        load_tensors(tmp_path / "x")


def test_a_missing_file_is_a_run_error_that_says_so(tmp_path):
    with pytest.raises(RunError, match="found nothing of that name"):
        load_tensors(tmp_path / "x")


def test_a_folder_in_the_place_of_a_checkpoint_is_a_run_error(tmp_path):
    with pytest.raises(RunError, match="expected a safetensors file"):
        load_tensors(tmp_path)


def test_the_configuration_comes_back_as_it_was(run):
    config = {"slots": {"variant": "psa", "overrides": {"power": 0.25}}, "data": {"source": 'it\'s \\ "here"'}}
    run.write_config(config)
    assert run.read_config() == config
    assert run.config.read_text().startswith("schema = 2\n")


def test_a_run_keeps_the_name_of_its_first_configuration(run, tmp_path):
    run.write_config({"training": {"seed": 1, "steps": 10}})
    name = run.name
    run.write_config({"training": {"seed": 1, "steps": 20}})
    assert run.name == name is not None
    assert run.read_config() == {"training": {"seed": 1, "steps": 20}}
    for seed, same in ((1, True), (2, False)):
        other = RunDirectory(tmp_path / str(seed))
        other.create()
        other.write_config({"training": {"seed": seed, "steps": 10}})
        assert (other.name == name) is same


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slots = [", "expected TOML"),
        ("[slots]\n", "expected schema = 1 or 2, got None"),
        ("schema = 3\n", "expected schema = 1 or 2, got 3; use the version of psa that wrote the run"),
    ],
)
def test_a_configuration_of_another_kind_is_a_run_error(run, text, message):
    run.config.write_text(text)
    with pytest.raises(RunError, match=message):
        run.read_config()


def test_a_configuration_that_is_no_text_is_a_run_error(run):
    run.config.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match="expected TOML"):
        run.read_config()


def test_a_folder_without_configuration_is_no_run(run, tmp_path):
    (tmp_path / "file").write_text("")
    for directory in (run, RunDirectory(tmp_path / "nothing"), RunDirectory(tmp_path / "file")):
        with pytest.raises(RunError, match=r"expected a run directory with config\.toml"):
            directory.read_config()


def test_metrics_come_back_line_by_line(run):
    assert run.read_metrics() == []
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": float("inf")}]
    for row in rows:
        run.append_metrics(row)
    assert run.read_metrics() == rows


@pytest.mark.parametrize("cut", [1, 5, 15])
def test_a_last_line_cut_short_is_left_out(run, cut):
    for step in (1, 2, 3):
        run.append_metrics({"step": step, "loss": 0.25})
    run.metrics.write_text(run.metrics.read_text()[: -1 - cut])
    assert [row["step"] for row in run.read_metrics()] == [1, 2]


@pytest.mark.parametrize("spoiled", ['{"step": 2, "lo', "[2]", '{"loss": 1}', '{"step": "2"}', "\x00\x00", ""])
def test_rows_that_are_spoiled_are_left_out(run, spoiled):
    run.metrics.write_text(f'{{"step": 1}}\n{spoiled}\n{{"step": 3}}\n')
    assert [row["step"] for row in run.read_metrics()] == [1, 3]


def test_metrics_that_are_no_text_lose_the_rows_that_are_not(run):
    run.metrics.write_bytes(b'{"step": 1}\n{"step": \xff}\n')
    assert [row["step"] for row in run.read_metrics()] == [1]


def test_metrics_past_a_step_are_dropped_and_a_cut_line_with_them(run):
    for step in (1, 2, 3):
        run.append_metrics({"step": step})
    with open(run.metrics, "a") as handle:
        handle.write('{"step": 4')
    run.keep_metrics_before(2)
    assert [json.loads(line) for line in run.metrics.read_text().splitlines()] == [{"step": 1}, {"step": 2}]


def test_a_file_in_the_way_of_a_run_directory_is_a_run_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file: expected a directory that can be made"):
        RunDirectory(tmp_path / "file").create()
