"""`lantern fit` in several processes: started in each of the ways there are, stopped, gone on with, and read back."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import REPOSITORY, Ran

SCALE = REPOSITORY / "configs" / "scale"
Lantern = Callable[..., Ran]
# A schedule that doesn't depend on where the run ends.
STEADY = ["--model.optimization.schedule=constant", "--model.optimization.warmup=0", "--model.generate_pairs=2"]
FSDP2 = ["--trainer.strategy=fsdp2", "--trainer.devices=2"]
ALONE = ["--trainer.strategy=auto", "--trainer.devices=1", "--data.batch_size=4"]


def start(*command: object, **variables: str) -> str:
    """Run a command in processes of its own, as a user does; returns what it prints."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        # lantern and torchrun of this environment, also where it isn't activated.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **variables,
    }
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env=environment, cwd=REPOSITORY, timeout=400
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def fit(config: Path, *options: object) -> str:
    return start("lantern", "fit", "--config", config, *STEADY, *options)


def student(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student" / "model.safetensors")


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.allclose(found[name], expected[name], rtol=1e-5, atol=1e-6) for name in expected
    )


def test_a_sharded_run_is_one_like_any_other(tiny_decoder_config: Path, lantern: Lantern) -> None:
    """Its student is that of one process; it's exported; and it's gone on with, sharded or not."""
    from transformers import AutoModelForCausalLM

    whole, parts, alone, later = (tiny_decoder_config.parent / name for name in ("whole", "parts", "alone", "later"))
    said = start("bash", SCALE / "torchrun.sh", "--config", tiny_decoder_config, *STEADY, "--trainer.strategy=fsdp2",
                 "--trainer.max_steps=3", f"--run_dir={whole}")  # fmt: skip
    assert "Validation after 3 steps" in said
    assert "sync_dist" not in said
    ran = lantern("fit", "--config", tiny_decoder_config, *STEADY, *ALONE, "--trainer.max_steps=3", f"--run_dir={alone}")
    assert ran.code == 0, ran.err
    assert close(student(whole), student(alone))
    assert AutoModelForCausalLM.from_pretrained(whole / "student").config.num_hidden_layers == 2
    exported = tiny_decoder_config.parent / "exported"
    ran = lantern("export", whole, "--out", exported)
    assert ran.code == 0, ran.err
    assert same(load_file(exported / "model.safetensors"), student(whole))

    fit(tiny_decoder_config, *FSDP2, "--trainer.max_steps=2", f"--run_dir={parts}")
    checkpoint = parts / "checkpoints" / "last.ckpt"
    go_on = ["--config", tiny_decoder_config, *STEADY, *ALONE, f"--ckpt_path={checkpoint}", "--trainer.max_steps=3"]
    ran = lantern("fit", *go_on, f"--run_dir={later}")
    assert ran.code == 0, ran.err
    assert close(student(later), student(alone))
    fit(tiny_decoder_config, *FSDP2, "--trainer.max_steps=3", f"--run_dir={parts}", "--ckpt_path=last")
    assert same(student(parts), student(whole))


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_sharded(tiny_encoder_config: Path, lantern: Lantern) -> None:
    runs = [tiny_encoder_config.parent / name for name in ("alone", "sharded")]
    steady = STEADY[:2]
    for run in runs:
        command = ["fit", "--config", tiny_encoder_config, *steady, *ALONE, f"--run_dir={run}"]
        assert lantern(*command, "--trainer.max_steps=2").code == 0
    assert lantern("fit", "--config", tiny_encoder_config, *steady, *ALONE, f"--run_dir={runs[0]}", "--trainer.max_steps=4",
                   "--ckpt_path=last").code == 0  # fmt: skip
    start("lantern", "fit", "--config", tiny_encoder_config, *steady, *FSDP2, f"--run_dir={runs[1]}",
          "--trainer.max_steps=4", "--data.batch_size=2", "--ckpt_path=last")  # fmt: skip
    found, expected = (student(run) for run in runs)
    # Adam makes much of gradients that are nothing but rounding.
    assert close(*({k: v for k, v in weights.items() if ".key.bias" not in k} for weights in (found, expected)))


