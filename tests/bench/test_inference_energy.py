"""Joules and grams come from codecarbon, here one that says what a test wants, and a real one where it is installed."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
from inference_samples import Local, called

from potstill.bench.inference import measure
from potstill.bench.inference.energy import Energy, EnergyMeter, check_energy, mean
from potstill.cli import main
from potstill.errors import PotstillError


class Tracker:
    """Takes the place of codecarbon's: each task takes 2 Wh, half of it the processor's, at 50 g/kWh."""

    options: ClassVar[dict[str, Any]] = {}
    stopped = False

    def __init__(self, **options: Any) -> None:
        Tracker.options = options
        self._hardware = [SimpleNamespace(_mode="cpu_load", _tdp=8), SimpleNamespace()]

    def start_task(self, name: str) -> None:
        self.task = name

    def stop_task(self, name: str) -> SimpleNamespace:
        assert name == self.task
        return SimpleNamespace(energy_consumed=0.002, cpu_energy=0.001, emissions=0.0001)

    def stop(self) -> None:
        Tracker.stopped = True


class Data:
    def get_global_energy_mix_data(self) -> dict[str, Any]:
        return {"FRA": {}}

    def get_carbon_intensity_per_source_data(self) -> dict[str, float]:
        return {"world_average": 475.0}


@pytest.fixture
def codecarbon(monkeypatch: pytest.MonkeyPatch) -> None:
    package, inner = ModuleType("codecarbon"), ModuleType("codecarbon.input")
    package.OfflineEmissionsTracker, inner.DataSource = Tracker, Data  # type: ignore[attr-defined]
    package.__spec__ = importlib.util.spec_from_loader("codecarbon", None)
    monkeypatch.setitem(sys.modules, "codecarbon", package)
    monkeypatch.setitem(sys.modules, "codecarbon.input", inner)


@pytest.mark.usefixtures("codecarbon")
def test_a_request_takes_its_share() -> None:
    meter = EnergyMeter("fra")
    assert Tracker.options["country_iso_code"] == "FRA"
    assert not Tracker.options["save_to_file"]
    assert meter.measure(lambda: 100) == Energy(72.0, 36.0, 0.001, 100)
    assert "estimated from the cores' load" in meter.how
    assert "(8 W), not measured" in meter.how
    assert meter.how.endswith("electricity of FRA")
    world = EnergyMeter(None)
    assert world.measure(lambda: 100).grams_co2 == pytest.approx(475 * 0.002 / 100)
    assert "the world's mean, 475 g/kWh" in world.how


def test_the_mean_is_over_requests() -> None:
    assert mean([Energy(1, 0.5, 0.1, 10), Energy(4, 2, 0.4, 30)]) == Energy(
        pytest.approx(3.25), pytest.approx(1.625), pytest.approx(0.325), 40
    )


@pytest.mark.usefixtures("codecarbon")
def test_a_country_that_is_none() -> None:
    check_energy("FRA")
    with pytest.raises(PotstillError, match="knows no electricity of --country 'FRANCE'"):
        check_energy("FRANCE")


@pytest.mark.usefixtures("codecarbon", "signals_restored")
def test_energy_is_measured_in_turns(
    local: type[Local],
    make_classifier: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(measure, "SECONDS_OF_A_TURN", 0.01)
    models = [f"{name}={make_classifier()}" for name in "ab"]
    options = ["--max_requests", "5", "--batch_size", "1", "--compiled", "false", "--energy"]
    assert main(["bench", "inference", "--models", *models, *options]) == 0
    assert [form[0] for form, _ in called(local.calls, "run_for")] == ["a", "b"] * 3
    printed = capsys.readouterr().out
    assert "Energy of a request" in printed
    assert "mg CO₂" in printed
    assert Tracker.stopped


def test_codecarbon_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("codecarbon")
    check_energy("FRA")
    meter = EnergyMeter("FRA")
    found = meter.measure(lambda: sum(range(20_000_000)) and 1)
    meter.close()
    assert found.joules >= found.processor_joules >= 0
    assert found.joules > 0
    assert 0 < found.grams_co2 < found.joules / 3.6e6 * 1000
    assert "electricity of FRA" in meter.how
