"""The ACPI tables of a PVH domain, as Xen's libxl builds them.

Source: ACPI specification 6.4, chapters 5 and 20; addresses and values from Xen 4.17 (tools/libacpi).
"""

import struct

from vmm.boot import aml

ACPI_BASE = 0xFC00_0000
ACPI_BYTES = 0x9000
ACPI_USED_BYTES = 0x8040
RSDP_ADDRESS = ACPI_BASE + 0x8000
_FACS_ADDRESS = ACPI_BASE + 0x1000
_DSDT_ADDRESS = _FACS_ADDRESS + 64
_TABLES_END = 0x8000

PM1A_EVENT_PORT = 0xB000
PM1A_CONTROL_PORT = 0xB004
GPE0_PORT = 0xAFE0
RESET_PORT = 0xCF9
_P_BLK = 0xB044
RESET_VALUE = 6
SCI = 9
S5_SLEEP_TYPE = 0

LAPIC_ADDRESS = 0xFEE0_0000
IOAPIC_ADDRESS, IOAPIC_BYTES, IOAPIC_LINES = 0xFEC0_0000, 0x400, 24
ECAM_BASE, ECAM_BUSES = 0xB000_0000, 256
ECAM_BYTES = ECAM_BUSES << 20
PCI_WINDOW = (0xF000_0000, ACPI_BASE)
_CENTURY = 0x32

_OEM_ID, _OEM_TABLE, _CREATOR = b"Xen", b"HVM", b"HVML"
_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_RSDP = struct.Struct("<8sB6sBIIQB3x")
_FACS = struct.Struct("<4sIIIIIQB31x")
_LEGACY_DEVICES, _HAS_8042, _NO_VGA, _NO_CMOS_RTC = 1 << 0, 1 << 1, 1 << 2, 1 << 5
_FLAGS, _NO_FIXED_BUTTON = 0x8165, 1 << 4  # WBINVD, PROC_C1, SLP_BUTTON, FIX_RTC, TMR_VAL_EXT, PLATFORM_CLOCK
_FADT_TABLE = (
    # field, format, value: in the order of the specification (table 5.9); as Xen gives it to a PVH domU
    ("FIRMWARE_CTRL", "I", _FACS_ADDRESS),
    ("DSDT", "I", _DSDT_ADDRESS),
    ("reserved, preferred profile", "H", 0),
    ("SCI_INT", "H", SCI),
    ("SMI_CMD", "I", 0),
    ("ACPI_ENABLE to PSTATE_CNT", "I", 0),
    ("PM1a_EVT_BLK", "I", PM1A_EVENT_PORT),
    ("PM1b_EVT_BLK", "I", 0),
    ("PM1a_CNT_BLK", "I", PM1A_CONTROL_PORT),
    ("PM1b_CNT_BLK", "I", 0),
    ("PM2_CNT_BLK", "I", 0),
    ("PM_TMR_BLK", "I", 0),
    ("GPE0_BLK", "I", GPE0_PORT),
    ("GPE1_BLK", "I", 0),
    ("PM1_EVT_LEN", "B", 4),
    ("PM1_CNT_LEN", "B", 2),
    ("PM2_CNT_LEN", "B", 0),
    ("PM_TMR_LEN", "B", 0),
    ("GPE0_BLK_LEN", "B", 4),
    ("GPE1_BLK_LEN", "B", 0),
    ("GPE1_BASE", "B", 0),
    ("CST_CNT", "B", 0),
    ("P_LVL2_LAT", "H", 0xFFF),
    ("P_LVL3_LAT", "H", 0xFFF),
    ("FLUSH_SIZE, FLUSH_STRIDE", "I", 0),
    ("DUTY_OFFSET to MON_ALRM", "4s", bytes(4)),
    ("CENTURY", "B", 0),
    ("IAPC_BOOT_ARCH", "H", _NO_VGA | _NO_CMOS_RTC),
    ("reserved", "B", 0),
    ("Flags", "I", _FLAGS | _NO_FIXED_BUTTON),
    ("RESET_REG", "12s", struct.pack("<BBBBQ", 1, 8, 0, 0, RESET_PORT)),
    ("RESET_VALUE", "B", RESET_VALUE),
    ("ARM_BOOT_ARCH, minor version", "3s", bytes(3)),
    ("X_FIRMWARE_CTRL", "Q", _FACS_ADDRESS),
    ("X_DSDT", "Q", _DSDT_ADDRESS),
    ("X_PM1a_EVT_BLK", "12s", struct.pack("<BBBBQ", 1, 32, 0, 0, PM1A_EVENT_PORT)),
    ("X_PM1b_EVT_BLK", "12s", bytes(12)),
    ("X_PM1a_CNT_BLK", "12s", struct.pack("<BBBBQ", 1, 16, 0, 0, PM1A_CONTROL_PORT)),
    ("X_PM1b_CNT_BLK to HYPERVISOR_ID", "84s", bytes(84)),
)


_FADT_OF_A_PC = {
    "CENTURY": _CENTURY,
    "IAPC_BOOT_ARCH": _LEGACY_DEVICES | _HAS_8042 | _NO_VGA,
    "Flags": _FLAGS,
}
"""What differs where there are a clock, a PS/2 controller and a power button."""


def _checksum(data: bytes | bytearray) -> int:
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes, *, creator: tuple[bytes, int] = (_CREATOR, 0)) -> bytes:
    length = _HEADER.size + len(body)
    head = _HEADER.pack(signature, length, revision, 0, _OEM_ID, _OEM_TABLE, 0, *creator)
    table = bytearray(head + body)
    table[9] = _checksum(table)
    return bytes(table)


