"""Files of Stable-Baselines3 without Stable-Baselines3: what is refused, and in which words (tests/extras reads real ones)."""

import sys
import zipfile

import pytest

from varlab import envs, storage
from varlab.checks import InputError
from varlab.policies import stable_baselines


@pytest.fixture
def path(tmp_path):
    """A zip file that nobody may open unasked."""
    with zipfile.ZipFile(tmp_path / "agent.zip", "w") as file:
        file.writestr("data", "{}")
    return tmp_path / "agent.zip"


@pytest.mark.parametrize("trust", [False, None, 1, "true"])
def test_pickled_code_is_not_read_unless_somebody_vouches_for_it(path, trust, monkeypatch):
    monkeypatch.setattr(zipfile, "ZipFile", None)  # opening it would fail
    with pytest.raises(
        InputError, match=r"hold pickled code that runs when they are read, but trust=.*; set theta.trust=true"
    ) as e:
        storage.read_agent(path, trust)
    assert "\n" not in str(e.value)


def test_a_missing_extra_names_its_command(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    monkeypatch.setitem(sys.modules, "stable_baselines3.common", None)
    with pytest.raises(InputError, match=r"pip install 'stable-baselines3>=2.9' -c constraints.txt$") as e:
        stable_baselines.load(path, envs.make("CartPole-v1"), trust=True)
    assert "\n" not in str(e.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="A file of a Stable-Baselines3 agent was expected at .*none.zip, but there is none"):
        stable_baselines.load(tmp_path / "none.zip", envs.make("CartPole-v1"), trust=True)
