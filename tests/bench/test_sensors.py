"""Sensors, read from folders and modules that stand in for those of real machines."""

from __future__ import annotations

import itertools
import logging
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hfd_edge.bench.sensors import Reading, Sensors, open_sensors
from hfd_edge.bench.sources import host, tegrastats

from ..machines import make, program

ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0",
    "sys/class/hwmon/hwmon1/name": "ina3221",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_IN",
    "sys/class/hwmon/hwmon1/in1_input": "5000",
    "sys/class/hwmon/hwmon1/curr1_input": "1800",
    "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV",
    "sys/class/hwmon/hwmon1/in2_input": "5000",
    "sys/class/hwmon/hwmon1/curr2_input": "400",
    "sys/class/hwmon/hwmon1/in7_label": "sum of shunt voltages",
    "sys/class/hwmon/hwmon3/name": "soctherm_oc",
    "sys/class/hwmon/hwmon3/oc1_event_cnt": "0",
    "sys/class/hwmon/hwmon3/oc1_throt_en": "1",
    "sys/class/hwmon/hwmon3/oc2_event_cnt": "4",
    "sys/class/hwmon/hwmon3/oc2_throt_en": "0",
    "sys/class/hwmon/hwmon3/oc3_event_cnt": "7",
    "sys/class/hwmon/hwmon3/oc3_throt_en": "1",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "49468",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
    "sys/class/thermal/thermal_zone1/temp": "50125",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal",  # gives an error on the board
    "sys/class/thermal/thermal_zone8/type": "tj-thermal",
    "sys/class/thermal/thermal_zone8/temp": "51000",
    "sys/class/devfreq/15340000.vic/cur_freq": "115200000",
    "sys/class/devfreq/17000000.gpu/cur_freq": "918000000",
}