@pytest.mark.slow
def test_adapters_with_dropout_go_on_bit_by_bit(tiny_decoder_config: Path, lantern: Lantern) -> None:
    whole, parts = (tiny_decoder_config.parent / name for name in ("whole", "parts"))
    lora = [*FSDP2, "--model.lora.rank=4", "--model.lora.dropout=0.2"]
    fit(tiny_decoder_config, *lora, "--trainer.max_steps=4", f"--run_dir={whole}")
    fit(tiny_decoder_config, *lora, "--trainer.max_steps=2", f"--run_dir={parts}")
    saved = torch.load(parts / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert saved
    assert all("lora_" in name for name in saved)
    fit(tiny_decoder_config, *lora, "--trainer.max_steps=4", f"--run_dir={parts}", "--ckpt_path=last")
    assert same(student(parts), student(whole))
    adapters = [load_file(run / "student" / "adapter" / "adapter_model.safetensors") for run in (parts, whole)]
    assert same(*adapters)
    assert any(float(value.abs().max()) > 0 for name, value in adapters[0].items() if "lora_B" in name)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_terminated_run_goes_on(tiny_decoder_config: Path, strategy: str) -> None:
    whole, parts = (tiny_decoder_config.parent / name for name in ("whole", "parts"))
    options = [f"--trainer.strategy={strategy}", "--trainer.devices=2", "--trainer.max_steps=12"]
    fit(tiny_decoder_config, *options, f"--run_dir={whole}")
    lantern = Path(sys.executable).with_name("lantern")
    process = subprocess.Popen(
        [lantern, "fit", "--config", tiny_decoder_config, *STEADY, *options, f"--run_dir={parts}",
         "--checkpoint_minutes=0.0001"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while process.poll() is None and not list(parts.glob("checkpoints/*.ckpt")):
        time.sleep(0.05)
    process.terminate()
    assert process.wait(300) == 143
    assert torch.load(parts / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] < 12
    fit(tiny_decoder_config, *options, f"--run_dir={parts}", "--ckpt_path=last")
    assert same(student(parts), student(whole))


@pytest.mark.slow
def test_the_slurm_script_runs_a_task_a_process_and_goes_on(tiny_encoder_config: Path, tmp_path: Path) -> None:
    """With an `srun` that starts two tasks on this machine, and the variables that SLURM sets."""
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(
        "#!/usr/bin/env bash\n"
        'SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & first=$!\n'
        'SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & second=$!\n'
        "wait $first && wait $second\n"
    )
    srun.chmod(0o755)
    slurm = {
        **{"SLURM_JOB_ID": "4321", "SLURM_JOB_NAME": "lantern", "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0"},
        **{"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "MASTER_ADDR": "localhost"},
        "PATH": f"{srun.parent}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    run = tmp_path / "run"
    options = [run, "--config", tiny_encoder_config, "--trainer.strategy=fsdp2"]
    said = start("bash", SCALE / "slurm.sh", *options, **slurm)
    assert "Starting with 2 processes" in said
    start("bash", SCALE / "slurm.sh", *options, "--trainer.max_steps=3", **slurm)
    assert '"steps": 3' in (run / "student" / "manifest.json").read_text()


@pytest.mark.slow
def test_the_config_runs_as_its_head_says(tmp_path: Path, small_lm: str) -> None:
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    lines = (SCALE / "fsdp2.yaml").read_text().splitlines()
    sample, fit_ = (line.strip("# ").split() for line in lines if line.startswith("#   lantern "))
    out = tmp_path / "data"
    start(*sample[:-1], out)
    few = ["limit_train_batches=1", "limit_val_batches=1", "num_sanity_val_steps=0", "max_epochs=1", "accelerator=cpu"]
    start(*fit_[:-1], REPOSITORY / fit_[-1], *(f"--trainer.{option}" for option in few), f"--run_dir={tmp_path}/run",
          f"--data.path={out}/pairs.jsonl", f"--model.model={small_lm}", "--model.layers.keep=2", "--model.generate_pairs=1",
          f"--model.teacher.init_args.model={small_lm}", "--model.max_new_tokens=4", "--data.batch_size=1")  # fmt: skip
    assert (tmp_path / "run" / "student" / "model.safetensors").exists()
