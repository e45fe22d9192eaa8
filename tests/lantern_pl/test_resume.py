"""Going on from a checkpoint: nothing lost, nothing replayed, nothing run that came with it, and the user's values win."""

import json
import pickle
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from support import Ran

from lantern_pl.resume import of_all_ranks, random_states, set_random_states

Lantern = Callable[..., Ran]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The pair ids of each micro-batch that the student is trained on."""
    from lantern_pl.students import DecoderStudent

    batches: list[list[str]] = []
    real = DecoderStudent.summed_loss

    def record(self, batch):
        batches.append([pair.pair_id for pair in batch.pairs])
        return real(self, batch)

    monkeypatch.setattr(DecoderStudent, "summed_loss", record)
    return batches


NO_VALIDATION = ("--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0")


def checkpoint_of(config: Path) -> Path:
    return config.parent / "run" / "checkpoints" / "last.ckpt"


def test_a_second_run_moves_the_first_aside(tiny_decoder_config: Path, lantern: Lantern) -> None:
    assert lantern("fit", "--config", tiny_decoder_config, *NO_VALIDATION).code == 0
    first = (tiny_decoder_config.parent / "run" / "student" / "manifest.json").read_bytes()
    again = lantern("fit", "--config", tiny_decoder_config, *NO_VALIDATION, "--model.temperature=2")
    assert again.code == 0
    assert "moved to" in again.err + again.out
    assert (tiny_decoder_config.parent / "run.1" / "student" / "manifest.json").read_bytes() == first
    assert (
        json.loads((tiny_decoder_config.parent / "run/student/manifest.json").read_text())["student"]["loss"]["temperature"]
        == 2
    )


def test_a_resumed_run_goes_on_and_the_users_values_win(
    tiny_decoder_config: Path, lantern: Lantern, seen: list[list[str]]
) -> None:
    run = tiny_decoder_config.parent / "run"
    assert lantern("fit", "--config", tiny_decoder_config).code == 0
    untrained = torch.load(checkpoint_of(tiny_decoder_config), weights_only=True)["untrained_metrics"]
    manifest = json.loads((run / "student" / "manifest.json").read_text())
    assert manifest["metrics"]["untrained"] == pytest.approx(untrained)
    first_epoch = list(seen)

    ran = lantern(
        "fit",
        "--config",
        tiny_decoder_config,
        "--ckpt_path=last",
        "--trainer.max_steps=4",
        "--model.temperature=3",
        *NO_VALIDATION,
    )
    assert ran.code == 0, ran.err
    said = ran.err + ran.out
    assert "model.init_args.temperature: the checkpoint has 1.0, this run uses 3.0" in said
    assert "model.init_args.model" not in said
    assert not (tiny_decoder_config.parent / "run.1").exists()
    manifest = json.loads((run / "student" / "manifest.json").read_text())
    assert manifest["steps"] == 4
    assert manifest["student"]["loss"]["temperature"] == 3
    # Not the trained student's figures, which a sanity check would take now.
    assert manifest["metrics"]["untrained"] == pytest.approx(untrained)
    # In mid-epoch: the next batches of the same epoch, none twice.
    flat = [pair for batch in first_epoch + seen[len(first_epoch) :] for pair in batch]
    assert len(flat) == len(set(flat))
    assert len(seen) == 4


def test_without_a_config_the_checkpoints_own_is_used(tiny_decoder_config: Path, lantern: Lantern) -> None:
    assert lantern("fit", "--config", tiny_decoder_config, *NO_VALIDATION, "--model.temperature=2.5").code == 0
    ran = lantern("fit", f"--ckpt_path={checkpoint_of(tiny_decoder_config)}", "--trainer.max_steps=3", *NO_VALIDATION)
    assert ran.code == 0, ran.err
    manifest = json.loads((tiny_decoder_config.parent / "run" / "student" / "manifest.json").read_text())
    assert manifest["student"]["loss"]["temperature"] == 2.5
    assert manifest["steps"] == 3


def test_the_second_epoch_has_an_order_of_its_own_also_after_a_resume(
    tiny_decoder_config: Path, lantern: Lantern, seen: list[list[str]], pairs_file: Path
) -> None:
    few = tiny_decoder_config.parent / "few.jsonl"
    few.write_text("".join(line + "\n" for line in pairs_file.read_text().splitlines()[:8]))
    options = (f"--data.path={few}", f"--data.val_path={few}", f"--data.test_path={few}", *NO_VALIDATION)
    assert lantern("fit", "--config", tiny_decoder_config, *options, "--trainer.max_steps=8").code == 0
    uninterrupted = list(seen)
    assert sorted(chain(*uninterrupted[:4])) == sorted(chain(*uninterrupted[4:]))
    assert uninterrupted[:4] != uninterrupted[4:]
    for stop in (4, 6):  # between the epochs, and within the second
        seen.clear()
        assert lantern("fit", "--config", tiny_decoder_config, *options, f"--trainer.max_steps={stop}").code == 0
        resumed = lantern("fit", "--config", tiny_decoder_config, *options, "--ckpt_path=last", "--trainer.max_steps=8")
        assert resumed.code == 0, resumed.err
        assert seen == uninterrupted


def test_a_checkpoint_holds_no_teacher_and_runs_nothing(tiny_decoder_config: Path, lantern: Lantern, tmp_path: Path) -> None:
    assert lantern("fit", "--config", tiny_decoder_config, *NO_VALIDATION).code == 0
    checkpoint = torch.load(checkpoint_of(tiny_decoder_config), weights_only=True)
    assert all(name.startswith("lm.") for name in checkpoint["state_dict"])
    layers = {name.split(".")[3] for name in checkpoint["state_dict"] if ".layers." in name}
    assert layers == {"0", "1"}  # the student's two, not the teacher's three

    canary = tmp_path / "canary"

    class Trap:
        def __reduce__(self):
            return Path.write_text, (canary, "ran")

    trapped = tmp_path / "trapped.ckpt"
    torch.save({**checkpoint, "trap": Trap()}, trapped)
    for path in (trapped, tmp_path / "plain.ckpt"):
        if path != trapped:
            path.write_bytes(pickle.dumps(Trap()))
        ran = lantern("fit", "--config", tiny_decoder_config, f"--ckpt_path={path}", *NO_VALIDATION)
        assert ran.code == 2
        assert str(path) in ran.err
    assert not canary.exists()


def test_lora_checkpoints_hold_adapters_alone_and_come_back(tiny_decoder_config: Path, lantern: Lantern) -> None:
    options = ("--model.lora.rank=4", "--trainer.max_epochs=1", "--trainer.limit_train_batches=4", *NO_VALIDATION)

    def weights(*more: str) -> dict[str, torch.Tensor]:
        ran = lantern("fit", "--config", tiny_decoder_config, *options, *more)
        assert ran.code == 0, ran.err
        return torch.load(checkpoint_of(tiny_decoder_config), weights_only=True)["state_dict"]

    adapters = weights("--trainer.max_steps=2")
    assert adapters
    assert all("lora_" in name for name in adapters)
    # Resumed with nothing left to do, the adapters that are saved again are those that were loaded.
    again = weights("--ckpt_path=last", "--trainer.max_steps=2")
    assert again.keys() == adapters.keys()
    assert all(torch.equal(again[name], adapters[name]) for name in adapters)
    assert any(float(tensor.abs().max()) > 0 for name, tensor in adapters.items() if "lora_B" in name)


def _in_a_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(rank)
    states = of_all_ranks(random_states())
    expected = torch.rand(3)
    torch.manual_seed(17)
    set_random_states(states[rank])
    assert torch.equal(torch.rand(3), expected)
    set_random_states(states[1 - rank])
    assert not torch.equal(torch.rand(3), expected)
    dist.destroy_process_group()


def test_the_random_numbers_of_every_rank_are_kept(tmp_path: Path) -> None:
    mp.spawn(_in_a_rank, (str(tmp_path),), nprocs=2)
