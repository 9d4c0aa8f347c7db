"""Joules and grams of CO₂ of a request, by codecarbon. Without counters in the processor they are estimates."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from potstill.errors import PotstillError, first_line

SECONDS_OF_A_TURN, TURNS = 5.0, 3
JOULES_PER_KWH = 3.6e6

_HOW = {
    "intel_rapl": "by the processor's own counters (RAPL)",
    "intel_power_gadget": "by Intel's power gadget",
    "apple_powermetrics": "by powermetrics",
    "cpu_load": "estimated from the cores' load and the power that codecarbon lists for the processor ({watts} W), not "
    "measured",
    "constant": "estimated from a constant power ({watts} W), not measured",
}


@dataclass(frozen=True)
class Energy:
    """The energy of a request. It is measured for the whole machine, so other work on the machine is included.

    Attributes:
        joules: of processor and memory.
        processor_joules: of the processor.
        grams_co2: for these joules, from the country's mix of electricity.
        requests: number of requests that the figures are means of.
    """

    joules: float
    processor_joules: float
    grams_co2: float
    requests: int


def check_energy(country: str | None) -> None:
    """Check that energy can be measured.

    Raises:
        PotstillError: codecarbon is not installed, or does not know the country.
    """
    if importlib.util.find_spec("codecarbon") is None:
        raise PotstillError("--energy needs codecarbon: pip install 'potstill[energy]'.")
    _quiet()
    from codecarbon.input import DataSource

    if country is not None and country.upper() not in DataSource().get_global_energy_mix_data():
        raise PotstillError(f"codecarbon knows no electricity of --country {country!r}: give three letters, as in FRA.")


class EnergyMeter:
    """Codecarbon in its offline mode. It sends nothing and writes no file.

    Args:
        country: three letters; the world's mean if None.

    Raises:
        PotstillError: codecarbon does not work here.
    """

    def __init__(self, country: str | None) -> None:
        _quiet()
        from codecarbon import OfflineEmissionsTracker
        from codecarbon.input import DataSource

        self._world: float | None = None
        if country is None:
            self._world = float(DataSource().get_carbon_intensity_per_source_data()["world_average"])
        self.electricity = country.upper() if country else f"the world's mean, {self._world:g} g/kWh"
        try:
            self._tracker: Any = OfflineEmissionsTracker(
                country_iso_code=country.upper() if country else "USA",  # replaced below by the world's mean
                measure_power_secs=1,
                save_to_file=False,
                log_level="critical",
                allow_multiple_runs=True,
                tracking_mode="machine",
            )
        except Exception as error:  # of many types, depending on the machine
            raise PotstillError(f"codecarbon does not work here ({first_line(error)}): leave --energy out.") from error
        self._count = 0

    @property
    def how(self) -> str:
        """How the energy was measured, and the country of the electricity. Call it after a measurement."""
        modes = [part for part in getattr(self._tracker, "_hardware", []) if hasattr(part, "_mode")]
        if not modes:
            return f"codecarbon does not say how it was measured; electricity of {self.electricity}"
        method = _HOW.get(modes[0]._mode, str(modes[0]._mode)).format(watts=getattr(modes[0], "_tdp", "unknown"))
        return f"{method}; memory's is estimated from its size; electricity of {self.electricity}"

    def measure(self, run: Callable[[], int]) -> Energy:
        """Return the energy of a request.

        Args:
            run: runs requests, and returns how many it ran.
        """
        self._count += 1
        self._tracker.start_task(str(self._count))
        requests = run()
        found = self._tracker.stop_task(str(self._count))
        grams = 1000 * found.emissions if self._world is None else self._world * found.energy_consumed
        return Energy(
            JOULES_PER_KWH * found.energy_consumed / requests,
            JOULES_PER_KWH * found.cpu_energy / requests,
            grams / requests,
            requests,
        )

    def close(self) -> None:
        """End codecarbon's threads."""
        self._tracker.stop()


def mean(parts: list[Energy]) -> Energy:
    """Return the mean over all requests of several measurements."""
    total = sum(part.requests for part in parts)

    def of(value: Callable[[Energy], float]) -> float:
        return sum(value(part) * part.requests for part in parts) / total

    return Energy(of(lambda e: e.joules), of(lambda e: e.processor_joules), of(lambda e: e.grams_co2), total)


def _quiet() -> None:
    """Print no log of codecarbon on the terminal. It writes some of it before it reads its own option."""
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
