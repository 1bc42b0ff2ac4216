"""Checkpoints cut over ranks: whatever number wrote them, any other reads the same rows. Threads play the ranks."""

import json
import threading

import pytest
import torch

from luban import files
from luban.errors import DiskError
from luban.training import checkpoints, shards
from luban.training.shards import Piece

WHOLE = {
    "model": {"table": torch.arange(21.0).reshape(7, 3), "bias": torch.arange(2.0), "one": torch.ones(1, 4), "count": torch.tensor(5)},
    "optimizer": {"0.0.0": torch.arange(21.0).reshape(7, 3) / 3, "step": torch.tensor(4.0)},
    "best": {},
}  # fmt: skip
CUT = {"table", "bias", "one", "0.0.0"}


class Threads:
    """What `shards` asks of ranks, between threads."""

    def __init__(self, rank: int, world: int, barrier: threading.Barrier, sums: list[float]):
        self.rank, self.world, self.first, self.barrier, self.sums = rank, world, rank == 0, barrier, sums

    def wait(self) -> None:
        self.barrier.wait()

    def total(self, numbers: list[float]) -> list[float]:
        self.sums.append(numbers[0])
        self.barrier.wait()
        return [sum(self.sums)]


def piece(name: str, whole: int, rank: int, world: int) -> Piece | None:
    each = -(-whole // world)
    first = min(whole, rank * each)
    return Piece(whole, first, min(each, whole - first)) if name in CUT else None


def part(file: str, name: str, rank: int, world: int) -> torch.Tensor:
    t = WHOLE[file][name]
    p = piece(name, len(t), rank, world) if name in CUT else None
    return t if p is None else t[p.first : p.first + p.count]


def cutting(rank: int, world: int):
    return lambda file, name: piece(name, len(WHOLE[file][name]), rank, world) if name in CUT else None


def save(folder, world: int, step: int = 3) -> list[BaseException]:
    barrier, sums, raised = threading.Barrier(world), [], []

    def one(rank: int) -> None:
        mine = {f: {n: part(f, n, rank, world) for n in content} for f, content in WHOLE.items()}
        try:
            shards.save(Threads(rank, world, barrier, sums), folder, step, mine, {"step": step}, cutting(rank, world))
        except DiskError as e:
            raised.append(e)

    threads = [threading.Thread(target=one, args=(r,)) for r in range(world)]
    [t.start() for t in threads]
    [t.join(30) for t in threads]
    return raised


@pytest.mark.parametrize("wrote", [1, 2, 3, 9])
@pytest.mark.parametrize("reads", [1, 2, 3, 9])
def test_any_number_of_ranks_reads_what_any_other_wrote(tmp_path, wrote, reads):
    assert not save(tmp_path, wrote)
    for rank in range(reads):
        found = checkpoints.newest(tmp_path, load=lambda path, r=rank: shards.load(path, cutting(r, reads)))
        assert found[1] == {"step": 3} and found[0].keys() == WHOLE.keys()
        for file, content in WHOLE.items():
            assert found[0][file].keys() == content.keys()
            assert all(torch.equal(found[0][file][n], part(file, n, rank, reads)) for n in content)


def test_one_process_reads_them_whole_and_they_read_what_one_wrote(tmp_path):
    save(tmp_path / "cut", 3)
    tensors, _ = checkpoints.newest(tmp_path / "cut", load=shards.load)
    assert all(torch.equal(tensors[f][n], t) for f, content in WHOLE.items() for n, t in content.items())
    checkpoints.save(tmp_path / "whole", 3, WHOLE, {"step": 3})
    again = shards.load(tmp_path / "whole" / "step-3", cutting(1, 2))
    assert torch.equal(again["model"]["table"], WHOLE["model"]["table"][4:])


def test_control_an_index_with_rows_of_another_rank_gives_others(tmp_path):
    save(tmp_path, 2)
    index = tmp_path / "step-3" / shards.INDEX
    plain = json.loads(index.read_text())
    plain["files"]["model"]["table"]["rows"].reverse()
    index.write_text(json.dumps(plain))
    assert checkpoints.newest(tmp_path, load=shards.load) is None, "the manifest knows"
    assert not torch.equal(shards.load(tmp_path / "step-3")["model"]["table"], WHOLE["model"]["table"])


def test_a_rank_that_cannot_write_spoils_it_for_all(tmp_path, monkeypatch):
    save(tmp_path, 2, step=1)
    real = files.put

    def full(path, data):
        if path.name == "optimizer.1.safetensors":
            raise OSError(28, "No space left on device", str(path))
        return real(path, data)

    monkeypatch.setattr(files, "put", full)
    (raised,) = save(tmp_path, 2, step=2)
    assert raised.id == "disk.failed_elsewhere" and ".ranks-2" in str(raised) and "(" not in str(raised)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-1"]
    assert checkpoints.newest(tmp_path, load=shards.load)[1] == {"step": 1}


def test_no_pickle_and_every_file_in_the_manifest(tmp_path):
    save(tmp_path, 2)
    names = {p.name for p in (tmp_path / "step-3").iterdir()}
    manifest = json.loads((tmp_path / "step-3" / files.MANIFEST).read_text())
    assert set(manifest["files"]) == names - {files.MANIFEST}
    assert {n.rsplit(".", 1)[1] for n in names} == {"json", "safetensors"}
