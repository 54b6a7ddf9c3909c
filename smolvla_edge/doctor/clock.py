"""Whether the CPU's clock is steady: governor, caps, temperature."""

from __future__ import annotations

from dataclasses import dataclass

from smolvla_edge.doctor.finding import PASS, WARN, Finding
from smolvla_edge.doctor.tree import Tree

_CPUS = "/sys/devices/system/cpu"
_CAPPED = 0.95  # of the hardware's clock; below it somebody set a limit
_HOT = 85.0  # Celsius; boards and laptops throttle between 85 and 105


@dataclass(frozen=True)
class ClockFacts:
    """Clocks in kHz, the lowest of all CPUs' limits; None where the kernel does not say."""

    governors: tuple[str, ...] = ()
    driver: str | None = None
    limit: int | None = None
    hardware: int | None = None
    temperatures: tuple[tuple[str, float], ...] = ()  # (sensor, Celsius)


def read_clock(tree: Tree) -> ClockFacts:
    folders = tree.glob(f"{_CPUS}/cpu[0-9]*/cpufreq")
    governors = {tree.text(f"{folder}/scaling_governor") for folder in folders}
    pairs = [
        (limit, hardware)
        for folder in folders
        if (limit := tree.integer(f"{folder}/scaling_max_freq"))
        and (hardware := tree.integer(f"{folder}/cpuinfo_max_freq"))
    ]
    limit, hardware = min(pairs, key=lambda pair: pair[0] / pair[1], default=(None, None))
    return ClockFacts(
        governors=tuple(sorted(name for name in governors if name)),
        driver=tree.text(f"{folders[0]}/scaling_driver") if folders else None,
        limit=limit,
        hardware=hardware,
        temperatures=tuple(_temperatures(tree)),
    )


def _temperatures(tree: Tree) -> list[tuple[str, float]]:
    found = []
    for zone in tree.glob("/sys/class/thermal/thermal_zone*"):
        value = tree.integer(f"{zone}/temp")
        if value is not None and -40_000 < value < 200_000:  # an absent sensor reads -256 or so
            found.append((tree.text(f"{zone}/type") or zone.rsplit("/", 1)[-1], value / 1000))
    return found


def check_clock(f: ClockFacts) -> Finding:
    facts = {
        "governors": list(f.governors),
        "driver": f.driver,
        "limit_khz": f.limit,
        "hardware_khz": f.hardware,
    }
    if not f.governors:
        message = "governor not readable (a virtual machine or a container): not known"
        return Finding("machine", "clock", PASS, message, facts=facts)
    speed = f", up to {f.limit / 1e6:.2f} GHz" if f.limit else ""
    message = f"governor {', '.join(f.governors)} ({f.driver or 'unknown driver'}){speed}"
    if f.limit and f.hardware and f.limit < _CAPPED * f.hardware:
        return Finding(
            "machine",
            "clock",
            WARN,
            f"{message}: capped below the hardware's {f.hardware / 1e6:.2f} GHz",
            "raise the cap: sudo cpupower frequency-set -u "
            f"{f.hardware // 1000}MHz (Jetson: sudo nvpmodel -m 0)",
            facts,
        )
    if set(f.governors) != {"performance"}:
        return Finding(
            "machine",
            "clock",
            WARN,
            f"{message}: the clock follows the load, so the first call after a pause is slower",
            "for steady times: sudo cpupower frequency-set -g performance (Jetson: sudo "
            "jetson_clocks)",
            facts,
        )
    return Finding("machine", "clock", PASS, message, facts=facts)


def check_temperature(f: ClockFacts) -> Finding:
    facts = {"celsius": dict(f.temperatures)}
    if not f.temperatures:
        return Finding("machine", "temperature", PASS, "no sensor is readable", facts=facts)
    sensor, hottest = max(f.temperatures, key=lambda pair: pair[1])
    message = f"{hottest:.0f} C at most ({sensor})"
    if hottest >= _HOT:
        return Finding(
            "machine",
            "temperature",
            WARN,
            f"{message}: near the point where clocks are cut",
            "cool it (fan, heat sink, air); times measured now are not those of a cool machine",
            facts,
        )
    return Finding("machine", "temperature", PASS, message, facts=facts)