def apic_id(vcpu: int) -> int:
    """The LAPIC id of a vCPU: Xen leaves every second one out."""
    return 2 * vcpu


def _fadt(*, pc: bool) -> bytes:
    values = [_FADT_OF_A_PC.get(field, value) if pc else value for field, _, value in _FADT_TABLE]
    body = struct.pack("<" + "".join(code for _, code, _ in _FADT_TABLE), *values)
    return _table(b"FACP", 5, body)


def _madt(vcpus: int, *, pc: bool) -> bytes:
    has_8259 = 0 if pc else 1  # no domain has one; Xen says so to dom0 alone, which would wait for its timer
    body = struct.pack("<II", LAPIC_ADDRESS, has_8259)
    for vcpu in range(vcpus):
        body += _local_apic(vcpu)
    if pc:
        body += struct.pack("<BBBBII", 1, 12, 0, 0, IOAPIC_ADDRESS, 0)
        level_and_high = 0b1101
        body += struct.pack("<BBBBIH", 2, 10, 0, SCI, SCI, level_and_high)  # where the bus's interrupt 9 leads
    return _table(b"APIC", 2, body)


def _local_apic(vcpu: int) -> bytes:
    # An entry of the MADT: the processor's UID, its LAPIC's id, "enabled".
    return struct.pack("<BBBBI", 0, 8, vcpu, apic_id(vcpu), 1)


def _processor(vcpu: int) -> bytes:
    """Processor (Pnnn, UID, P_BLK, 6) { Name (_STA, 0xF)  Name (_MAT, its entry in the MADT) }"""
    present = aml.name(b"_STA", aml.byte(0xF))
    return aml.processor(f"P{vcpu:03}".encode(), vcpu, _P_BLK, present, aml.name(b"_MAT", aml.buffer(_local_apic(vcpu))))


def _pci_root() -> bytes:
    """The host bridge: all buses, the I/O ports that are not the configuration's own, and the window for BARs."""
    windows = aml.resources(
        aml.bus_numbers(0, ECAM_BUSES - 1),
        aml.io_ports(0xCF8, 8),
        aml.io_window(0x0000, 0x0CF7),
        aml.io_window(0x0D00, 0xFFFF),
        aml.memory_window(PCI_WINDOW[0], PCI_WINDOW[1] - 1),
    )
    return aml.device(
        b"PCI0",
        aml.name(b"_HID", aml.eisa_id("PNP0A08")),
        aml.name(b"_CID", aml.eisa_id("PNP0A03")),
        aml.name(b"_UID", aml.byte(0)),
        aml.name(b"_CRS", windows),
    )


def _legacy_devices() -> list[bytes]:
    """What is not found by looking: the clock, the keyboard and mouse, and the space of the PCI configuration."""
    return [
        aml.device(path, aml.name(b"_HID", aml.eisa_id(device)), aml.name(b"_CRS", aml.resources(*used)))
        for path, device, used in (
            (b"RTC_", "PNP0B00", [aml.io_ports(0x70, 2), aml.interrupt(8)]),
            (b"KBD_", "PNP0303", [aml.io_ports(0x60, 1), aml.io_ports(0x64, 1), aml.interrupt(1)]),
            (b"MOU_", "PNP0F13", [aml.interrupt(12)]),
            (b"ECAM", "PNP0C02", [aml.fixed_memory(ECAM_BASE, ECAM_BYTES)]),
        )
    ]


def _dsdt(vcpus: int, *, pc: bool) -> bytes:
    # Name (\_S5, Package (4) {0, 0, 0, 0}): what Linux writes to PM1a_CNT to power off.
    sleep_state = aml.name(b"\\_S5_", aml.package(*(bytes([value]) for value in (S5_SLEEP_TYPE, 0, 0, 0))))
    devices = [*map(_processor, range(vcpus)), *([_pci_root(), *_legacy_devices()] if pc else [])]
    return _table(b"DSDT", 5, sleep_state + aml.scope(b"\\_SB_", *devices))


def _mcfg() -> bytes:
    return _table(b"MCFG", 1, struct.pack("<8xQHBB4x", ECAM_BASE, 0, 0, ECAM_BUSES - 1))


def build(vcpus: int, *, pc: bool = False) -> bytes:
    """The tables' memory, to be placed at ACPI_BASE; the RSDP is at RSDP_ADDRESS.

    `pc`: the machine has an IOAPIC, PCI, a clock and a PS/2 controller.
    """
    memory = bytearray(ACPI_BYTES)
    facs = _FACS.pack(b"FACS", 64, 0, 0, 0, 0, 0, 1)
    position = _FACS_ADDRESS - ACPI_BASE

    def put(table: bytes) -> int:
        nonlocal position
        address = ACPI_BASE + position
        memory[position : position + len(table)] = table
        position += len(table) + -len(table) % 16
        return address

    put(facs)
    put(_dsdt(vcpus, pc=pc))
    listed = [put(_fadt(pc=pc)), put(_madt(vcpus, pc=pc)), *([put(_mcfg())] if pc else [])]
    xsdt = put(_table(b"XSDT", 1, struct.pack(f"<{len(listed)}Q", *listed)))
    assert position <= _TABLES_END
    rsdp = bytearray(_RSDP.pack(b"RSD PTR ", 0, _OEM_ID, 2, 0, _RSDP.size, xsdt, 0))
    rsdp[8] = _checksum(rsdp[:20])
    rsdp[32] = _checksum(rsdp)
    start = RSDP_ADDRESS - ACPI_BASE
    memory[start : start + len(rsdp)] = rsdp
    return bytes(memory)