@pytest.fixture(autouse=True)
def no_programs(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PATH of its own, and none of this machine's NVML or jtop."""
    folder = tmp_path_factory.mktemp("bin")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for module in ("pynvml", "jtop"):
        monkeypatch.setitem(sys.modules, module, None)
    return folder


def test_nothing_is_no_error(tmp_path: Path) -> None:
    sensors = open_sensors(tmp_path)
    assert sensors.read() == Reading() and sensors.read().empty
    assert (sensors.power_source, sensors.throttling(), sensors.notes) == (None, None, ())
    sensors.close()
    sensors.close()


def test_this_machine_can_be_asked() -> None:
    sensors = open_sensors()
    assert isinstance(sensors.read(), Reading)
    sensors.throttling()
    sensors.close()


def test_orin(tmp_path: Path) -> None:
    sensors = open_sensors(make(tmp_path, ORIN))
    assert sensors.power_source == "ina3221 VDD_IN"  # VDD_CPU_GPU_CV hangs on it
    assert sensors.read() == Reading(power_w=pytest.approx(9.0), temperature_c=50.125, clock_mhz=918.0)
    assert sensors.notes == ()


def test_orin_that_works_on_its_cpu(tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"
    sensors = open_sensors(make(tmp_path, {**ORIN, cpu: "1510400"}), gpu=False)
    assert sensors.read() == Reading(power_w=pytest.approx(9.0), temperature_c=49.468, clock_mhz=1510.4)


def test_a_zone_that_is_off_gives_way_to_the_junction(tmp_path: Path) -> None:
    sensors = open_sensors(make(tmp_path, {**ORIN, "sys/class/thermal/thermal_zone1/temp": "-256000"}))
    assert sensors.read().temperature_c == 51.0


def test_agx_orin_adds_up_its_rails(tmp_path: Path) -> None:
    chips = "sys/bus/i2c/drivers/ina3221"
    rails = {
        "VDD_GPU_SOC": (f"{chips}/1-0040/hwmon/hwmon3", 1),
        "VDD_CPU_CV": (f"{chips}/1-0040/hwmon/hwmon3", 2),
    }
    rails |= {"VIN_SYS_5V0": (f"{chips}/1-0040/hwmon/hwmon3", 3), "NC": (f"{chips}/1-0041/hwmon/hwmon4", 1)}
    files = {"proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit"}
    for name, (chip, channel) in rails.items():
        files |= {f"{chip}/in{channel}_label": name, f"{chip}/in{channel}_input": "1000"}
        files |= {f"{chip}/curr{channel}_input": str(channel)}
    sensors = open_sensors(make(tmp_path, files))
    assert sensors.power_source == "ina3221 VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
    assert sensors.read().power_w == pytest.approx((1 + 2 + 3) / 1000)


def test_nano_with_jetpack_4(tmp_path: Path) -> None:
    chip = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    names = ("POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU")
    files = {f"{chip}/rail_name_{number}": name for number, name in enumerate(names)}
    files |= {f"{chip}/in_power{number}_input": text for number, text in enumerate(("2591", "40", "900"))}
    files |= {"sys/firmware/devicetree/base/model": "NVIDIA Jetson Nano Developer Kit"}
    files |= {"sys/class/devfreq/57000000.gpu/cur_freq": "921600000"}
    sensors = open_sensors(make(tmp_path, files))
    assert sensors.power_source == "ina3221 POM_5V_IN"
    assert sensors.read() == Reading(power_w=pytest.approx(2.591), clock_mhz=921.6)


def test_a_jetson_needs_no_nvml(tmp_path: Path) -> None:
    sensors = open_sensors(make(tmp_path, {**ORIN, "dev/nvidiactl": ""}))  # of its display driver
    assert (sensors.power_source, sensors.notes) == ("ina3221 VDD_IN", ())


def test_thor_measures_its_input(tmp_path: Path) -> None:
    files = {
        "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit",
        "sys/class/hwmon/hwmon2/name": "ina3221",
        "sys/class/hwmon/hwmon2/in1_label": "VDD_GPU",
        "sys/class/hwmon/hwmon2/in1_input": "800",
        "sys/class/hwmon/hwmon2/curr1_input": "5000",
        "sys/class/hwmon/hwmon4/name": "ina238",
        "sys/class/hwmon/hwmon4/power1_input": "23500000",
        "sys/class/devfreq/gpu-gpc-0/cur_freq": "1575000000",
        "sys/class/devfreq/gpu-nvd-0/cur_freq": "999000000",
        # The state of one driver, shown twice: 1 for as long as it throttles.
        "sys/devices/platform/gpu-throttle-alert/thermal_trip_event": "0",
        "sys/class/thermal/cooling_device3/type": "gpu-throttle-alert",
        "sys/class/thermal/cooling_device3/cur_state": "0",
    }
    sensors = open_sensors(make(tmp_path, files))
    assert sensors.power_source == "ina238 VIN"
    assert sensors.read() == Reading(power_w=pytest.approx(23.5), clock_mhz=1575.0)
    assert sensors.throttling() is None
    make(tmp_path, {"sys/devices/platform/gpu-throttle-alert/thermal_trip_event": "1"})
    make(tmp_path, {"sys/class/thermal/cooling_device3/cur_state": "1"})
    for _ in range(2):
        assert sensors.throttling() == "The kernel holds clocks down because of heat (gpu-throttle-alert)."


def test_over_current_events_count_from_the_last_call(tmp_path: Path) -> None:
    sensors = open_sensors(make(tmp_path, ORIN))
    assert sensors.throttling() is None
    make(tmp_path, {"sys/class/hwmon/hwmon3/oc3_event_cnt": "9"})
    make(tmp_path, {"sys/class/hwmon/hwmon3/oc2_event_cnt": "5"})  # which throttles nothing: it is disabled
    assert sensors.throttling() == "The Jetson throttled: its power peaked over the module's limit (OC3)."
    assert sensors.throttling() is None


def test_a_sensor_that_fails_is_said_and_not_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rapl = {f"{RAPL}:0/name": "package-0", f"{RAPL}:0/energy_uj": "1"}
    sensors = open_sensors(make(tmp_path, {**ORIN, **rapl}))
    (tmp_path / "sys/class/hwmon/hwmon1/curr1_input").unlink()
    with caplog.at_level(logging.WARNING):
        assert sensors.read() == Reading(temperature_c=50.125, clock_mhz=918.0)
    make(tmp_path, ORIN)
    assert sensors.read().power_w is None  # one gap is enough
    assert len(sensors.notes) == 1 and len(caplog.records) == 1
    assert sensors.notes[0].startswith("jetson no longer says its power (")
    assert sensors.power_source == "ina3221 VDD_IN"  # of the figures until then


RAPL = "sys/class/powercap/intel-rapl"


def test_rapl_adds_packages_and_goes_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {":0": "package-0", ":0:0": "core", ":1": "package-1", ":2": "psys"}
    files = {f"{RAPL}{zone}/name": name for zone, name in names.items()}
    files |= {f"{RAPL}{zone}/energy_uj": "900000000" for zone in names}
    files |= {f"{RAPL}{zone}/max_energy_range_uj": "1000000000" for zone in names}
    clock = itertools.count()
    monkeypatch.setattr(host.time, "monotonic", lambda: next(clock) / 10)  # a tenth of a second a reading
    monkeypatch.setattr(host.time, "sleep", lambda seconds: None)
    sensors = open_sensors(make(tmp_path, files))
    assert sensors.power_source == "rapl, 2 CPU packages"
    make(tmp_path, {f"{RAPL}:0/energy_uj": "930000000", f"{RAPL}:1/energy_uj": "10000000"})
    # 30 J and, beyond the counter's end, 110 J; readings of one package are 0.2 s apart.
    assert sensors.read().power_w == pytest.approx(700)
    make(tmp_path, {f"{RAPL}:0/energy_uj": "999000000"})
    clock = itertools.count(1000)
    assert sensors.read().power_w == 0  # of now, not of the 100 s between


def test_rapl_that_only_root_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, {f"{RAPL}:0/name": "package-0", f"{RAPL}:0/energy_uj": "1"})

    def denied(path: Path) -> float:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(host, "need_number", denied)
    sensors = open_sensors(tmp_path)
    assert sensors.read().power_w is None
    assert sensors.notes == (
        "The CPU's power is not read: only root may read its energy counter. "
        "Allow it: sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj",
    )


def test_a_desktop_cpu(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": "cpu MHz\t\t: 2000.0\n\ncpu MHz\t\t: 3000.0",
        "sys/class/hwmon/hwmon0/name": "k10temp",
        "sys/class/hwmon/hwmon0/temp1_input": "61500",
        "sys/class/thermal/thermal_zone0/type": "acpitz",  # of the mainboard
        "sys/class/thermal/thermal_zone0/temp": "20000",
        "sys/class/thermal/cooling_device0/type": "Processor",
        "sys/class/thermal/cooling_device0/cur_state": "0",
        "sys/class/thermal/cooling_device1/type": "pwm-fan",
        "sys/class/thermal/cooling_device1/cur_state": "3",
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "12",
    }
    sensors = open_sensors(make(tmp_path, files))
    assert sensors.read() == Reading(temperature_c=61.5, clock_mhz=2500.0)
    assert sensors.throttling() is None
    make(tmp_path, {"sys/class/thermal/cooling_device0/cur_state": "2"})
    make(tmp_path, {"sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "13"})
    assert sensors.throttling() == (
        "The CPU throttled: a core grew too hot. The kernel holds clocks down because of heat (Processor)."
    )
    assert sensors.throttling() == "The kernel holds clocks down because of heat (Processor)."


class NvmlError(Exception):
    value = 999


def nvml(**answers: Any) -> SimpleNamespace:
    """A pynvml that gives these answers; exceptions are raised."""

    def reply(name: str) -> Any:
        def function(*arguments: Any) -> Any:
            answer = module.answers[name]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return function

    defaults = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlDeviceGetName": "NVIDIA H100",
        "nvmlDeviceGetPowerUsage": 350_500,
        "nvmlDeviceGetTemperature": 61,
        "nvmlDeviceGetClockInfo": 1755,
        "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
        "nvmlDeviceGetEnforcedPowerLimit": 700_000,
        "nvmlDeviceGetApplicationsClock": 1980,
    }
    module = SimpleNamespace(answers={**defaults, **answers}, handles=[])
    for name in module.answers:
        setattr(module, name, reply(name))
    module.NVMLError, module.NVML_TEMPERATURE_GPU, module.NVML_CLOCK_SM = NvmlError, 0, 1
    module.NVML_ERROR_NOT_SUPPORTED, module.NVML_ERROR_FUNCTION_NOT_FOUND = 3, 13

    def handle(which: Any) -> str:
        module.handles.append(which)
        return "handle"

    module.nvmlDeviceGetHandleByIndex = module.nvmlDeviceGetHandleByUUID = handle
    return module


def raising(error: Exception) -> Any:
    def function(*arguments: Any) -> None:
        raise error

    return function


def unsupported() -> NvmlError:
    error = NvmlError("Not Supported")
    error.value = 3
    return error


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    module = nvml()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def test_nvml(tmp_path: Path, card: SimpleNamespace) -> None:
    sensors = open_sensors(tmp_path)
    assert sensors.power_source == "nvml, NVIDIA H100"
    assert sensors.read() == Reading(power_w=350.5, temperature_c=61.0, clock_mhz=1755.0)
    assert sensors.throttling() is None  # at its power limit, which is part of the record
    assert card.handles == [0]


@pytest.mark.parametrize(
    ("bits", "sentence"),
    [
        (0x48, "The GPU throttles: the hardware slows down because of its temperature."),
        (0x20, "The GPU throttles: the driver holds the clocks down because of its temperature."),
        (0x88, "The GPU throttles: the power supply asserts its power brake."),
        (0x8, "The GPU throttles: the hardware slows down."),
        (0x607, None),
    ],
)
def test_nvml_names_what_throttles(
    tmp_path: Path, card: SimpleNamespace, bits: int, sentence: str | None
) -> None:
    card.answers["nvmlDeviceGetCurrentClocksEventReasons"] = bits
    assert open_sensors(tmp_path).throttling() == sentence


def test_an_older_nvml_and_what_a_gpu_lacks(tmp_path: Path, card: SimpleNamespace) -> None:
    del card.nvmlDeviceGetCurrentClocksEventReasons
    card.nvmlDeviceGetCurrentClocksThrottleReasons = lambda handle: 0x40
    card.answers |= {"nvmlDeviceGetPowerUsage": unsupported(), "nvmlDeviceGetName": b"Tesla K80"}
    sensors = open_sensors(tmp_path)
    assert (sensors.power_source, sensors.read().clock_mhz) == (None, 1755.0)
    assert "temperature" in (sensors.throttling() or "")
    del card.nvmlDeviceGetCurrentClocksThrottleReasons
    card.nvmlDeviceGetCurrentClocksEventReasons = raising(unsupported())
    assert (sensors.throttling(), sensors.notes) == (None, ())


def test_a_gpu_that_falls_off_the_bus(tmp_path: Path, card: SimpleNamespace) -> None:
    sensors = open_sensors(tmp_path)
    lost = NvmlError("GPU is lost")
    card.answers |= dict.fromkeys(card.answers, lost)
    assert sensors.read().empty
    assert sensors.throttling() is None
    assert sensors.notes[0] == (
        "nvml no longer says its power (nvmlDeviceGetPowerUsage: GPU is lost); the figures end there."
    )
    sensors.close()


@pytest.mark.parametrize(
    ("visible", "handles"), [("2,0", [2]), ("GPU-8a3f", ["GPU-8a3f"]), ("", []), ("-1", [])]
)
def test_the_visible_gpu_is_asked(
    tmp_path: Path, card: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, visible: str, handles: list[Any]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    sensors = open_sensors(tmp_path)
    assert card.handles == handles
    assert (sensors.power_source is None) == (not handles)


def test_a_card_is_left_alone_when_the_cpu_works(tmp_path: Path, card: SimpleNamespace) -> None:
    assert open_sensors(tmp_path, gpu=False).power_source is None


def test_a_driver_without_its_package_or_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rapl = {f"{RAPL}:0/name": "package-0", f"{RAPL}:0/energy_uj": "1"}
    make(tmp_path, {"dev/nvidiactl": "", **rapl, "proc/cpuinfo": "cpu MHz\t\t: 2000.0"})
    sensors = open_sensors(tmp_path)
    assert sensors.notes == (
        "The GPU's power is not read: the package nvidia-ml-py is missing. "
        "Install it with: pip install 'hfd-edge[power]'",
    )
    assert sensors.power_source is None and sensors.read().empty, "the CPU's are not those of the GPU's work"
    assert open_sensors(tmp_path, gpu=False).power_source == "rapl, 1 CPU package"
    for path in rapl:
        (tmp_path / path).unlink()
    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlInit=NvmlError("Driver Not Loaded")))
    assert open_sensors(tmp_path).power_source is None


def jtop(power: Any, fault: Exception | None = None) -> SimpleNamespace:
    class Reader:
        def __init__(self, interval: float) -> None:
            self.power, self.closed, self.alive = power, False, True

        def start(self) -> None:
            if fault is not None:
                raise fault

        def is_alive(self) -> bool:
            return self.alive

        def close(self) -> None:
            self.closed = True

    return SimpleNamespace(jtop=Reader)


def test_jtop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jtop", jtop({"rail": {}, "tot": {"power": 4200}}))
    sensors = open_sensors(tmp_path)
    assert (sensors.power_source, sensors.read().power_w) == ("jtop", 4.2)
    sensors._sources[0]._reader.alive = False  # type: ignore[attr-defined]
    assert sensors.read().power_w is None, "its last value would be repeated for ever"
    assert sensors.notes == (
        "jtop no longer says its power (its service has gone away); the figures end there.",
    )
    sensors.close()
    monkeypatch.setitem(sys.modules, "jtop", jtop(({"cur": 1}, {})))  # of release 3
    assert open_sensors(tmp_path).power_source is None
    monkeypatch.setitem(sys.modules, "jtop", jtop({}, fault=RuntimeError("The jtop.service is not active")))
    (note,) = open_sensors(tmp_path).notes
    assert note.startswith("jtop does not answer (The jtop.service is not active). Start it: sudo systemctl")
    assert "usermod -aG jtop" in note


LINES = {
    "JetPack 4, Nano": (
        "RAM 2246/3964MB (lfb 12x4MB) SWAP 0/1982MB (cached 0MB) CPU [9%@1479,off,off,3%@1479] EMC_FREQ 0% "
        "GR3D_FREQ 0% PLL@31C CPU@34.5C PMIC@100C GPU@33C AO@40C thermal@33.75C POM_5V_IN 2591/2500 "
        "POM_5V_GPU 40/40 POM_5V_CPU 905/800",
        tegrastats.Line(2.591, ("POM_5V_IN",), 33.0, None),
    ),
    "JetPack 5, AGX Orin": (
        "04-24-2023 00:01:24 RAM 1282/62795MB (lfb 15152x4MB) SWAP 0/31398MB (cached 0MB) CPU [0%@729] "
        "EMC_FREQ 0%@2133 GR3D_FREQ 14%@[407,407] VIC_FREQ 729 APE 174 CV0@-256C CPU@42.593C GPU@-256C "
        "tj@42.6C VDD_GPU_SOC 2400mW/2399mW VDD_CPU_CV 400mW/400mW VIN_SYS_5V0 4032mW/4032mW NC 0mW/0mW",
        tegrastats.Line(pytest.approx(6.832), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), 42.6, 407.0),
    ),
    "JetPack 6, Orin Nano": (
        "11-15-2024 08:38:09 RAM 6185/7620MB (lfb 8x2MB) SWAP 851/3810MB (cached 1MB) CPU [15%@729,11%@729] "
        "EMC_FREQ 43%@2133 GR3D_FREQ 63%@[621] NVDEC off VIC off OFA off APE 200 cpu@53.968C soc2@52.437C "
        "gpu@53.343C tj@53.968C VDD_IN 12479mW/12479mW VDD_CPU_GPU_CV 4667mW/4667mW VDD_SOC 2817mW/2817mW",
        tegrastats.Line(12.479, ("VDD_IN",), 53.343, 621.0),
    ),
    "without means": (
        "GR3D_FREQ 76%@1300 VDD_IN 5765mW VDD_SOC 1497mW",
        tegrastats.Line(5.765, ("VDD_IN",), None, 1300.0),
    ),
    "garbage": ("\x00\ufffd RAM VDD_IN mW 12/", tegrastats.Line(None, (), None, None)),
}


