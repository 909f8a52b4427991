"""The 88m preset, trained for two steps: no part of the suite for the minutes it takes, see MUON_LARGE."""

import json
import subprocess
import sys

import pytest

from muon_core.config.memory import memory
from muon_core.config.presets import PRESETS
from muon_core.config.run import RunConfig

# As published but for the sequence. A CPU multiplies bf16 one by one, for which Newton-Schulz is in fp32.
CONFIG = PRESETS["88m"] | {
    "data": {"seq_len": 512, "validation_tokens": 512},
    "optimizer": {"name": "muon", "ns_dtype": "fp32", "lr": 0.024, "embedding_lr": 0.0005, "clipping": "adamw_only"},
    "steps": 2,
    "micro_batches": 8,
    "tracking": {"eval_every": 2, "track_every": 2},
    "checkpoint": {"model": False},
}
TRAIN = """
import json, sys, torch
from muon_core.config.run import RunConfig
from muon_core.environment import peak_memory_bytes
from muon_core.train import train

losses = []
config = RunConfig.model_validate_json(sys.argv[1])
outcome = train(config, None, report=lambda progress: losses.append([progress.step, progress.train_loss]) or True)
peak = peak_memory_bytes(torch.device("cpu"))
print(json.dumps({"status": outcome.status, "final": outcome.final.val_loss, "losses": losses, "peak": peak}))
"""


@pytest.mark.large
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_steps_of_the_88m_preset_take_less_than_6_gb() -> None:
    config = RunConfig.model_validate(CONFIG)
    command = [sys.executable, "-c", TRAIN, config.model_dump_json()]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    print(f"peak {found['peak'] / 1e9:.2f} GB, estimated {memory(config).peak / 1e9:.2f} GB; losses {found['losses']}")
    assert (found["status"], found["losses"][-1][0]) == ("done", 2)
    assert found["losses"][-2][1] == pytest.approx(10.8, abs=0.2)  # of guessing: ln 49,152
    assert found["losses"][-1][1] < found["losses"][-2][1]
    assert found["final"] < 10.7
    assert memory(config).peak <= found["peak"] <= 6e9