@pytest.mark.parametrize("name", LINES)
def test_lines_of_tegrastats(name: str) -> None:
    text, line = LINES[name]
    assert tegrastats.parse(text) == line


def test_tegrastats_is_the_last_resort(tmp_path: Path, no_programs: Path) -> None:
    line = LINES["JetPack 6, Orin Nano"][0]
    program(no_programs, "tegrastats", f"echo started; while :; do echo '{line}'; /bin/sleep 0.05; done")
    sensors = open_sensors(tmp_path)
    assert sensors.power_source == "tegrastats VDD_IN"
    assert sensors.read() == Reading(power_w=12.479, temperature_c=53.343, clock_mhz=621.0)
    process = sensors._sources[0]._process  # type: ignore[attr-defined]
    sensors.close()
    assert process.poll() is not None
    program(no_programs, "tegrastats", f": > {tmp_path}/asked")
    assert open_sensors(make(tmp_path, ORIN)).power_source == "ina3221 VDD_IN"
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize(
    "script", ["exec /bin/sleep 60", "exit 1", "echo \\\\0377\\\\0376 RAM; exec /bin/sleep 60"]
)
def test_a_tegrastats_without_power(
    tmp_path: Path, no_programs: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(tegrastats, "_FIRST_LINE_S", 0.3)
    program(no_programs, "tegrastats", script)
    sensors = open_sensors(tmp_path)
    assert sensors.power_source is None
    assert sensors.notes == ("tegrastats named no power within 0.3 s. See what it says: sudo tegrastats",)


def test_a_tegrastats_that_falls_silent(
    tmp_path: Path, no_programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tegrastats, "_STALE_S", 0.1)
    program(no_programs, "tegrastats", "echo 'VDD_IN 5765mW'; exec /bin/sleep 60")
    sensors = open_sensors(tmp_path)
    assert sensors.power_source == "tegrastats VDD_IN"
    time.sleep(0.2)
    assert sensors.read().power_w is None
    assert "tegrastats no longer says its power (tegrastats has been silent" in sensors.notes[0]
    sensors.close()


def test_the_first_source_of_a_value_wins() -> None:
    from hfd_edge.bench.sources.base import Source

    class Fixed(Source):
        def __init__(self, name: str, power: float | None, clock: float | None) -> None:
            self.name, self._power, self._clock = name, power, clock

        def power_w(self) -> float | None:
            return self._power

        def clock_mhz(self) -> float | None:
            return self._clock

    sensors = Sensors()
    sensors.add(lambda: Fixed("first", None, 100.0))
    sensors.add(lambda: Fixed("second", 5.0, 200.0))
    assert sensors.read() == Reading(power_w=5.0, clock_mhz=100.0)
    assert sensors.power_source == "second"
